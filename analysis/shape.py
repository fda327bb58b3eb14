"""Basins that no parabola fits: the slices of one law share how theirs is bent.

    loss = a_i + h_i . q(u) + mean(diagonal of h_i) * sum_m theta_m p_m(u),     u = (x - x_i) / scale

with q the squares and products and p the monomials of degree 3 to d. Level a_i (one for each seed where seeds are told
apart), curvatures h_i and optimum x_i are the slice's own, as in a quadratic: degree 2 is the quadratic of each slice.
The bend theta, relative to the curvature, is common. Statistics knows this as a shape-invariant model (Lawton et al.
1972, Technometrics 14; Kneip and Gasser 1988, Ann. Stat. 16): the shifts x_i are found about as well as under a known
shape, and an error in theta moves all of them together, into a law's coefficient and not into its exponents.

The degree is not known: analysis/degrees.py averages over several. That basins share their bend in log units is an
assumption: ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement

import numpy as np

STEPS, TOLERANCE = 40, 1e-7


@dataclass
class Basins:
    """Rows of n slices of one law, sorted by slice: x (R, k) natural logs, loss (R,), owner (R,) slice, cell (R,) codes
    of slice and seed that have a level of their own."""

    x: np.ndarray
    loss: np.ndarray
    owner: np.ndarray
    cell: np.ndarray

    def __post_init__(self):
        self.cell = np.unique(self.cell, return_inverse=True)[1]
        self.count = int(self.owner[-1]) + 1
        self.starts = np.searchsorted(self.owner, np.arange(self.count))
        self.sizes = np.bincount(self.cell).astype(float)
        spans = np.maximum.reduceat(self.x, self.starts) - np.minimum.reduceat(self.x, self.starts)
        self.scale = np.maximum(np.median(spans, axis=0) / 2, 1e-12)
        self.low, self.high = np.minimum.reduceat(self.x, self.starts), np.maximum.reduceat(self.x, self.starts)

    @property
    def k(self) -> int:
        return self.x.shape[1]

    @cached_property
    def cells(self) -> int:
        return len(self.sizes)

    def centred(self, columns: np.ndarray) -> np.ndarray:
        """Columns (R, m) less their means in each cell."""
        means = np.stack([np.bincount(self.cell, column) for column in columns.T], axis=1) / self.sizes[:, None]
        return columns - means[self.cell]

    def sums(self, columns: np.ndarray) -> np.ndarray:
        """(n, ...) sums over the rows of each slice."""
        return np.add.reduceat(columns, self.starts)


@dataclass
class Fit:
    """One degree: curvature (n, p2), best (n, k) natural logs, theta (m,); derivatives of best to the rows' losses."""

    degree: int
    curvature: np.ndarray
    best: np.ndarray
    theta: np.ndarray
    rss: float
    dof: int
    residual: np.ndarray  # (R,)
    own: np.ndarray  # (R, k): d best / d loss of the row, theta held
    loading: np.ndarray  # (n, k, m): d best / d theta
    shared: np.ndarray  # (R, m): d theta / d loss of the row

    @property
    def convex(self) -> bool:
        return bool((np.linalg.eigvalsh(matrices(self.curvature, self.best.shape[1]))[:, 0] > 0).all())


def exponents(k: int, low: int, high: int) -> list[tuple[int, ...]]:
    """Powers of each coordinate in the monomials of degree low to high."""
    picked = [c for degree in range(low, high + 1) for c in combinations_with_replacement(range(k), degree)]
    return [tuple(c.count(j) for j in range(k)) for c in picked]


def powers(u: np.ndarray, wanted: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Monomials (R, m) and their gradients (R, m, k) at u (R, k)."""
    if u.shape[1] == 1:  # the same, at a fifth of the price
        p = np.array([e[0] for e in wanted])
        lower = u ** (p - 1)
        return lower * u, (p * lower)[..., None]
    k, top = u.shape[1], max((max(e) for e in wanted), default=0)
    table = np.ones((top + 2, *u.shape))  # table[p] = u ** (p - 1); table[0] stands for the derivative of a constant
    table[0] = 0.0
    for p in range(1, top + 1):
        table[p + 1] = table[p] * u
    values, slopes = np.ones((len(u), len(wanted))), np.zeros((len(u), len(wanted), k))
    for column, e in enumerate(wanted):
        factors = [table[p + 1][:, j] for j, p in enumerate(e)]
        values[:, column] = np.prod(factors, axis=0)
        for j, p in enumerate(e):
            if p:
                rest = [f for i, f in enumerate(factors) if i != j]
                slopes[:, column, j] = p * table[p][:, j] * (np.prod(rest, axis=0) if rest else 1.0)
    return values, slopes


def squares(k: int) -> np.ndarray:
    """(p2,) 1 / k at the squares among q, 0 at the products."""
    return np.array([max(e) == 2 for e in exponents(k, 2, 2)]) / k


def matrices(curvature: np.ndarray, k: int) -> np.ndarray:
    """(n, p2) coefficients of q -> (n, k, k) Hessians."""
    result = np.zeros((len(curvature), k, k))
    for column, (i, j) in enumerate(combinations_with_replacement(range(k), 2)):
        result[:, i, j] += curvature[:, column]
        result[:, j, i] += curvature[:, column]
    return result


def surface(u: np.ndarray, curvature: np.ndarray, theta: np.ndarray, degree: int):
    """(values (R,), slopes (R, k), q + w p.theta (R, p2), mean curvature (R,), p (R, m)) at u with each row's curvature."""
    k = u.shape[1]
    q, dq = powers(u, exponents(k, 2, 2))
    p, dp = powers(u, exponents(k, 3, degree)) if degree > 2 else (np.zeros((len(u), 0)), np.zeros((len(u), 0, k)))
    w, bend = squares(k), p @ theta
    mean = curvature @ w
    values = (q * curvature).sum(axis=1) + mean * bend
    slopes = np.einsum("rmk,rm->rk", dq, curvature) + mean[:, None] * np.einsum("rmk,m->rk", dp, theta)
    return values, slopes, q + bend[:, None] * w, mean, p


def descend(evaluate, b: Basins, local: np.ndarray, shared: np.ndarray, most: np.ndarray | None = None):
    """Least squares by Levenberg-Marquardt, the slices' own parameters local (n, q) eliminated from those of all, shared
    (m,). evaluate(local, shared) -> residual (R,), its columns (R, q) and (R, m), levels taken out. most (q,): longest
    step of a local parameter. Returns local, shared and evaluate's at the minimum."""
    damp = 1e-8
    found = evaluate(local, shared)
    rss = float(found[0] @ found[0])
    for _ in range(STEPS):
        step, move = _normal(b, found[1], found[2], found[0], damp)
        size = 1.0
        while True:
            change = size * step if most is None else np.clip(size * step, -most, most)
            trial = local + change, shared + size * move
            then = evaluate(*trial)
            less = float(then[0] @ then[0])
            if less <= rss * (1 + 1e-12) or size < 1e-3:
                break
            size /= 3
        if not less <= rss * (1 + 1e-12):
            damp = max(damp, 1e-6) * 100
            if damp > 1:
                break
            continue
        damp, gain = max(damp / 10, 1e-10), rss - less
        (local, shared), found, rss = trial, then, less
        if gain <= TOLERANCE * rss + 1e-24:
            break
    return local, shared, found


def fit_degree(b: Basins, degree: int, curvature: np.ndarray, best: np.ndarray, theta: np.ndarray) -> Fit:
    """One degree, from the values given (theta: of a lower degree)."""
    p2 = curvature.shape[1]
    m = len(exponents(b.k, 3, degree)) if degree > 2 else 0
    reach = b.high - b.low
    low, high = (b.low - reach)[b.owner], (b.high + reach)[b.owner]

    def evaluate(local, theta):
        u = (b.x - np.clip(local[b.owner, p2:], low, high)) / b.scale
        values, slopes, dq, mean, p = surface(u, local[b.owner, :p2], theta, degree)
        columns = b.centred(np.concatenate([(b.loss - values)[:, None], dq, -slopes / b.scale, mean[:, None] * p], axis=1))
        return columns[:, 0], columns[:, 1 : 1 + p2 + b.k], columns[:, 1 + p2 + b.k :]

    start = np.concatenate([curvature, best], axis=1), np.concatenate([theta, np.zeros(m - len(theta))])
    most = np.concatenate([np.full(p2, np.inf), b.scale])
    local, theta, (residual, *columns) = descend(evaluate, b, *start, most)
    own, loading, shared = influences(b, *columns)
    best = np.clip(local[:, p2:], b.low - reach, b.high + reach)
    dof = len(b.loss) - b.cells - b.count * (p2 + b.k) - m
    rss = float(residual @ residual)
    return Fit(degree, local[:, :p2], best, theta, rss, dof, residual, own[:, p2:], loading[:, p2:], shared)


def _normal(b: Basins, local, common, residual, damp):
    """Steps (n, q) and (m,)."""
    gram, cross, pull = _grams(b, local, common, damp, residual)
    inner = np.linalg.solve(gram, np.concatenate([cross, pull[..., None]], axis=2))
    whole = common.T @ common
    diagonal = np.maximum(np.diag(whole), 1e-300)
    size = 1 / np.sqrt(diagonal)
    whole = whole + damp * np.diag(diagonal) - np.einsum("nqa,nqb->ab", cross, inner[..., :-1])
    side = common.T @ residual - np.einsum("nqa,nq->a", cross, inner[..., -1])
    theta = size * np.linalg.lstsq(whole * np.outer(size, size), side * size, rcond=1e-12)[0] if len(side) else side
    return inner[..., -1] - inner[..., :-1] @ theta, theta


def _grams(b, local, common, damp, residual=None):
    gram = b.sums(local[:, :, None] * local[:, None, :])
    diagonal = np.einsum("nqq->nq", gram)
    ridge = damp * diagonal + 1e-14 * diagonal.max(axis=1, keepdims=True, initial=0.0) + 1e-300
    gram = gram + ridge[..., None] * np.eye(gram.shape[1])
    cross = b.sums(local[:, :, None] * common[:, None, :])
    return gram, cross, None if residual is None else b.sums(local * residual[:, None])


def influences(b: Basins, local: np.ndarray, common: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From the columns at a minimum: (d own parameters / d loss of the row, shared held (R, q); d own / d shared (n, q,
    m); d shared / d loss of the row (R, m))."""
    gram, cross, _ = _grams(b, local, common, 0.0)
    inner = np.linalg.solve(gram, cross)
    own = np.einsum("rij,rj->ri", np.linalg.inv(gram)[b.owner], local)
    left = common - np.einsum("rq,rqm->rm", local, inner[b.owner])
    whole = left.T @ left
    size = 1 / np.sqrt(np.maximum(np.diag(whole), 1e-300))  # terms of any unit
    inverse = np.linalg.pinv(whole * np.outer(size, size), rcond=1e-12, hermitian=True) if len(whole) else whole
    return own, -inner, left @ (inverse * np.outer(size, size))
