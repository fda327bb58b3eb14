"""Rows that ended before their time, without a loss (diverged, pruned): what they were to be, and what is said of them."""

import pandas as pd

from analysis.columns import CENSORED


def as_planned(df: pd.DataFrame) -> pd.DataFrame:
    """`df` with the tokens and FLOPs that such rows were to have, as far as tokens per parameter tell: rows are compared
    with others of equal length as planned. Which parameters `tpp` counts the finished rows show, those of the same size
    where there are any."""
    if not {"tokens", "tpp", "params"} <= set(df):
        return df
    planned = df["tpp"] * df["params"]
    counted = (df["tokens"] / planned).where(df["status"] == "done")
    counted = counted.groupby(df["params"]).transform("median").fillna(counted.median()).fillna(1.0)
    planned = (planned * counted).where(df["status"].isin(CENSORED))
    early = (planned > df["tokens"]) & (df["tokens"] > 0)
    if "flops" in df:
        df = df.assign(flops=df["flops"].where(~early, df["flops"] * planned / df["tokens"]))
    return df.assign(tokens=df["tokens"].where(~early, planned))


def pruned_note(df: pd.DataFrame) -> list[str]:
    """A line on the rows that were pruned, where there are any."""
    n = int((df["status"] == "pruned").sum())
    return [f"{n} rows were stopped as worse than others of their slice (pruned): no loss is fitted, their values bound the "
            "range."] if n else []  # fmt: skip
