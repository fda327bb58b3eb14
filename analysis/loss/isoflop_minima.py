"""The minimum of each IsoFLOP curve: loss against x = log N (or log D) at one training budget.

parabola   vertex of a parabola in x (Chinchilla, arXiv 2203.15556, section 3.2). Interval: Fieller's, of the ratio of
           two normal estimates.
linex      ours: loss = m + k * 2 (exp(p z) - 1 - p z) / p^2, z = x - x_min, one asymmetry p for all budgets. Where
           L = E + A/N^alpha + B/D^beta, curves at all budgets have one shape but for height and place, bent by
           beta - alpha, so that a parabola's vertex is off (arXiv 2603.22339); p is what bends them (p -> 0: the
           parabola), and each curve stays convex. p has a prior of mean 0 and s.d. PRIOR. Interval: delta method.
akima      lowest point of an Akima interpolation of log loss on a fine grid (Porian et al., arXiv 2406.19146,
           analysis.py of their code). Interval: the noise about the linex curve added again, `bootstrap` times.
argmin     the lowest point, for comparison; interval likewise.

Window of parabola and linex: none (all points, as Chinchilla), k (the k neighbouring points round the lowest), auto
(within a factor of NEAR in size of the lowest, at least FEWEST points: further out no parabola holds).
Noise is the residual about the curve, few degrees of freedom shared among budgets (analysis/noise.py).
Verdicts: too_few (under three sizes; akima four), flat (no curvature stands out of the noise), non_convex (also a
fitted minimum below 0, which no loss is), edge (the minimum is not between measured sizes), interior.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import interpolate, stats

from analysis.loss.isoflop_linex import Linex, fit_linex
from analysis.loss.isoflop_parabola import Parabola, covariance_of_vertices, fit_parabola
from analysis.noise import ROUNDING, moderated

ESTIMATORS = ("parabola", "linex", "akima", "argmin")
FINE = 2001  # points of akima's grid
NEAR, FEWEST = 8.0, 5


@dataclass(frozen=True)
class Minimum:
    """Logs are natural; NaN where there is nothing to say. `fitted` also where the verdict is not interior."""

    verdict: str
    fitted: float
    loss: float
    n: int
    low: float = np.nan
    high: float = np.nan
    curve: Callable[[np.ndarray], np.ndarray] | None = None  # x -> loss


@dataclass(frozen=True)
class Minima:
    each: list[Minimum]
    own: np.ndarray | None  # (budgets, budgets) covariance of the minima from the runs' noise; None: unknown
    dof: float
    asymmetry: tuple[float, float] | None = None  # p of linex and its s.d.

    @property
    def interior(self) -> np.ndarray:
        return np.array([m.verdict == "interior" for m in self.each], bool)


def find_minima(
    xs: list[np.ndarray],
    losses: list[np.ndarray],
    estimator: str = "linex",
    window: int | str | None = "auto",
    bootstrap: int = 1000,
    level: float = 0.8,
    seed: int = 0,
    codes: list[np.ndarray] | None = None,
) -> Minima:
    """xs, losses: one pair of arrays (n,) a budget, x ascending without repetition, losses in nats above 0. codes: which
    model size each point is of, for noise that a size has at all budgets (isoflop_shared.py); None: unknown."""
    codes = [np.full(len(x), -1) for x in xs] if codes is None else codes
    windows = [_window(x, y, window) for x, y in zip(xs, losses, strict=True)]
    near = [(x[w], y[w]) for x, y, w in zip(xs, losses, windows, strict=True)]
    codes = [code[w] for code, w in zip(codes, windows, strict=True)]
    spans = [(x[0], x[-1]) if len(x) else (np.nan, np.nan) for x in xs]
    parabolas = [fit_parabola(x, y) for x, y in near]
    variance, dof = _noise([(p.rss, p.dof, p.mean) if p else (0.0, 0, 1.0) for p in parabolas])
    if estimator == "parabola":
        each = [_vertex(*args, level) for args in zip(parabolas, near, spans, variance, dof, strict=True)]
        return _gather(each, covariance_of_vertices(parabolas, near, variance, codes), dof)
    convex = [p is not None and p.beta[2] > 0 for p in parabolas]
    linex = fit_linex(near, convex, variance, codes)
    if linex is not None:
        squares = [(*linex.squares[i], p.mean) if c else (0.0, 0, 1.0) for i, (p, c) in
                   enumerate(zip(parabolas, convex, strict=True))]  # fmt: skip
        variance, dof = _noise(squares)
        linex = fit_linex(near, convex, variance, codes, linex)
    if estimator == "linex":
        return _by_linex(linex, parabolas, near, spans, variance, dof, level)
    rng = np.random.default_rng(seed)
    drawn = [_drawn(*args, estimator, bootstrap, level, rng) for args in zip(xs, losses, variance, dof, strict=True)]
    return _gather([m for m, _ in drawn], np.diag([se**2 for _, se in drawn]), dof)


def _window(x: np.ndarray, loss: np.ndarray, window: int | str | None) -> slice:
    """The points of one budget that are fitted: neighbours round the lowest."""
    if window is None or not len(loss):
        return slice(0, len(loss))
    k = window
    if window == "auto":
        inside = np.flatnonzero(np.abs(x - x[loss.argmin()]) <= np.log(NEAR) + 1e-9)
        if len(inside) >= FEWEST:
            return slice(inside[0], inside[-1] + 1)
        k = FEWEST
    if len(loss) <= k:
        return slice(0, len(loss))
    start = min(max(int(loss.argmin()) - k // 2, 0), len(loss) - k)
    return slice(start, start + k)


def _noise(squares: list[tuple[float, int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """(variance of one loss, degrees of freedom) of each budget from (sum of squares, dof, mean loss)."""
    rss, dof, mean = (np.array(column, float) for column in zip(*squares, strict=True))
    return moderated(np.maximum(rss, dof * (ROUNDING * mean) ** 2), dof)


def _gather(each: list[Minimum], own: np.ndarray, dof: np.ndarray, asymmetry=None) -> Minima:
    each = [replace(m, verdict="non_convex") if m.verdict == "interior" and not m.loss > 0 else m for m in each]
    inside = [m.verdict == "interior" for m in each]
    known = any(inside) and bool(np.isfinite(own[np.ix_(inside, inside)]).all()) and bool((dof[inside] > 0).all())
    return Minima(each, own if known else None, float(dof[inside].mean()) if known else 0.0, asymmetry)


def _vertex(p: Parabola | None, points, span, variance: float, dof: float, level: float) -> Minimum:
    n = len(points[0])
    if p is None:
        return Minimum("too_few", np.nan, np.nan, n)
    t = stats.t.ppf((1 + level) / 2, dof) if dof > 0 else 0.0
    error = np.sqrt(p.spread[2, 2] * variance) if dof > 0 else 0.0
    verdict = _verdict(p.vertex, p.beta[2], t * error, span, np.abs(p.beta[1:]).max() <= ROUNDING * p.mean)
    low, high = p.fieller(variance, t) if verdict == "interior" and dof > 0 else (np.nan, np.nan)
    return Minimum(verdict, p.vertex, float(p(p.vertex)), n, low, high, p)


def _verdict(x: float, curvature: float, error: float, span, level: bool) -> str:
    """error: what the noise makes of the curvature; level: the curve does not move at all."""
    if level:
        return "flat"
    if curvature <= 0:
        return "non_convex" if curvature <= -error else "flat"
    if not span[0] <= x <= span[1]:
        return "edge"
    return "interior" if curvature > error else "flat"


def _by_linex(linex: Linex | None, parabolas, near, spans, variance, dof, level: float) -> Minima:
    if linex is None:  # no convex budget: the parabolas say what is wrong
        each = [_vertex(*args, level) for args in zip(parabolas, near, spans, variance, dof, strict=True)]
        return Minima(each, None, 0.0)
    each = []
    for i, (p, points, span) in enumerate(zip(parabolas, near, spans, strict=True)):
        k = linex.position(i)
        if k is None:
            each.append(_vertex(p, points, span, variance[i], dof[i], level))
            continue
        t = stats.t.ppf((1 + level) / 2, dof[i]) if dof[i] > 0 else 0.0
        x, bend = linex.minimum[k], linex.bend[k]
        error = t * linex.bend_error[k] if dof[i] > 0 else 0.0
        half = t * np.sqrt(linex.covariance[k, k]) if dof[i] > 0 else np.nan
        verdict = _verdict(x, bend, error, span, bend * np.ptp(points[0]) ** 2 <= ROUNDING * p.mean)
        each.append(Minimum(verdict, x, linex.lowest[k], len(points[0]), x - half, x + half, linex.curve(k)))
    own = np.full((len(each), len(each)), np.nan)
    own[np.ix_(linex.index, linex.index)] = linex.covariance
    return _gather(each, own, dof, (linex.p, linex.p_error))


def _drawn(x, loss, variance: float, dof: float, estimator: str, bootstrap: int, level: float, rng) -> tuple[Minimum, float]:
    """(minimum of the interpolated or the lowest point, its s.d. under the noise added again)."""
    akima = estimator == "akima"
    if len(x) < (4 if akima else 3):
        return Minimum("too_few", np.nan, np.nan, len(x)), np.nan
    grid = np.linspace(x[0], x[-1], FINE) if akima else x
    i, lowest = _lowest(x, loss[:, None], grid)
    se = np.nan
    if dof > 0 and bootstrap > 1:
        noisy = loss[:, None] + np.sqrt(variance) * rng.standard_normal((len(x), bootstrap))
        coarse = grid[:: 8 if akima else 1]
        draws = coarse[_lowest(x, np.maximum(noisy, 1e-9), coarse)[0]]
        se = float(np.sqrt(draws.var(ddof=1) + (coarse[1] - coarse[0]) ** 2 / 12))
    half = stats.t.ppf((1 + level) / 2, dof) * se if dof > 0 else np.nan
    flat = np.ptp(loss) <= ROUNDING * loss.mean()
    verdict = "flat" if flat else "edge" if i[0] in (0, len(grid) - 1) else "interior"
    at = float(grid[i[0]])
    return Minimum(verdict, at, float(lowest[0]), len(x), at - half, at + half, _interpolant(x, loss, akima)), se


def _lowest(x: np.ndarray, losses: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(position on the grid, loss) of the lowest point of each column of losses (n, m)."""
    on_grid = np.exp(interpolate.Akima1DInterpolator(x, np.log(losses))(grid)) if len(grid) != len(x) else losses
    i = on_grid.argmin(axis=0)
    return i, np.take_along_axis(on_grid, i[None], axis=0)[0]


def _interpolant(x: np.ndarray, loss: np.ndarray, akima: bool) -> Callable:
    if akima:
        curve = interpolate.Akima1DInterpolator(x, np.log(loss))
        return lambda at: np.exp(curve(at, extrapolate=False))
    return lambda at: np.interp(at, x, loss, left=np.nan, right=np.nan)
