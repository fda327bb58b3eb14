"""Tables of runs: from run directories, or from anyone's CSV or parquet."""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.canonical import canonical, rename
from analysis.columns import CANONICAL, CENSORED, IDENTIFIERS, NUMBERS, STATUSES
from analysis.errors import UserError
from analysis.sealed import damage
from analysis.untrusted import ERRORS, plain, read_parquet
from analysis.untrusted import load as load_untrusted

UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # a line of a message stays a line
SPEED = ("model_flops_per_second", "utilisation")  # of the result's runtime
RESULT = ("loss", "train_loss", "flops", "flops_spent", "device_seconds", "micro_batch", "tokens")


def read_table(path: str | os.PathLike, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The table of a .csv (.csv.gz, .tsv) or .parquet file with canonical columns taken from theirs: {canonical:
    theirs}.

    Run ids stay text. Raises UserError where the file is missing or unreadable, or a column is not there.
    """
    path = Path(path)
    identifiers = set(IDENTIFIERS) | {(columns or {}).get(name, name) for name in IDENTIFIERS}
    if path.suffix != ".parquet":
        names = header(path)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"table={path} has the column {twice[0]} twice.")
    frame = rename(load(path, dtype=dict.fromkeys(identifiers, str)), columns)
    frame.attrs["columns"] = dict(columns or {})
    return frame


def load(path: Path, **how: Any) -> pd.DataFrame:
    """The file as it is, names of columns stripped, a second one of a name called `NAME (2)`; how: of pandas.read_csv.
    Raises UserError where it is missing, unreadable or has no rows."""
    frame = _open(path, **how)
    if frame.empty:
        raise UserError(f"table={path} has no rows.")
    if path.suffix != ".parquet":
        seen: dict[str, int] = {}
        named = []
        for name in header(path)[: frame.shape[1]]:
            seen[name] = seen.get(name, 0) + 1
            named.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
        frame.columns = named
    else:
        frame.columns = [str(name).strip() for name in frame.columns]
        if duplicates := sorted(set(frame.columns[frame.columns.duplicated()])):
            raise UserError(f"table={path} has the column {duplicates[0]} twice.")
    return frame


def header(path: Path) -> list[str]:
    """The names of the columns of a text table, stripped; one without a name is `column 3`, the third."""
    line = _open(path, header=None, nrows=1, dtype=str, keep_default_na=False)
    return [str(name).strip() or f"column {i + 1}" for i, name in enumerate(line.iloc[0])] if len(line) else []


def _open(path: Path, **how: Any) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(
            f"table={path}: no such file."
            if not path.is_dir()
            else f"table={path} is a folder; for runs say runs={path}."
        )
    try:
        if path.suffix == ".parquet":
            return read_parquet(path)
        separator = "\t" if ".tsv" in path.suffixes else ","
        frame = pd.read_csv(path, sep=separator, low_memory=False, encoding="utf-8-sig", **how)
    except pd.errors.EmptyDataError:
        raise UserError(f"table={path} is empty.") from None
    # ParserError and ArrowInvalid are ValueErrors; damaged metadata of a parquet file fails in pandas as it may.
    except (ValueError, OSError, OverflowError, EOFError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise UserError(f"table={path} cannot be read as {path.suffix or 'csv'}: {reason}") from None
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the cells beyond the header for row labels
        raise UserError(f"table={path} has more cells in its rows than names in its header.")
    return frame


def write_table(frame: pd.DataFrame, path: str | os.PathLike) -> Path:
    """The table as .csv or .parquet, whole or not at all. Raises UserError for another ending or a folder that is not
    there."""
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{path}: a table is written as .csv or .parquet.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, index=False)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def read_runs(runs: str | os.PathLike) -> pd.DataFrame:
    """One row per run directory under `runs`: its point's columns, status and result; canonical columns first.

    A run whose point.yaml cannot be read has no row; one whose result or status cannot be read has a row without loss.
    Files of a finished run that are not as they were then count as unreadable. All are named in
    `frame.attrs["damaged"]`, a list of lines. Raises UserError where there is no run at all.
    """
    runs = Path(runs)
    if not runs.is_dir():
        raise UserError(f"runs={runs}: no such folder.")
    rows, damaged = [], []
    for entry in sorted(os.scandir(runs), key=lambda entry: entry.name):
        if entry.is_dir() and os.path.exists(os.path.join(entry.path, "point.yaml")):
            row, faults = _read_run(entry.path, entry.name)
            damaged += faults
            if row is not None:
                rows.append(row)
    if not rows:
        hint = f" ({damaged[0]})" if damaged else "; each run is a folder with a point.yaml."
        raise UserError(f"runs={runs} holds no readable run{hint}")
    frame = pd.DataFrame(rows)
    order = [name for name in CANONICAL if name in frame]
    frame = frame[order + [name for name in frame if name not in order]]
    frame = canonical(frame)
    frame.attrs["damaged"] = damaged
    return frame


def _read_run(folder: str, name: str) -> tuple[dict | None, list[str]]:
    point, fault = _load(folder, "point.yaml")
    columns = point.get("columns") if isinstance(point, dict) else None
    if not isinstance(columns, dict):
        return None, [f"run {name}: point.yaml {fault or 'has no columns'}"]
    if odd := next((k for k in NUMBERS if columns.get(k) is not None and not _is_number(columns[k])), None):
        return None, [f"run {name}: point.yaml: {odd} is not a number"]
    row = {str(key): plain(value) for key, value in columns.items() if not isinstance(value, dict | list)}
    row["run_id"] = UNSEEN.sub("?", str(row.get("run_id") or point.get("id") or name))[:200]
    faults = []
    status, fault = _load(folder, "status.json")
    word = status.get("status") if isinstance(status, dict) else None
    if fault != "is missing" and word not in STATUSES:
        faults.append(f"run {name}: status.json {fault or f'holds the status {str(word)[:40]!r}'}")
    row["status"] = word if word in STATUSES else "pending" if fault == "is missing" else "failed"
    row |= dict.fromkeys(("loss", "train_loss"), np.nan)
    if row["status"] in ("done", *CENSORED):
        broken = damage(folder, status)
        faults += [f"run {name}: {file} {what}" for file, what in broken.items() if file != "result.json"]
        if "point.yaml" in broken:
            return None, faults
        result, fault = (None, broken["result.json"]) if "result.json" in broken else _load(folder, "result.json")
        if not isinstance(result, dict) or (row["status"] == "done" and not _is_number(result.get("loss"))):
            faults.append(f"run {name}: result.json {fault or 'holds no loss'}")
            row["status"] = row["status"] if row["status"] in CENSORED else "failed"
        else:
            speed = result["runtime"] if isinstance(result.get("runtime"), dict) else {}
            row |= {key: result[key] for key in RESULT if _is_number(result.get(key))}
            if isinstance(trunk := result.get("trunk"), str):
                row["trunk"] = UNSEEN.sub("?", trunk)[:200]
            row |= {key: speed[key] for key in SPEED if _is_number(speed.get(key))}
    return row, faults


def _load(folder: str, name: str) -> tuple[object, str | None]:
    """(content, None), or (None, what is wrong with the file)."""
    try:
        return load_untrusted(os.path.join(folder, name)), None
    except FileNotFoundError:
        return None, "is missing"
    except ERRORS as error:
        return None, f"cannot be read ({type(error).__name__})"


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000)
