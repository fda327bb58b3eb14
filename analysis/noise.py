"""Noise of the loss in each slice, from seeds where there are some, else from residuals; few degrees of freedom are
shared."""

import numpy as np
from scipy import optimize, special

LACK_OF_FIT = 0.05
ROUNDING = 1e-9  # relative to the loss: no table is more exact


def seed_noise(x: np.ndarray, loss: np.ndarray, seed: np.ndarray) -> tuple[float, int]:
    """(sum of squares, degrees of freedom) of loss about an offset for each value of x (n, k) and one for each seed.

    An offset that a seed has at all values (its data order, say) moves no optimum, so it is no noise.
    """
    level = np.unique(x.round(9), axis=0, return_inverse=True)[1].ravel()
    repeated = np.bincount(level)[level] > 1
    if not repeated.any():
        return 0.0, 0
    level, seed = (np.unique(codes[repeated], return_inverse=True)[1] for codes in (level, seed))
    loss = loss[repeated]
    # Least squares on levels and seeds, the seeds eliminated: their number may be large.
    counts = np.zeros((seed.max() + 1, level.max() + 1))
    np.add.at(counts, (seed, level), 1.0)
    sizes = counts.sum(axis=1)
    share = counts / sizes[:, None]
    means = np.bincount(seed, loss) / sizes
    gram = np.diag(counts.sum(axis=0)) - counts.T @ share
    effects, _, rank, _ = np.linalg.lstsq(gram, np.bincount(level, loss - means[seed]), rcond=1e-10)
    residual = loss - effects[level] - (means - share @ effects)[seed]
    return float(residual @ residual), len(loss) - len(sizes) - int(rank)


def choose(residual: tuple[float, int], seeds: tuple[float, int]) -> tuple[float, int]:
    """Seed noise, unless the residuals exceed it significantly (the quadratic does not fit) or there are no seeds."""
    if seeds[1] == 0:
        return residual
    lack, dof = residual[0] - seeds[0], residual[1] - seeds[1]
    if dof > 0 and seeds[0] > 0 and special.fdtrc(dof, seeds[1], lack / dof / (seeds[0] / seeds[1])) < LACK_OF_FIT:
        return residual
    return seeds


def moderated(squares: np.ndarray, dof: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance and degrees of freedom of each slice, drawn towards what the slices have in common.

    squares, dof: (n,) sums of squares and their degrees of freedom; none where dof is 0. The common variance s0 and
    its weight d0 come from the moments of log s^2 (Smyth 2004, sections 5-6): d0 is small where the slices truly
    differ, and never more than all slices know together. (NaN, 0) for all where no slice has a degree of freedom.
    """
    known = dof > 0
    total = int(dof.sum())
    if not total:
        return np.full(len(dof), np.nan), np.zeros(len(dof))
    d = dof[known].astype(float)
    variance = np.maximum(squares[known] / d, 1e-300)
    e = np.log(variance) - special.digamma(d / 2) + np.log(d / 2)
    excess = e.var(ddof=1) - special.polygamma(1, d / 2).mean() if len(d) > 1 else np.inf
    if excess <= 0:
        d0, s0 = np.inf, float(squares[known].sum() / total)
    else:
        d0 = 2 * _inverse_trigamma(excess) if np.isfinite(excess) else 0.0
        s0 = float(np.exp(e.mean() + special.digamma(d0 / 2) - np.log(d0 / 2))) if d0 > 0 else float(variance.mean())
    weight = min(d0, float(total))
    shared = (weight * s0 + np.where(known, squares, 0.0)) / np.maximum(weight + dof, 1e-300)
    return np.where(weight + dof > 0, shared, np.nan), np.minimum(weight + dof, total)


def _inverse_trigamma(value: float) -> float:
    return float(np.exp(optimize.brentq(lambda t: special.polygamma(1, np.exp(t)) - value, -20.0, 20.0)))
