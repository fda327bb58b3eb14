"""What fits say of slices' basins, for sweep.strategy=refine: how sharp and how bent they are, how far out a run is of use,
and how noisy runs are where a basin is no parabola."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from analysis.optimum import Optimum
from analysis.surface import Surface, fit_surface

OCTAVE = math.log(2)
RISE, LEAST_RISE = 40.0, 0.01  # s.d. of a run's noise, but this share of the loss: a basin risen so far tells its optimum
EXCESS = 0.08  # of the loss: runs farther up the basin are no use to a fit
FOUR = 4  # lowest values of a slice
TOO_NOISY = 4.0  # times the noise about the parabola of the lowest: from there on what a slice's fit leaves is no noise
MOST_NOISE = 0.01  # of the loss, likewise


@dataclass(frozen=True)
class Near:
    """Parabolas through the FOUR lowest values of slices (by id of the optimum), and the noise about them: where a whole
    slice is no parabola, what lies off it passes for noise in its fit, and would call for seeds in vain."""

    surfaces: dict[int, Surface]
    noise: float

    def noise_of(self, o: Optimum) -> float:
        """S.d. of a run."""
        most = MOST_NOISE * float(o.slice.loss[~o.slice.diverged].min())
        return min(self.noise if self.stands_for(o) else o.noise, most)

    def stands_for(self, o: Optimum) -> bool:
        """Whether the parabola of the lowest says more of this optimum than the slice's own."""
        return id(o) in self.surfaces and o.shape is None and o.noise > TOO_NOISY * self.noise


def near_lowest(optima: Iterable[Optimum]) -> Near:
    """Of interior optima whose slices have more values than those FOUR."""
    found = {}
    for o in optima:
        s, x = o.slice, o.slice.x[:, 0].round(9)
        if o.verdict != "interior":
            continue
        good = ~s.diverged
        values = np.unique(x[good])
        means = np.array([s.loss[good & (x == value)].mean() for value in values])
        used = good & np.isin(x, values[np.argsort(means)[:FOUR]])
        surface = fit_surface(s.x, s.loss, s.seed, used)
        if surface is not None and surface.dof > 0 and surface.beta[2] > 0 and used.sum() < good.sum():
            found[id(o)] = surface
    dof = sum(surface.dof for surface in found.values())
    return Near(found, math.sqrt(sum(surface.rss for surface in found.values()) / dof) if dof else math.nan)


def rise_of(loss: float, noise: float) -> float:
    """How far above its bottom a basin is worth measuring."""
    return float(np.clip(RISE * noise, LEAST_RISE * loss, EXCESS * loss))


def reach_of(o: Optimum, rise: float) -> tuple[float, float]:
    """How far below and above its optimum the fitted curve has risen by `rise`, natural log; infinite where it never has."""
    out = np.linspace(0, 6 * OCTAVE, 121)
    ends = []
    for side in (-1, 1):
        risen = o.curve((o.fitted[0] + side * out)[:, None]) - float(o.curve(o.fitted)) > rise
        ends.append(float(out[risen.argmax()]) if risen.any() else math.inf)
    return ends[0], ends[1]


def bend_of(o: Optimum) -> float:
    """Of the fitted curve: its cubic term over its square, an octave to either side."""
    low, middle, high = _octave(o)
    square = (low + high - 2 * middle) / 2
    return abs(high - low) / (2 * OCTAVE * square) if square > 0 else 1 / OCTAVE


def curvature_of(o: Optimum, near: Near) -> float:
    """Rise per squared natural log."""
    if o.shape is not None:
        low, middle, high = _octave(o)
        if low + high > 2 * middle:
            return (low + high - 2 * middle) / 2 / OCTAVE**2
    surface = near.surfaces[id(o)] if near.stands_for(o) else o.surface
    return max(float(surface.beta[2] / surface.scale[0] ** 2), 1e-12)


def _octave(o: Optimum) -> tuple[float, ...]:
    """The fitted curve an octave below the optimum, there, and an octave above."""
    return tuple(float(o.curve(o.fitted + side * OCTAVE)) for side in (-1, 0, 1))
