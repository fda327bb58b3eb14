"""Chinchilla's third approach (Hoffmann et al., arXiv 2203.15556, appendix D.3): L = E + A / N^alpha + B / D^beta by

    sum_i w_i Huber_delta( ln(exp(e) + exp(a - alpha x_i) + exp(b - beta z_i)) - ln L_i ),

e = ln E, x = ln N, z = ln D about their means, so a and b are the logs of the two terms at the centre. The sum, not the
mean (Besiroglu et al., arXiv 2404.10102: a mean stops optimisers early). Second-order terms are exact, and the p x p
matrices are products of (S, n) shares with powers of x and z: no loop over starts, resamples or rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

CELLS = 60_000  # starts times rows worked on at once: what a core's cache holds

# parameters of theta, in order
SYMBOLS = ("e", "a", "alpha", "b", "beta")
EXPONENT = (0.0, 5.0)  # bounds of alpha and beta
NIL = 16.0  # a term this far below the loss, in natural log, is nil: below float noise in any table
ABOVE = 6.0  # and none lies this far above it at the centre


@dataclass(frozen=True)
class Rows:
    """What a fit sees. x, z: logs of N and D about their means; y: log loss; all (n,). varying: whether the terms of N
    and of D are in the law; held: values of theta, in its order, that are not fitted (NaN: fitted)."""

    x: np.ndarray
    z: np.ndarray
    y: np.ndarray
    delta: float = 1e-3
    centre: tuple[float, float] = (0.0, 0.0)
    weight: np.ndarray | None = None  # (n,)
    varying: tuple[bool, bool] = (True, True)
    held: tuple[float, ...] = (np.nan,) * 5

    @classmethod
    def of(cls, params, tokens, loss, delta: float = 1e-3) -> "Rows":
        x, z, y = (np.log(np.asarray(each, float)) for each in (params, tokens, loss))
        centre = float(x.mean()), float(z.mean())
        return cls(x - centre[0], z - centre[1], y, delta, centre)

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: np.ndarray) -> "Rows":
        weight = None if self.weight is None else self.weight[rows]
        return replace(self, x=self.x[rows], z=self.z[rows], y=self.y[rows], weight=weight)

    def holding(self, fixed: Mapping[str, float]) -> "Rows":
        """With parameters of the law held at values; a held A (B) is one at N = 1 (D = 1), so the centre goes there."""
        held, centre, x, z = list(self.held), list(self.centre), self.x, self.z
        if "A" in fixed:
            x, centre[0] = x + centre[0], 0.0
        if "B" in fixed:
            z, centre[1] = z + centre[1], 0.0
        for k, symbol in enumerate(("E", "A", "alpha", "B", "beta")):
            if symbol in fixed:
                held[k] = fixed[symbol] if symbol in ("alpha", "beta") else float(np.log(fixed[symbol]))
        return replace(self, x=x, z=z, centre=tuple(centre), held=tuple(held))

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) of theta; equal where a parameter is held or its term is not in the law."""
        least, most = self.y.min() - NIL, self.y.max() + ABOVE
        low = np.array([least, least, EXPONENT[0], least, EXPONENT[0]])
        high = np.array([most, most, EXPONENT[1], most, EXPONENT[1]])
        for k, offset in ((1, self.centre[0]), (3, self.centre[1])):
            if offset == 0.0:  # a term at N = 1 is far above the loss
                high[k] = 80.0
        held = np.array(self.held)
        low, high = (np.where(np.isnan(held), ends, held) for ends in (low, high))
        for k, here in zip((1, 3), self.varying, strict=True):
            if not here:
                low[k] = high[k] = least
                low[k + 1] = high[k + 1] = 0.0
        return low, high


def natural(theta: np.ndarray, rows: Rows) -> np.ndarray:
    """theta (..., 5) -> (ln E, ln A, ln B, alpha, beta), N and D in their own units."""
    e, a, alpha, b, beta = np.moveaxis(theta, -1, 0)
    return np.stack([e, a + alpha * rows.centre[0], b + beta * rows.centre[1], alpha, beta], axis=-1)


def centred(parameters: np.ndarray, rows: Rows) -> np.ndarray:
    """The inverse of `natural`."""
    e, a, b, alpha, beta = np.moveaxis(np.asarray(parameters, float), -1, 0)
    return np.stack([e, a - alpha * rows.centre[0], alpha, b - beta * rows.centre[1], beta], axis=-1)


def log_loss(theta: np.ndarray, rows: Rows) -> np.ndarray:
    """(S, 5) -> (S, n)."""
    e, a, alpha, b, beta = (theta[:, k, None] for k in range(5))
    return np.log(np.exp(e) + np.exp(a - alpha * rows.x) + np.exp(b - beta * rows.z))


def huber(residual: np.ndarray, delta: float) -> np.ndarray:
    """r^2 / 2 within delta, delta (|r| - delta / 2) beyond."""
    inside = np.clip(residual, -delta, delta)
    return inside * (residual - 0.5 * inside)


def objective(theta: np.ndarray, rows: Rows, weights: np.ndarray | None = None) -> np.ndarray:
    """(S, 5) -> (S,); weights (S, n) or None."""
    found = np.empty(len(theta))
    for part in _parts(len(theta), len(rows)):
        each = huber(log_loss(theta[part], rows) - rows.y, rows.delta)
        if weights is not None:
            each = each * weights[part]
        elif rows.weight is not None:
            each = each * rows.weight
        found[part] = each.sum(axis=1)
    return found


def _parts(starts: int, rows: int):
    size = max(1, CELLS // max(rows, 1))
    return [slice(at, at + size) for at in range(0, starts, size)]


def assessor(rows: Rows, weights: np.ndarray | None = None, delta: float | None = None, y: np.ndarray | None = None):
    """`assess` of solver.minimise. weights (S, n): resamples as counts, one row a problem; None: rows.weight or ones.
    y (S, n): log losses of each problem; None: those of rows."""
    delta = rows.delta if delta is None else delta
    powers = _powers(rows)

    def assess(theta: np.ndarray, index: np.ndarray):
        s = len(theta)
        f, g = np.empty(s), np.empty((s, 5))
        h, m = np.empty((s, 5, 5)), np.empty((s, 5, 5))
        for part in _parts(s, len(rows)):
            own = rows.weight if weights is None else weights[index[part]]
            aim = rows.y if y is None else y[index[part]]
            f[part], g[part], h[part], m[part] = _assess(theta[part], rows, own, delta, powers, aim)
        return f, g, h, m

    return assess


def _powers(rows: Rows) -> np.ndarray:
    """(n, 9): 1, x, z, x^2, x z, z^2."""
    x, z = rows.x, rows.z
    return np.stack([np.ones_like(x), x, z, x * x, x * z, z * z], axis=1)


def _assess(theta, rows: Rows, weight, delta: float, powers: np.ndarray, y):
    e, a, alpha, b, beta = (theta[:, k, None] for k in range(5))
    pe = np.exp(e)
    pa = np.exp(a - alpha * rows.x)
    pb = np.exp(b - beta * rows.z)
    total = pe + pa + pb
    pa /= total
    pb /= total
    residual = np.log(total) - y
    psi = np.clip(residual, -delta, delta)
    size = np.abs(residual)
    loss = psi * (residual - 0.5 * psi)
    flat = size > delta
    majorant = delta / np.maximum(size, delta)
    if weight is not None:
        loss, psi, majorant = loss * weight, psi * weight, majorant * weight
    curved = np.where(flat, 0.0, majorant) - psi
    ga, gb = psi * pa, psi * pb
    first_a, first_b, all_psi = ga @ powers, gb @ powers, psi.sum(axis=1)
    s = len(theta)
    g = np.empty((s, 5))
    g[:, 0] = all_psi - first_a[:, 0] - first_b[:, 0]
    g[:, 1], g[:, 2], g[:, 3], g[:, 4] = first_a[:, 0], -first_a[:, 1], first_b[:, 0], -first_b[:, 2]
    h = _quadratic(curved, pa, pb, powers)
    # psi times the diagonal part of the second derivative of a log of sums
    h[:, 0, 0] += g[:, 0]
    _add_block(h, 1, first_a[:, 0], first_a[:, 1], first_a[:, 3])
    _add_block(h, 3, first_b[:, 0], first_b[:, 2], first_b[:, 5])
    return loss.sum(axis=1), g, h, _quadratic(majorant, pa, pb, powers)


def _add_block(h, at: int, zero, one, two) -> None:
    h[:, at, at] += zero
    h[:, at, at + 1] -= one
    h[:, at + 1, at] -= one
    h[:, at + 1, at + 1] += two


def _quadratic(v, pa, pb, powers) -> np.ndarray:
    """sum_i v_i J_i J_i' (S, 5, 5) with J = (1 - pa - pb, pa, -pa x, pb, -pb z)."""
    va, vb = v * pa, v * pb
    aa, ab, bb = (va * pa) @ powers, (va * pb) @ powers, (vb * pb) @ powers
    a, b, one = va @ powers, vb @ powers, v.sum(axis=1)
    h = np.empty((len(v), 5, 5))
    h[:, 0, 0] = one - 2 * a[:, 0] - 2 * b[:, 0] + aa[:, 0] + 2 * ab[:, 0] + bb[:, 0]
    h[:, 0, 1] = a[:, 0] - aa[:, 0] - ab[:, 0]
    h[:, 0, 2] = -(a[:, 1] - aa[:, 1] - ab[:, 1])
    h[:, 0, 3] = b[:, 0] - ab[:, 0] - bb[:, 0]
    h[:, 0, 4] = -(b[:, 2] - ab[:, 2] - bb[:, 2])
    h[:, 1, 1], h[:, 1, 2], h[:, 1, 3], h[:, 1, 4] = aa[:, 0], -aa[:, 1], ab[:, 0], -ab[:, 2]
    h[:, 2, 2], h[:, 2, 3], h[:, 2, 4] = aa[:, 3], -ab[:, 1], ab[:, 4]
    h[:, 3, 3], h[:, 3, 4], h[:, 4, 4] = bb[:, 0], -bb[:, 2], bb[:, 5]
    for i in range(5):
        h[:, i + 1 :, i] = h[:, i, i + 1 :]
    return h
