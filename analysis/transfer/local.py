"""What a slice's fitted curve says at its optimum beyond the optimum itself: curvature, lowest loss, and their noise.

Of any fitted curve f (a parabola, or the bent shape that slices share) near its optimum x0, the slice's own freedom is

    loss = L* + h G(x - x0),     G = (f - f(x0)) / h at the fitted x0 and h,

level L*, place x0 and curvature h, the shape G held. Least squares of the runs on the three columns (1, -f', G) gives
what each run's loss moves them by; for a parabola that is exact, for a shared shape it leaves out the shape's own error,
which moves all slices alike.
"""

from dataclasses import replace

import numpy as np

from analysis.law import own_covariance
from analysis.optimum import Optimum
from analysis.surface import design

OCTAVE = np.log(2.0)
STEP = 1e-3  # of a natural log, for derivatives


def curvature(o: Optimum) -> float:
    """h: second derivative of the loss in log2 of the tuned value at the optimum, nats per octave squared."""
    step = 20 * STEP
    below, at, above = (float(o.curve(o.fitted + sign * step)) for sign in (-1, 0, 1))
    return (below - 2 * at + above) / step**2 * OCTAVE**2


def own_of_curvature(optima: list[Optimum]) -> tuple[np.ndarray | None, float]:
    """((n, n) covariance of log h from the noise of runs, degrees of freedom), as own_covariance gives that of optima."""
    return _own(optima, 2)


def own_of_loss(optima: list[Optimum]) -> tuple[np.ndarray | None, float]:
    """((n, n) covariance of the loss at the optimum from the noise of runs, nats squared, degrees of freedom)."""
    return _own(optima, 0)


def _own(optima: list[Optimum], row: int) -> tuple[np.ndarray | None, float]:
    if any(o.influence is None for o in optima) or not optima:
        return None, 0.0
    alone = {"shared": None, "loading": None, "models": None}
    return own_covariance([replace(o, influence=_moves(o)[row][None], **alone) for o in optima], 0)


def _moves(o: Optimum) -> np.ndarray:
    """(3, rows used): what the noise of each run, one s.d., moves the lowest loss, the log optimum and log h by."""
    x, h = o.slice.x[o.used], curvature(o) / OCTAVE**2
    slope = (o.curve(x + STEP) - o.curve(x - STEP)) / (2 * STEP)
    shape = (o.curve(x) - float(o.curve(o.fitted))) / h
    u = (x - x.mean(axis=0)) / np.maximum(np.ptp(x, axis=0), 1e-12)
    offsets = design(u, o.slice.seed[o.used], 2)[:, 3:]  # of seeds, where they are told apart
    solver = np.linalg.pinv(np.column_stack([np.ones(len(x)), -slope, shape, offsets]))[:3]
    noise = np.sqrt((o.influence[0] ** 2).sum() / (solver[1] ** 2).sum())
    return noise * solver / np.array([1.0, 1.0, h])[:, None]
