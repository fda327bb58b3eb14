"""The global minimum of the summed Huber loss (analysis/loss/huber.py), from every basin of its profile."""

from dataclasses import dataclass

import numpy as np

from analysis.loss.huber import Rows, assessor, log_loss, objective
from analysis.loss.solver import minimise
from analysis.loss.starts import starts

CELLS = 15_000  # starts times rows
FINISHED = 5_000  # of them followed to the end
STARTS = 24  # at least
RESTARTS, LEAST_RESTARTS, LOWEST = 5_000, 12, 12
SUBSAMPLE = 3000  # rows that choose among the starts where there are more
CLOSE = 1e-9  # optima whose objectives agree to this are one


@dataclass(frozen=True)
class Point:
    """theta (5,), its objective, residuals ln predicted - ln measured (n,), and how many basins were tried."""

    theta: np.ndarray
    value: float
    residual: np.ndarray
    converged: bool
    basins: int


def fit_point(rows: Rows, seed: int = 0, first: np.ndarray | None = None) -> Point:
    """The lowest minimum from many starts (and from `first` (k, 5), where given)."""
    few = rows
    if len(rows) > SUBSAMPLE:
        few = rows.take(np.random.default_rng(seed).choice(len(rows), SUBSAMPLE, replace=False))
    begin = starts(few, max(STARTS, CELLS // len(few)))
    if first is not None:
        begin = np.concatenate([first, begin])
    theta, value = descend(few, begin)
    basins = len(theta)
    theta, value = restart(few, theta, value, np.random.default_rng(seed))
    if few is not rows:
        order = np.argsort(value)
        theta = theta[order[:4]]
        theta, value = descend(rows, theta)
    best = theta[value.argmin()]
    low, high = rows.bounds()
    best, value, converged = minimise(assessor(rows), best[None], low, high, iterations=80, tolerance=1e-14)
    return Point(best[0], float(value[0]), log_loss(best, rows)[0] - rows.y, bool(converged[0]), basins)


def restart(rows: Rows, theta: np.ndarray, value: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
    """Wood's bootstrap restarting (Biometrics 57, 2001): the minimum of a randomly reweighted objective is a start for
    the true one, which frees it from a crease of few rows. (theta, value) with what it found in front."""
    low, high = rows.bounds()
    count = max(LEAST_RESTARTS, RESTARTS // len(rows))
    for _ in range(2):
        lowest = theta[np.argsort(value)[:LOWEST]]
        begin = lowest[np.arange(count) % len(lowest)]
        weights = rng.exponential(1.0, (count, len(rows))) ** 2
        if rows.weight is not None:
            weights *= rows.weight
        moved, _, _ = minimise(assessor(rows, weights), begin, low, high, 15, 1e-4)
        moved, found, _ = minimise(assessor(rows), moved, low, high, 40)
        theta, value = np.concatenate([moved, theta]), np.concatenate([found, value])
    return theta, value


def descend(rows: Rows, theta: np.ndarray, weights: np.ndarray | None = None, rough: bool = True, iterations: int = 60):
    """(theta, objective) after steps on ever sharper Huber losses: a small delta alone makes the surface one of creases,
    on which a step from afar stops early."""
    low, high = rows.bounds()
    if rough:
        spread = float(np.median(np.abs(log_loss(theta[:1], rows)[0] - rows.y)))
        delta = 4 * spread
        while delta > 1.5 * rows.delta:
            theta, _, _ = minimise(assessor(rows, weights, delta), theta, low, high, 8, 1e-4)
            delta /= 4
        theta = theta[np.argsort(objective(theta, rows, weights))[: max(LOWEST, FINISHED // len(rows))]]
    theta, value, _ = minimise(assessor(rows, weights), theta, low, high, iterations)
    return theta, value


def value_at(theta: np.ndarray, rows: Rows) -> float:
    return float(objective(np.atleast_2d(theta), rows)[0])
