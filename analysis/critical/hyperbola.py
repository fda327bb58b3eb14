"""The hyperbola of steps against batch, fitted to thousands of curves at once, and the two critical batch sizes in it.

    S = S_min (1 + B_crit / B),   equivalently   D = B S = D_min (1 + B / B_crit),   D_min = S_min B_crit

(McCandlish, arXiv 1812.06162, (S/S_min - 1)(E/E_min - 1) = 1.) Zhang (arXiv 2410.21676) writes it S = a + b/B: a is
S_min, b is D_min, B_crit = b/a. Least squares of ln S, as Zhang's notebook has it: for a given B_crit the best ln D_min
is a mean, so that one number is left to search, on a grid first, by Gauss-Newton then.

Overhead (Zhang): the batch B* at which the steps exceed by `overhead` those of perfect linear scaling from an optimal
batch B_opt. S(B*) = (1 + o) S(B_opt) B_opt / B*, times B*: a B* + b = (1 + o)(a B_opt + b), hence

    B* = (1 + o) B_opt + o B_crit.
"""

from dataclasses import dataclass

import numpy as np

REACH = 6.0  # natural log: how far beyond the batches B_crit is looked for
GRID = 97
STEPS = 12


@dataclass(frozen=True)
class Hyperbola:
    """K fits: log_d_min, log_b_crit, rss (K,), natural logs; rss in squares of ln D. log_b_crit is -inf or inf where it
    lies beyond the grid: D all but proportional to the batch, or all but equal."""

    log_d_min: np.ndarray
    log_b_crit: np.ndarray
    rss: np.ndarray


def fit(log_batch: np.ndarray, log_d: np.ndarray) -> Hyperbola:
    """K hyperbolas through n batches: log_batch (n,), log_d (K, n) = ln(B S); at least 3 batches, or one has no
    residual. Unit of D: that of the batch times steps."""
    x, y = np.asarray(log_batch, float), np.atleast_2d(np.asarray(log_d, float))
    whole = np.isfinite(y).all(axis=1)
    if not whole.all():  # a draw in which a batch never reaches the target
        y = np.where(whole[:, None], y, 0.0)
    grid = np.linspace(x.min() - REACH, x.max() + REACH, GRID)
    shapes = np.logaddexp(0.0, x - grid[:, None])  # (grid, n)
    shapes -= shapes.mean(axis=1, keepdims=True)
    centred = y - y.mean(axis=1, keepdims=True)
    # |centred - shape|^2 without its constant part
    u = grid[((shapes**2).sum(axis=1) - 2 * centred @ shapes.T).argmin(axis=1)]
    spacing = grid[1] - grid[0]
    for _ in range(STEPS):  # one dimension: variable projection
        residual, slope = _projected(x, centred, u)
        step = (residual * slope).sum(axis=1) / np.maximum((slope**2).sum(axis=1), 1e-300)
        u = np.clip(u + np.clip(step, -spacing, spacing), grid[0], grid[-1])
    residual, _ = _projected(x, centred, u)
    log_d_min = (y - np.logaddexp(0.0, x - u[:, None])).mean(axis=1)
    with np.errstate(invalid="ignore"):
        out = np.where(u <= grid[1], -np.inf, np.where(u >= grid[-2], np.inf, u))
    rss = (residual**2).sum(axis=1)
    return Hyperbola(*(np.where(whole, each, np.nan) for each in (log_d_min, out, rss)))


def _projected(x: np.ndarray, centred: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals (K, n) with ln D_min at its best, and the model's derivative in u, both without their means."""
    model = np.logaddexp(0.0, x - u[:, None])
    slope = -1.0 / (1.0 + np.exp(u[:, None] - x))
    residual = centred - (model - model.mean(axis=1, keepdims=True))
    return residual, slope - slope.mean(axis=1, keepdims=True)


def at(log_batch: np.ndarray, log_d_min: float, log_b_crit: float) -> np.ndarray:
    """ln D on the hyperbola."""
    return log_d_min + np.logaddexp(0.0, np.asarray(log_batch, float) - log_b_crit)


def design(log_batch: np.ndarray, log_b_crit: float) -> np.ndarray:
    """(n, 2): d ln D / d (ln D_min, ln B_crit)."""
    x = np.asarray(log_batch, float)
    return np.stack([np.ones_like(x), -1.0 / (1.0 + np.exp(log_b_crit - x))], axis=1)


def sensitivity(log_batch: np.ndarray, log_b_crit: float) -> np.ndarray:
    """(2, n): d (ln D_min, ln B_crit) / d ln D at the fit, Gauss-Newton."""
    return np.linalg.pinv(design(log_batch, log_b_crit))


def critical(log_b_crit: np.ndarray, overhead: float | None, optimal_batch: float | None) -> np.ndarray:
    """ln of the critical batch: B_crit itself (overhead None), or Zhang's B* = (1 + o) B_opt + o B_crit."""
    if overhead is None:
        return np.asarray(log_b_crit, float)
    with np.errstate(over="ignore"):
        return np.log((1 + overhead) * optimal_batch + overhead * np.exp(log_b_crit))


def critical_slope(log_b_crit: float, overhead: float | None, optimal_batch: float | None) -> float:
    """d ln B* / d ln B_crit."""
    if overhead is None:
        return 1.0
    share = overhead * np.exp(log_b_crit)
    return float(share / ((1 + overhead) * optimal_batch + share))
