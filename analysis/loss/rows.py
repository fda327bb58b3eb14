"""Which rows a loss law is fitted to: finished ones with their N and D, every one or the best of each (N, D)."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.codes import cluster, combine
from analysis.errors import UserError, nearest

# Settings that part laws. Others of analysis.columns.SETTINGS (betas, clipping, ...) are tuned, as LR is.
PARTING = (
    "parameterization optimizer schedule weight_decay_mode context data data_fingerprint tokenizer cooldown_shape "
    "tied qk_norm"
).split()
TUNED = "lr tau weight_decay batch_size batch_tokens width depth".split()
SAME_SIZE = 1e-3


@dataclass
class Group:
    """The rows of one law. block: codes of what shares its noise; cell: codes of one (N, D)."""

    settings: dict
    frame: pd.DataFrame
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    block: np.ndarray
    cell: np.ndarray
    epochs: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.loss)


def groups(df: pd.DataFrame, size: str, data: str, select: str, by: list[str], repeats: bool) -> list[Group]:
    """The rows of each combination of settings. size, data: columns of N and D. Raises UserError where the table
    cannot be used."""
    notes: list[str] = []
    for name in (size, data, *by):
        if name not in df:
            mend = f"map it with columns.{name}=THEIRS" if name in (size, data) else "name another"
            raise UserError(f"the table has no column {name}{nearest(name, df.columns).rstrip('.')}; {mend}.")
    df = _usable(df, size, data, notes)
    if repeats:
        df = df.assign(_epochs=_epochs(df, data))
    names = [name for name in dict.fromkeys((*PARTING, *by)) if name in df and df[name].notna().any()]
    codes = combine(*[_codes(df[name], name) for name in names]) if names else np.zeros(len(df), int)
    found = []
    for code in np.unique(codes):
        part = df[codes == code]
        settings = {name: _plain(part[name].iloc[0]) for name in names}
        found.append(_group(part, size, data, select, settings, list(notes)))
    return found


def _usable(df: pd.DataFrame, size: str, data: str, notes: list[str]) -> pd.DataFrame:
    if "loss" not in df:
        raise UserError("the table has no loss; map it with columns.loss=THEIRS.")
    done = df["status"] == "done"
    if (~done).any():
        counts = df["status"][~done].value_counts()
        notes.append("not used: " + ", ".join(f"{n} {word}" for word, n in counts.items()) + ".")
    df = df[done]
    again = df.duplicated()
    if again.any():
        notes.append(f"{int(again.sum())} rows repeat others in every column: used once.")
        df = df[~again]
    known = df["loss"].notna() & ~np.isposinf(df["loss"]) & df[size].notna() & df[data].notna()
    if (~known).any():
        notes.append(f"{int((~known).sum())} rows lack loss, {size} or {data}: not used.")
        df = df[known]
    if (bad := df["loss"] <= 0).any():
        raise UserError(
            f"loss is not above 0 in {int(bad.sum())} rows; it is nats per token. Mend it or filter with where=."
        )
    for name in (size, data):
        if not pd.api.types.is_numeric_dtype(df[name]) or (df[name] <= 0).any():
            raise UserError(f"column {name} must hold numbers above 0; mend the table or filter with where=.")
    if df.empty:
        raise UserError("no row of the table can be used" + (f" ({notes[0].rstrip('.')})." if notes else "."))
    return df


def _epochs(df: pd.DataFrame, data: str) -> np.ndarray:
    """Times that the data was seen: column epochs, or tokens over unique_tokens; below one counts as one."""
    if "unique_tokens" in df:
        unique = pd.to_numeric(df["unique_tokens"], errors="coerce").to_numpy(float)
        epochs = df[data].to_numpy(float) / unique
    elif "epochs" in df:
        epochs = df["epochs"].to_numpy(float)
    else:
        raise UserError("form=data_constrained needs unique_tokens or epochs; map it with columns.epochs=THEIRS.")
    if not (np.isfinite(epochs) & (epochs > 0)).all():
        raise UserError("epochs (or unique_tokens) is not above 0 and finite in some rows; filter with where=.")
    return np.maximum(epochs, 1.0)


def _group(df: pd.DataFrame, size: str, data: str, select: str, settings: dict, notes: list[str]) -> Group:
    cell = cluster(df[data], cluster(df[size], tolerance=SAME_SIZE))
    if "_epochs" in df:
        cell = cluster(df["_epochs"], cell)
    if select == "best":
        order = np.lexsort((df["loss"].to_numpy(), cell))
        first = order[np.r_[True, np.diff(cell[order]) > 0]]
        if len(first) < len(df):
            notes.append(f"the lowest of {len(df)} rows at each of {len(first)} ({size}, {data}).")
        df, cell = df.iloc[np.sort(first)], cell[np.sort(first)]
    df = df.reset_index(drop=True)
    notes += _mixed(df, cell) if select == "rows" else []
    block, lines = _blocks(df, cell, data)
    epochs = df["_epochs"].to_numpy(float) if "_epochs" in df else None
    columns = (df[name].to_numpy(float) for name in (size, data, "loss"))
    return Group(settings, df, *columns, block, cell, epochs, notes + lines)


def _mixed(df: pd.DataFrame, cell: np.ndarray) -> list[str]:
    """Hyper-parameters that several rows of one (N, D) differ in: the law then describes their mean tuning."""
    names = [name for name in ("lr", "tau", "weight_decay", "batch_size") if name in df]
    several = [name for name in names if (pd.Series(_codes(df[name], name)).groupby(cell).nunique() > 1).mean() > 0.25]
    if not several:
        return []
    return [f"rows of one (N, D) differ in {', '.join(several)}: select=best keeps the lowest of each."]


def _blocks(df: pd.DataFrame, cell: np.ndarray, data: str) -> tuple[np.ndarray, list[str]]:
    """Branches of a trunk, checkpoints of a run, and seeds of one configuration share their noise."""
    if "trunk" in df and df["trunk"].notna().any():
        own = pd.Series(np.arange(len(df)).astype(str)).radd("row ")
        codes = pd.factorize(df["trunk"].astype(object).where(df["trunk"].notna(), own))[0]
        return codes, [f"{len(df)} rows of {codes.max() + 1} trunks, each resampled as one."]
    if "run_id" in df and df["run_id"].notna().all() and df["run_id"].duplicated().any():
        codes = pd.factorize(df["run_id"])[0]
        line = f"{len(df)} rows are checkpoints of {codes.max() + 1} runs, each resampled as one"
        return codes, [f"{line}; those before the end of a decaying LR are no end points of shorter runs."]
    if "seed" in df and df["seed"].nunique() > 1:
        same = [_codes(df[name], name) for name in TUNED if name in df]
        codes = combine(cell, *same) if same else cell
        if codes.max() + 1 < len(df):
            return codes, [f"seeds of one configuration ({codes.max() + 1}) are resampled as one."]
    return np.arange(len(df)), []


def _codes(column: pd.Series, name: str) -> np.ndarray:
    """Equal values; numbers but for rounding, and contexts within 1 % (quotients of rounded batches)."""
    if pd.api.types.is_float_dtype(column) and not (column < 0).any():
        return cluster(column, tolerance=0.01 if name == "context" else 1e-6)
    return pd.factorize(column, sort=False)[0]


def _plain(value):
    value = value.item() if hasattr(value, "item") else value
    return None if value is None or value != value else value
