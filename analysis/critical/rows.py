"""Rows that a critical batch can be read from: each the end of a whole schedule, with a loss or steps to a target.

Diverged and pruned runs are censored: rows of the length that was planned, of which is known that others of their cell are
better. Checkpoints on the way are no ends: before its decay a run is worse than one that ends there, by amounts that
depend on the batch. Of several tokens of one run_id only the last is used, unless the schedule is constant. Branches of
one trunk (run ids of their own, each with its own decay) are whole schedules that share noise.
"""

import numpy as np
import pandas as pd

from analysis.codes import cluster, combine
from analysis.columns import CENSORED, SCALE, SETTINGS
from analysis.ended_early import as_planned, pruned_note
from analysis.errors import UserError

SAME_BATCH = 0.01


def usable(df: pd.DataFrame, unit: str, by: list[str], notes: list[str]) -> tuple[pd.DataFrame, str]:
    """(rows, unit of the batch): columns `_batch`, `_batch_code`, `_size` (model size), `_settings`, `_block` (what
    shares its noise), `_lost` (diverged or pruned) beside the table's. Lines on what is left out go to notes.

    Raises UserError where a column is missing, a loss is not above 0, or no row is left.
    """
    steps = "steps_to_target" in df and df["steps_to_target"].notna().any()
    column = _batch(df, unit)
    for name in ("params", *(("steps_to_target",) if steps else ("tokens", "loss"))):
        if name not in df or df[name].isna().all():
            mend = " (or columns.steps_to_target=..., for a table of steps)" if name == "loss" else ""
            raise UserError(f"the table has no {name}; map it with columns.{name}=THEIRS{mend}.")
    for name in by:
        if name not in df:
            raise UserError(f"by=[{name}]: the table has no such column.")
    df = df.assign(_row=np.arange(len(df)))
    df = _steps(df, column, notes) if steps else _ends(df, column, notes)
    if df.empty:
        raise UserError("no row of the table can be used" + (f" ({notes[-1].rstrip('.')})." if notes else "."))
    settings = [name for name in (*SETTINGS, *by) if name in df and df[name].notna().any()]
    df["_settings"] = combine(*[_codes(df, name) for name in settings]) if settings else 0
    size = df["_settings"].to_numpy()
    for name in SCALE:
        if name in df and df[name].notna().any():
            size = cluster(df[name], size, 1e-3)
    df["_size"], df["_batch"] = size, df[column]
    df["_batch_code"] = cluster(df[column], tolerance=SAME_BATCH)
    df["_block"] = _blocks(df)
    return df.reset_index(drop=True), column


def _batch(df: pd.DataFrame, unit: str) -> str:
    known = [name for name in ("batch_size", "batch_tokens") if name in df and df[name].notna().any()]
    wanted = {"sequences": "batch_size", "tokens": "batch_tokens"}.get(unit) or (known or ["batch_size"])[0]
    if wanted not in known:
        raise UserError(f"the table has no {wanted}; map it with columns.{wanted}=THEIRS (or batch_size and context).")
    return wanted


def _codes(df: pd.DataFrame, name: str) -> np.ndarray:
    if pd.api.types.is_float_dtype(df[name]) and not (df[name] < 0).any():
        return cluster(df[name], tolerance=0.01 if name == "context" else 1e-6)
    return pd.factorize(df[name], sort=False)[0]


def _blocks(df: pd.DataFrame) -> np.ndarray:
    empty = pd.Series(None, index=df.index, dtype=object)
    block = df["trunk"].astype(object) if "trunk" in df else empty
    block = block.where(block.notna(), df["run_id"].astype(object) if "run_id" in df else empty)
    return pd.factorize(block.where(block.notna(), "row " + df["_row"].astype(str)))[0]


def _known(df: pd.DataFrame, names: list[str], notes: list[str]) -> pd.DataFrame:
    repeated = df.drop(columns="_row").duplicated()
    if repeated.any():
        notes.append(f"{int(repeated.sum())} rows repeat others in every column: used once.")
        df = df[~repeated]
    for name in names:
        if (absent := df[name].isna()).any():
            notes.append(f"{int(absent.sum())} rows have no {name}: not used.")
            df = df[~absent]
    return df


def _steps(df: pd.DataFrame, column: str, notes: list[str]) -> pd.DataFrame:
    if "status" in df:  # a diverged run never reached the target, whatever the cell says
        others = df["status"][df["status"] != "done"].value_counts()
        if len(others):
            notes.append("not used: " + ", ".join(f"{n} {word}" for word, n in others.items()) + ".")
        df = df[df["status"] == "done"]
    df = _known(df, ["steps_to_target", "params", column], notes)
    if "target_loss" not in df:
        notes.append("the table has no target_loss: one target for each model size.")
    return df.assign(_lost=False)


def _ends(df: pd.DataFrame, column: str, notes: list[str]) -> pd.DataFrame:
    others = df["status"][~df["status"].isin(["done", *CENSORED])].value_counts()
    if len(others):
        notes.append("not used: " + ", ".join(f"{n} {word}" for word, n in others.items()) + ".")
    df = as_planned(df[df["status"].isin(["done", *CENSORED])])
    notes += pruned_note(df)
    df = _known(df, ["params", "tokens", column], notes)
    lost = df["status"].isin(CENSORED) | np.isposinf(df["loss"])
    if (empty := df["loss"].isna() & ~lost).any():
        notes.append(f"{int(empty.sum())} rows are done but have no loss: not used.")
        df, lost = df[~empty], lost[~empty]
    if (negative := (df["loss"] <= 0) & ~lost).any():
        raise UserError(
            f"loss is not above 0 in {int(negative.sum())} rows; it is nats per token. Mend it or filter with where=."
        )
    return _whole_schedules(df.assign(_lost=lost), notes)


def _whole_schedules(df: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    if "run_id" not in df or df.empty:
        return df
    last = df.groupby("run_id")["tokens"].transform("max")
    midway = df["run_id"].notna() & (df["tokens"] < last / 1.02)
    if not midway.any():
        return df
    first = df.loc[midway, "run_id"].iloc[0]
    constant = df["schedule"].astype(str).str.lower() == "constant" if "schedule" in df else pd.Series(False, df.index)
    if (midway & constant).any():
        notes.append(f"{int((midway & constant).sum())} rows are checkpoints of runs at constant LR: used as ends.")
    if (cut := midway & ~constant).any():
        notes.append(
            f"{int(cut.sum())} rows are checkpoints on the way of runs that go on (run {first}, for instance), not ends of "
            "a schedule of their own: not used."
        )
    return df[~cut]
