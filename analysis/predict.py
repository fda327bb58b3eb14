"""What a power law says at a point, with a prediction interval.

    ln y = ln c + sum_k e_k ln x_k,   interval: ln y +- t_dof sqrt(u' C u + scatter^2),   u = (1, ln x_1, ...)

C is the covariance of (ln c, e_1, ...) and scatter that of the true optima about the law: a new scale misses the law by
both. (`true_scatter` of the law; where it has none, `scatter`, which holds the noise of the optima's runs too.) A law
without C (written by hand, or published) gives the interval from its parameters' own low and high, taken as independent,
and a note says so.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.8  # 10-90 %


@dataclass(frozen=True)
class Prediction:
    """Value and interval: floats, or arrays where the point holds arrays. NaN ends: no interval can be given."""

    value: Any
    low: Any
    high: Any
    note: str | None = None


def predictors(law: Mapping) -> list[str]:
    """Columns that the power law takes, in the order of its covariance."""
    named = law.get("predictors")
    exponents = [symbol for symbol in law["parameters"] if symbol != "coefficient"]
    return list(named) if isinstance(named, list) and set(named) == set(exponents) else exponents


def usable(law: Mapping) -> bool:
    """Whether the law is a power law whose numbers are all there."""
    parameters = law.get("parameters") or {}
    values = [entry.get("value") for entry in parameters.values()]
    return "coefficient" in parameters and None not in values and parameters["coefficient"]["value"] > 0


def in_numbers(law: Mapping) -> str:
    """The law as a reader writes it: "1.08 * tpp^-0.527"."""
    parameters = law["parameters"]
    powers = [f"{name}^{parameters[name]['value']:.3f}" for name in predictors(law)]
    return " * ".join([f"{parameters['coefficient']['value']:.4g}", *powers])


def off(log_error: float) -> str:
    """A mean error in natural log as a reader takes it: "8.3 %", or from a factor of two on "x2.7"."""
    return f"{100 * math.expm1(log_error):.2g} %" if log_error < math.log(2) else f"x{math.exp(min(log_error, 99)):.2g}"


def predict(law: Mapping, at: Mapping[str, Any], level: float = LEVEL) -> Prediction:
    """The law at `at` (its predictors in their own units, numbers or arrays of one shape), interval at `level`."""
    names = predictors(law)
    logs = np.broadcast_arrays(*[np.log(np.asarray(at[name], dtype=float)) for name in names]) if names else []
    u = np.stack([np.ones_like(logs[0]) if logs else np.ones(()), *logs], axis=-1)
    parameters = [law["parameters"][name] for name in ("coefficient", *names)]
    beta = np.array([math.log(parameters[0]["value"]), *(entry["value"] for entry in parameters[1:])])
    centre = u @ beta
    with np.errstate(over="ignore", invalid="ignore"):
        down, up, note = _half_widths(law, parameters, u, level)
        value, low, high = np.exp(centre), np.exp(centre - down), np.exp(centre + up)
    if value.ndim == 0:
        value, low, high = float(value), float(low), float(high)
    return Prediction(value, low, high, note)


def _half_widths(law: Mapping, parameters: list[Mapping], u: np.ndarray, level: float) -> tuple:
    """Distances down and up from the law in natural log, shape of `u` without its last axis; note or None."""
    scatter, note = scatter_of(law)
    covariance = covariance_of(law, u.shape[-1])
    dof = law.get("dof")
    if covariance is not None and (dof is None or dof > 0):
        quantile = stats.norm.ppf((1 + level) / 2) if dof is None else stats.t.ppf((1 + level) / 2, dof)
        variance = np.einsum("...i,ij,...j->...", u, covariance, u)
        half = quantile * np.sqrt(np.maximum(variance, 0.0) + scatter**2)
        return half, half, note
    own = stats.norm.ppf((1 + (law.get("level") or LEVEL)) / 2)
    quantile = stats.norm.ppf((1 + level) / 2)
    down = up = np.zeros(u.shape[:-1])
    for k, entry in enumerate(parameters):
        if entry.get("low") is None or entry.get("high") is None or (k == 0 and not 0 < entry["low"] <= entry["high"]):
            continue
        ends = [math.log(entry[e] / entry["value"]) if k == 0 else entry[e] - entry["value"] for e in ("low", "high")]
        shifts = np.stack([end * u[..., k] for end in ends])
        down, up = down + np.minimum(shifts.min(0), 0) ** 2, up + np.maximum(shifts.max(0), 0) ** 2
    if not np.any(down) and not np.any(up):
        if scatter and law.get("scatter") is not None:
            half = np.full(u.shape[:-1], quantile * scatter)
            return half, half, "interval from the scatter alone, so it is too narrow"
        nothing = np.full(u.shape[:-1], np.nan)
        return nothing, nothing, "no interval can be given: too few optima, or parameters without low and high"
    spread = [np.sqrt(side / own**2 + scatter**2) * quantile for side in (down, up)]
    reason = "too few optima for its own" if covariance is not None else "it has no covariance"
    basis = f"interval from the low and high of each parameter, taken as independent ({reason})"
    return spread[0], spread[1], f"{basis}; {note}" if note else basis


def scatter_of(law: Mapping) -> tuple[float, str | None]:
    """S.d. in natural log; not given: from the held-out error (normal: s.d. = mean |error| sqrt(pi/2))."""
    scatter = law.get("true_scatter")
    scatter = law.get("scatter") if scatter is None else scatter
    if scatter is not None:
        return float(scatter), None
    error = (law.get("heldout") or {}).get("mean_abs_log_error")
    if error is not None:
        return float(error) * math.sqrt(math.pi / 2), "scatter about the law taken from its held-out error"
    return 0.0, "scatter about the law unknown, so the interval is too narrow"


def covariance_of(law: Mapping, size: int) -> np.ndarray | None:
    """The covariance of (ln coefficient, exponents), or None where it is missing or not of that shape."""
    try:
        matrix = np.array(law.get("covariance"), dtype=float)
    except (TypeError, ValueError):
        return None
    return matrix if matrix.shape == (size, size) and np.isfinite(matrix).all() else None
