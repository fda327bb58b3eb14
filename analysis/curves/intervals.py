"""How far the noise of losses moves a curve law: residuals resampled in blocks, the law refitted in its tangent plane.

Losses along one curve are autocorrelated. Residuals are whitened by their lag-one autocorrelation, drawn in moving blocks
within their run, and coloured again (a post-blackened block bootstrap; Davison and Hinkley 1997, section 8.2: blocks alone
are too short for a strong correlation in so few losses). With four runs or more, what the runs' means scatter beyond that
is drawn too, one shift a run (a seed moves a whole curve). Each draw is refitted with the same Huber loss and the
derivatives at the fit. What a law gets wrong in kind no resampling of its residuals shows: predictions add what refits
without each run in turn miss (analysis/curves/law.py).
"""

import numpy as np
from scipy.signal import lfilter

MOST = 0.34  # of a run: the longest block
REFITS = 30  # weighted least-squares steps of a draw
BY_RUN = 4  # runs from which on their means are drawn too
ENOUGH = 0.02  # of delta: an r.m.s. move of log losses that ends a refit
HIGHEST = 0.97  # autocorrelation taken from so few losses


def autocorrelation(residual: np.ndarray, run: np.ndarray, size: int = 0) -> float:
    """Lag one, pooled over runs, within [0, HIGHEST]; corrected for what the means and `size` fitted parameters take away
    (Kendall 1954: (1 + 3 rho) / n for a mean; half as much for each of them, by the coverage of planted curves)."""
    same, scale = run[1:] == run[:-1], float(residual @ residual)
    if not same.any() or scale <= 0:
        return 0.0
    rho = float((residual[1:] * residual[:-1])[same].sum() / scale) * len(residual) / same.sum()
    taken = max(size, run.max() + 1 if run.max() + 1 >= BY_RUN else 0)
    if rho < 2 / len(residual) ** 0.5:
        return 0.0
    return float(np.clip(rho + (1 + 3 * rho) / 2 * taken / len(residual), 0.0, HIGHEST))


def block_length(residual: np.ndarray, run: np.ndarray) -> int:
    """(3/2 n)^(1/3) (2 rho / (1 - rho^2))^(2/3), n losses a run (Carlstein's rule with Kuensch's factor for overlapping
    blocks)."""
    n, rho = len(residual) / (run.max() + 1), autocorrelation(residual, run)
    return int(np.clip(np.ceil((1.5 * n) ** (1 / 3) * (2 * rho / (1 - rho**2)) ** (2 / 3)), 1, max(1, MOST * n)))


def resample(residual: np.ndarray, run: np.ndarray, count: int, rng: np.random.Generator, size: int) -> np.ndarray:
    """(count, n) draws of the residuals; `size` parameters were fitted, which has shrunk them."""
    n, runs = len(residual), run.max() + 1
    mean = np.array([residual[run == k].mean() for k in range(runs)])
    own = residual - mean[run] if runs >= BY_RUN else residual
    rho = autocorrelation(own, run, size)
    white = own.copy()
    inside = np.flatnonzero(run[1:] == run[:-1]) + 1
    white[inside] = (own[inside] - rho * own[inside - 1]) / np.sqrt(1 - rho**2)
    length = block_length(white, run)
    drawn = np.empty((count, n))
    for k in range(runs):
        pool = white[run == k] - white[run == k].mean()
        blocks = -(-len(pool) // length)
        begin = rng.integers(0, len(pool), (count, blocks))
        places = (begin[:, :, None] + np.arange(length)).reshape(count, -1)[:, : len(pool)] % len(pool)
        series = pool[places]
        series[:, 1:] *= np.sqrt(1 - rho**2)  # the first stands at the stationary spread
        drawn[:, run == k] = lfilter([1.0], [1.0, -rho], series, axis=1)
    effective = n * (1 - rho) / (1 + rho)
    drawn *= np.sqrt(effective / max(effective - size, effective / 4))
    if runs >= BY_RUN:
        drawn += _shifts(mean, float(own @ own) / n * (1 + rho) / (1 - rho) / (n / runs), count, rng, size)[:, run]
    return drawn


def _shifts(mean: np.ndarray, expected: float, count: int, rng: np.random.Generator, size: int) -> np.ndarray:
    """(count, runs) shifts of whole runs: their means, scaled to the variance beyond `expected`, that of a mean of noise."""
    runs = len(mean)
    variance = float(mean @ mean) / max(runs - size / 2, runs / 4)  # parameters bend curves more than they shift runs
    if variance <= expected:
        return np.zeros((count, runs))
    scale = np.sqrt((variance - expected) / (float(mean @ mean) / runs))
    return (mean * scale)[rng.integers(0, runs, (count, runs))] * rng.choice([-1.0, 1.0], (count, runs))


def refit(jacobian: np.ndarray, drawn: np.ndarray, delta: float) -> np.ndarray:
    """(count, size) shifts of theta that minimise the Huber loss of drawn - jacobian @ shift, about their median (blocks
    drawn at random shift the fit as a whole where the law is wrong in kind: no part of the noise); jacobian (n, size)."""
    n, size = jacobian.shape
    squares = (jacobian[:, :, None] * jacobian[:, None, :]).reshape(n, -1)
    scale = np.sqrt(np.maximum((jacobian**2).sum(0), 1e-300))
    shift = np.zeros((len(drawn), size))
    for _ in range(REFITS):
        residual = drawn - shift @ jacobian.T
        weight = np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
        normal = (weight @ squares).reshape(-1, size, size)
        normal += weight.mean(1)[:, None, None] * np.diag(1e-9 * scale**2 + 1e-300)
        moved = np.linalg.solve(normal, ((weight * residual) @ jacobian)[..., None])[..., 0]
        shift += moved
        if np.abs(moved * scale).max() < ENOUGH * np.sqrt(n) * delta:
            break
    return shift - np.median(shift, axis=0)
