"""Compute-optimal N and D from the lower envelope of training curves (approach 1): power laws

    params_opt = k C^a,   tokens_opt = k C^b,   loss_opt = k C^-g      (predictor flops)

of what stands on the envelope (analysis/loss/envelope_curves.py). Hoffmann et al., Chinchilla, arXiv 2203.15556, section
3.1; the hull after Gemstones, arXiv 2502.06857. Several rows (checkpoints) of each run are needed.

Which points enter the laws, by `points`:
crossings  ours: where the lowest run passes from one model to the next both are as good, so N_opt is their geometric
           mean. All bins or vertices make a staircase of N whose cut ends tilt the fit: noise-free Chinchilla curves of
           14 sizes a factor of 1.5 apart give a = 0.526 by bins and 0.521 by crossings, where 0.521 is true.
all        every bin or vertex, as published; with edges=drop only those whose winner is neither the smallest nor the
           largest model measured there.

Intervals. Checkpoints of one run share its noise. Crossings: each moves with the offsets of its two runs, in opposite
senses, and with the noise where they cross, taken in equal parts: V = 1 + A A'/2, A (crossings, runs) holding 1 and -1;
the residuals give the scale (analysis/law.py). All: runs are resampled whole. As a resample lacks a third of the sizes,
that interval is several times too wide. How often 10-90 % intervals hold the exponent (python -m
benchmarks.coverage_isoflop): crossings of bins 83-84 %, of the hull 71 % (500 draws); ~69 % where checkpoints are as noisy
as 0.004 nats, ~100 % by all bins (100 draws). The lowest of noisy curves favours lucky runs: a is then 0.003 to 0.008 high.

Trap: a checkpoint in the middle of a decaying schedule has a higher loss than a run that ends there; the envelope is
unbiased only where LR is constant.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from analysis.errors import UserError
from analysis.keys import COMMON, Check, Keys, one_of
from analysis.law import PowerLaw
from analysis.loss import isoflop_plots
from analysis.loss.envelope_curves import Crossings, Curves, Envelope, crossings, hull, lowest, sample
from analysis.loss.envelope_report import optima, schedule, stretches
from analysis.loss.isoflop_laws import held_out, law_dict, power_law, score
from analysis.loss.isoflop_rows import setting_groups, usable
from analysis.prepare import prepare
from analysis.result import FitResult

LAWS = ("params_opt", "tokens_opt", "loss_opt")
BOOTSTRAP_BINS = 300


def _bins(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value) or not 10 <= int(value) <= 100_000:
        raise ValueError
    return int(value)


@dataclass(frozen=True)
class Options(Keys):
    """Keys of an envelope fit, beyond those of every analysis (analysis/keys.py).

    envelope    bins or hull (analysis/loss/envelope_curves.py)
    bins        log-spaced FLOP values
    points      crossings or all: what enters the laws
    edges       drop or keep winners that are the smallest or largest model there (points=all)
    """

    CHECKS: ClassVar[dict[str, Check]] = COMMON | {
        "envelope": one_of("envelope", "bins", "hull"),
        "bins": (_bins, "give a whole number from 10 to 100000"),
        "points": one_of("points", "crossings", "all"),
        "edges": one_of("edges", "drop", "keep"),
    }

    envelope: str = "bins"
    bins: int = 1500
    points: str = "crossings"
    edges: str = "drop"


@dataclass
class Fitted:
    settings: dict
    label: str
    curves: Curves
    envelope: Envelope
    points: pd.DataFrame  # flops, params, tokens, tpp, loss: what the laws are fitted to


def fit(table: pd.DataFrame, options: Options, analysis: str = "envelope") -> FitResult:
    """The laws of compute-optimal N, D and loss; fewer than two points give notes and no law. Raises UserError where the
    request or the table cannot be used."""
    df = prepare(table, options)
    notes = list(df.attrs.get("notes", []))
    if "run_id" not in df:
        raise UserError("envelope needs run_id, to tell whose checkpoint a row is; map it with columns.run_id=THEIRS.")
    df = usable(df, notes)
    if (nameless := df["run_id"].isna()).any():
        notes.append(f"{int(nameless.sum())} rows have no run_id: not used.")
        df = df[~nameless]
    result = FitResult(analysis, notes=notes)
    parts = setting_groups(df, options.by)
    names = dict.fromkeys(name for settings, _ in parts for name in settings)
    telling = [name for name in names if len({str(s.get(name)) for s, _ in parts}) > 1]
    found, tables = [], []
    for settings, rows in parts:
        label = ", ".join(f"{name}={settings[name]}" for name in telling if name in settings)
        f = _fit_group(result, settings, label, rows, options)
        if f is not None:
            found.append(f)
            tables.append(stretches(f, telling))
    if tables:
        result.tables["runs on the envelope"] = pd.concat(tables, ignore_index=True)
        result.figures["envelope_curves"] = lambda path: isoflop_plots.envelopes(path, found)
    return result


def _curves(df: pd.DataFrame, notes: list[str]) -> Curves:
    """Runs of two checkpoints or more, equal FLOPs averaged."""
    lone = df.groupby("run_id")["flops"].transform("nunique") < 2
    if lone.any():
        notes.append(f"{int(lone.sum())} runs have one checkpoint, which makes no curve: not used.")
    moved = df.groupby("run_id")["params"].agg(lambda n: n.max() / n.min()) > 1.01
    if moved.any():
        raise UserError(f"params differ within run {moved.idxmax()}: run_id must name one training run.")
    rows = df[~lone].groupby(["run_id", "flops"], sort=True)[["params", "tokens", "loss"]].mean().reset_index()
    names, size, excess, xs, ys = [], [], [], [], []
    for name, part in rows.groupby("run_id", sort=True):
        names.append(str(name))
        size.append(np.log(part["params"].iloc[0]))
        excess.append(np.log(6 * part["params"] * part["tokens"] / part["flops"]).mean())
        xs.append(np.log(part["flops"].to_numpy()))
        ys.append(np.log(part["loss"].to_numpy()))
    return Curves(names, np.array(size), np.array(excess), xs, ys)


def _fit_group(result: FitResult, settings: dict, label: str, df: pd.DataFrame, options: Options) -> Fitted | None:
    lines = schedule(df)
    curves = _curves(df, lines)
    said = f"{label}: " if label else ""
    if len(curves.x) < 2:
        result.notes += [f"{said}{line}" for line in [*lines, f"{len(curves.x)} training curves, no envelope."]]
        return None
    grid = losses = None
    if options.envelope == "bins":
        grid, losses = sample(curves, options.bins)
        e = lowest(grid, losses, curves.size)
    else:
        e = hull(curves)
    if options.points == "crossings":
        c = crossings(e, curves)
        points, own = _at_crossings(c, curves), _shared(c, len(curves.x))
    else:
        keep = ~e.edge if options.edges == "drop" else np.ones(len(e.x), bool)
        points, own = _on_envelope(e, curves, keep), None
        if (~keep).any():
            lines.append(f"{int((~keep).sum())} of {len(keep)} points have the smallest or the largest model: in no law.")
    laws = _laws(points, own, e, curves, options, lines)
    result.notes += [f"{said}{line}" for line in lines]
    counts = "crossings" if options.points == "crossings" else "bins" if options.envelope == "bins" else "vertices"
    method = f"{options.envelope}, {options.points}"
    shared = {"given": settings, "method": method, "counts": counts, "notes": lines}
    result.laws += [{"analysis": result.analysis, **law, **shared} for law in laws]
    if options.points == "crossings":
        result.optima += optima(result.analysis, points, settings, held_out(points, options.heldout), options.level)
    return Fitted(settings, label, curves, e, points)


def _laws(points: pd.DataFrame, own, e: Envelope, curves: Curves, options: Options, lines: list[str]) -> list[dict]:
    c = points["flops"].to_numpy()
    if len(points) < 2 or np.ptp(np.log(c)) < 0.01 or points["params"].nunique() < 2:
        lines.append(f"{len(points)} points of {points['params'].nunique()} sizes on the envelope: no law.")
        return []
    held = held_out(points, options.heldout)
    spread = None
    if options.points == "all":
        spread = _resampled(curves, options)
        if spread is None:
            lines.append("no interval: too few resamples of the runs leave an envelope of two sizes.")
    elif len(points) == 2:
        lines.append("two crossings for two parameters: no interval can be given.")
    laws = []
    for i, name in enumerate(LAWS):
        y = np.log(points[name.removesuffix("_opt")].to_numpy())
        law = power_law(c, y, own)
        if options.points == "all":
            law = _with_spread(law, None if spread is None else spread[i], len(np.unique(e.run)))
        laws.append(law_dict(law, name, points.drop(columns="loss"), options.level, heldout=score(c, y, held)))
    return laws


def _with_spread(law: PowerLaw, covariance: np.ndarray | None, runs: int) -> PowerLaw:
    dof = float(max(runs - 2, 1)) if covariance is not None else 0.0
    return PowerLaw(law.predictors, law.beta, covariance, law.scatter, dof, law.rss, law.r2)


def _shared(c: Crossings, runs: int) -> np.ndarray:
    """V of the crossings, scaled up so that only its shape matters (analysis/law.py: the residuals give the scale)."""
    a = np.zeros((len(c.x), runs))
    rows = np.arange(len(c.x))
    a[rows, c.left] += 1
    a[rows, c.right] -= 1
    return 1e6 * (np.eye(len(c.x)) + a @ a.T / 2)


def _at_crossings(c: Crossings, curves: Curves) -> pd.DataFrame:
    size, excess = ((each[c.left] + each[c.right]) / 2 for each in (curves.size, curves.excess))
    return _points(c.x, c.y, size, excess)


def _on_envelope(e: Envelope, curves: Curves, keep: np.ndarray) -> pd.DataFrame:
    return _points(e.x[keep], e.y[keep], curves.size[e.run[keep]], curves.excess[e.run[keep]])


def _points(x, y, size, excess) -> pd.DataFrame:
    tokens = x + excess - np.log(6) - size
    logs = {"flops": x, "params": size, "tokens": tokens, "tpp": tokens - size, "loss": y}
    return pd.DataFrame({name: np.exp(values) for name, values in logs.items()})


def _resampled(curves: Curves, options: Options) -> np.ndarray | None:
    """(3, 2, 2) covariance of (log coefficient, exponent) of each law over resamples of the runs."""
    rng = np.random.default_rng(options.seed)
    runs, betas = len(curves.x), []
    grid, losses = sample(curves, min(options.bins, BOOTSTRAP_BINS))
    for _ in range(options.bootstrap):
        some = np.unique(rng.integers(0, runs, runs))
        e = lowest(grid, losses[some], curves.size[some]) if options.envelope == "bins" else hull(curves, some)
        run = some[e.run] if options.envelope == "bins" else e.run
        keep = ~e.edge if options.edges == "drop" else np.ones(len(e.x), bool)
        if keep.sum() < 2 or len(np.unique(run[keep])) < 2:
            continue
        x, size = e.x[keep], curves.size[run[keep]]
        y = np.stack([size, x + curves.excess[run[keep]] - np.log(6) - size, e.y[keep]], axis=1)
        if np.ptp(x) > 0.01:
            betas.append(np.linalg.lstsq(np.stack([np.ones_like(x), x], axis=1), y, rcond=None)[0])
    if len(betas) < max(20, options.bootstrap // 2):
        return None
    draws = np.array(betas)
    return np.stack([np.cov(draws[:, :, i].T) for i in range(3)])
