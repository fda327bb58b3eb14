"""What a loss law (a LAW dict of `analysis=loss`, or one written by hand) says, with intervals.

    loss_at(law, params, tokens) -> Prediction          optimal_at(law, flops) -> {"params": Prediction, ...}

Intervals come from the law's own resamples: `draws` {"of": names, "values": [[ln E, ln A, ln B, alpha, beta], ...]};
without them from `covariance` (normal); without either there are none (NaN), and a note says so. A law with repeats
(parameters R_D, R_N) takes `epochs` (analysis/loss/repeats.py).
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy import stats

from analysis.errors import UserError
from analysis.loss.allocation import log_loss_at, log_optimal
from analysis.loss.repeats import effective
from analysis.loss.resample import interval
from analysis.predict import LEVEL, Prediction

NORMAL_DRAWS = 2000
NOT_GIVEN = "no interval can be given: the law has neither draws nor covariance"


def parameters_of(law: Mapping) -> np.ndarray:
    """(5,) of ln E, ln A, ln B, alpha, beta, or (7,) with ln R_D, ln R_N; -inf and 1 stand for a term that the law
    does not have. Raises UserError where a value is missing or not usable."""
    found, given = [], law.get("parameters") or {}
    for symbol in ("E", "A", "B", "alpha", "beta"):
        value = (given.get(symbol) or {}).get("value")
        partner = {"alpha": "A", "beta": "B"}.get(symbol)
        if value is None and (symbol in given or partner in given):
            raise UserError(f"the loss law gives no {symbol}; it needs E, A, B, alpha and beta.")
        if symbol in ("E", "A", "B"):
            if value is not None and value < 0:
                raise UserError(f"the loss law has {symbol} = {value}, below 0.")
            found.append(math.log(value) if value else -math.inf)
        else:
            found.append(1.0 if value is None else float(value))
    if "R_D" in given:
        found += [math.log(given["R_D"]["value"]), math.log(given["R_N"]["value"])]
    return np.array(found)


def draws_of(law: Mapping, count: int = NORMAL_DRAWS) -> np.ndarray | None:
    """(draws, 5 or 7) resamples of `parameters_of`, or None."""
    values = (law.get("draws") or {}).get("values")
    if values:
        return np.array([[-np.inf if cell is None else cell for cell in row] for row in values], float)
    matrix, centre = law.get("covariance"), parameters_of(law)
    if matrix is None or np.shape(matrix) != (len(centre),) * 2 or not np.isfinite(centre).all():
        return None
    return np.random.default_rng(0).multivariate_normal(centre, np.array(matrix, float), count, method="eigh")


def loss_at(law: Mapping, params: float, tokens: float, level: float = LEVEL, epochs: float = 1.0,
            new_run: bool = False) -> Prediction:  # fmt: skip
    """Loss in nats at N and D (tokens seen, repeats included). new_run: the interval also holds the scatter of single
    runs about the law, not the law alone. `params` counts what the law's predictors[0] counts."""

    def log_value(p: np.ndarray) -> np.ndarray:
        return _log_loss(p, params, tokens, epochs)

    scatter = float(law.get("scatter") or 0.0) if new_run else 0.0
    return _predict(law, log_value, level, scatter)


def optimal_at(law: Mapping, flops: float, level: float = LEVEL) -> dict[str, Prediction]:
    """Compute-optimal params and tokens (C = 6 N D), tokens per parameter, and the loss there; one epoch. Raises
    UserError for a law of N or D alone, which has no optimum."""
    if not {"A", "B"} <= set(law.get("parameters") or {}):
        raise UserError("a loss law of N or of D alone has no compute-optimal N and D.")

    def of(which):
        return lambda p: which(*log_optimal(p[..., :5], flops))

    def at_optimum(p: np.ndarray) -> np.ndarray:
        return log_loss_at(p[..., :5], *log_optimal(p[..., :5], flops))

    asked = {"params": of(lambda n, d: n), "tokens": of(lambda n, d: d), "tpp": of(lambda n, d: d - n), "loss": at_optimum}
    return {name: _predict(law, log_value, level) for name, log_value in asked.items()}


def _log_loss(p: np.ndarray, params: float, tokens: float, epochs: float) -> np.ndarray:
    if p.shape[-1] == 7:
        return log_loss_at(p[..., :5], *effective(p, math.log(params), math.log(tokens), math.log(max(epochs, 1.0))))
    return log_loss_at(p, math.log(params), math.log(tokens))


def _predict(law: Mapping, log_value, level: float, scatter: float = 0.0) -> Prediction:
    centre = float(log_value(parameters_of(law)))
    if not math.isfinite(centre):
        return Prediction(math.nan, math.nan, math.nan, "the law gives no finite value there")
    draws = draws_of(law)
    if draws is None:
        return Prediction(math.exp(centre), math.nan, math.nan, NOT_GIVEN)
    low, high = interval(centre, log_value(draws), level)
    if scatter:  # normal, beside the law's own uncertainty
        noise = stats.norm.ppf((1 + level) / 2) * scatter
        low, high = centre - math.hypot(centre - low, noise), centre + math.hypot(high - centre, noise)
    with np.errstate(over="ignore"):
        return Prediction(*(float(np.exp(end)) for end in (centre, low, high)))
