"""A foreign table to the canonical one: columns taken by name, cells read, and every guess and gap said in a line.

What came of the columns stands in `attrs["listed"]` (all lines) and, as far as it touches values, in `attrs["notes"]`,
which a fit repeats. Unknown columns stay under their own names; one that has a canonical name and was not taken for it
is called their_NAME, so that nothing uses it unasked.
"""

import shlex
from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.canonical import canonical, rename
from analysis.columns import CANONICAL, IDENTIFIERS, NUMBERS, POSITIVE, STATUS_WORDS, STATUSES
from analysis.errors import UserError
from analysis.foreign.cells import is_empty, is_nan, numbers
from analysis.foreign.names import CONFIG, LOGGED, NAMES, PLAIN, Reading, read

ORDER = {CONFIG: 0, PLAIN: 1, LOGGED: 2}
NUMERIC = (*NUMBERS, "beta1", "beta2", "eps")
SHOWN = 6  # runs or columns named in a line


def to_canonical(frame: pd.DataFrame, columns: Mapping[str, str] | None, roles: Mapping[str, str] | None = None,
                 notes: list[str] | None = None) -> pd.DataFrame:  # fmt: skip
    """The canonical table. columns: {canonical: theirs} over what names say; roles: {column: config or logged} where the
    file format says it. Raises UserError where two columns could be the loss, or `columns` names none of the table."""
    columns, notes = dict(columns or {}), list(notes or [])
    rename(frame[:1], columns)  # for its errors
    readings = {name: read(name.removesuffix(" (2)"), (roles or {}).get(name)) for name in frame}
    taken, lines = _choose(frame, readings, columns)
    if not taken:
        shown = ", ".join(map(str, frame.columns[:SHOWN])) + (", ..." if len(frame.columns) > SHOWN else "")
        raise UserError(f"none of the columns is known ({shown[:300]}); say which is the loss, columns.loss=THEIRS.")
    blank = [name for name in frame if is_empty(frame[name]).all()]
    if len(blank) == len(frame.columns):
        raise UserError(f"the table has {len(frame)} rows and nothing in any cell.")
    table, mapped = _take(frame.drop(columns=[name for name in blank if name not in columns.values()]), taken)
    lost = {name: _lost(table[name]) for name in ("loss", "train_loss") if name in table}
    notes += lines + _cells(table)
    kept = [name for name in table if name not in mapped]
    notes += _status(table, lost)
    first = [name for name in CANONICAL if name in table]
    table = canonical(table[first + [name for name in table if name not in first]])
    notes += _without_loss(table) + _in_billions(table)
    listed = [f"taken: {', '.join(_from(c, names) for c, names in taken.items())}."] if taken else []
    if kept:
        listed.append(f"kept under their own names, mapped to nothing: {', '.join(kept)}.")
    if blank:
        listed.append(f"empty in every row and left out: {', '.join(blank)}.")
    notes = list(dict.fromkeys([*notes, *table.attrs.get("notes", [])]))
    table.attrs = {"columns": columns, "notes": notes, "listed": [*listed, *notes], "damaged": []}
    return table


def _from(canonical_name: str, theirs: list[str]) -> str:
    return canonical_name if theirs == [canonical_name] else f"{canonical_name} from {' and '.join(theirs)}"


def _choose(frame: pd.DataFrame, readings: Mapping[str, Reading], columns: Mapping[str, str]) -> tuple[dict, list[str]]:
    """({canonical: [columns it is read from, the first leading]}, lines on what could not be decided)."""
    taken = {name: [theirs] for name, theirs in columns.items()}
    lines = [f"{name}: {r.question}" for name, r in readings.items()
             if r.question and name not in columns.values() and not is_empty(frame[name]).all()]  # fmt: skip
    for wanted in dict.fromkeys(r.canonical for r in readings.values() if r.canonical):
        if wanted in columns:
            continue
        found = [(r.rank, ORDER[r.role], name) for name, r in readings.items() if r.canonical == wanted]
        found = [(rank, role, name) for rank, role, name in found if name not in columns.values() or name == wanted]
        found = [entry for entry in found if _serves(frame[entry[2]], wanted)]
        if not found:
            continue
        best = min(found)[:2]
        names = sorted((name for *key, name in found if tuple(key) == best), key=lambda name: (name != wanted, name))
        rest = [name for *key, name in found if tuple(key) != best]
        if clash := _clash(frame, names, wanted):
            said = " or ".join(shlex.quote(f"columns.{wanted}={name}") for name in names[:SHOWN])
            words = f"{wanted} could be {' or '.join(names[:SHOWN])}: they differ {clash}; say {said}."
            if wanted == "loss":
                raise UserError(words)
            lines.append(f"{words} None is taken.")
            continue
        if wanted == "batch_size" and (why := _per_micro_batch(frame, readings)):
            lines.append(f"{names[0]}: {why}")
            continue
        if wanted == "run_id" and best[0] > 0 and frame[names[0]].duplicated().any():
            lines.append(f"{names[0]} comes more than once: no id of a run, kept as it is.")
            continue
        if wanted == "loss" and best[0] > 0:
            lines.append(f"{names[0]} is taken as the loss for want of another; give columns.loss= if it is not.")
        if rest and wanted == "loss":
            lines.append(f"loss is {names[0]}; {', '.join(rest)} could have been.")
        taken[wanted] = names
    if "loss" not in taken:
        near = [name for name in frame if "loss" in name.lower() and readings[name].canonical != "train_loss"]
        named = f" Of the columns with loss in their name: {', '.join(near[:SHOWN])}." if near else ""
        lines.append(f"no column could be the validation loss; say columns.loss=THEIRS.{named}")
    return taken, lines


def _serves(column: pd.Series, wanted: str) -> bool:
    """Numbers for a number, words for a word; an empty column serves nothing."""
    full = column[~is_empty(column)]
    if full.empty:
        return False
    if wanted in NUMERIC:
        return not numbers(full)[1].all()
    if wanted in ("optimizer", "schedule", "parameterization", "data", "weight_decay_mode"):
        return bool(numbers(full)[1].any()) and not full.astype(str).str.startswith(("{", "[")).any()
    return True


def _clash(frame: pd.DataFrame, names: list[str], wanted: str) -> str:
    """In which rows the columns differ, in words; empty where they agree."""
    for name in names[1:]:
        a, b = frame[names[0]], frame[name]
        if wanted in NUMERIC:
            (a, _), (b, _) = numbers(a), numbers(b)
            differ = (a - b).abs() > 1e-6 * a.abs()
        else:
            differ = (a.astype(str) != b.astype(str)) & ~is_empty(a) & ~is_empty(b)
        if differ.any():
            row = int(np.flatnonzero(differ)[0])
            return f"in {int(differ.sum())} rows, as {a.iloc[row]:g} and {b.iloc[row]:g}" if wanted in NUMERIC else (
                f"in {int(differ.sum())} rows, as {a.iloc[row]} and {b.iloc[row]}")  # fmt: skip
    return ""


def _per_micro_batch(frame: pd.DataFrame, readings: Mapping[str, Reading]) -> str:
    for name in readings:
        if name.lower().split(".")[-1] in ("gradient_accumulation_steps", "grad_accum_steps", "accumulate_grad_batches"):
            values = numbers(frame[name])[0].dropna()
            if (values > 1).any():
                said = f"with {name} up to {values.max():g}, of one micro-batch or of the step?"
                return f"{said} Say columns.batch_size= or columns.batch_tokens=."
    return ""


def _take(frame: pd.DataFrame, taken: Mapping[str, list[str]]) -> tuple[pd.DataFrame, set[str]]:
    """(table with the canonical columns, their names). The columns that they were read from are gone, others stay."""
    sources = {name for names in taken.values() for name in names}
    rest = {f"their_{name}" if name in NAMES else name: frame[name] for name in frame if name not in sources}
    found = {}
    for wanted, names in taken.items():
        column = frame[names[0]]
        for name in names[1:]:
            column = column.where(~is_empty(column), frame[name])
        found[wanted] = column
    return pd.DataFrame({**found, **rest}), set(found)


def _cells(table: pd.DataFrame) -> list[str]:
    """Reads the cells in place: numbers, texts; what cannot be read is left empty and named."""
    lines = []
    for name in table:
        if name in NUMERIC:
            values, bad = numbers(table[name])
            if bad.any():
                first = table[name][bad].iloc[0]
                lines.append(f"{name}: {_count(bad)} no number, such as {first!r}{_which(table, bad)}: left empty.")
            if name in POSITIVE and (low := (values <= 0) | np.isinf(values)).any():
                lines.append(f"{name}: {_count(low)} not above 0 and finite{_which(table, low)}: left empty.")
                values = values.mask(low)
            table[name] = values
        elif name not in IDENTIFIERS:
            table[name] = _plain(table[name])
    if "weight_decay" in table and (low := table["weight_decay"] < 0).any():
        lines.append(f"weight_decay: {_count(low)} below 0{_which(table, low)}: left empty.")
        table["weight_decay"] = table["weight_decay"].mask(low)
    return lines


def _count(marked: pd.Series) -> str:
    n = int(marked.sum())
    return f"{n} of {len(marked)} values {'is' if n == 1 else 'are'}"


def _which(table: pd.DataFrame, marked: pd.Series) -> str:
    if "run_id" not in table:
        return f" (row {', '.join(str(i + 1) for i in np.flatnonzero(marked)[:SHOWN])}{_more(marked)})"
    return f" (run {', '.join(map(str, table['run_id'][marked].head(SHOWN)))}{_more(marked)})"


def _more(marked: pd.Series) -> str:
    return f" and {int(marked.sum()) - SHOWN} more" if marked.sum() > SHOWN else ""


def _plain(column: pd.Series) -> pd.Series:
    """Numbers where all cells are, truths where all are, else text; empty cells empty."""
    if not pd.api.types.is_object_dtype(column) and not pd.api.types.is_string_dtype(column):
        return column
    column = column.astype(object).mask(is_empty(column), None)
    if pd.api.types.infer_dtype(column, skipna=True) not in ("string", "mixed", "mixed-integer"):
        return column.infer_objects()
    values = pd.to_numeric(column, errors="coerce")
    if (values.notna() | column.isna() | is_nan(column)).all() and column.notna().any():
        return values
    return column.map(str, na_action="ignore")


def _lost(column: pd.Series) -> pd.Series:
    """Whether each cell is written as NaN or +infinity, which an empty one is not. (-infinity is a number below 0.)"""
    return is_nan(column) | np.isposinf(numbers(column)[0])


def _status(table: pd.DataFrame, lost: Mapping[str, pd.Series]) -> list[str]:
    """Status in the words of the Table, in place; unknown words are failures. A loss that is lost (written as NaN or
    infinite) says that the run diverged: of a done run the loss, of a failed one also the training loss."""
    lines = []
    if "status" in table and not pd.api.types.is_bool_dtype(table["status"]):
        known = {cell: str(cell).strip().lower() for cell in table["status"].dropna().unique()}
        words = table["status"].map({cell: STATUS_WORDS.get(word, word) for cell, word in known.items()})
        flags = words.dropna().isin(["true", "false", "0", "1", "0.0", "1.0"]).all()
        if not flags and (odd := words.notna() & ~words.isin(STATUSES)).any():
            first = words[odd].iloc[0]
            lines.append(f"status: {_count(odd)} no known one, such as {first!r}{_which(table, odd)}: taken as failed.")
            words = words.mask(odd, "failed")
        no = pd.Series(False, table.index)
        done = (words == "done") & lost.get("loss", no)
        failed = (words == "failed") & (lost.get("loss", no) | lost.get("train_loss", no))
        for rows, what in ((done, "done with a loss not finite"), (failed, "failed with a last loss not finite")):
            if rows.any():
                other = "" if rows is done else " (if not: write the table with --out, mend its column status, fit table=)"
                lines.append(f"status: {_count(rows)} {what}{_which(table, rows)}: taken as diverged{other}.")
        table["status"] = words.mask(done | failed, "diverged")
    return lines


def _without_loss(table: pd.DataFrame) -> list[str]:
    if "loss" not in table:
        return []
    lines = []
    missing = table["loss"].isna()
    status = table["status"] if "status" in table else pd.Series("done", table.index)
    for word in dict.fromkeys(status[missing]):
        rows = missing & (status == word)
        lines.append(f"{int(rows.sum())} rows are {word} and have no loss{_which(table, rows)}.")
    partial = ~missing & ~status.isin(["done", "diverged"])
    for word in dict.fromkeys(status[partial]):
        rows = partial & (status == word)
        lines.append(f"{int(rows.sum())} rows are {word} and have the loss of an unfinished run, which no fit "
                     f"uses{_which(table, rows)}.")  # fmt: skip
    return lines


def _in_billions(table: pd.DataFrame) -> list[str]:
    return [f"{name}: at most {table[name].max():g}. In millions or billions? Laws want counts; scale the column."
            for name in ("params", "tokens", "flops") if name in table and table[name].max() < 1e4]  # fmt: skip
