"""Profiling out: hyper-parameters that were re-tuned at each value of the tuned one leave their best loss there."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.codes import cluster, combine
from analysis.slices import SAME_TUNED, Partition, Slice, partition
from analysis.surface import censored, fit_surface

TUNED_AT = 3  # values at a batch that make a re-tuning, and batches that make a slice


def retuned(df: pd.DataFrame, analysis: str, **options) -> list[str]:
    """Which of LR, tau and weight decay the table re-tunes at each batch: the choice that leaves most rows in slices
    of three batches or more with three of its values at each. Empty: the table holds them, or too little of
    anything."""
    known = [name for name in ("lr", "tau", "weight_decay") if name in df and df[name].notna().any()]
    candidates = [["lr"], [name for name in ("tau", "weight_decay") if name in known][:1]]
    counts = {}
    for names in candidates:
        if names and set(names) <= set(known):
            slices = partition(df, analysis, profile=names, **options).slices
            counts[tuple(names)] = sum(len(s.rows) for s in slices if _tuned_batches(df, s, names) >= TUNED_AT)
    best = max(counts, key=counts.get, default=())
    return list(best) if best and counts[best] else []


def _tuned_batches(df: pd.DataFrame, s: Slice, names: Sequence[str]) -> int:
    batch = cluster(np.exp(s.x[:, 0]), tolerance=SAME_TUNED)
    value = cluster(df[names[0]].to_numpy()[s.rows], batch, SAME_TUNED)
    return int((pd.Series(value).groupby(batch).nunique() >= TUNED_AT).sum())


def reduce(df: pd.DataFrame, found: Partition, names: Sequence[str]) -> Partition:
    """Slices with one row for each tuned value: the lowest loss over `names` there, by their quadratic where its
    minimum lies within the measured values, else the lowest run's, which a note counts."""
    slices, lowest = [], 0
    for s in found.slices:
        reduced, missed = _reduce(df, s, names)
        slices.append(reduced)
        lowest += missed
    notes = [*found.notes, f"{' and '.join(names)} profiled out: the best loss over them at each value."]
    if lowest:
        notes.append(
            f"at {lowest} values {' and '.join(names)} had no interior optimum: their lowest run stands for it."
        )
    return Partition(slices, notes)


def _reduce(df: pd.DataFrame, s: Slice, names: Sequence[str]) -> tuple[Slice, int]:
    other = np.log(df[list(names)].to_numpy(float)[s.rows])
    tuned = combine(*[cluster(np.exp(column), tolerance=SAME_TUNED) for column in s.x.T])
    firsts, losses, lost, missed = [], [], [], 0
    bad = censored(s.loss, s.diverged) | ~np.isfinite(other).all(axis=1)
    for code in np.unique(tuned):
        here = np.flatnonzero((tuned == code) & ~bad)
        lost.append(not len(here))
        if not len(here):  # every run diverged: so has the value
            firsts.append(np.flatnonzero(tuned == code)[0])
            losses.append(np.nan)
        else:
            best = here[s.loss[here].argmin()]
            fitted = _best(other[here], s.loss[here], s.seed[here])
            missed += fitted is None
            firsts.append(best)
            losses.append(s.loss[best] if fitted is None else fitted)
    rows = np.array(firsts, int)
    reduced = replace(
        s,
        x=s.x[rows],
        loss=np.array(losses, float),
        diverged=np.array(lost, bool),
        seed=np.full(len(rows), -1),
        block=s.block[rows],
        rows=s.rows[rows],
    )
    return reduced, missed


def _best(x: np.ndarray, loss: np.ndarray, seed: np.ndarray) -> float | None:
    surface = fit_surface(x, loss, seed, np.ones(len(x), bool))
    if surface is None or not surface.curvature[0] > 0:
        return None
    inside = ((x.min(axis=0) <= surface.vertex) & (surface.vertex <= x.max(axis=0))).all()
    return float(surface(surface.vertex)) if inside else None
