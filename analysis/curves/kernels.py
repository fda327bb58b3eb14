"""What a drop of the learning rate has gained by now: the annealing term of a curve law is sum_k (drop_k) K_k(t).

    Exponential   K = (1 - m^(age+1)) / (1 - m)            Tissue et al., arXiv 2408.11029: the sum up to t of the
                                                           drops smoothed with momentum m per step
    Power         K = ((age + 3/2)^(1-p) - (1/2)^(1-p)) / (1 - p)   ours: the sum of (1 + j)^-p over j = 0..age by the
                                                           midpoint rule, for the power-law memory of later authors
    MultiPower    K = 1 - (1 + C x)^-beta,  x = lr^-gamma * area    Luo et al., arXiv 2503.12811; area: sum of LR since

age in steps since the drop, lr right after it. Each has parameters psi in logs (`names`; gamma as it stands), a
`start` grid for them, `value(psi, points)` with its derivatives by psi, and `slopes` by log lr and log area, for the
search of schedules.
"""

from itertools import product

import numpy as np

from analysis.curves.history import Points


class Exponential:
    """Momentum per step; fitted in log half-life where `momentum` is None."""

    def __init__(self, momentum: float | None = 0.999):
        self.momentum = momentum
        self.names = () if momentum is not None else ("momentum",)
        self.bounds = () if momentum is not None else ((0.0, 14.0),)

    def start(self) -> np.ndarray:
        return np.log([100.0, 300.0, 1000.0, 3000.0, 10_000.0])[:, None] if self.names else np.zeros((1, 0))

    def natural(self, psi: np.ndarray) -> list[np.ndarray]:
        """psi (..., k) as the parameters of the paper."""
        return [np.exp(-np.exp(-psi[..., 0]))] if self.names else []

    def value(self, psi: np.ndarray, at: Points) -> tuple[np.ndarray, list[np.ndarray]]:
        m = np.exp(-np.exp(-psi[0])) if self.names else self.momentum
        decayed = m ** (at.age + 1)
        value = (1 - decayed) / (1 - m)
        if not self.names:
            return value, []
        by_m = value / (1 - m) - (at.age + 1) * decayed / (m * (1 - m))
        return value, [by_m * m * np.exp(-psi[0])]

    def slopes(self, psi: np.ndarray, at: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        zero = np.zeros_like(at.age)
        return self.value(psi, at)[0], zero, zero


class Power:
    names = ("p",)
    bounds = ((-5.0, 1.5),)

    def start(self) -> np.ndarray:
        return np.log([0.1, 0.2, 0.35, 0.5, 0.7, 0.9])[:, None]

    def natural(self, psi: np.ndarray) -> list[np.ndarray]:
        return [np.exp(psi[..., 0])]

    def value(self, psi: np.ndarray, at: Points) -> tuple[np.ndarray, list[np.ndarray]]:
        p = np.exp(psi[0])
        return _sum(at.age, p), [p * (_sum(at.age, p * 1.0001) - _sum(at.age, p * 0.9999)) / (0.0002 * p)]

    slopes = Exponential.slopes


def _sum(age: np.ndarray, p: float) -> np.ndarray:
    q = 1 - p
    if abs(q) < 1e-7:
        return np.log((age + 1.5) / 0.5)
    return 0.5**q * np.expm1(q * np.log((age + 1.5) / 0.5)) / q


class MultiPower:
    """Solved in C' = C peak^(1 - gamma), per step: x is then in steps at the peak, and C hardly moves with gamma."""

    names = ("C", "beta", "gamma")
    bounds = ((-20.0, 10.0), (-5.0, 3.0), (0.0, 4.0))

    def __init__(self, peak: float):
        self.log_peak = float(np.log(peak))

    def start(self) -> np.ndarray:
        grid = product((1e-4, 3e-3, 0.1), (0.1, 0.6, 2.0), (0.3, 0.7, 1.5, 4.0))
        return np.array([[np.log(c), np.log(b), g] for c, b, g in grid])

    def natural(self, psi: np.ndarray) -> list[np.ndarray]:
        gamma = psi[..., 2]
        return [np.exp(psi[..., 0] - (1 - gamma) * self.log_peak), np.exp(psi[..., 1]), gamma]

    def _parts(self, psi: np.ndarray, at: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """log(1 + Cx), (1 + Cx)^-beta, and beta C x (1 + Cx)^(-beta-1)"""
        log_cx = psi[0] + (at.log_area - self.log_peak) - psi[2] * (at.log_lr - self.log_peak)
        cx = np.exp(np.minimum(log_cx, 300.0))
        log = np.log1p(cx)
        left = np.exp(-np.exp(psi[1]) * log)
        return log, left, np.exp(psi[1]) * left * cx / (1 + cx)

    def value(self, psi: np.ndarray, at: Points) -> tuple[np.ndarray, list[np.ndarray]]:
        log, left, steep = self._parts(psi, at)
        return 1 - left, [steep, np.exp(psi[1]) * left * log, -steep * (at.log_lr - self.log_peak)]

    def slopes(self, psi: np.ndarray, at: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        _, left, steep = self._parts(psi, at)
        return 1 - left, -psi[2] * steep, steep


class Nothing:
    """No annealing term."""

    names = ()
    bounds = ()

    def start(self) -> np.ndarray:
        return np.zeros((1, 0))

    def natural(self, psi: np.ndarray) -> list[np.ndarray]:
        return []

    def value(self, psi: np.ndarray, at: Points) -> tuple[np.ndarray, list[np.ndarray]]:
        return np.zeros_like(at.age), []

    slopes = Exponential.slopes


Kernel = Exponential | Power | MultiPower | Nothing
