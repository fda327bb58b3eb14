"""Codes: rows that agree in a column, or in several, get one whole number."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

SAME_TOKENS = 0.02  # steps are whole


def cluster(values: Sequence[float], within: np.ndarray | None = None, tolerance: float = SAME_TOKENS) -> np.ndarray:
    """Codes of values that lie within `tolerance` of the smallest of their cluster, apart for each code of `within`.

    Empty values are a cluster of their own (-1 without `within`).
    """
    values = np.asarray(values, float)
    within = np.zeros(len(values), int) if within is None else within
    order = np.lexsort((values, within))
    start, group, code, codes = np.nan, None, -1, np.full(len(values), -1)
    v, w = values[order].tolist(), within[order].tolist()
    for position, (value, here) in enumerate(zip(v, w, strict=True)):
        fresh = here != group or not (value <= start * (1 + tolerance) or (value != value and start != start))
        if fresh:
            start, group, code = value, here, code + 1
        codes[order[position]] = code
    return codes


def combine(*codes: np.ndarray) -> np.ndarray:
    """One code for each combination."""
    return pd.DataFrame(dict(enumerate(codes))).groupby(list(range(len(codes))), sort=True).ngroup().to_numpy()


def distinct(codes: np.ndarray, within: np.ndarray) -> np.ndarray:
    """(n,) how many codes there are among the rows that share each row's `within`."""
    return pd.Series(codes).groupby(within).transform("nunique").to_numpy()
