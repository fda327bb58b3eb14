"""Curves from a long table (run_id, step, lr, loss; one row a step) or from run directories."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.columns import CANONICAL, SETTINGS
from analysis.curves.history import History
from analysis.errors import UserError, nearest
from analysis.query import select
from analysis.untrusted import ERRORS, read_parquet

NEEDED = ("run_id", "step", "lr", "loss")
LONG = (*CANONICAL, *SETTINGS, "step", "total_steps", "validation_loss", "grad_norm")  # names that columns. may map to


@dataclass(frozen=True)
class Curve:
    """One run: its LR history, its losses (m,) at steps (m,), rising, and what is constant over its rows."""

    run_id: str
    history: History
    steps: np.ndarray
    losses: np.ndarray
    given: dict = field(default_factory=dict)

    @property
    def known_length(self) -> bool:
        return bool(self.given.get("total_steps") or self.given.get("steps"))

    @property
    def total(self) -> float:
        """Length of the run: `total_steps` where the table says it, else the last step known."""
        said = self.given.get("total_steps") or self.given.get("steps")
        return float(said) if said else max(self.history.end, float(self.steps[-1]) if len(self.steps) else 0.0)


def curves(
    table: pd.DataFrame,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    run_by: list[str] | None = None,
) -> tuple[list[Curve], list[str]]:
    """The runs of a long table in the order of their first rows, and notes. Rows without a loss carry LR history only; rows
    without LR take it from their neighbours. Raises UserError for a table that cannot be read so."""
    df = _named(table, dict(columns or {}), list(run_by or []))
    df = select(df, where)
    if missing := [name for name in NEEDED if name not in df]:
        raise UserError(
            f"the table has no column {missing[0]}: curves need run_id, step, lr and loss, one row a step; map it with "
            f"columns.{missing[0]}=THEIRS{nearest(missing[0], df.columns)}"
        )
    numbers = [name for name in ("step", "lr", "loss", "total_steps") if name in df]
    df = df.assign(run_id=_text(df["run_id"]), **{name: _number(df[name], name) for name in numbers}).reset_index(drop=True)
    notes: list[str] = []
    if (none := df["run_id"].isna() | df["step"].isna()).any():
        notes.append(f"{int(none.sum())} rows have no run_id or no step and are left out.")
        df = df[~none]
    _check(df)
    df, diverged = _sorted(df, notes)
    if not df["loss"].notna().any():
        raise UserError("the table has no loss at all: every cell of the column loss is empty.")
    constant = _constant(df)
    found = []
    codes, order = pd.factorize(df["run_id"])
    bounds = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(order)))])
    step, lr, loss = (df[name].to_numpy() for name in ("step", "lr", "loss"))
    for name, a, b in zip(order, bounds[:-1], bounds[1:], strict=True):
        known, has = ~np.isnan(lr[a:b]), ~np.isnan(loss[a:b])
        if name in diverged:
            notes.append(f"run {name} diverged (a loss that is not finite) and is left out.")
        elif not known.any():
            notes.append(f"run {name} has no LR at all and is left out.")
        else:
            history = History.of(step[a:b][known], lr[a:b][known])
            given = {column: values[name] for column, values in constant.items() if name in values}
            found.append(Curve(str(name), history, step[a:b][has], loss[a:b][has], given))
    return found, notes


def read_curves(runs: str | os.PathLike, loss: str = "validation_loss") -> pd.DataFrame:
    """The long table of all run directories under `runs`: run_id, step, tokens, lr (of the hidden matrices, as the run
    records it), loss (the column `loss` of curve.parquet), train_loss, and each run's point columns with peak_lr for its
    lr. Runs without a curve are named in `attrs["damaged"]`. Raises UserError where there is no curve at all."""
    from analysis.table import read_runs

    points = read_runs(runs)
    folders = {path.name: path for path in Path(runs).iterdir() if (path / "point.yaml").is_file()}
    frames, damaged = [], list(points.attrs.get("damaged", []))
    own = points.drop(columns=["loss", "train_loss", "tokens", "status"], errors="ignore").rename(columns={"lr": "peak_lr"})
    broken = {line for line in damaged if ": curve.parquet " in line}
    for row in own.to_dict("records"):
        if any(line.startswith(f"run {row['run_id']}: ") for line in broken):
            continue
        try:
            if row["run_id"] not in folders:  # an id is no path: ../other would lead elsewhere
                raise FileNotFoundError
            path = folders[row["run_id"]] / "curve.parquet"
            curve = read_parquet(path, [*dict.fromkeys(("step", "tokens", "lr", "train_loss", loss))], numeric=True)
            frame = curve[["step", "tokens", "lr", "train_loss"]].assign(loss=curve[loss]).apply(pd.to_numeric)
        except FileNotFoundError:
            damaged.append(f"run {row['run_id']}: curve.parquet is missing")
            continue
        except (*ERRORS, KeyError, TypeError) as error:
            damaged.append(f"run {row['run_id']}: curve.parquet cannot be read ({type(error).__name__})")
            continue
        frames.append(frame.assign(**{k: v for k, v in row.items() if k not in frame}))
    if not frames:
        raise UserError(f"runs={runs} holds no curve{f' ({damaged[0]})' if damaged else ''}.")
    table = pd.concat(frames, ignore_index=True)
    table["total_steps"] = table["steps"] if "steps" in table else np.nan
    table.attrs["damaged"] = damaged
    return table




def _named(table: pd.DataFrame, columns: dict[str, str], run_by: list[str]) -> pd.DataFrame:
    for name, theirs in columns.items():
        if name not in LONG:
            raise UserError(f"columns.{name}={theirs}: {name} is no column of curves{nearest(name, NEEDED)}")
        if theirs not in table:
            raise UserError(f"columns.{name}={theirs}: the table has no column {theirs}{nearest(theirs, table.columns)}")
    df = table.assign(**{name: table[theirs] for name, theirs in columns.items()})
    for name in run_by:
        if name not in df:
            raise UserError(f"run_by=[{name}]: the table has no column {name}{nearest(name, df.columns)}")
    if run_by:
        parts = [_text(df[name]).astype(object).fillna("") for name in run_by]
        df["run_id"] = parts[0].str.cat(parts[1:], sep="/") if len(parts) > 1 else parts[0]
    return df


def _text(column: pd.Series) -> pd.Series:
    """Text, whole floats without their .0."""
    codes, values = pd.factorize(column)
    shown = [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in values]
    return pd.Series(np.array([*shown, None], dtype=object)[codes], index=column.index)


def _number(column: pd.Series, name: str) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    bad = column[numbers.isna() & column.notna()]
    bad = bad[~bad.astype(str).str.strip().str.lower().isin(["", "nan", "none", "null"])]
    if len(bad) or pd.api.types.is_bool_dtype(column):
        raise UserError(f"column {name} is not a number in {max(len(bad), 1)} of {len(column)} rows, for instance "
                        f"{(bad if len(bad) else column).iloc[0]!r}.")  # fmt: skip
    return numbers


def _check(df: pd.DataFrame) -> None:
    def stop(bad: pd.Series, what: str) -> None:
        if bad.any():
            row = df[bad].iloc[0]
            raise UserError(
                f"{what} in {int(bad.sum())} of {len(df)} rows (run {row['run_id']}, step {row['step']:g}); mend the table "
                "or filter with where=."
            )

    if "total_steps" in df:
        stop((df["total_steps"] <= 0) | np.isinf(df["total_steps"]), "total_steps is not above 0 and finite")
    stop(df["loss"] <= 0, "loss is not above 0")
    stop((df["lr"] < 0) | np.isinf(df["lr"]), "lr is below 0 or not finite")
    stop((df["step"] < 0) | np.isinf(df["step"]), "step is below 0 or not finite")


def _sorted(df: pd.DataFrame, notes: list[str]) -> tuple[pd.DataFrame, set]:
    """Rows by run (in order of first rows) and step, one a step; and the runs with a loss that is not finite."""
    diverged = set(df.loc[np.isinf(df["loss"]), "run_id"])
    codes = pd.factorize(df["run_id"])[0]
    df = df.iloc[np.lexsort((df["step"], codes))]
    repeated = df.duplicated(["run_id", "step"], keep=False)
    if repeated.any():
        few = df[repeated]
        spread = few.groupby(["run_id", "step"], sort=False)[["lr", "loss"]].agg(["min", "max"])
        differs = [not np.allclose(spread[c]["min"], spread[c]["max"], rtol=1e-6, equal_nan=True) for c in ("lr", "loss")]
        if any(differs):
            row = few.iloc[0]
            raise UserError(
                f"steps repeat within a run with other values ({int(repeated.sum())} rows, such as run {row['run_id']}, "
                f"step {row['step']:g}): name runs apart (run_id, or run_by=[...]) or keep one row a step."
            )
        filled = few.groupby(["run_id", "step"], sort=False)[["lr", "loss"]].transform("first")
        df.loc[few.index, ["lr", "loss"]] = filled
        before = len(df)
        df = df.drop_duplicates(["run_id", "step"])
        notes.append(f"{before - len(df)} rows repeat a step of their run with the same values and are left out.")
    return df, diverged


def _constant(df: pd.DataFrame) -> dict[str, dict]:
    """{column: {run: value}} of what does not move within a run."""
    found = {}
    groups = df.groupby("run_id", sort=False)
    for name in df.columns:
        if name in (*NEEDED, "tokens"):
            continue
        try:
            single, first = groups[name].nunique(dropna=False) == 1, groups[name].first()
        except TypeError:
            continue
        values = first[single].dropna()
        found[str(name)] = {run: (v.item() if hasattr(v, "item") else v) for run, v in values.items()}
    return found
