"""Draws from the prediction of a power law whose inputs are themselves uncertain.

A batch comes from a law, and the laws of LR, tau and weight decay may take that batch: their interval holds both
errors. With (ln c, e_1, ...) drawn from the law's covariance (Student t: one chi-square a draw for parameters and
scatter alike, as in analysis/predict.py), inputs x_k from their own draws and z from a normal,

    ln y = ln c + sum_k e_k ln x_k + scatter * z.

Errors of two laws are taken as independent; laws fitted to the same slices (analysis=lr_batch) are not quite.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy import stats

from analysis.predict import LEVEL, covariance_of, predictors, scatter_of

DRAWS = 20_000  # ends of 80 % intervals to about 1 % of their half width


def sample(law: Mapping, at: Mapping[str, float | np.ndarray], rng: np.random.Generator, draws: int = DRAWS) -> np.ndarray:
    """(draws,) natural logs of what a new optimum may be at `at` (numbers, or arrays of that many draws); where the law
    can give no interval, its value again and again."""
    names = predictors(law)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        u = np.stack([np.ones(draws), *(np.broadcast_to(np.log(at[name]), draws) for name in names)], axis=1)
        parameters = [law["parameters"][name] for name in ("coefficient", *names)]
        beta = np.array([math.log(parameters[0]["value"]), *(entry["value"] for entry in parameters[1:])])
        scatter, _ = scatter_of(law)
        covariance, dof = covariance_of(law, len(beta)), law.get("dof")
        if covariance is not None and (dof is None or dof > 0):
            scale = np.ones(draws) if dof is None else np.sqrt(dof / rng.chisquare(dof, draws))
            values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
            root = vectors * np.sqrt(np.maximum(values, 0.0))
            betas = beta + scale[:, None] * (rng.standard_normal((draws, len(beta))) @ root.T)
            return (u * betas).sum(axis=1) + scale * scatter * rng.standard_normal(draws)
        sides = _sides(parameters, beta, law)
        z = rng.standard_normal((draws, len(beta)))
        betas = beta + z * np.where(z < 0, *sides)
        return (u * betas).sum(axis=1) + scatter * rng.standard_normal(draws)


def _sides(parameters: list[Mapping], beta: np.ndarray, law: Mapping) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations below and above of each parameter, from its own low and high; 0 where it has none."""
    quantile = stats.norm.ppf((1 + (law.get("level") or LEVEL)) / 2)
    below, above = np.zeros(len(beta)), np.zeros(len(beta))
    for k, (entry, value) in enumerate(zip(parameters, beta, strict=True)):
        low, high = entry.get("low"), entry.get("high")
        if low is None or high is None or (k == 0 and not 0 < low <= high):
            continue
        low, high = (math.log(low), math.log(high)) if k == 0 else (low, high)
        below[k], above[k] = max(value - low, 0.0) / quantile, max(high - value, 0.0) / quantile
    return below, above


def interval(logs: np.ndarray, level: float) -> tuple[float, float]:
    """(low, high) of the values whose logs are given."""
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.exp(np.quantile(logs, [(1 - level) / 2, (1 + level) / 2]))
    return float(low), float(high)
