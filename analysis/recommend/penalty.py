"""What it costs to be wrong about a hyper-parameter: nats, and what those cost in compute.

The basin of a slice is L = L_opt + h/2 (ln x - ln x_opt)^2. A law carries h of its slices (`curvature`): the median, and
its trend with training FLOPs where the slices show one. If the recipe's x is used while the optimum lies at an end of
the interval, h/2 (ln end/x)^2 is lost; `mean` is the average over optima inside the interval (beyond it the error of a law
of few slices has no second moment). Basins are steeper on one side than a parabola far from the optimum: within a factor
of two or so these numbers hold, and further out they are too small where training diverges. Hyper-parameters are taken
one at a time, the others at the recipe.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from analysis.optimum import Optimum
    from analysis.recommend.loss_law import LossLaw

STEP = math.log(2)  # an octave
LEAST = 4  # slices that show a trend
SPREAD = math.log(3)  # of FLOPs, for a trend


def curvature(optima: Sequence["Optimum"], target: int) -> dict | None:
    """h of interior optima in the hyper-parameter `target`, for a LAW: {"value": median, "low", "high": 10 and 90 % of the
    slices, "exponent": of FLOPs or null, "flops": geometric mean, "n", "unit"}; None where no basin is known."""
    found, flops, known = [], [], True
    for o in optima:
        if o.curve is None or not np.isfinite(o.value).all():
            continue
        step = np.zeros(len(o.value))
        step[target] = STEP
        up, middle, down = (float(o.curve(o.value + k * step)) for k in (1, 0, -1))
        h = (up - 2 * middle + down) / STEP**2
        if math.isfinite(h) and h > 0 and math.isfinite(o.slice.flops) and o.slice.flops > 0:
            found.append(h)
            flops.append(o.slice.flops)
            known &= {"params", "tokens"} <= o.slice.given.keys()  # else `flops` of a slice may be its tokens
    if not found:
        return None
    low, value, high = np.quantile(found, [0.1, 0.5, 0.9])
    x, y = np.log(flops), np.log(found)
    return {
        "value": float(value),
        "low": float(low),
        "high": float(high),
        "exponent": _trend(x, y) if known else None,
        "flops": float(np.exp(x.mean())) if known else None,
        "n": len(found),
        "unit": "nats per (natural log)^2",
    }


def _trend(x: np.ndarray, y: np.ndarray) -> float | None:
    """Slope of y on x where it stands out of the scatter (10 %, two-sided), else None."""
    if len(x) < LEAST or np.ptp(x) < SPREAD:
        return None
    centered = x - x.mean()
    slope = float(centered @ y / (centered @ centered))
    residual = y - y.mean() - slope * centered
    error = math.sqrt(float(residual @ residual) / (len(x) - 2) / float(centered @ centered))
    return slope if abs(slope) > stats.t.ppf(0.95, len(x) - 2) * error else None


def at_scale(basin: Mapping, flops: float) -> float | None:
    """h at the training FLOPs of a target."""
    value, exponent, reference = (basin.get(key) for key in ("value", "exponent", "flops"))
    if not (isinstance(value, int | float) and value > 0):
        return None
    if not (isinstance(exponent, int | float) and isinstance(reference, int | float) and reference > 0):
        return float(value)
    return float(value * math.exp(min(max(exponent * math.log(flops / reference), -50.0), 50.0)))


def penalties(
    chosen: Mapping[str, Mapping],
    recipe: Mapping[str, Mapping],
    draws: Mapping[str, np.ndarray],
    values: Mapping,
    loss: "LossLaw | None",
) -> tuple[dict[str, dict], list[str]]:
    """({NAME: {"curvature", "low", "high", "mean", "compute": {"low", "high", "mean"} or null}}, notes). draws: logs of
    what the optimum may be at the recipe's other values. `low`: the cost in nats if the optimum lies at the low end of the
    interval. compute: the share of FLOPs that would buy it back, N and D grown together at the target's ratio."""
    result, lacking = {}, []
    for name, entry in recipe.items():
        ends = entry.get("conditional") or entry
        if entry["source"] != "law" or None in (ends["low"], ends["high"]) or not 0 < ends["low"] <= ends["high"] < math.inf:
            continue
        basin = chosen[name].get("curvature")
        h = at_scale(basin, values["flops"]) if isinstance(basin, Mapping) else None
        if h is None:
            if not chosen[name].get("published"):
                lacking.append(name)
            continue
        off = np.asarray(draws[name]) - math.log(entry["value"])
        low, high = (math.log(ends[end] / entry["value"]) for end in ("low", "high"))
        inside = off[(off >= low) & (off <= high)]
        cost = {"low": h / 2 * low**2, "high": h / 2 * high**2}
        cost["mean"] = h / 2 * float(np.mean(inside**2)) if len(inside) else 0.0
        bought = None
        if loss is not None:
            bought = {key: loss.more_compute(values["params"], values["tokens"], each) for key, each in cost.items()}
        result[name] = {"curvature": h, **cost, "compute": bought}
    notes = []
    if lacking:
        notes.append(
            f"cost of being wrong: the laws of {', '.join(lacking)} hold no `curvature`: a fit gives it, or add "
            'curvature: {"value": h} in nats per (natural log)^2 to the law.'
        )
    if result and loss is None:
        notes.append("cost in compute: no loss law here; `hyperlaw fit analysis=loss` gives one.")
    return result, notes
