"""Optima of a law whose basins are bent, from the shape that its slices share (analysis/shape.py).

Where cubic terms show in the slices of a law together (analysis/window.py) the vertex of a parabola is off by up to
1/4 octave, all slices alike, so the law's coefficient is. Then the optimum of each slice is that of the shared shape,
over rows up to EXCESS above the lowest loss, wherever the slice's own parabola has a minimum. Its interval is by the
delta method (Student t). More than half of the slices must have six values or more: fewer cannot tell a bend from
basins that differ.

Of several hyper-parameters this is done under estimator=shape alone: on Step Law's published basins it moves the
exponent of LR in tokens from 0.20 to 0.25 (reported: 0.31), outside of what quadratics in any window give.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from analysis import degrees, leverage, shape
from analysis.noise import ROUNDING, choose, moderated, seed_noise
from analysis.surface import censored, monomials, pairs, told
from analysis.window import BENT, JOINT, Rows, lowest_rows, share_bend

EXCESS = 0.10  # of one hyper-parameter; of several JOINT


@dataclass(frozen=True)
class Shared:
    """What moves the optima of a law together: influence (m, R) of the noise of R runs (times its s.d.) on m terms;
    block (R,) codes of the runs."""

    influence: np.ndarray
    block: np.ndarray


@dataclass(frozen=True)
class Curve:
    """Loss of one slice over natural logs (..., k), degrees averaged: level, and (weight, degree, curvature, best, theta)
    of each."""

    level: float
    scale: np.ndarray
    parts: tuple

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, float)
        flat = x.reshape(-1, x.shape[-1])
        total = np.full(len(flat), self.level)
        for weight, degree, curvature, best, theta in self.parts:
            u = (flat - best) / self.scale
            total += weight * shape.surface(u, np.broadcast_to(curvature, (len(u), len(curvature))), theta, degree)[0]
        return total.reshape(x.shape[:-1])


def refine(optima: list, level: float, inside, always: bool = False) -> list:
    """The optima of one law, by their shared shape where basins are bent or it is wanted `always`, else as they are;
    inside(slice, log value) -> bool."""
    able = [i for i, o in enumerate(optima) if o.verdict in ("interior", "edge") and o.resolved]
    rows = [window_rows(optima[i].slice) for i in able]
    telling = [r for r in rows if r.shrinkable]
    if 2 * len(telling) <= len(rows) or not (always or (rows[0].x.shape[1] == 1 and share_bend(telling))):
        return optima
    basins = gather([optima[i].slice for i in able], rows)
    own = [optima[i].surface for i in able]
    start = np.clip([each.vertex for each in own], basins.low, basins.high)
    fits = degrees.fit_degrees(basins, curvatures(basins, own), start)
    if not fits or fits[-1].degree < 3:
        return optima
    found = degrees.average(fits)
    variance, dof = _noise([optima[i].slice for i in able], rows, basins, found)
    noise = np.sqrt(variance)[basins.owner]
    block = np.concatenate([o.slice.block[r.keep] for o, r in zip((optima[i] for i in able), rows, strict=True)])
    shared = Shared((found.shared * noise[:, None]).T, block)
    result = list(optima)
    for at, (i, r) in enumerate(zip(able, rows, strict=True)):
        result[i] = _optimum(optima[i], r, at, basins, found, noise, shared, float(dof[at]), level, inside)
    return result


def window_rows(s) -> Rows:
    rows = Rows(s.x, s.loss, s.seed, ~censored(s.loss, s.diverged))
    return replace(rows, keep=lowest_rows(rows, EXCESS if s.x.shape[1] == 1 else JOINT))


def gather(slices: list, rows: list[Rows]) -> shape.Basins:
    """Rows of all slices, sorted by slice; a level for each seed where told() tells them apart."""
    cells, next_ = [], 0
    for s, r in zip(slices, rows, strict=True):
        seed = s.seed[r.keep]
        u = (r.x[r.keep] - r.x[r.keep].mean(axis=0)) / np.maximum(np.ptp(r.x[r.keep], axis=0), 1e-12)
        codes = told(monomials(u, 2), seed)
        cells.append(codes + next_)
        next_ += codes.max() + 1
    owner = np.repeat(np.arange(len(slices)), [int(r.keep.sum()) for r in rows])
    x, loss = (np.concatenate([getattr(r, name)[r.keep] for r in rows]) for name in ("x", "loss"))
    return shape.Basins(x, loss, owner, np.concatenate(cells))


def curvatures(basins: shape.Basins, surfaces: list) -> np.ndarray:
    """(n, p2) of the slices' own quadratics, in units of basins.scale."""
    k, result = basins.k, []
    for s in surfaces:
        ratio = basins.scale / s.scale
        result.append([s.beta[1 + k + c] * ratio[i] * ratio[j] for c, (i, j) in enumerate(pairs(k))])
    return np.array(result)


def _noise(slices: list, rows: list[Rows], basins: shape.Basins, found: degrees.Average):
    """(variance of one loss, degrees of freedom) of each slice, as in analysis/optimum.py."""
    size = np.bincount(basins.owner)
    cells = np.array([len(np.unique(basins.cell[basins.owner == i])) for i in range(basins.count)])
    own = found.fits[0].curvature.shape[1] + basins.k
    room = np.maximum(size - cells - own, 0)
    room = np.maximum(room - found.terms * room / max(room.sum(), 1), 0)
    squares = basins.sums(found.residual**2)
    for i, (s, r) in enumerate(zip(slices, rows, strict=True)):
        seeds = seed_noise(s.x[r.keep], s.loss[r.keep], s.seed[r.keep])
        squares[i], room[i] = choose((squares[i], room[i]), seeds)
        squares[i] = max(squares[i], room[i] * (ROUNDING * s.loss[r.keep].mean()) ** 2)
    return moderated(squares, room)


def _optimum(o, r: Rows, at: int, basins, found: degrees.Average, noise, shared: Shared, dof, level, inside):
    here = slice(basins.starts[at], basins.starts[at] + int(r.keep.sum()))
    best, loading, models = found.best[at], found.loading[at], found.models[at]
    influence = (found.own[here] * noise[here, None]).T
    common = shared.influence
    variance = (influence**2).sum(axis=1) + 2 * (influence * (loading @ common[:, here])).sum(axis=1)
    variance += np.einsum("km,mr,kr->k", loading, common, loading @ common) + (models**2).sum(axis=1)
    parts = tuple(
        (w, f.degree, f.curvature[at], f.best[at], f.theta) for w, f in zip(found.weights, found.fits, strict=True)
    )
    curve = Curve(0.0, basins.scale, parts)
    residual = o.slice.loss[r.keep] - curve(r.x[r.keep])
    codes = basins.cell[here]
    means = np.bincount(codes - codes.min(), residual) / np.bincount(codes - codes.min())
    curve = replace(curve, level=float(means.mean()))
    verdict = "interior" if inside(o.slice, best) else "edge"
    se = np.sqrt(np.maximum(variance, 0.0)) if verdict == "interior" and dof > 0 else np.full(len(best), np.nan)
    half = special.stdtrit(max(dof, 1e-9), (1 + level) / 2) * se
    return replace(
        o,
        verdict=verdict,
        fitted=best,
        se=se,
        low=best - half,
        high=best + half,
        dof=dof,
        loss=float(curve(best)) if verdict == "interior" else np.nan,
        used=r.keep,
        curve=curve,
        influence=influence if verdict == "interior" and dof > 0 else None,
        shared=shared,
        loading=loading,
        models=models,
        shape=found.weights,
        noise=float(noise[here][0]),
    )


def note(optima: list, window: str | float = "auto", asked: bool = False) -> list[str]:
    """Lines for the law of these optima: bent basins, and optima that hang on one run. asked: estimator=shape."""
    shaped = sum(o.shape is not None for o in optima)
    if shaped:
        why = "" if asked else f" (cubic terms show at {BENT * 100:.0f} %)"
        return [f"{shaped} of {len(optima)} optima come from a shape that the slices share{why}."]
    lines = leverage.note(optima)
    bent = sum(bool(o.used.sum() < (~censored(o.slice.loss, o.slice.diverged)).sum()) for o in optima)
    if bent and window == "auto":
        known = "estimator=shape takes the bend into account" if optima[0].slice.x.shape[1] > 1 else "exponents less"
        lines.append(
            f"the basin is bent in {bent} of {len(optima)} slices, whose outer values are left out: optima and coefficient "
            f"may be off by up to 1/4 octave; {known}."
        )
    return lines
