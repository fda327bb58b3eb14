"""Quadratic surfaces of loss in the logs of one or several hyper-parameters.

loss = offset of the seed + b'u + u'A u / 2,   u = (x - center) / scale,   vertex u* = -A^-1 b
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement

import numpy as np

BLOWN = 1.5  # times the lowest loss: a run that has left the basin, censored like a diverged one


@dataclass(frozen=True)
class Surface:
    """A least-squares quadratic in k logs; p = 1 + k + k (k + 1) / 2 coefficients (constant, linear, squares and
    products)."""

    center: np.ndarray  # (k,)
    scale: np.ndarray  # (k,)
    beta: np.ndarray  # (p,)
    solver: np.ndarray  # (p, rows used): beta = solver @ loss
    used: np.ndarray  # (n,) bool
    rss: float
    dof: int

    @property
    def k(self) -> int:
        return len(self.center)

    @property
    def spread(self) -> np.ndarray:
        """(p, p): covariance of beta at unit noise."""
        return self.solver @ self.solver.T

    @cached_property
    def vertex(self) -> np.ndarray:
        """(k,) natural log; NaN where the surface has none."""
        return self.center + self.scale * vertices(self.beta[None], self.k)[0][0]

    @property
    def curvature(self) -> tuple[float, float]:
        """Smallest eigenvalue of the Hessian and its s.d. at unit noise."""
        values, vectors = np.linalg.eigh(hessians(self.beta[None], self.k)[0])
        v = vectors[:, 0]
        gradient = np.zeros(len(self.beta))
        for column, (i, j) in enumerate(pairs(self.k), start=1 + self.k):
            gradient[column] = 2 * v[i] * v[j]
        return float(values[0]), float(np.sqrt(gradient @ self.spread @ gradient))

    @property
    def sensitivity(self) -> np.ndarray:
        """(k, rows used): d vertex / d loss of each row."""
        u = (self.vertex - self.center) / self.scale
        inverse = np.linalg.inv(hessians(self.beta[None], self.k)[0])
        derivative = _gradient_rows(u, self.k)  # (k, p): gradient of the surface at u is derivative @ beta
        return -self.scale[:, None] * (inverse @ derivative @ self.solver)

    def best(self, i: int, log_value: float) -> np.ndarray:
        """(k,) natural logs: the minimum over the other coordinates at a value of coordinate i."""
        u = np.zeros(self.k)
        u[i] = (log_value - self.center[i]) / self.scale[i]
        others = [j for j in range(self.k) if j != i]
        hessian = hessians(self.beta[None], self.k)[0]
        slope = self.beta[1 : 1 + self.k][others] + hessian[others, i] * u[i]
        u[others] = -np.linalg.solve(hessian[np.ix_(others, others)], slope)
        return self.center + self.scale * u

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Loss at natural logs x (..., k)."""
        return monomials((np.asarray(x, float) - self.center) / self.scale, 2) @ self.beta


def monomials(u: np.ndarray, degree: int) -> np.ndarray:
    """All products of the last axis up to `degree`: (..., k) -> (..., p)."""
    k, columns = u.shape[-1], [np.ones(u.shape[:-1])]
    for order in range(1, degree + 1):
        columns += [np.prod(u[..., list(picked)], axis=-1) for picked in combinations_with_replacement(range(k), order)]
    return np.stack(columns, axis=-1)


def pairs(k: int) -> list[tuple[int, int]]:
    return list(combinations_with_replacement(range(k), 2))


def _gradient_rows(u: np.ndarray, k: int) -> np.ndarray:
    rows = np.zeros((k, 1 + k + len(pairs(k))))
    rows[:, 1 : 1 + k] = np.eye(k)
    for column, (i, j) in enumerate(pairs(k), start=1 + k):
        rows[i, column] += u[j]
        rows[j, column] += u[i]
    return rows


def hessians(betas: np.ndarray, k: int) -> np.ndarray:
    """(N, p) coefficients -> (N, k, k)."""
    result = np.zeros((len(betas), k, k))
    for column, (i, j) in enumerate(pairs(k), start=1 + k):
        result[:, i, j] += betas[:, column]
        result[:, j, i] += betas[:, column]
    return result


def vertices(betas: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """((N, k) stationary points in u, NaN where there is none; (N,) whether each is a minimum)."""
    curvature = hessians(betas, k)
    minimum = np.linalg.eigvalsh(curvature)[:, 0] > 0
    regular = np.abs(np.linalg.det(curvature)) > 1e-300
    points = np.full((len(betas), k), np.nan)
    if regular.any():
        points[regular] = -np.linalg.solve(curvature[regular], betas[regular, 1 : 1 + k, None])[..., 0]
    return points, minimum


def censored(loss: np.ndarray, diverged: np.ndarray) -> np.ndarray:
    """Rows whose loss says only that it is high: diverged, not finite, or 1.5 times the lowest."""
    bad = diverged | ~np.isfinite(loss)
    return bad | (loss > BLOWN * loss[~bad].min()) if not bad.all() else bad


def fit_surface(x: np.ndarray, loss: np.ndarray, seed: np.ndarray, used: np.ndarray) -> Surface | None:
    """The quadratic of the rows `used` (n,) of x (n, k), or None where they do not determine one."""
    if any(len(np.unique(column[used].round(9))) < 3 for column in x.T):
        return None
    center, scale = x[used].mean(axis=0), np.ptp(x[used], axis=0) / 2
    base = monomials((x[used] - center) / scale, 2)
    codes = told(base, seed[used])
    seeds = int(codes.max()) + 1
    p = base.shape[1]
    if len(base) < p + seeds - 1 or np.linalg.matrix_rank(base) < p:
        return None
    solver = absorbing_solver(base, codes)
    beta = solver @ loss[used]
    residual = loss[used] - base @ beta
    if seeds > 1:
        residual = residual - (np.bincount(codes, residual) / np.bincount(codes))[codes]
    return Surface(center, scale, beta, solver, used, float(residual @ residual), len(residual) - p - seeds + 1)


def told(base: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """(n,) codes of the seeds, where each has rows enough to tell its offset from the monomials base (n, p); else 0."""
    codes, counts = np.unique(seed, return_inverse=True, return_counts=True)[1:]
    if len(counts) < 2 or counts.min() < 2 or len(base) <= base.shape[1] + len(counts) - 1:
        return np.zeros(len(base), int)
    return codes if np.linalg.matrix_rank(centred(base[:, 1:], codes)) == base.shape[1] - 1 else np.zeros(len(base), int)


def centred(columns: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Columns (n, m) less their means at each code."""
    sizes = np.bincount(codes)
    return columns - np.stack([np.bincount(codes, c) / sizes for c in columns.T], axis=1)[codes]


def absorbing_solver(base: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(p, n): least squares on base and an offset for each code, these adding up to zero (Frisch and Waugh)."""
    if not codes.any():
        return np.linalg.pinv(base)
    slopes = np.linalg.pinv(centred(base[:, 1:], codes))
    sizes = np.bincount(codes)
    each = 1 / (len(sizes) * sizes[codes])  # the level is the mean of the seeds' means
    return np.concatenate([(each - (each @ base[:, 1:]) @ slopes)[None], slopes])


def design(u: np.ndarray, seed: np.ndarray, degree: int) -> np.ndarray:
    """Monomials, and the offset of each seed that has rows enough to tell it, adding up to zero."""
    base = monomials(u, degree)
    codes, counts = np.unique(seed, return_counts=True)
    if len(codes) < 2 or counts.min() < 2 or len(u) <= base.shape[1] + len(codes) - 1:
        return base
    offsets = [(seed == code).astype(float) - (seed == codes[-1]) for code in codes[:-1]]
    full = np.column_stack([base, *offsets])
    return full if np.linalg.matrix_rank(full) == full.shape[1] else base
