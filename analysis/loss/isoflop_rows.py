"""From a table to IsoFLOP curves: rows of one training budget, one point for each model size."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.codes import cluster, combine
from analysis.columns import SETTINGS
from analysis.errors import UserError

SAME_SIZE = 1e-3
TUNED = "lr lr_adjusted batch_size batch_tokens weight_decay tau width depth epochs warmup_tokens".split()


@dataclass(frozen=True)
class Budget:
    """One IsoFLOP curve of n sizes, in order of size."""

    flops: float
    params: np.ndarray  # (n,)
    tokens: np.ndarray  # (n,)
    loss: np.ndarray  # (n,) nats per token
    rows: int


@dataclass
class Group:
    """Budgets that share their settings, in order of FLOPs."""

    settings: dict
    budgets: list[Budget]
    frame: pd.DataFrame
    measured: bool  # tokens are the table's, not C / 6N
    notes: list[str] = field(default_factory=list)


def usable(df: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Done rows with a loss, parameters, tokens and FLOPs; the third of these follows from two (C = 6ND). Lines on
    what is left out go to notes. Raises UserError where a column is missing or no row is left."""
    if "loss" not in df:
        raise UserError("the table has no loss; map it with columns.loss=THEIRS.")
    df = _sizes(df)
    lost = (df["status"] != "done") | df["loss"].isna() | np.isposinf(df["loss"])
    if lost.any():
        notes.append(f"{int(lost.sum())} rows diverged, failed or have no loss: not used.")
        df = df[~lost]
    repeated = df.duplicated()
    if repeated.any():
        notes.append(f"{int(repeated.sum())} rows repeat others in every column: used once.")
        df = df[~repeated]
    if (negative := df["loss"] <= 0).any():
        raise UserError(
            f"loss is not above 0 in {int(negative.sum())} rows; it is nats per token. Mend it or filter with where=."
        )
    empty = df[["params", "tokens", "flops"]].isna().any(axis=1)
    if empty.any():
        notes.append(f"{int(empty.sum())} rows lack parameters, tokens or FLOPs: not used.")
        df = df[~empty]
    if df.empty:
        raise UserError("no row of the table can be used" + (f" ({notes[-1].rstrip('.')})." if notes else "."))
    return df


def _sizes(df: pd.DataFrame) -> pd.DataFrame:
    known = [name for name in ("params", "tokens", "flops") if name in df]
    if len(known) < 2:
        has = known[0] if known else "none"
        raise UserError(f"the table needs two of params, tokens and flops, and has {has}; map them: columns.NAME=THEIRS.")
    df = df.reindex(columns=list(dict.fromkeys([*df, "params", "tokens", "flops"])))
    derived = {
        "params": lambda: df["flops"] / (6 * df["tokens"]),
        "tokens": lambda: df["flops"] / (6 * df["params"]),
        "flops": lambda: 6 * df["params"] * df["tokens"],
    }
    for name, value in derived.items():
        df[name] = df[name].fillna(value())
    return df


def setting_groups(df: pd.DataFrame, by: list[str]) -> list[tuple[dict, pd.DataFrame]]:
    """(settings, rows) of each combination of settings and of `by`."""
    for name in by:
        if name not in df:
            raise UserError(f"by=[{name}]: the table has no such column.")
    names = [name for name in dict.fromkeys((*by, *SETTINGS)) if name in df and df[name].notna().any()]
    if not names:
        return [({}, df)]
    parts = df.groupby(names, sort=True, dropna=False).indices
    if len(parts) > 1000:
        raise UserError(f"{len(parts)} combinations of {', '.join(names)}: too many laws; name fewer with by=[...].")
    found = []
    for spots in parts.values():
        rows = df.iloc[np.sort(spots)]
        first = rows.iloc[0]
        found.append(({name: _python_scalar(first[name]) for name in names if not pd.isna(first[name])}, rows))
    return found


def _python_scalar(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def budgets(settings: dict, df: pd.DataFrame, select: str, tolerance: float, measured: bool) -> Group:
    """The IsoFLOP curves of one group. select: best (seeds averaged, then the lowest loss of each size) or all (the mean
    of each size)."""
    group = Group(settings, [], df, measured)
    code = cluster(df["flops"], tolerance=tolerance)
    size = cluster(df["params"], code, SAME_SIZE)
    keys = [code, size]
    if select == "best" and "seed" in df:
        keys += [pd.factorize(df[name])[0] for name in TUNED if name in df]
    frame = df[["params", "tokens", "flops", "loss"]].assign(code=code, size=size, rows=1)
    if select == "all" or "seed" in df:
        ways = {"params": "median", "tokens": "median", "flops": "median", "loss": "mean", "rows": "sum"}
        frame = frame.groupby(combine(*keys)).agg(ways | {"code": "first", "size": "first"})
    counts = frame.groupby("code")["rows"].sum()
    lowest = frame.loc[frame.groupby("size")["loss"].idxmin()].sort_values(["code", "params"])
    for number, part in lowest.groupby("code"):
        flops = float(frame.loc[frame["code"] == number, "flops"].median())
        columns = (part[name].to_numpy(float) for name in ("params", "tokens", "loss"))
        group.budgets.append(Budget(flops, *columns, int(counts[number])))
    group.budgets.sort(key=lambda b: b.flops)
    _remark(group, df, code)
    return group


def _remark(group: Group, df: pd.DataFrame, code: np.ndarray) -> None:
    span = df["flops"].groupby(code).agg(lambda c: c.max() / c.min()).max()
    if span > 1.01:
        group.notes.append(
            f"FLOPs differ by up to {100 * (span - 1):.1f} % within a budget; loss falls with them, so minima may be off."
        )
    ratio = 6 * df["params"] * df["tokens"] / df["flops"]
    low, high = ratio.quantile([0.05, 0.95])
    if group.measured and (low < 0.98 or high > 1.02):
        group.notes.append(
            f"6ND is {low:.2f} to {high:.2f} of the budget (FLOPs of attention, or another count of parameters): N and D at "
            "the minimum are found separately, and the exponents need not add up to 1."
        )
