"""IsoFLOP curves of one shape: loss_c(x) = m_c + k_c * phi_p(x - x_c), phi_p(z) = 2 (exp(p z) - 1 - p z) / p^2.

phi is the linex function (Varian 1975), scaled so that phi -> z^2 as p -> 0: convex for every p. That one p serves all
budgets follows from L = E + A/N^alpha + B/D^beta at 6ND = C: in z = log N - log N_opt the loss above its minimum is
proportional to exp(-alpha z)/alpha + exp(beta z)/beta, whatever C; its third order is (beta - alpha)/3 of the second,
as that of phi_p is p/3. Fit: x_c and p on a grid (m_c, k_c by linear least squares), then Gauss-Newton over all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.loss.isoflop_shared import covariance

PRIOR = 0.3  # s.d. of p; beta - alpha is -0.06 in Chinchilla's law, 0.02 in its replication, 0.42 in Gemstones'
STEPS = 60
GRID_P = np.linspace(-1.2, 1.2, 25)
GRID_X = np.linspace(-0.8, 1.8, 79)  # of x_c, in widths of the measured range


def phi(z: np.ndarray, p: float | np.ndarray) -> np.ndarray:
    u = np.asarray(p * z, float)
    small = np.abs(u) < 1e-3
    safe = np.where(small, 1.0, np.clip(u, -50, 50))
    return z**2 * np.where(small, 1 + u / 3 + u**2 / 12, 2 * (np.expm1(safe) - safe) / safe**2)


def slopes(z: np.ndarray, p: float) -> tuple[np.ndarray, np.ndarray]:
    """(d phi / d z, d phi / d p)."""
    u = np.asarray(p * z, float)
    small = np.abs(u) < 1e-3
    safe = np.where(small, 1.0, np.clip(u, -50, 50))
    by_z = z * np.where(small, 2 + u + u**2 / 3, 2 * np.expm1(safe) / safe)
    by_p = z**3 * np.where(small, 1 / 3 + u / 6, 2 * (safe * np.exp(safe) - 2 * np.expm1(safe) + safe) / safe**3)
    return by_z, by_p


@dataclass(frozen=True)
class Linex:
    """Arrays have one entry a convex budget; `index` says which budgets these are."""

    p: float
    p_error: float
    index: np.ndarray
    lowest: np.ndarray
    bend: np.ndarray  # k
    bend_error: np.ndarray
    minimum: np.ndarray  # x_c
    covariance: np.ndarray  # of x_c, from the noise
    squares: dict[int, tuple[float, float]]  # {budget: (sum of squares, degrees of freedom)}

    def position(self, budget: int) -> int | None:
        found = np.flatnonzero(self.index == budget)
        return int(found[0]) if len(found) else None

    def curve(self, k: int) -> Callable[[np.ndarray], np.ndarray]:
        m, bend, x, p = self.lowest[k], self.bend[k], self.minimum[k], self.p
        return lambda at: m + bend * phi(np.asarray(at, float) - x, p)


def fit_linex(
    points: list[tuple[np.ndarray, np.ndarray]],
    convex: list[bool],
    variance: np.ndarray,
    codes: list[np.ndarray],
    start: "Linex | None" = None,
) -> Linex | None:
    """points: (x, loss) of each budget; convex: those that share p; variance: of one loss in each (NaN: equal in all);
    codes: which model size each point is of (isoflop_shared.py); start: an earlier fit of the same budgets. None where no
    budget is convex."""
    index = np.flatnonzero(convex)
    if not len(index):
        return None
    known = np.isfinite(variance[index]) & (variance[index] > 0)
    sigma = np.sqrt(np.where(known, variance[index], 1.0)) if known.all() else np.full(len(index), np.nan)
    data = [points[i] for i in index]
    if not known.all():  # no noise known: only relative weights matter, and the prior must not
        sigma = np.full(len(index), 1e-6 * np.mean([loss.mean() for _, loss in data]))
    if start is None:
        p, starts = _on_grid(data, sigma)
    else:
        p, starts = start.p, np.stack([start.lowest, start.bend, start.minimum], axis=1)
    theta = np.concatenate([[p], np.ravel(starts)])
    theta, residual, jacobian = _gauss_newton(theta, data, sigma)
    solver = np.linalg.pinv(jacobian)
    m, k, x = theta[1:].reshape(-1, 3).T
    spots = 1 + 3 * np.arange(len(data))
    of_x, maker = solver[spots + 2], np.eye(len(residual)) - jacobian @ solver
    shared, _ = covariance(of_x[:, 1:], maker[1:, 1:], residual[1:], np.concatenate([codes[i] for i in index]))
    prior = of_x[:, :1] @ of_x[:, :1].T
    squares = {}
    for i, (at, loss), each in zip(index, data, theta[1:].reshape(-1, 3), strict=True):
        residual = loss - each[0] - each[1] * phi(at - each[2], theta[0])
        squares[int(i)] = (float(residual @ residual), max(len(at) - 3 - 1 / len(data), 0.0))
    errors = np.sqrt((solver**2).sum(axis=1))
    return Linex(float(theta[0]), float(errors[0]), index, m, k, errors[spots + 1], x, shared + prior, squares)


def _on_grid(data, sigma) -> tuple[float, np.ndarray]:
    """The best p on its grid and (budgets, 3) m, k, x_c there."""
    totals = (GRID_P / PRIOR) ** 2
    best = []
    for (x, loss), s in zip(data, sigma, strict=True):
        centres = x[0] + GRID_X * np.ptp(x)
        shape = phi(x - centres[None, :, None], GRID_P[:, None, None])  # (p, x_c, n)
        mean = shape.mean(axis=-1, keepdims=True)
        k = ((shape - mean) @ loss) / np.maximum(((shape - mean) ** 2).sum(axis=-1), 1e-300)
        m = loss.mean() - k * mean[..., 0]
        rss = ((loss - m[..., None] - k[..., None] * shape) ** 2).sum(axis=-1)
        rss = np.where(k > 0, rss, np.inf)
        j = rss.argmin(axis=1)
        take = np.arange(len(GRID_P)), j
        totals = totals + rss[take] / s**2
        best.append(np.stack([m[take], k[take], centres[j]], axis=1))
    i = int(np.argmin(totals))
    return float(GRID_P[i]), np.stack([each[i] for each in best])


def _gauss_newton(theta: np.ndarray, data, sigma) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levenberg-Marquardt over p and (m, k, x_c) of every budget; returns theta, the weighted residuals and their Jacobian
    there (the prior of p first)."""

    def evaluate(theta):
        p, rest = theta[0], theta[1:].reshape(-1, 3)
        rows, parts = [np.array([p / PRIOR])], [np.eye(1, len(theta)) / PRIOR]
        for c, ((x, loss), s) in enumerate(zip(data, sigma, strict=True)):
            m, k, centre = rest[c]
            z = x - centre
            by_z, by_p = slopes(z, p)
            shape = phi(z, p)
            rows.append((m + k * shape - loss) / s)
            block = np.zeros((len(x), len(theta)))
            block[:, 0] = k * by_p
            block[:, 1 + 3 * c : 4 + 3 * c] = np.stack([np.ones_like(z), shape, -k * by_z], axis=1)
            parts.append(block / s)
        return np.concatenate(rows), np.concatenate(parts)

    residual, jacobian = evaluate(theta)
    cost, damping = residual @ residual, 1e-3
    for _ in range(STEPS):
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ residual
        step = np.linalg.lstsq(normal + damping * np.diag(np.diag(normal)), -gradient, rcond=None)[0]
        trial = theta + step
        new, other = evaluate(trial)
        if (after := new @ new) < cost:
            done = cost - after < 1e-12 * cost
            theta, residual, jacobian, cost, damping = trial, new, other, after, damping / 5
            if done:
                break
        else:
            damping *= 8
            if damping > 1e12:
                break
    return theta, residual, jacobian
