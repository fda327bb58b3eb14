"""Which values of a slice cannot win: the rule of `sweep.strategy=halving`. Pure.

At a rung, a share t of the run, each value x (natural log) of the tuned hyper-parameter has a smoothed training loss y(x).
Learning-rate curves cross, so that a low y promises no low loss at the end; what they do is move: the basin at the end,
z(x) = y(x - s) but for its height and depth, lies a shift s beside that at the rung, since a longer run wants another
learning rate, and decay takes the noise of a high one away. Per unit of ln(1/t) the shift is taken as Student t:

    s / ln(1/t) ~ mean + scale * t(dof)

from PRIOR (what real sweeps showed, docs/throughput.md), updated by the shifts of the references of the same tuned key and
schedule (normal with unknown mean and variance, conjugate). Points of one slice have seen the same share of their
schedule and the same data, so that their losses at t are compared like with like (as normalised curves collapse,
arXiv 2509.25087).

The rule draws rung losses within their noise, a shift, and end losses within the noise, and counts which value is the
lowest: the winner. From both ends of the slice inward values are stopped, as far as the chance that the winner or one of
its two neighbours is among them stays below `risk`; `keep` values stay in any case, and the lowest at the rung with its
neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS, SEED = 4000, 0
NOISE = 0.003  # s.d. of a smoothed loss relative to it, where too few seeds tell
LEAST_NOISE = 0.001  # the same, whatever seeds tell
LEAST_DOF = 3  # of the seeds
BAD = 1.0  # nats above the highest finite loss: what interpolation takes for a diverged value


@dataclass(frozen=True)
class Shift:
    """Belief about s / ln(1/t): normal-inverse-gamma, as if `counts` slices had told the mean and `dof` the s.d."""

    mean: float = 0.0
    counts: float = 1.0
    scale: float = 0.35
    dof: float = 4.0

    def updated(self, seen: Sequence[float]) -> Shift:
        """After the shifts `seen` of slices that were trained in full."""
        if not len(seen):
            return self
        n, average = len(seen), float(np.mean(seen))
        counts, dof = self.counts + n, self.dof + n
        squares = float(np.square(np.asarray(seen) - average).sum())
        squares += self.counts * n / counts * (average - self.mean) ** 2
        scale = math.sqrt((self.dof * self.scale**2 + squares) / dof)
        return Shift((self.counts * self.mean + n * average) / counts, counts, scale, dof)

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """(n,) of the next slice's."""
        return self.mean + self.scale * math.sqrt(1 + 1 / self.counts) * rng.standard_t(self.dof, n)


PRIOR = Shift()


@dataclass(frozen=True)
class Verdict:
    """`stopped` (n,) bool, and the chance that the winner or a neighbour of it is among them."""

    stopped: np.ndarray
    risk: float


def judge(x: np.ndarray, loss: np.ndarray, noise: float, share: float, belief: Shift, risk: float, keep: int) -> Verdict:
    """Which of the values x (n,) ascending, natural logs, are stopped at `share` of the run, given the loss (n,) of each
    there (infinite where it diverged; these count as stopped already) and its s.d. `noise`."""
    order, stopped = np.flatnonzero(np.isfinite(loss)), np.zeros(len(x), bool)
    count = len(order)
    if count <= keep:
        return Verdict(stopped, 0.0)
    wins = _winners(x, loss, noise, math.log(1 / share), belief)
    place = np.searchsorted(order, wins)  # of the winner among those alive
    best = int(np.argmin(loss[order]))
    # below[a]: chance that the first a hold the winner or its lower neighbour; above[b]: the same of the last b.
    at = np.bincount(place, minlength=count) / len(place)
    below = np.concatenate([[0.0], np.cumsum(at)[1:], [1.0]])
    above = np.concatenate([[0.0], np.cumsum(at[::-1])[1:], [1.0]])
    cuts = [(a, b) for a in range(max(best, 1)) for b in range(max(count - 1 - best, 1))
            if count - a - b >= keep and below[a] + above[b] <= risk]  # fmt: skip
    a, b = max(cuts, key=lambda cut: (sum(cut), -below[cut[0]] - above[cut[1]]))
    stopped[order[:a]] = stopped[order[count - b :]] = True
    return Verdict(stopped, float(below[a] + above[b]))


def noise_of(losses: Sequence[Sequence[float]]) -> float:
    """S.d. of the mean loss of one value, given the losses of each value's seeds, the same seeds in the same order where
    values have equally many: what seeds have in common moves all values alike."""
    finite = [np.asarray(row, float) for row in losses if np.isfinite(row).all()]
    level = min(float(row.mean()) for row in finite)
    seeds = len(finite[0])
    dof = (len(finite) - 1) * (seeds - 1)
    if dof < LEAST_DOF or any(len(row) != seeds for row in finite):
        return NOISE * level
    table = np.array(finite)
    table = table[np.argsort(table.mean(axis=1))[: max(len(table) // 2, 2)]]  # far up the walls seeds differ more
    residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    dof = (len(table) - 1) * (seeds - 1)
    return max(math.sqrt(float((residual**2).sum()) / dof / seeds), LEAST_NOISE * level)


def moved(x: np.ndarray, rung: np.ndarray, end: np.ndarray, share: float) -> float | None:
    """The shift of a finished slice per ln(1/t); None where one of its basins has no lowest point inside."""
    places = [_vertex(x, np.asarray(loss, float)) for loss in (rung, end)]
    return None if None in places else (places[1] - places[0]) / math.log(1 / share)


def _vertex(x: np.ndarray, loss: np.ndarray) -> float | None:
    """Of the parabola through the lowest value and its neighbours."""
    i = int(np.argmin(loss))
    if not 0 < i < len(x) - 1 or not np.isfinite(loss[i - 1 : i + 2]).all():
        return None
    a, b, c = np.polynomial.polynomial.polyfit(x[i - 1 : i + 2] - x[i], loss[i - 1 : i + 2], 2)
    del a
    return float(x[i] - b / (2 * c)) if c > 0 else float(x[i])


def _winners(x: np.ndarray, loss: np.ndarray, noise: float, span: float, belief: Shift) -> np.ndarray:
    """(DRAWS,) indices of the lowest value at the end. span: ln(1/t)."""
    rng = np.random.default_rng(SEED)
    shift = span * belief.draw(rng, DRAWS)
    alive = np.isfinite(loss)
    filled = np.where(alive, loss, loss[alive].max() + BAD)
    y = filled + noise * rng.standard_normal((DRAWS, len(x)))
    at = x[None] - shift[:, None]
    i = np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2)  # beyond the ends along their last slope
    rows = np.arange(DRAWS)[:, None]
    slope = (y[rows, i + 1] - y[rows, i]) / (x[i + 1] - x[i])
    z = y[rows, i] + slope * (at - x[i]) + noise * rng.standard_normal((DRAWS, len(x)))
    return np.where(alive, z, np.inf).argmin(axis=1)
