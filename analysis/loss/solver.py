"""Damped Newton steps on many starts and many weightings at once (numpy; no loop over starts).

A step solves (H + m M) s = -g: H is the Hessian, M the matrix of iteratively reweighted least squares, which majorises
the Huber loss, so that m = 1 is a safe step and m -> 0 is Newton's. m falls where a step succeeds and rises where it
does not (Marquardt's rule with M in place of the identity: free of the parameters' units). Parameters at a bound whose
gradient points outward are held there.
"""

from collections.abc import Callable

import numpy as np

RIDGE = 1e-10  # of the matrix' own diagonal: directions without any data
LEAST, MOST = 1e-7, 1e6  # of the damping

# theta (S, p), index (S,) -> objective (S,), gradient (S, p), Hessian (S, p, p), majorising matrix (S, p, p)
Assess = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]


def minimise(
    assess: Assess, theta: np.ndarray, low: np.ndarray, high: np.ndarray, iterations: int = 60, tolerance: float = 1e-12
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """theta (S, p) moved downhill from each start, each on its own; (theta, objective (S,), whether it converged (S,)).

    assess(theta, index): index says which of the S problems the rows of theta belong to. Converged: the predicted
    gain of a step is below `tolerance` of the objective, or no step gains anything.
    """
    theta = np.clip(theta, low, high)
    index = np.arange(len(theta))
    best, value, done = theta.copy(), np.full(len(theta), np.inf), np.zeros(len(theta), bool)
    damping = np.full(len(theta), 0.1)
    f, g, h, m = assess(theta, index)
    value[index] = f
    for _ in range(iterations):
        step, gain = _step(theta, g, h, m, damping[index], low, high)
        still = gain > tolerance * (np.abs(f) + 1e-300)
        still |= ~np.isfinite(gain) & (damping[index] < MOST)
        done[index[~still]] = True
        if not still.any():
            break
        index, theta, step = index[still], theta[still], step[still]
        f, g, h, m = f[still], g[still], h[still], m[still]
        trial = np.clip(theta + step, low, high)
        f_new, g_new, h_new, m_new = assess(trial, index)
        better = f_new < f
        damping[index] = np.clip(np.where(better, damping[index] / 5, damping[index] * 4), LEAST, MOST)
        theta[better], f[better], g[better] = trial[better], f_new[better], g_new[better]
        h[better], m[better] = h_new[better], m_new[better]
        best[index], value[index] = theta, f
        stuck = ~better & (damping[index] >= MOST)
        if stuck.any():
            done[index[stuck]] = True
            index, theta, f, g, h, m = (each[~stuck] for each in (index, theta, f, g, h, m))
            if not len(index):
                break
    return best, value, done


def _step(theta, g, h, m, damping, low, high) -> tuple[np.ndarray, np.ndarray]:
    """(step (S, p), its predicted gain (S,)); where the damped matrix is not positive definite the step is nil and the
    gain NaN."""
    held = ((theta <= low) & (g > 0)) | ((theta >= high) & (g < 0))
    g = np.where(held, 0.0, g)
    matrix = h + damping[:, None, None] * m
    own = np.einsum("sii->si", matrix)
    scale = np.where(held, 0.0, np.einsum("sii->si", m))
    own += RIDGE * (scale + scale.max(axis=1, keepdims=True) * 1e-6)
    matrix[held] = 0.0
    matrix.transpose(0, 2, 1)[held] = 0.0
    own[held] = 1.0
    step, definite = solve(matrix, -g)
    gain = -0.5 * (g * step).sum(axis=1)  # of the damped model
    return np.where(definite[:, None], step, 0.0), np.where(definite, gain, np.nan)


def solve(matrix: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """matrix (S, p, p) symmetric, right (S, p) -> (solution (S, p), whether positive definite (S,)), by LDL'."""
    s, p = right.shape
    a = np.ascontiguousarray(matrix.transpose(1, 2, 0))
    x = np.ascontiguousarray(right.T)
    lower = np.zeros_like(a)
    pivot = np.ones((p, s))
    definite = np.ones(s, bool)
    for j in range(p):
        d = a[j, j] - (lower[j, :j] ** 2 * pivot[:j]).sum(axis=0)
        definite &= d > 1e-14 * np.abs(a[j, j])
        pivot[j] = np.where(definite, d, 1.0)
        for i in range(j + 1, p):
            lower[i, j] = (a[i, j] - (lower[i, :j] * lower[j, :j] * pivot[:j]).sum(axis=0)) / pivot[j]
    for i in range(p):
        x[i] -= (lower[i, :i] * x[:i]).sum(axis=0)
    x /= pivot
    for i in reversed(range(p)):
        x[i] -= (lower[i + 1 :, i] * x[i + 1 :]).sum(axis=0)
    return x.T, definite
