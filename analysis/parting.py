"""Parting slices by what else was swept: warm-up and cool-down of batch slices, and columns that we do not know.

A slice mixes nothing. An unknown column that moves inside a slice at one tuned value is a swept setting (dropout 0 and
0.1: one slice for each) unless it cannot be one: a text or a number that hardly ever comes twice is a name or an
outcome, and what goes with seed is part of the seed. Those are named in a note.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.codes import cluster, combine, distinct
from analysis.columns import LABELS, OUTCOMES, SCALE, is_mark

MOST = 20  # values of a setting
SAME_SHARE = 0.25  # of training, of few whole steps
SAME_VALUE = 0.01
RAMPS = ("warmup_tokens", "cooldown_tokens")


def part_ramps(df: pd.DataFrame, codes: np.ndarray, tuned: np.ndarray) -> np.ndarray:
    """Codes of batch slices, parted by warm-up and cool-down where several share one batch: by their share of the
    training or by their number of steps, whichever follows the batch (leaves more rows in slices of three)."""
    for name in RAMPS:
        if not {name, "tokens"} <= set(df):
            continue
        share = cluster(df[name] / df["tokens"], tolerance=SAME_SHARE)
        if (distinct(share, combine(codes, tuned)) < 2).all():
            continue
        options = [share]
        if "batch_tokens" in df:
            options.append(cluster(df[name] / df["batch_tokens"], tolerance=SAME_SHARE))
        parted = [combine(codes, option) for option in options]
        codes = max(parted, key=lambda c: int((distinct(tuned, c) >= 3).sum()))
    return codes


def part_settings(
    df: pd.DataFrame, codes: np.ndarray, tuned: np.ndarray, known: Sequence[str]
) -> tuple[np.ndarray, list[str], list[str]]:
    """(codes parted by the unknown columns that are settings, those columns, columns that move and cannot part).

    tuned: codes of the tuned values and of what is profiled out. known: columns that are accounted for.
    """
    accounted = {*known, *OUTCOMES, *SCALE, *LABELS, "lr", "tau", "weight_decay", "_row", "_diverged"}
    parting, moving = [], []
    for name in df.columns.difference(sorted(accounted)):
        column = df[name]
        if is_mark(name) or column.nunique() < 2 or any(column.equals(df[other]) for other in accounted & set(df)):
            continue
        values = _codes(column)
        moves = distinct(np.where(column.notna(), values, np.nan), combine(codes, tuned)) > 1
        if not moves.any():
            continue
        inside = np.isin(codes, codes[moves])  # the rows of the slices that it moves in
        if _is_setting(column, values, codes, tuned, inside) and not _goes_with_seed(df, values, codes, inside):
            codes = combine(codes, values)
            parting.append(name)
        elif column.nunique() <= MOST:
            moving.append(name)
    return codes, parting, moving


def _codes(column: pd.Series) -> np.ndarray:
    if pd.api.types.is_float_dtype(column) and (column.dropna() >= 0).all():
        return cluster(column, tolerance=SAME_VALUE)
    return pd.factorize(column)[0]


def _is_setting(column, values, codes, tuned, inside) -> bool:
    """Few values, each at several runs; and most runs have company of their own value at other tuned values."""
    rows = int(inside.sum())
    if column.nunique() > MOST or len(np.unique(values[inside])) > max(rows / 2, 2):
        return False
    if not pd.api.types.is_float_dtype(column):
        return True
    return bool((distinct(tuned, combine(codes, values))[inside] >= 2).mean() >= 0.5)


def _goes_with_seed(df: pd.DataFrame, values, codes, inside) -> bool:
    """Whether the seed says the value in every slice, of seeds that come more than once."""
    if "seed" not in df:
        return False
    seeds = combine(codes, pd.factorize(df["seed"])[0])
    repeated = len(np.unique(seeds[inside])) <= inside.sum() / 2
    return bool(repeated and (distinct(values, seeds)[inside] == 1).all())
