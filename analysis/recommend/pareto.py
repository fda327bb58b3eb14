"""Time against compute: which N, D and batch reach one loss, none of them beaten in both.

From a loss law L(N, D) and a critical-batch law B_crit(D_min) (Power Lines, arXiv 2505.13738; its exact formula recalled):

    the iso-loss contour     D_min(N):  L(N, D_min) = L*
    a larger batch B costs   D = D_min (1 + B / B_crit),   C = 6 N D,   steps = D / B

so that compute falls and steps rise as B falls. The loss law's D is taken as D_min: right as far as its runs had batches
well below B_crit. What a step takes is ours. The paper has the cost of a step proportional to N whatever the batch, as
many devices as it takes (no `devices` here). On real machines each of P devices that computes F FLOPs per second takes
whole micro-batches of `device_batch` tokens, so with at most `devices`

    seconds per step = 6 N device_batch ceil(B / (devices * device_batch)) / F,

so a smaller batch than devices * device_batch leaves devices idle, and trades time for compute. Beyond that a larger
batch buys no time. F is `device_flops`, or 6 N_ref * tokens_per_second of a device at N_ref parameters (the target's
unless `reference_params` says another). Communication and pipeline are not in it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.recommend.critical_law import critical_tokens
from analysis.recommend.loss_law import LossLaw

GRID, BATCH_GRID = 240, 480  # of N and of B
BEHIND = 0.005  # shares that the grid cannot tell from none
SMALLEST, LARGEST = 1 / 60, 6.0  # N on the grid, against the cheapest
BATCHES = 8.0  # largest B against its own B_crit
DEAR = 10.0  # most compute on the grid, against the least
SHOWN = 10


@dataclass(frozen=True)
class Machine:
    """devices: at most so many, None: as many as it takes. rate: FLOP per second of one; None: time counts in the time
    that one device takes for one micro-batch at N_ref. device_batch: tokens of a device's smallest step."""

    device_batch: float
    devices: float | None = None
    rate: float | None = None
    reference: float = 1.0  # N_ref

    def seconds(self, n: Any, batch: Any, steps: Any) -> Any:
        """Seconds (without a rate: micro-batch times) of a run."""
        turns = 1.0 if self.devices is None else np.ceil(np.asarray(batch) / (self.devices * self.device_batch) - 1e-9)
        held = self.device_batch * np.maximum(turns, 1.0)
        rate = self.rate or 6 * self.reference * self.device_batch
        return steps * 6 * n * held / rate

    def used(self, batch: Any) -> Any:
        return np.minimum(np.maximum(np.ceil(batch / self.device_batch - 1e-9), 1.0), self.devices or np.inf)


@dataclass(frozen=True)
class Plane:
    """The grid's runs at one loss, all arrays (rows of N, columns of B); `front`: bool, not beaten in both."""

    params: np.ndarray
    tokens: np.ndarray
    minimum: np.ndarray
    batch: np.ndarray
    flops: np.ndarray
    seconds: np.ndarray
    front: np.ndarray


def nondominated(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bool mask of points that no other equals or beats in both with one of them strictly; of equal points all."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if not len(x):
        return np.zeros(0, bool)
    order = np.lexsort((y, x))
    xs, ys = x[order], y[order]
    start = np.searchsorted(xs, xs, side="left")  # of each point's own x; its least y stands there
    smaller = np.append(np.inf, np.minimum.accumulate(ys))[start]  # least y at smaller x
    result = np.zeros(len(x), bool)
    result[order] = (ys == ys[start]) & (ys < smaller)
    return result


def critical_at(law: Mapping, n: Any, minimum: Any, loss: float) -> np.ndarray:
    at = {"params": n, "tokens": minimum, "tpp": minimum / n, "flops": 6 * n * minimum, "loss": loss}
    shaped = dict(zip(at, np.broadcast_arrays(*at.values()), strict=True))
    return np.asarray(critical_tokens(law, shaped)[0], float)


def minimum_tokens(law: Mapping, n: float, tokens: float, batch: float, loss_at) -> float:
    """D_min of a run of `tokens` at `batch` (tokens): D = D_min (1 + B / B_crit(D_min)), by bisection in ln D_min.
    loss_at(D_min): the loss there, for laws written in it."""
    low, high = math.log(tokens) - 30.0, math.log(tokens)
    for _ in range(50):
        middle = (low + high) / 2
        d = math.exp(middle)
        needed = d * (1 + batch / float(critical_at(law, n, d, loss_at(d))))
        low, high = (middle, high) if needed < tokens else (low, middle)
    return math.exp(high)


def plane(loss: LossLaw, critical: Mapping, target: float, machine: Machine, smallest_batch: float, also: float) -> Plane:
    """The grid at `target` loss: N around the cheapest and around `also` (the target's), B in multiples of
    `smallest_batch`, from what just feeds all devices on in whole turns of them, to 8 times B_crit, up to 10 times the least
    compute, at least one step."""
    cheapest, _ = loss.cheapest(target)
    lowest = (loss.A / (target - loss.E)) ** (1 / loss.alpha)  # with infinite tokens
    start = max(min(cheapest * SMALLEST, also / 2), lowest * 1.01)
    params = np.geomspace(start, max(cheapest * LARGEST, also * 2), GRID)
    if lowest * 1.01 < also:
        params = np.sort(np.append(params, also))
    minimum = np.asarray(loss.tokens_for(target, params))
    bound = critical_at(critical, params, minimum, target)
    usable = bound[6 * params * minimum < DEAR * 6 * cheapest * float(loss.tokens_for(target, cheapest))]
    fed = (machine.devices or 0) * machine.device_batch
    largest = max(BATCHES * float(usable.max()), 4 * smallest_batch)
    batch = np.unique(np.geomspace(1, largest / smallest_batch, BATCH_GRID).round()) * smallest_batch
    if smallest_batch < fed < largest:  # above it whole turns of all devices: in between some of them idle
        batch = np.unique(np.append(np.where(batch > fed, np.round(batch / fed) * fed, batch), fed))
    n, d, b, c = (a.ravel() for a in np.broadcast_arrays(params[:, None], minimum[:, None], batch, bound[:, None]))
    tokens = d * (1 + b / c)
    flops = 6 * n * tokens
    kept = (b <= tokens) & (b <= np.maximum(BATCHES * c, smallest_batch)) & (flops <= DEAR * flops.min())
    n, d, b, tokens, flops = n[kept], d[kept], b[kept], tokens[kept], flops[kept]
    seconds = machine.seconds(n, b, tokens / b)
    return Plane(n, tokens, d, b, flops, seconds, nondominated(flops, seconds))


def rows(plane: Plane, context: float, machine: Machine, shown: int = SHOWN) -> list[dict]:
    """Up to `shown` runs of the front, from the cheapest to the fastest, evenly in the log of time. The cheapest shown
    is the fastest within 1 % of the least compute: smaller batches take longer and save nothing."""
    index = np.flatnonzero(plane.front)
    index = index[np.argsort(plane.flops[index])]
    index = index[np.count_nonzero(plane.flops[index] <= 1.01 * plane.flops[index[0]]) - 1 :]
    along = np.log(plane.seconds[index])
    wanted = np.linspace(along[0], along[-1], shown)
    picked = list(dict.fromkeys(int(np.abs(along - w).argmin()) for w in wanted))
    return [row(*(float(a[i]) for a in (plane.params, plane.tokens, plane.batch, plane.flops, plane.seconds)), context,
                machine) for i in index[picked]]  # fmt: skip


def row(n: float, tokens: float, batch: float, flops: float, seconds: float, context: float, machine: Machine) -> dict:
    return {
        "params": n,
        "tokens": tokens,
        "tpp": tokens / n,
        "batch_size": batch / context,
        "batch_tokens": batch,
        "steps": tokens / batch,
        "devices": float(machine.used(batch)),
        "flops": flops,
        "seconds": seconds if machine.rate else None,
        "time": seconds,
    }


def curves(plane: Plane, ratios: tuple[float, ...] = (5, 20, 80, 320), points: int = 60) -> dict:
    """For the figure: the whole front, from cheap to fast, and the runs nearest to each ratio of D_min to N."""
    index = np.flatnonzero(plane.front)
    index = index[np.argsort(plane.flops[index])]
    index = index[np.unique(np.linspace(0, len(index) - 1, min(4 * points, len(index))).round().astype(int))]
    keys = ("flops", "seconds", "params", "tokens", "batch")
    found = {"front": {key: getattr(plane, key)[index].tolist() for key in keys}}
    models, first = np.unique(plane.params, return_index=True)
    tpp = plane.minimum[first] / models
    for ratio in ratios:
        nearest = int(np.abs(np.log(tpp / ratio)).argmin())
        if abs(math.log(tpp[nearest] / ratio)) < 0.1:
            own = np.flatnonzero(plane.params == models[nearest])
            own = own[np.linspace(0, len(own) - 1, min(points, len(own))).round().astype(int)]
            found[f"{ratio:g}"] = {key: getattr(plane, key)[own].tolist() for key in ("flops", "seconds", "batch")}
    return found


def place(plane: Plane, flops: float, seconds: float) -> dict:
    """How far a run of the same loss lies behind the front: least time at its compute, least compute in its time.
    {"excess_time", "excess_compute": shares, 0 on the front, "dominated": whether either is more than 0.5 %}."""
    slack = 1 + 1e-9
    fast = plane.seconds[plane.flops <= flops * slack].min(initial=seconds)
    cheap = plane.flops[plane.seconds <= seconds * slack].min(initial=flops)
    excess = {"excess_time": max(seconds / fast - 1, 0.0), "excess_compute": max(flops / cheap - 1, 0.0)}
    return {**excess, "dominated": max(excess.values()) > BEHIND}
