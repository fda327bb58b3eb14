"""Compute multiplier: how many times the compute the reference would need for the same loss.

    multiplier = C_ref(L) / C

C_ref(L): compute at which the reference reaches the loss L, by linear interpolation between its measured scales; beyond
them from the nearest two, flagged. Definition of Qiu et al. (arXiv 2512.05620: "C_Adam(L) / C_opt", interpolation in
log-log, extrapolation from the nearest two), who tune each optimizer at each scale. Ours:

    - log C is interpolated in log (L - L_inf) where the reference's own scales identify its asymptote
      (asymptote.py, of compute), which straightens the curve; in log L, as theirs, where they do not or under
      interpolate=loss. Planted 1.3 between scales 16 times apart in compute: 1.30, against 1.36 to 1.38 by log L.
    - scales of the reference that no cheaper one bettered (its lower envelope) make the curve.
    - the interval: noise s of the loss at hand and of the two reference losses, and that of L_inf, through the slope,

    var ln multiplier = slope^2 (s^2 + w1^2 s1^2 + w2^2 s2^2) + (d / d L_inf)^2 s_inf^2,    s of ln (L - L_inf), Student t.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.transfer.asymptote import asymptote, penalty


@dataclass(frozen=True)
class Frontier:
    """Compute (m,), lowest loss there (m,), its s.d. in nats (m,), NaN where unknown, with `dof` degrees of freedom."""

    compute: np.ndarray
    loss: np.ndarray
    sd: np.ndarray
    dof: float = 0.0

    def envelope(self) -> "Frontier":
        """Points whose loss no cheaper one reaches, by compute."""
        order = np.lexsort((self.loss, self.compute))
        before = np.minimum.accumulate(np.concatenate([[np.inf], self.loss[order]]))[:-1]
        kept = order[self.loss[order] < before]
        return Frontier(self.compute[kept], self.loss[kept], self.sd[kept], self.dof)


def floor_of(reference: Frontier, level: float) -> tuple[float, float]:
    """(L_inf of the reference along compute, its s.d.); (0, 0) where its scales do not identify one."""
    ref = reference.envelope()
    known = reference.dof > 0 and np.isfinite(ref.sd).all()
    limit = asymptote(ref.compute, ref.loss, np.diag(ref.sd**2) if known else None, reference.dof)
    if limit is None or len(ref.compute) < 4:
        return 0.0, 0.0
    found = penalty(limit, None, level)
    if found["value"] is None or found["low"] is None or found["low"] <= 0:
        return 0.0, 0.0
    return found["value"], float((found["high"] - found["low"]) / 2 / stats.norm.ppf((1 + level) / 2))


def multipliers(points: Frontier, reference: Frontier, level: float, floor: tuple[float, float] = (0.0, 0.0)) -> list[dict]:
    """One dict for each point, in order: multiplier (None for a loss below the floor), low, high (None where the noise is
    unknown), reference_compute, extrapolated (bool). floor: L_inf that log losses are taken above, and its s.d. Empty
    where the reference has fewer than two scales on its envelope."""
    ref = reference.envelope()
    if len(ref.compute) < 2:
        return []
    result, dof = [], min(points.dof, ref.dof)
    nudge = 1e-3 * (ref.loss.min() - floor[0])
    for compute, loss, sd in zip(points.compute, points.loss, points.sd, strict=True):
        outside = bool(loss > ref.loss[0] or loss < ref.loss[-1])
        if loss <= floor[0] + nudge:
            nothing = dict.fromkeys(("multiplier", "low", "high", "reference_compute"))
            result.append({**nothing, "extrapolated": outside})
            continue
        log_ref, variance = _reach(loss, sd, ref, floor[0])
        if floor[1]:
            ends = [_reach(loss, sd, ref, floor[0] + sign * nudge)[0] for sign in (-1, 1)]
            variance += ((ends[1] - ends[0]) / (2 * nudge) * floor[1]) ** 2
        value = log_ref - np.log(compute)
        known = dof > 0 and np.isfinite(variance)
        half = stats.t.ppf((1 + level) / 2, dof) * np.sqrt(variance) if known else None
        ends = {"low": _exp(value - half) if known else None, "high": _exp(value + half) if known else None}
        found = {"multiplier": _exp(value), **ends, "reference_compute": _exp(log_ref), "extrapolated": outside}
        result.append(found)
    return result


def _reach(loss: float, sd: float, ref: Frontier, floor: float) -> tuple[float, float]:
    """(log compute at which the reference reaches a loss, variance from the noise of the three losses)."""
    x, y = np.log(ref.loss - floor), np.log(ref.compute)  # x falls
    at = np.log(loss - floor)
    i = int(np.clip(np.searchsorted(-x, -at) - 1, 0, len(x) - 2))
    slope = (y[i + 1] - y[i]) / (x[i + 1] - x[i])
    weight = (at - x[i]) / (x[i + 1] - x[i])
    own = ref.sd / (ref.loss - floor)
    noises = sd / (loss - floor), (1 - weight) * own[i], weight * own[i + 1]
    return y[i] + slope * (at - x[i]), slope**2 * sum(s**2 for s in noises)


def _exp(value: float) -> float | None:
    return float(np.exp(value)) if value < 700 else None
