"""Quadratic surfaces of loss in the logs of one or several hyper-parameters, with the window that they are fitted in.

    loss = offset of the seed + b'u + u'A u / 2,   u = (x - center) / scale,   vertex u* = -A^-1 b

The window. A parabola over the whole slice is the most precise where the basin is one. Basins are not: loss blows up
at high LR and levels off at high tau, which shows as a cubic term. So with window=auto the whole slice is used unless
its cubic terms are significant (F test, 20 %). Then, for one hyper-parameter, the values farthest from the lowest loss
are dropped one by one until they are not, or five values are left; for several, rows above 1.025 times the lowest loss
are dropped (of basins published in full, Step Law's, windows from 2 % to 10 % give one law; narrower ones are noise),
keeping two rows a coefficient. window=none: the whole slice; window=0.05: rows up to 1.05 times the lowest loss.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement

import numpy as np
from scipy import stats

CUBIC = 0.2  # significance above which a cubic term counts as absent
FEWEST = 5  # values that a window keeps
JOINT = 0.025  # excess loss of the window of several hyper-parameters, relative to the lowest
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
        for column, (i, j) in enumerate(_pairs(self.k), start=1 + self.k):
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


def _pairs(k: int) -> list[tuple[int, int]]:
    return list(combinations_with_replacement(range(k), 2))


def _gradient_rows(u: np.ndarray, k: int) -> np.ndarray:
    rows = np.zeros((k, 1 + k + len(_pairs(k))))
    rows[:, 1 : 1 + k] = np.eye(k)
    for column, (i, j) in enumerate(_pairs(k), start=1 + k):
        rows[i, column] += u[j]
        rows[j, column] += u[i]
    return rows


def hessians(betas: np.ndarray, k: int) -> np.ndarray:
    """(N, p) coefficients -> (N, k, k)."""
    result = np.zeros((len(betas), k, k))
    for column, (i, j) in enumerate(_pairs(k), start=1 + k):
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


def fit_surface(x, loss, seed, keep, window: str | float = "auto") -> Surface | None:
    """The quadratic of the rows `keep` (n,) of x (n, k) in its window, or None where the rows do not determine one."""
    used = _window(x, loss, seed, keep, window)
    k = x.shape[1]
    if any(len(np.unique(column[used].round(9))) < 3 for column in x.T):
        return None
    center, scale = x[used].mean(axis=0), np.ptp(x[used], axis=0) / 2
    design = _design((x[used] - center) / scale, seed[used], 2)
    p = 1 + k + len(_pairs(k))
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    solver = np.linalg.pinv(design)
    beta = solver @ loss[used]
    residual = loss[used] - design @ beta
    return Surface(
        center, scale, beta[:p], solver[:p], used, float(residual @ residual), len(residual) - design.shape[1]
    )


def _design(u: np.ndarray, seed: np.ndarray, degree: int) -> np.ndarray:
    """Monomials, and the offset of each seed that has rows enough to tell it, adding up to zero."""
    base = monomials(u, degree)
    codes, counts = np.unique(seed, return_counts=True)
    if len(codes) < 2 or counts.min() < 2 or len(u) <= base.shape[1] + len(codes) - 1:
        return base
    offsets = [(seed == code).astype(float) - (seed == codes[-1]) for code in codes[:-1]]
    design = np.column_stack([base, *offsets])
    return design if np.linalg.matrix_rank(design) == design.shape[1] else base


def _rss(u, loss, seed, degree) -> tuple[float, int]:
    design = _design(u, seed, degree)
    coefficients, _, rank, _ = np.linalg.lstsq(design, loss, rcond=None)
    residual = loss - design @ coefficients
    return float(residual @ residual), len(loss) - int(rank)


def cubic_shows(x: np.ndarray, loss: np.ndarray, seed: np.ndarray) -> bool:
    """Whether cubic terms improve on the quadratic significantly (F test, 20 %)."""
    u = (x - x.mean(axis=0)) / np.maximum(np.ptp(x, axis=0), 1e-300)
    (without, dof2), (with_, dof3) = _rss(u, loss, seed, 2), _rss(u, loss, seed, 3)
    if dof3 < 1 or dof2 <= dof3:
        return False
    negligible = len(loss) * (1e-9 * np.abs(loss).max()) ** 2  # rounding, where a table is free of noise
    f = (without - with_) / (dof2 - dof3) / (max(with_, negligible) / dof3)
    return bool(stats.f.sf(f, dof2 - dof3, dof3) < CUBIC)


def _window(x, loss, seed, keep, window) -> np.ndarray:
    keep, k = keep.copy(), x.shape[1]
    fewest = FEWEST if k == 1 else 2 * (1 + k + len(_pairs(k)))
    if window == "none" or keep.sum() <= fewest:
        return keep
    if window != "auto":
        return (
            keep & (loss <= max(float(window) + 1, 1) * loss[keep].min())
            if k == 1
            else _lowest(loss, keep, window, fewest)
        )
    if k > 1:
        return _lowest(loss, keep, JOINT, fewest) if cubic_shows(x[keep], loss[keep], seed[keep]) else keep
    values = x[:, 0].round(9)
    while len(np.unique(values[keep])) > FEWEST and cubic_shows(x[keep], loss[keep], seed[keep]):
        levels = np.unique(values[keep])
        means = np.array([loss[keep & (values == level)].mean() for level in levels])
        distance = np.abs(levels - levels[means.argmin()]).round(6)
        far = np.flatnonzero(distance == distance.max())
        keep &= values != levels[far[means[far].argmax()]]
    return keep


def _lowest(loss: np.ndarray, keep: np.ndarray, excess: float, fewest: int) -> np.ndarray:
    """Rows within `excess` of the lowest loss, and at least the `fewest` lowest."""
    limit = max((1 + excess) * loss[keep].min(), np.sort(loss[keep])[fewest - 1])
    return keep & (loss <= limit)
