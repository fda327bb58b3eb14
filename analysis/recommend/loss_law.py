"""A fitted loss law L(N, D) = E + A / N^alpha + B / D^beta: what it says about allocation and about a loss in compute.

    least FLOPs C = 6 N D for a loss L:   A / N^alpha = (L - E) beta / (alpha + beta),   B / D^beta the rest
    (Hoffmann et al., arXiv 2203.15556, section 3.3; the form in L is the same condition alpha A/N^alpha = beta B/D^beta)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SYMBOLS = ("E", "A", "B", "alpha", "beta")
REPEATED = {"R_D", "R_N"}  # of a data-constrained law: what repeated tokens and excess parameters are worth
ORDER = ("ln E", "ln A", "ln B", "alpha", "beta")
DRAWS = 4000
FEWEST = 50  # resamples that make an interval


@dataclass(frozen=True)
class LossLaw:
    """Numbers, or arrays of draws of one shape. Nats per token, N and D in units of one."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, n, d):
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

    def tokens_for(self, loss, n):
        """D that reaches `loss` with N; infinity where N is too small for it."""
        rest = np.asarray(loss - self.E - self.A * np.asarray(n, float) ** -self.alpha)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.where(rest > 0, (self.B / np.where(rest > 0, rest, 1.0)) ** (1 / self.beta), np.inf)

    def cheapest(self, loss):
        """(N, D) of least 6 N D for `loss` (above E)."""
        rest = loss - self.E
        n = (self.A * (1 + self.alpha / self.beta) / rest) ** (1 / self.alpha)
        d = (self.B * (1 + self.beta / self.alpha) / rest) ** (1 / self.beta)
        return n, d

    def best(self, flops):
        """(N, D) of least loss at 6 N D = `flops`."""
        total = self.alpha + self.beta
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        n = g * (flops / 6) ** (self.beta / total)
        return n, flops / 6 / n

    def more_compute(self, n: float, d: float, nats: float) -> float | None:
        """Share of FLOPs (0.1: 10 %) that lowers the loss by `nats`, N and D both grown by one factor; None where no
        factor does (so much lies below E)."""
        goal = float(self.loss(n, d)) - nats
        if not goal > self.E:
            return None
        low, high = 0.0, 1.0  # ln of the factor
        while self.loss(n * math.exp(high), d * math.exp(high)) > goal:
            low, high = high, 2 * high
            if high > 300:
                return None
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if self.loss(n * math.exp(middle), d * math.exp(middle)) > goal else (low, middle)
        return math.expm1(2 * high) if nats > 0 else 0.0


def find(laws: list[Mapping]) -> Mapping | None:
    """The last law named "loss" with the five numbers all there; where there is none such, the last data-constrained one
    (also R_D, R_N), which is the same law at one epoch. A variant in other symbols is passed over."""
    for further in (set(), REPEATED):
        for law in reversed(laws):
            parameters = law.get("parameters") or {}
            if law["name"] == "loss" and set(parameters) == set(SYMBOLS) | further and _sound(parameters):
                return law
    return None


def constrained(law: Mapping) -> bool:
    return set(law["parameters"]) > set(SYMBOLS)


def _sound(parameters: Mapping) -> bool:
    values = [entry.get("value") if isinstance(entry := parameters[s], Mapping) else None for s in SYMBOLS]
    known = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    return known and values[0] >= 0 and min(values[1:]) > 0


def central(law: Mapping) -> LossLaw:
    return LossLaw(*(float(law["parameters"][symbol]["value"]) for symbol in SYMBOLS))


def draws(law: Mapping, n: int = DRAWS, seed: int = 0) -> LossLaw | None:
    """What the resamples of its fit say (`draws`, where the law holds 50 or more), or normal draws from its covariance of
    (ln E, ln A, ln B, alpha, beta); None where it has neither."""
    sample = _resampled(law)
    if sample is None:
        sample = _normal(law, n, seed)
    if sample is None:
        return None
    sample = sample[np.isfinite(sample).all(axis=1) & (sample[:, 3] > 0) & (sample[:, 4] > 0)]
    with np.errstate(over="ignore"):
        return LossLaw(*np.exp(sample[:, :3]).T, *sample[:, 3:].T) if len(sample) else None


def _resampled(law: Mapping) -> np.ndarray | None:
    stored = law.get("draws")
    if not isinstance(stored, Mapping) or not set(ORDER) <= set(_names(stored.get("of"))):
        return None
    try:
        rows = np.array(stored.get("values"), dtype=float)
    except (TypeError, ValueError):
        return None
    if rows.ndim != 2 or rows.shape[1] != len(stored["of"]) or len(rows) < FEWEST:
        return None
    return rows[:, [stored["of"].index(name) for name in ORDER]]


def _names(value: object) -> list[str]:
    return value if isinstance(value, list) and all(isinstance(each, str) for each in value) else []


def _normal(law: Mapping, n: int, seed: int) -> np.ndarray | None:
    try:
        matrix = np.array(law.get("covariance"), dtype=float)
    except (TypeError, ValueError):
        return None
    named = _names(law.get("covariance_of") or list(ORDER))
    point = central(law)
    if matrix.shape != (len(named),) * 2 or not set(ORDER) <= set(named) or point.E <= 0:
        return None
    at = [named.index(name) for name in ORDER]
    matrix = matrix[np.ix_(at, at)]
    if not np.isfinite(matrix).all():
        return None
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    centre = np.array([math.log(point.E), math.log(point.A), math.log(point.B), point.alpha, point.beta])
    return centre + np.random.default_rng(seed).standard_normal((n, 5)) @ root.T
