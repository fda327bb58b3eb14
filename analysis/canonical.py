"""From any table of runs to the canonical one: columns renamed, numbers checked, what can be derived derived."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.columns import CANONICAL, FURTHER, IDENTIFIERS, NUMBERS, POSITIVE, SETTINGS, STATUS_WORDS, STATUSES, is_mark
from analysis.errors import UserError, nearest
from analysis.findings import Finding, number, settle

LARGEST = 1e100  # of any size: products of three of them are finite
FROM_ZERO = ("weight_decay", "step")  # may be 0
# Parameterizations that leave LR and weight decay of the hidden matrices as they are.
PLAIN = ("standard", "standard_embedding")


def rename(frame: pd.DataFrame, columns: Mapping[str, str] | None) -> pd.DataFrame:
    """A copy with canonical columns taken from theirs: {canonical: theirs}. Theirs stay too, so a filter may use
    either name.

    Raises UserError for an unknown canonical name or a column that is not there, with the nearest that is.
    """
    columns = dict(columns or {})
    known = {*CANONICAL, *SETTINGS, *FURTHER}
    for canonical, theirs in columns.items():
        if canonical not in known:
            raise UserError(
                f"columns.{canonical}={theirs}: {canonical} is no column of the table{nearest(canonical, known)}"
            )
        if theirs not in frame:
            raise UserError(
                f"columns.{canonical}={theirs}: the table has no column {theirs}{nearest(theirs, frame.columns)}"
            )
    return frame.assign(**{canonical: frame[theirs] for canonical, theirs in columns.items()})


def canonical(frame: pd.DataFrame, parameterization: str | None = None, lr_adjusted: str | None = None) -> pd.DataFrame:
    """The table with its canonical columns numeric and everything derivable filled in; calling it twice changes
    nothing.

    tokens = steps * batch_tokens, tpp = tokens / params, batch_tokens = batch_size * context, flops = 6 * params *
    tokens, tau as in `tau`; each also the other way round, and only where the cell is empty. parameterization: of
    every run, where the table does not say. lr_adjusted: the column that holds the hidden matrices' LR ("lr" where no
    width rule applies). Without either, a table without lr_adjusted gets no tau. Raises UserError for columns that are
    no numbers or out of their range. What was assumed about divergence stands in `attrs["notes"]`.
    """
    return settle(*derive(frame, parameterization, lr_adjusted))


def derive(
    frame: pd.DataFrame, parameterization: str | None = None, lr_adjusted: str | None = None
) -> tuple[pd.DataFrame, list[Finding], list[str]]:
    """(`canonical` without a word on its cells, what there is to say, notes so far), for `settle` after a filter. Numbers
    out of their range stand as they were, so that a filter sees them; nothing is derived from them."""
    df = frame.copy()
    notes = list(df.attrs.get("notes", []))
    findings: list[Finding] = []
    given: dict[str, pd.Series] = {}
    for name in IDENTIFIERS:
        if name in df:
            df[name] = _text(df[name])
    for name in NUMBERS:
        if name not in df:
            continue
        df[name], found = number(df[name], name)
        findings += found
        bad, words = _outside(df[name], name)
        if bad.any():
            findings.append(Finding(bad, words, True))
            given[name] = df[name][bad]
            df[name] = df[name].mask(bad)
    findings += _status(df)
    if parameterization is not None:
        filled = df["parameterization"].fillna(parameterization) if "parameterization" in df else parameterization
        df["parameterization"] = filled
    _sizes(df)
    findings += _adjusted(df, lr_adjusted)
    _fill(df, "tau", tau(df))
    for name, cells in given.items():
        df.loc[cells.index, name] = cells
    return df, findings, notes


def _outside(values: pd.Series, name: str) -> tuple[pd.Series, str]:
    """(cells out of their range, what to say of them)."""
    mend = "; mend the table or filter with where=."
    if name in POSITIVE:
        return (values <= 0) | (values > LARGEST), f"{name} is not above 0 and finite in {{n}} of {{of}} rows{mend}"
    if name in FROM_ZERO:
        return (values < 0) | np.isinf(values), f"{name} is below 0 or infinite in {{n}} of {{of}} rows{mend}"
    return pd.Series(False, values.index), ""


def tau(df: pd.DataFrame) -> pd.Series | None:
    """AdamW timescale in units of the run: B/(lr*wd*D), B/(wd*D) with independent weight decay; lr and wd of the
    hidden matrices.

    B and D in tokens, so B/D = 1/steps. NaN where weight decay is 0. None where a column is missing.
    Power Lines (arXiv 2505.13738); DESIGN, decision 1.
    """
    if not {"lr_adjusted", "weight_decay_adjusted"} <= set(df):
        return None
    if {"batch_tokens", "tokens"} <= set(df):
        share = df["batch_tokens"] / df["tokens"]
    elif "steps" in df:
        share = 1.0 / df["steps"]
    else:
        return None
    mode = df["weight_decay_mode"] if "weight_decay_mode" in df else pd.Series("coupled", index=df.index)
    shrink = df["weight_decay_adjusted"] * np.where(mode == "independent", 1.0, df["lr_adjusted"])
    return (share / shrink).where(shrink > 0)


def _text(column: pd.Series) -> pd.Series:
    """Text of each cell; whole floats without their `.0`, so that 17 read as 17.0 is the run 17."""
    if pd.api.types.is_float_dtype(column):
        whole = column.dropna()
        if (whole == whole.round()).all() and (whole.abs() < 2**53).all():
            column = column.astype("Int64")
    return column.astype(object).map(str, na_action="ignore").where(column.notna(), None)


def _status(df: pd.DataFrame) -> list[Finding]:
    """Statuses in the words of the Table, and findings. A table without them: a finite loss is done, one of +infinity or
    none at all diverged; an empty status goes by its loss, none at all failed; done with a loss of +infinity is diverged.
    A loss of -infinity is a number like any below 0, for the fit to refuse. A column `diverged` of true and false counts
    too."""
    if "loss" not in df and "status" not in df:
        return []
    found = []
    everywhere = pd.Series(True, df.index)
    loss = df["loss"] if "loss" in df else pd.Series(np.nan, index=df.index)
    lost = "failed" if "status" in df else "diverged"
    guess = np.select([loss.notna() & ~np.isposinf(loss), np.isposinf(loss)], ["done", "diverged"], lost)
    if "status" not in df:
        df["status"] = guess
        found.append(Finding(loss.isna(), "{n} rows have no loss, and the table has no status: taken as diverged."))
    elif (flag := _flag(df["status"])) is not None:
        df["status"] = np.where(flag.isna(), None, np.where(flag == 1, "diverged", "done"))
        found.append(Finding(everywhere, "status holds true and false: read as diverged and done."))
    given = df["status"].astype(object)
    given = given.where(given.notna(), guess)
    words = {word: STATUS_WORDS.get(str(word).lower(), str(word).lower()) for word in given.unique()}
    df["status"] = given.map(words)
    for word in sorted(set(words.values()) - set(STATUSES)):
        shown = repr(word).replace("{", "{{").replace("}", "}}")
        found.append(Finding(df["status"] == word, f"status holds {shown}; known are {', '.join(STATUSES)}.", True))
    infinite = (df["status"] == "done") & np.isposinf(loss)
    found.append(Finding(infinite, "{n} rows are done with an infinite loss: taken as diverged."))
    flag = _flag(df["diverged"]) if "diverged" in df else None
    marked = (df["status"] == "done") & ~infinite & (False if flag is None else flag == 1)
    found.append(Finding(marked, "{n} rows are diverged by the column diverged."))
    df.loc[infinite | marked, "status"] = "diverged"
    return found


def _flag(column: pd.Series) -> pd.Series | None:
    """1, 0 and NaN of a column of true and false (as such, as text, or as 1 and 0); None for any other."""
    flags = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}
    values = column.map({c: flags.get(str(c).strip().lower(), np.nan) for c in column.dropna().unique()}).astype(float)
    return values if column.notna().any() and (values.notna() | column.isna()).all() else None


def _sizes(df: pd.DataFrame) -> None:
    def ratio(a: str, b: str) -> pd.Series | None:
        return df[a] / df[b] if a in df and b in df else None

    def product(*names: str) -> pd.Series | None:
        return df[list(names)].prod(axis=1, skipna=False) if set(names) <= set(df) else None

    length = ratio("batch_tokens", "batch_size")
    if length is not None:  # tokens are whole: 2047.9999 is the noise of a quotient
        length = length.round().where((length / length.round() - 1).abs() < 0.01, length)
    _fill(df, "context", length)
    _fill(df, "batch_tokens", product("batch_size", "context"))
    _fill(df, "batch_size", ratio("batch_tokens", "context"))
    _fill(df, "tokens", product("steps", "batch_tokens"))
    _fill(df, "tokens", product("tpp", "params"))
    _fill(df, "batch_tokens", ratio("tokens", "steps"))
    _fill(df, "batch_size", ratio("batch_tokens", "context"))
    _fill(df, "steps", ratio("tokens", "batch_tokens"))
    _fill(df, "params", ratio("tokens", "tpp"))
    _fill(df, "tpp", ratio("tokens", "params"))
    volume = product("params", "tokens")
    _fill(df, "flops", None if volume is None else 6.0 * volume)


def _adjusted(df: pd.DataFrame, lr_adjusted: str | None) -> list[Finding]:
    """LR and weight decay of the hidden matrices, only where the table or the user says how they follow."""
    found: list[Finding] = []
    if lr_adjusted is not None:
        if lr_adjusted not in df:
            raise UserError(f"lr_adjusted={lr_adjusted}: the table has no such column{nearest(lr_adjusted, df.columns)}")
        values, found = number(df[lr_adjusted], lr_adjusted)
        _fill(df, "lr_adjusted", values)
    rule = df["parameterization"] if "parameterization" in df else pd.Series(None, index=df.index, dtype=object)
    plain = rule.isin(PLAIN)
    if "lr" in df and plain.any():
        _fill(df, "lr_adjusted", df["lr"].where(plain))
    if "weight_decay" in df and "lr_adjusted" in df:  # CompleteP multiplies weight decay by the width ratio: not known here
        _fill(df, "weight_decay_adjusted", df["weight_decay"].where(df["lr_adjusted"].notna() & (rule != "completep")))
    return found


def _fill(df: pd.DataFrame, name: str, values: pd.Series | None) -> None:
    if values is not None and (values := values.mask(np.isinf(values))).notna().any():  # a product may overflow
        df[name] = df[name].fillna(values) if name in df else values


def marks(df: pd.DataFrame) -> list[Finding]:
    """Findings on columns that seem to mark runs which are listed twice (duplicate_run, is_duplicate): they part
    nothing."""
    found = []
    for name in df:
        if is_mark(name) and df[name].notna().any():
            flag = _flag(df[name])
            shown = str(name).replace("{", "{{").replace("}", "}}")
            term = shown if str(name).isidentifier() else f"`{shown}`"
            leave = f", and are used; where='not {term}' leaves them out" if pd.api.types.is_bool_dtype(df[name]) else ""
            rows = df[name].notna() if flag is None else flag == 1
            found.append(Finding(rows, f"{shown}: {{n}} of {{of}} rows are likely marked as listed twice{leave}."))
    return found
