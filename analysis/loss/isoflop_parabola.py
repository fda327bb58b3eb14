"""The parabola through one IsoFLOP curve, its vertex, and what the noise of the runs makes of it."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import block_diag

from analysis.loss.isoflop_shared import covariance


@dataclass(frozen=True)
class Parabola:
    beta: np.ndarray  # of 1, z, z^2
    solver: np.ndarray  # (3, n)
    residual: np.ndarray  # (n,)
    centre: float
    scale: float
    mean: float

    @property
    def spread(self) -> np.ndarray:
        """(3, 3) covariance of beta for noise of variance 1."""
        return self.solver @ self.solver.T

    @property
    def rss(self) -> float:
        return float(self.residual @ self.residual)

    @property
    def dof(self) -> int:
        return len(self.residual) - 3

    @property
    def design(self) -> np.ndarray:
        return np.linalg.pinv(self.solver)

    @property
    def vertex(self) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(self.centre - self.scale * self.beta[1] / (2 * self.beta[2]))

    @property
    def influence(self) -> np.ndarray:
        """(n,) what each loss does to the vertex (delta method)."""
        _, b, c = self.beta
        slope = np.array([0.0, -1.0, b / c]) / (2 * c) if c else np.full(3, np.nan)
        return self.scale * slope @ self.solver

    def __call__(self, x) -> np.ndarray:
        z = (np.asarray(x, float) - self.centre) / self.scale
        return self.beta[0] + z * (self.beta[1] + z * self.beta[2])

    def fieller(self, variance: float, t: float) -> tuple[float, float]:
        """Where the slope b + 2cz is not told from 0 at t; NaN ends where the curvature is not."""
        v = self.spread * variance * t**2
        _, b, c = self.beta
        q2, q1, q0 = 4 * (c**2 - v[2, 2]), 4 * (b * c - v[1, 2]), b**2 - v[1, 1]
        root = q1**2 - 4 * q2 * q0
        if q2 <= 0 or root < 0:
            return np.nan, np.nan
        ends = (-q1 + np.array([-1, 1]) * np.sqrt(root)) / (2 * q2)
        return tuple(float(self.centre + self.scale * z) for z in ends)


def fit_parabola(x: np.ndarray, loss: np.ndarray) -> Parabola | None:
    if len(x) < 3:
        return None
    centre, scale = x.mean(), np.ptp(x) / 2
    z = (x - centre) / scale
    design = np.stack([np.ones_like(z), z, z**2], axis=1)
    solver = np.linalg.pinv(design)
    beta = solver @ loss
    residual = loss - design @ beta
    return Parabola(beta, solver, residual, centre, scale, float(loss.mean()))


def covariance_of_vertices(parabolas, near, variance: np.ndarray, codes: list[np.ndarray]) -> np.ndarray:
    """(budgets, budgets) covariance of the vertices; NaN for budgets without a parabola."""
    some = [i for i, p in enumerate(parabolas) if p is not None and variance[i] > 0 and np.isfinite(p.influence).all()]
    own = np.full((len(parabolas), len(parabolas)), np.nan)
    if some:
        sigma = np.sqrt(variance[some])
        influence = block_diag(*[s * parabolas[i].influence[None] for i, s in zip(some, sigma, strict=True)])
        maker = block_diag(*[np.eye(len(near[i][0])) - parabolas[i].design @ parabolas[i].solver for i in some])
        u = np.concatenate([parabolas[i].residual / s for i, s in zip(some, sigma, strict=True)])
        own[np.ix_(some, some)] = covariance(influence, maker, u, np.concatenate([codes[i] for i in some]))[0]
    return own
