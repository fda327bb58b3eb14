"""Rows that ended before their time lie in the slice they were planned for, whatever parameters `tpp` counts."""

import math

import pandas as pd
import pytest

from analysis.ended_early import as_planned


def runs(counted):
    """Seven LRs at each of three widths, the largest diverged at a tenth of its tokens = `counted` * tpp * params."""
    rows = []
    for width in (32, 64, 128):
        params = 12 * width**2
        for k in range(-4, 3):
            u = k + 1 + 0.1 * math.log2(width / 32)
            lost = k == 2
            tokens = 20 * params * counted[width] // (10 if lost else 1)
            rows.append({"status": "diverged" if lost else "done", "width": width, "depth": 2, "params": params,
                         "tpp": 20.0, "tokens": tokens, "flops": 6 * params * tokens, "lr": 2.0**k, "batch": 8,
                         "loss": math.nan if lost else 2 + 0.02 * u**2})  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("counted", [dict.fromkeys((32, 64, 128), 1), {32: 2, 64: 1.5, 128: 1.25}])
def test_tokens_are_those_of_finished_rows_of_the_size(counted):
    df = as_planned(runs(counted))
    for width, rows in df.groupby("width"):
        assert rows["tokens"].tolist() == pytest.approx([20 * 12 * width**2 * counted[width]] * 7)
        assert rows["flops"].nunique() == 1 or rows["flops"].max() == pytest.approx(rows["flops"].min())


def test_without_a_finished_row_of_the_size_others_tell():
    df = runs(dict.fromkeys((32, 64, 128), 1.5))
    df.loc[df["width"] == 128, "status"] = "diverged"
    assert as_planned(df).query("width == 128")["tokens"].iloc[-1] == pytest.approx(1.5 * 20 * 12 * 128**2)
    df["status"] = "diverged"
    assert as_planned(df)["tokens"].max() >= 20 * 12 * 128**2
