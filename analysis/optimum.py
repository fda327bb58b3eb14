"""The optimum of each slice: value, interval and verdict.

quadratic  vertex of a quadratic in the logs of the hyper-parameters (analysis/window.py); interval from `bootstrap`
           resamples of the runs' noise (Student t), or by the delta method where bootstrap is 0.
           Where the basins of one hyper-parameter are bent (analysis/bend.py) and window=auto, as under shape.
shape      minimum of the shape that the slices of a law share (analysis/shape.py), of any number of hyper-parameters,
           bent or not; where the slices have too few values to tell a shape, as under quadratic.
akima      minimum of an Akima interpolation of the mean loss over seeds (one hyper-parameter); no interval.
argmin     the lowest run (mean over seeds); no interval. For comparison. Both take their verdict from the quadratic,
           since a lowest value at the end of the measured ones says nothing; a minimum of akima's curve at its end
           is `edge`.

Verdicts, in this order:
too_few    fewer values than the estimator needs (three; a full set of coefficients for several hyper-parameters)
flat       nothing, or no curvature, stands out of the noise
non_convex the fitted surface has no minimum: curved downward, or a saddle
edge       the fitted minimum lies outside the measured values, or none is left between them and those that diverged
interior   else. Only an interior optimum has a value, and only it enters a law.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import interpolate, special

from analysis import bend
from analysis.errors import UserError
from analysis.noise import ROUNDING, choose, moderated, seed_noise
from analysis.slices import Slice
from analysis.surface import Surface, censored, fit_surface, vertices
from analysis.window import Rows, choose_windows

ESTIMATORS = ("quadratic", "shape", "argmin", "akima")


@dataclass
class Optimum:
    """Optimum of one slice of k hyper-parameters; logs are natural; NaN where there is nothing to say."""

    slice: Slice
    verdict: str
    fitted: np.ndarray  # (k,) log of the fitted minimum, also outside the measured values
    se: np.ndarray  # (k,) s.d. of the log
    low: np.ndarray  # (k,)
    high: np.ndarray  # (k,)
    dof: float  # of se
    loss: float
    used: np.ndarray  # (n,) bool: rows in the fit
    curve: Callable[[np.ndarray], np.ndarray] | None = None  # log values (..., k) -> loss
    influence: np.ndarray | None = field(default=None, repr=False)  # (k, rows used): d value / d loss, times the noise
    resolved: bool = False  # the slice's own quadratic is convex beyond noise
    surface: Surface | None = field(default=None, repr=False)  # that quadratic
    noise: float = np.nan  # s.d. of one loss
    shared: bend.Shared | None = field(default=None, repr=False)  # where basins are bent: what moves all optima
    loading: np.ndarray | None = field(default=None, repr=False)  # (k, m): d value / d terms of `shared`
    models: np.ndarray | None = field(default=None, repr=False)  # (k, D): effects of unit variance, common to all
    shape: np.ndarray | None = None  # (D,) weights of the degrees

    @property
    def value(self) -> np.ndarray:
        """(k,) log of the optimum; NaN unless the verdict is interior."""
        return self.fitted if self.verdict == "interior" else np.full(len(self.fitted), np.nan)


def find_optima(
    slices: list[Slice],
    estimator: str = "quadratic",
    window: str | float = "auto",
    bootstrap: int = 1000,
    level: float = 0.8,
    seed: int = 0,
) -> list[Optimum]:
    """The optimum of each slice. Slices of one law (equal settings) share what they know of the noise."""
    if estimator not in ESTIMATORS:
        raise UserError(f"estimator={estimator} must be one of {', '.join(ESTIMATORS)}.")
    if estimator == "akima" and any(len(s.targets) > 1 for s in slices):
        raise UserError("estimator=akima takes one hyper-parameter; use quadratic or argmin.")
    surfaces = _surfaces(slices, window)
    noise = _noise(slices, surfaces)
    rng = np.random.default_rng(seed)
    optima = [_quadratic(*each, bootstrap, level, rng) for each in zip(slices, surfaces, noise, strict=True)]
    if estimator in ("argmin", "akima"):
        return [_interpolated(o.slice, estimator, o.verdict) for o in optima]
    if estimator == "shape" or window == "auto":
        for members in _laws(slices):
            refined = bend.refine([optima[i] for i in members], level, is_inside, always=estimator == "shape")
            for i, o in zip(members, refined, strict=True):
                optima[i] = o
    return optima


def _surfaces(slices: list[Slice], window: str | float) -> list[Surface | None]:
    """The quadratic of each slice in its window, None where its rows determine none."""
    keeps = [~censored(s.loss, s.diverged) for s in slices]
    surfaces: list[Surface | None] = [None] * len(slices)
    for members in _laws(slices):
        some = [i for i in members if keeps[i].any()]
        rows = [Rows(slices[i].x, slices[i].loss, slices[i].seed, keeps[i]) for i in some]
        for i, used in zip(some, choose_windows(rows, window), strict=True):
            surfaces[i] = fit_surface(slices[i].x, slices[i].loss, slices[i].seed, used)
    return surfaces


def _laws(slices: list[Slice]) -> list[list[int]]:
    """Indices of the slices of each law (equal settings)."""
    groups: dict[str, list[int]] = {}
    for i, s in enumerate(slices):
        groups.setdefault(repr(s.settings), []).append(i)
    return list(groups.values())


def _noise(slices: list[Slice], surfaces: list[Surface | None]) -> list[tuple[float, float]]:
    """(variance of one loss, degrees of freedom) of each slice."""
    squares, dof = np.zeros(len(slices)), np.zeros(len(slices))
    for i, (s, surface) in enumerate(zip(slices, surfaces, strict=True)):
        if surface is not None:
            seeds = seed_noise(s.x[surface.used], s.loss[surface.used], s.seed[surface.used])
            squares[i], dof[i] = choose((surface.rss, surface.dof), seeds)
            squares[i] = max(squares[i], dof[i] * (ROUNDING * s.loss[surface.used].mean()) ** 2)
    result = [(np.nan, 0.0)] * len(slices)
    for members in _laws(slices):
        for i, *known in zip(members, *moderated(squares[members], dof[members]), strict=True):
            result[i] = tuple(map(float, known))
    return result


def _quadratic(s: Slice, surface: Surface | None, noise, bootstrap: int, level: float, rng) -> Optimum:
    k = s.x.shape[1]
    nothing = np.full(k, np.nan)
    if surface is None:
        return Optimum(s, "too_few", nothing, nothing, nothing, nothing, 0.0, np.nan, ~censored(s.loss, s.diverged))
    variance, dof = noise
    verdict, resolved = _verdict(s, surface, variance, dof, level)
    se, low, high, influence = nothing, nothing, nothing, None
    if verdict == "interior" and dof > 0:
        influence = np.sqrt(variance) * surface.sensitivity
        se = np.sqrt((influence**2).sum(axis=1))
        low, high = _interval(surface, se, variance, dof, bootstrap, level, rng)
    loss = float(surface(surface.vertex)) if verdict == "interior" else np.nan
    told = surface.used, surface, influence, resolved, surface, float(np.sqrt(variance))
    return Optimum(s, verdict, surface.vertex, se, low, high, dof, loss, *told)


def _verdict(s: Slice, surface: Surface, variance: float, dof: float, level: float) -> tuple[str, bool]:
    """(verdict, whether the surface is convex beyond noise)."""
    steepest = np.abs(surface.beta[1:]).max()
    if steepest <= ROUNDING * abs(surface.beta[0]):
        return "flat", False
    curvature, unit = surface.curvature
    resolved, shaped = True, True
    if dof > 0:
        shape, spread = surface.beta[1:], surface.spread[1:, 1:] * variance
        f = shape @ np.linalg.solve(spread, shape) / len(shape)
        shaped = special.fdtrc(len(shape), dof, f) < 1 - level
        resolved = abs(curvature) > special.stdtrit(dof, (1 + level) / 2) * unit * np.sqrt(variance)
    if not shaped:
        return "flat", False
    outside, convex = not is_inside(s, surface.vertex), curvature > 0
    if not convex:
        return "edge" if outside and not resolved and surface.k == 1 else "non_convex", False
    if outside:
        return "edge", resolved
    return "interior" if resolved else "flat", resolved


def is_inside(s: Slice, log_value: np.ndarray) -> bool:
    """Whether the value lies between the measured ones; values where every run diverged bound the range on their
    side."""
    if not np.isfinite(log_value).all():
        return False
    bad = censored(s.loss, s.diverged)
    for i, value in enumerate(log_value):
        x = s.x[:, i]
        if len(log_value) == 1:
            best = x[~bad][s.loss[~bad].argmin()]
            lost = np.setdiff1d(x[bad], x[~bad])
            low, high = max([x.min(), *lost[lost < best]]), min([x.max(), *lost[lost > best]])
        else:
            low, high = x[~bad].min(), x[~bad].max()
            low, high = max(x[bad & (x < low)], default=low), min(x[bad & (x > high)], default=high)
        if not low <= value <= high:
            return False
    return True


def _interval(surface, se, variance, dof, bootstrap, level, rng) -> tuple[np.ndarray, np.ndarray]:
    if not bootstrap:
        half = special.stdtrit(dof, (1 + level) / 2) * se
        return surface.vertex - half, surface.vertex + half
    root = np.linalg.cholesky(surface.spread + 1e-14 * np.trace(surface.spread) * np.eye(len(surface.beta)))
    scale = np.sqrt(variance * dof / rng.chisquare(dof, bootstrap))
    betas = surface.beta + scale[:, None] * (rng.standard_normal((bootstrap, len(root))) @ root.T)
    points, minimum = vertices(betas, surface.k)
    draws = surface.center + surface.scale * points
    # Without a minimum the optimum has left through the side to which the loss falls.
    draws[~minimum] = -np.sign(betas[~minimum, 1 : 1 + surface.k]) * np.inf
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0, method="nearest")
    return np.where(np.isfinite(low), low, np.nan), np.where(np.isfinite(high), high, np.nan)


def _interpolated(s: Slice, estimator: str, verdict: str) -> Optimum:
    k = s.x.shape[1]
    nothing, keep = np.full(k, np.nan), ~censored(s.loss, s.diverged)
    nodes, inverse = np.unique(s.x[keep].round(9), axis=0, return_inverse=True)
    if any(len(np.unique(column)) < 3 for column in nodes.T) or len(nodes) < (4 if estimator == "akima" else 3):
        return Optimum(s, "too_few", nothing, nothing, nothing, nothing, 0.0, np.nan, keep)
    inverse = inverse.ravel()
    means = np.bincount(inverse, s.loss[keep]) / np.bincount(inverse)
    point, loss = nodes[means.argmin()], float(means.min())
    curve = _curve(nodes[:, 0], means, estimator) if k == 1 else None
    if estimator == "akima":
        grid = np.linspace(nodes[0, 0], nodes[-1, 0], 4001)
        values = curve(grid[:, None])
        point, loss = grid[[values.argmin()]], float(values.min())
        if verdict == "interior" and (point[0] <= nodes[0, 0] or point[0] >= nodes[-1, 0]):
            verdict = "edge"
    return Optimum(
        s, verdict, point, nothing, nothing, nothing, 0.0, loss if verdict == "interior" else np.nan, keep, curve
    )


def _curve(nodes: np.ndarray, means: np.ndarray, estimator: str) -> Callable:
    """The interpolant, NaN beyond its nodes; those are rounded, so a measured value may lie a rounding beyond them."""

    def inside(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, float)[..., 0]
        clipped = np.clip(x, nodes[0], nodes[-1])
        return np.where(np.abs(x - clipped) < 1e-8, clipped, np.nan)

    if estimator == "akima":
        akima = interpolate.Akima1DInterpolator(nodes, means)
        return lambda x: akima(inside(x), extrapolate=False)
    return lambda x: np.interp(inside(x), nodes, means)
