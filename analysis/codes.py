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
    v, w = values[order], within[order]
    fresh = np.ones(len(v), bool)  # rows that differ from the one before: the loop is over these alone
    fresh[1:] = (w[1:] != w[:-1]) | ~((v[1:] == v[:-1]) | (np.isnan(v[1:]) & np.isnan(v[:-1])))
    start, group, code, codes = np.nan, None, -1, []
    for value, here in zip(v[fresh].tolist(), w[fresh].tolist(), strict=True):
        if here != group or not (value <= start * (1 + tolerance) or (value != value and start != start)):
            start, group, code = value, here, code + 1
        codes.append(code)
    result = np.empty(len(v), int)
    result[order] = np.array(codes, int)[np.cumsum(fresh) - 1]
    return result


def combine(*codes: np.ndarray) -> np.ndarray:
    """One code for each combination."""
    return pd.DataFrame(dict(enumerate(codes))).groupby(list(range(len(codes))), sort=True).ngroup().to_numpy()


def distinct(codes: np.ndarray, within: np.ndarray) -> np.ndarray:
    """(n,) how many codes there are among the rows that share each row's `within`."""
    return pd.Series(codes).groupby(within).transform("nunique").to_numpy()
