"""What the results so far say of each slice and of the law: where its optimum lies, how sharp its basin is, how noisy a run.

Optima are those of `hyperlaw fit` (analysis/optimum.py). A slice without one (not trained yet, or an edge) is expected
where the law of the others leads, with the doubt of that prediction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis.columns import SETTINGS
from analysis.law import choose_predictors, design, fit_power_law, lookup
from analysis.optimum import Optimum, find_optima
from analysis.options import PREDICTORS
from analysis.slices import DECAY, GIVEN, Slice
from analysis.spread import own_covariance
from sweeps.basins import Near, bend_of, curvature_of, near_lowest, reach_of, rise_of
from sweeps.cells import ANALYSES, Cell
from sweeps.design import BEND, POWERS, LawDesign
from sweeps.expand import Member

SCATTER, SCATTER_DOF = 0.07, 1.0  # of optima about a law, natural log, before any is known; and what that is worth
OUTLIER = 2.5  # s.d. off the law from which a slice's optimum is doubted
UNKNOWN_BEND = 0.3  # share of the basins' bend that slices of few values do not know
NOISE = 0.002  # of the loss, before any residual tells
Row = tuple[Member, float | None]  # infinite where it diverged, None where there is no result (yet)


@dataclass
class Belief:
    """Of a cell; logs are natural. tried: (value, seed) of all its runs; x, seed: those that a fit can use; low, high: where
    runs diverged."""

    cell: Cell
    tried: frozenset[tuple[float, int]]
    x: np.ndarray
    seed: np.ndarray
    centre: float
    doubt: float
    curvature: float
    noise: float
    bend: float  # of the basin, per unit of log, that a fit does not know of
    inside: bool  # its optimum enters the law
    verdict: str
    low: float = -math.inf
    high: float = math.inf
    reach: tuple[float, float] = (math.inf, math.inf)  # how far below and above the centre runs are of use
    terms: int = 0  # of the shape that `fit` has the slices share

    @property
    def step(self) -> float:
        """Log ratio of neighbouring values of the grid."""
        values = self.cell.values
        return math.log(values[-1] / values[0]) / (len(values) - 1)


@dataclass
class LawBelief:
    """One law: its cells, and what an interval at the target needs."""

    cells: list[Belief]
    design: LawDesign
    name: str
    half: float  # width of the interval of `fit` at the target, halved, natural log; NaN without one


def believe(cells: list[Cell], rows: Mapping[str, list[Row]], target: Mapping[str, float], level: float) -> list[LawBelief]:
    """By law, given the runs of each cell (by its name)."""
    laws: dict[str, list[Cell]] = {}
    for cell in cells:
        laws.setdefault(cell.law, []).append(cell)
    return [_law(members, rows, target, level) for members in laws.values()]


def _law(cells: list[Cell], rows, target, level: float) -> LawBelief:
    key = cells[0].key
    analysis = ANALYSES[key]
    name = "batch_size" if analysis == "batch" else analysis
    runs = {cell.name: [row for row in rows.get(cell.name, []) if row[1] is not None] for cell in cells}
    tried = {cell.name: frozenset((m.values[key], m.point.seed) for m, _ in rows.get(cell.name, [])) for cell in cells}
    begun = [cell for cell in cells if runs[cell.name]]
    optima = dict(zip((c.name for c in begun), _optima(begun, runs), strict=True)) if begun else {}
    places = [place(cell, name) for cell in cells]
    wanted = [p for p in PREDICTORS[analysis][name] if all(p in at for at in places)]
    grid = [at for at, cell in zip(places, cells, strict=True) if cell.declared]
    kept = choose_predictors(grid, wanted).kept
    aim = {p: target.get(p, math.exp(np.mean([math.log(at[p]) for at in grid]))) for p in kept}
    inside = [o for o in optima.values() if o.verdict == "interior"]
    law = _fit(inside, kept)
    near = near_lowest(optima.values())
    scatter = _scatter(inside, law, kept)
    typical = _typical(inside, optima, near)
    found = [_belief(cell, tried[cell.name], optima.get(cell.name), at, law, kept, scatter, typical, near)
             for cell, at in zip(cells, places, strict=True)]  # fmt: skip
    _bound(found)
    x, u = design(places, kept), design([aim], kept)[0]
    middle = np.mean(x[:, 1:].sum(axis=1)) if len(kept) else 0.0
    g, g_target = ((row[..., 1:].sum(axis=-1) - middle) ** 2 / 2 for row in (x, u))
    return LawBelief(found, LawDesign(x, u, g, float(g_target), scatter, level), name, _half(law, u, level))


def _bound(cells: list[Belief]) -> None:
    """No slice goes farther from its optimum than the runs of other slices did and trained, nor as far as any diverged."""
    known = [b for b in cells if b.inside and len(b.x)]
    if not known:
        return
    up, down = max(b.x.max() - b.centre for b in known), min(b.x.min() - b.centre for b in known)
    over, under = min(b.high - b.centre for b in known), max(b.low - b.centre for b in known)
    for b in cells:
        room = 0.3 * b.step + (0.0 if b.inside else min(b.doubt, b.step))
        b.high = min(b.high, b.centre + min(up + 0.6 * b.step, over - room))
        b.low = max(b.low, b.centre + max(down - 0.6 * b.step, under + room))


def _half(law, u: np.ndarray, level: float) -> float:
    """As analysis/predict.py."""
    if law is None or law.covariance is None:
        return math.nan
    variance = float(u @ law.covariance @ u) + (law.true_scatter or 0.0) ** 2
    return float(special.stdtrit(law.dof, (1 + level) / 2)) * math.sqrt(variance)


def place(cell: Cell, name: str) -> dict[str, float]:
    """What a law of `name` can be written in."""
    return {p: float(cell.at[p]) for p in (*GIVEN, "batch_size", "lr")
            if p != name and isinstance(cell.at.get(p), (int, float)) and cell.at[p] > 0}  # fmt: skip


def _optima(cells: list[Cell], runs: Mapping[str, list[Row]]) -> list[Optimum]:
    slices, count = [], 0
    for cell in cells:
        members, losses = zip(*runs[cell.name], strict=True)
        loss, n = np.array(losses, float), len(losses)
        held = {p: float(cell.at[p]) for p in ("lr", "batch_size", *DECAY) if p != cell.key.rpartition(".")[2]
                and isinstance(cell.at.get(p), (int, float))}  # fmt: skip
        slices.append(Slice(
            targets=(ANALYSES[cell.key],), settings={s: cell.at.get(s) for s in SETTINGS},
            given={p: cell.at[p] for p in GIVEN if p in cell.at}, held=held, flops=cell.flops,
            x=np.log([[float(m.values[cell.key])] for m in members]), loss=loss, diverged=~np.isfinite(loss),
            seed=np.array([m.point.seed for m in members]), block=np.arange(count, count + n), rows=np.arange(n),
        ))  # fmt: skip
        count += n
    return find_optima(slices, bootstrap=0)


def _fit(inside: list[Optimum], kept: list[str]):
    """The law of the interior optima, or None where they do not determine it."""
    values = [lookup(o) for o in inside]
    if len(inside) <= len(kept) or choose_predictors(values, kept).kept != kept:
        return None
    return fit_power_law(values, np.array([o.value[0] for o in inside]), kept, *own_covariance(inside, 0))


def _scatter(inside: list[Optimum], law, kept: list[str]) -> float:
    """S.d. of optima about the law, drawn towards SCATTER, and no more than their residuals allow (90 %)."""
    dof = len(inside) - len(kept) - 1
    if law is None or dof < 1 or law.true_scatter is None:
        return SCATTER
    residual = np.array([o.value[0] for o in inside]) - law.log_at([lookup(o) for o in inside])
    robust = (1.48 * np.median(np.abs(residual))) ** 2 * len(inside) / dof  # an outlier is to be measured again
    drawn = (SCATTER_DOF * SCATTER**2 + dof * min(law.true_scatter**2, robust)) / (SCATTER_DOF + dof)
    return math.sqrt(min(drawn, law.rss / special.chdtri(dof, 0.9)))


@dataclass(frozen=True)
class Typical:
    """Of a slice that nothing is known of: noise of a run, curvature per squared natural log, loss, bend, reach."""

    noise: float
    sharp: float
    loss: float
    bend: float
    reach: tuple[float, float]
    terms: int


def _typical(inside: list[Optimum], optima: Mapping[str, Optimum], near: Near) -> Typical:
    losses = [np.nanmin(np.where(o.slice.diverged, np.nan, o.slice.loss)) for o in optima.values()
              if not o.slice.diverged.all()]  # fmt: skip
    loss = float(np.median(losses)) if losses else math.nan
    noises = [near.noise_of(o) for o in optima.values() if np.isfinite(o.noise) and o.noise > 0]
    noise = float(np.median(noises)) if noises else NOISE * loss
    sharp = [curvature_of(o, near) for o in inside]
    bent = [bend_of(o) for o in inside if o.shape is not None]
    bend = max(BEND, float(np.median(bent))) if bent else BEND
    curvature = float(np.median(sharp)) if sharp else 0.01 * loss
    rise = rise_of(loss, noise)
    reach = [reach_of(o, rise) for o in inside] or [(math.sqrt(rise / curvature) if losses else math.inf,) * 2]
    down, up = (float(x) for x in np.median(reach, axis=0))
    degrees = [float(o.shape @ np.arange(2, 2 + len(o.shape))) for o in inside if o.shape is not None]
    terms = min(round(np.mean(degrees)), POWERS) - 2 if degrees else 0
    return Typical(noise, curvature, loss, BEND if terms else max(BEND, UNKNOWN_BEND * bend), (down, up), terms)


def _belief(cell, tried, optimum, at, law, kept, scatter, typical: Typical, near: Near) -> Belief:
    step = math.log(cell.values[-1] / cell.values[0]) / (len(cell.values) - 1)
    expected, doubt = math.log(cell.values[0] * cell.values[-1]) / 2, math.log(cell.values[-1] / cell.values[0]) / 4
    if law is not None:
        u = design([at], kept)[0]
        expected, doubt = float(u @ law.beta), math.hypot(scatter, step / 2)
        if law.covariance is not None:
            doubt = math.sqrt(float(u @ law.covariance @ u) + scatter**2)
    if optimum is None:
        return Belief(cell, tried, np.empty(0), np.empty(0, int), expected, doubt, typical.sharp, typical.noise,
                      typical.bend, False, "untrained", reach=typical.reach, terms=typical.terms)  # fmt: skip
    s = optimum.slice
    x, good = s.x[:, 0], ~s.diverged
    if not good.any():  # all diverged: less is the only way that is known to help
        return Belief(cell, tried, x[good], s.seed[good], x.min() - 2 * step, step, typical.sharp, typical.noise,
                      typical.bend, False, "diverged", high=float(x.min()), terms=typical.terms)  # fmt: skip
    best = x[good][s.loss[good].argmin()]
    lost = np.setdiff1d(x[~good], x[good])
    low, high = max(lost[lost < best], default=-math.inf), min(lost[lost > best], default=math.inf)
    own_noise = near.noise_of(optimum) if np.isfinite(optimum.noise) and optimum.noise > 0 else typical.noise
    inside = optimum.verdict == "interior"
    used = optimum.used if inside else good
    curvature = curvature_of(optimum, near) if inside else typical.sharp
    if inside:
        centre = float(optimum.value[0])
        if near.stands_for(optimum):
            local = near.surfaces[id(optimum)]
            used, vertex = local.used, float(local.vertex[0])
            centre = vertex if s.x[used].min() < vertex < s.x[used].max() else centre
        off = abs(centre - expected) if law is not None and law.covariance is not None else 0.0
        doubt = float(optimum.se[0]) if np.isfinite(optimum.se[0]) else step / 2
        doubt = max(doubt, off) if off > OUTLIER * math.hypot(doubt, scatter) else doubt
    else:
        centre, doubt = _sought(optimum, x[good], best, step, expected, doubt, law is not None)
    centre = float(np.clip(centre, low, high))
    return Belief(cell, tried, x[used], s.seed[used], centre, doubt, curvature, own_noise, typical.bend,
                  inside, optimum.verdict, float(low), float(high), typical.reach, typical.terms)  # fmt: skip


def _sought(optimum: Optimum, x, best, step, expected, doubt, known: bool) -> tuple[float, float]:
    """Where the optimum of a slice without one is looked for, and how surely: beyond the edge, or where the law says."""
    low, high = x.min(), x.max()
    if optimum.verdict == "edge" and np.isfinite(optimum.fitted[0]):
        return float(np.clip(optimum.fitted[0], low - 1.5 * step, high + 1.5 * step)), step
    if optimum.verdict == "too_few" and known:
        return expected, doubt
    if best in (low, high):
        return float(best + (step if best == high else -step)), step
    return (expected, doubt) if known and low < expected < high else (float(best), step)
