"""How wide the interval of a law's prediction will be, given the runs of its slices: the criterion of sweep.strategy=refine.

A slice is y = a z^2 + level of the seed + noise, z the log of the tuned value from the optimum. With S the scatter of
(z, z^2, z^3) over its runs, the level of each seed taken out (told apart as in analysis/surface.py), the vertex of its
quadratic has the variance (delta method, averaged over where the optimum may lie: doubt^2 about z = 0)

    v = noise^2 / (4 a^2) * (A^-1[0, 0] + 4 doubt^2 A^-1[1, 1]) + (bend / 2 * (A^-1 C)[0])^2,    A = S[:2, :2], C = S[:2, 2]

The last term is what a basin of the form a z^2 (1 + bend z) does to the vertex of a parabola: it keeps runs from moving out
for ever, where they tell most of a parabola and least of the optimum. v is divided by the squared chance that the curvature
stands out of the noise: a slice that stays flat is in no law.

Where `fit` has the slices share a shape, a (u^2 + sum_k theta_k u^k), k = 3, 4, ..., its terms are one more error that all
have in common. With A, C, G the blocks of the scatter of (u, u^2; u^3, ...), a slice tells (a / noise)^2 (G - C'A^-1 C) of
theta, and an error of theta moves its optimum by L = -(A^-1 C)[0] / 2: the prediction gets the variance (h'L) I^-1 (h'L)', I
the sum of what the slices tell.

The law is least squares over slices, x (n, p) -> log optimum; at the target u the prediction has the variance

    h'(V + s^2 I) h + s^2 + (misfit (g(u) - h'g(x)))^2,    h = (x^+)' u,    V = diag(v)

s the scatter of optima about the law, and Student's t with the degrees of freedom that analysis/law.py gives it; the last
term is for a law that is itself bent (g: half the squared log scale): it grows with the distance of extrapolation (Box and
Draper 1959, J. Am. Stat. Assoc. 54, on designs against bias). To choose runs for the variance of one linear combination is
c-optimal design (Elfving 1952; Pukelsheim, Optimal Design of Experiments, ch. 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

BEND = 0.01  # of a basin, per unit of natural log
MISFIT = 0.003  # of a law: change of its exponent per unit of natural log of the scale
SHOWN = 1.3  # s.d. from which a curvature counts (analysis/optimum.py)
UNIT = 1.5  # natural log: of u
PRIOR = 1.0  # precision of a term of the shape that nothing tells
POWERS = 6


@dataclass(frozen=True)
class Sums:
    """Runs of one seed: count, sum (P,) and sum of products (P, P) of (z, z^2, ..., z^P); arrays with leading axes hold
    alternatives."""

    n: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def of(cls, z: np.ndarray) -> Sums:
        """Of z (..., m): m runs in each of the alternatives."""
        f = z[..., None] ** np.arange(1, POWERS + 1)
        return cls(np.full(z.shape[:-1], z.shape[-1]), f.sum(axis=-2), np.einsum("...mi,...mj->...ij", f, f))

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.n + other.n, self.first + other.first, self.second + other.second)

    @property
    def scatter(self) -> np.ndarray:
        """(..., P, P) about the mean."""
        outer = self.first[..., :, None] * self.first[..., None, :]
        return self.second - outer / np.maximum(np.asarray(self.n)[..., None, None], 1)


def scatter(z: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """(P, P) of the runs at z (n,), each seed's level taken out where every seed has two runs and there are enough."""
    codes, counts = np.unique(seed, return_counts=True)
    if len(codes) > 1 and counts.min() > 1 and len(z) > 2 + len(codes):
        return sum(Sums.of(z[seed == code]).scatter for code in codes)
    return Sums.of(z).scatter


def vertex_variance(
    scatter: np.ndarray, curvature: float, noise: float, doubt: float = 0.0, bend: float = BEND
) -> np.ndarray:
    """(...,) variance of a slice's log optimum; scatter (..., P, P). Infinite where its runs determine none."""
    p, q, r = scatter[..., 0, 0], scatter[..., 0, 1], scatter[..., 1, 1]
    c, d = scatter[..., 0, 2], scatter[..., 1, 2]
    det = p * r - q * q
    good = det > 1e-9 * p * r
    with np.errstate(all="ignore"):
        slope, square = r / det, p / det  # of A^-1
        pull = (r * c - q * d) / det
        found = noise**2 / (4 * curvature**2) * (slope + 4 * doubt**2 * square) + (bend / 2 * pull) ** 2
        found /= special.ndtr(curvature / (noise * np.sqrt(square)) - SHOWN) ** 2
    return np.where(good & (p > 0) & (r > 0), found, np.inf)


def shape_terms(scatter: np.ndarray, terms: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """(L (..., m), what they tell (..., m, m)) of slices of scatter (..., P, P), m terms; sharpness: curvature / noise."""
    unit = UNIT ** -np.arange(1.0, terms + 3)
    s = scatter[..., : terms + 2, : terms + 2] * unit[:, None] * unit
    corner = s[..., :2, :2] + 1e-9 * np.eye(2)
    cross = s[..., :2, 2:]
    pull = np.linalg.solve(corner, cross)
    told = (sharpness * UNIT**2) ** 2 * (s[..., 2:, 2:] - np.swapaxes(cross, -1, -2) @ pull)
    return -UNIT / 2 * pull[..., 0, :], told


@dataclass(frozen=True)
class LawDesign:
    """What does not depend on the choice of runs: logs of predictors at the slices x (N, p) with the constant first, at
    the target u (p,); g (N,) and g_target half the squared log scale; scatter s; level of the interval."""

    x: np.ndarray
    u: np.ndarray
    g: np.ndarray
    g_target: float
    scatter: float
    level: float = 0.8
    misfit: float = MISFIT

    def half_width(self, variances: np.ndarray, spare: float = 0.0, shape: tuple | None = None) -> float:
        """Half the width of the prediction interval, natural log, from slices' variances (N,), infinite for those not in
        the law; spare: degrees of freedom of the runs' noise; shape: (L (N, m), what is told in all (m, m)). Infinite where
        the slices do not determine the law."""
        found = self.parts(variances, spare, shape)
        return found[0] * np.sqrt(found[1]) if found else np.inf

    def parts(
        self, variances: np.ndarray, spare: float = 0.0, shape: tuple | None = None
    ) -> tuple[float, float, np.ndarray] | None:
        """(quantile of Student's t, variance of the prediction, h (N,), 0 of slices not in the law), or None."""
        inside = np.isfinite(variances)
        x, v = self.x[inside], variances[inside]
        n, p = x.shape
        if n <= p or not determined(x):  # through as many optima as it has parameters a law has no interval
            return None
        inverse = np.linalg.inv(x.T @ x)
        h = x @ (inverse @ self.u)
        total = v + self.scatter**2
        bias = self.misfit * (self.g_target - h @ self.g[inside])
        variance = float(h @ (total * h)) + self.scatter**2 + bias**2
        everywhere = np.zeros(len(variances))
        everywhere[inside] = h
        variance += shape_variance(everywhere, *shape) if shape else 0.0
        dof = self._dof(x @ inverse @ x.T, v, total, spare)
        return float(special.stdtrit(dof, (1 + self.level) / 2)), variance, everywhere

    def _dof(self, hat: np.ndarray, v: np.ndarray, total: np.ndarray, spare: float) -> float:
        """As in analysis/law.py: Satterthwaite's, and those of the runs' noise where it explains the residuals."""
        maker = np.eye(len(v)) - hat
        spread = maker * total
        trace = max(float(np.trace(spread)), 1e-300)
        own = min(trace**2 / max(float((spread * spread.T).sum()), 1e-300), len(v) - self.x.shape[1])
        return own + spare * float(np.diag(maker) @ v) / trace


def shape_variance(h: np.ndarray, loading: np.ndarray, told: np.ndarray) -> float:
    """Of a prediction with weights h (N,) of slices, by the shape's terms: loading (N, m), told (m, m)."""
    pull = h @ loading
    return float(pull @ np.linalg.solve(told + PRIOR * np.eye(len(told)), pull))


def determined(x: np.ndarray) -> bool:
    """Whether rows x (n, p), the constant first, determine p coefficients."""
    centred = x[:, 1:] - x[:, 1:].mean(axis=0) if len(x) else x[:, 1:]
    gram = centred.T @ centred
    return len(x) >= x.shape[1] and bool(np.linalg.det(gram) > 1e-6 * np.prod(np.maximum(np.diag(gram), 1e-9)))
