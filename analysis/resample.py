"""Runs resampled inside every slice at once: how far the optima, and laws of them, move with the luck of the runs.

Every block of runs (a run, branches of one trunk) draws a weight from Exp(1), the same wherever the block appears:
Rubin's Bayesian bootstrap (1981), smooth where counting runs again and again would leave a slice of five values with
two. Each slice's quadratic is refitted with those weights, all draws in one batch of normal equations, to

    y = fitted + residual / sqrt(1 - leverage)

(else few rows a coefficient would look quieter than they are; HC2 of White's estimators), its vertex is the draw's
optimum, and the law's least squares turn optima into exponents. The rows used (analysis/window.py) stay those of the
fit. This is the runs' noise alone, without any assumption that it is alike in all slices; the scatter of true optima
about a law is not in it (analysis/law.py adds it).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from analysis import surface as surfaces
from analysis.law import design
from analysis.optimum import Optimum

CHUNK = 2**22  # weights held at once


def resample_optima(optima: Sequence[Optimum], draws: int = 1000, seed: int = 0) -> np.ndarray:
    """(draws, n, k) natural logs of the optima of n interior slices; NaN where a draw has no minimum.

    Slices whose seeds have offsets of their own, or that are free of noise, are resampled like any other. Raises
    ValueError for an optimum without a quadratic (argmin, akima).
    """
    if any(o.curve is None or not hasattr(o.curve, "beta") for o in optima):
        raise ValueError("only optima of a quadratic can be resampled")
    rng = np.random.default_rng(seed)
    codes = np.unique(np.concatenate([o.slice.block[o.used] for o in optima]), return_inverse=True)[1]
    ends = np.cumsum([int(o.used.sum()) for o in optima])
    points = np.empty((draws, len(optima), len(optima[0].fitted)))
    step = max(1, CHUNK // max(len(codes), 1))
    for start in range(0, draws, step):
        weights = rng.exponential(size=(min(step, draws - start), codes.max() + 1))
        for i, (o, at) in enumerate(zip(optima, np.split(codes, ends[:-1]), strict=True)):
            points[start : start + step, i] = _vertices(o, weights[:, at])
    return points


def _vertices(o: Optimum, weights: np.ndarray) -> np.ndarray:
    """(draws, k) log optima of one slice for weights (draws, rows used)."""
    surface = o.curve
    x, loss = o.slice.x[surface.used], o.slice.loss[surface.used]
    u = (x - surface.center) / surface.scale
    full = surfaces.design(u, o.slice.seed[surface.used], 2)  # the seeds' offsets too
    solver = np.linalg.pinv(full)
    beta = solver @ loss
    leverage = np.minimum(np.einsum("ij,ji->i", full, solver), 1 - 1e-9)
    y = full @ beta + (loss - full @ beta) / np.sqrt(1 - leverage)
    p = full.shape[1]
    outer = (full[:, :, None] * full[:, None, :]).reshape(len(full), p * p)
    normal = (weights @ outer).reshape(-1, p, p)
    betas = np.linalg.solve(normal, (weights @ (full * y[:, None]))[..., None])[..., 0]
    points, minimum = surfaces.vertices(betas[:, : len(surface.beta)], surface.k)
    return np.where(minimum[:, None], surface.center + surface.scale * points, np.nan)


def resample_law(
    points: np.ndarray, values: Sequence[Mapping[str, float]], predictors: Sequence[str]
) -> tuple[np.ndarray, float]:
    """((draws kept, 1 + p) log coefficients and exponents, share of draws that had a minimum in every slice) from log
    optima `points` (draws, n) of slices at `values`."""
    good = np.isfinite(points).all(axis=1)
    return points[good] @ np.linalg.pinv(design(values, predictors)).T, float(good.mean())
