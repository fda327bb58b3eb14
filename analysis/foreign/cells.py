"""Cells of foreign tables: numbers as people write them, and dicts as trackers export them."""

import ast
import json
import re
from typing import Any

import numpy as np
import pandas as pd

# What trackers and people write for nothing. nan is not in it: that is a number which is none, as of a diverged loss.
EMPTY = tuple(
    sorted({form for word in ("", " ", "null", "none", "n/a", "na", "-", "<na>")
            for form in (word, word.upper(), word.capitalize())} | {"<NA>"})
)  # fmt: skip
NAN = ("nan", "NaN", "NAN", "-nan", "-NaN")
SIZES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
NUMBER = re.compile(r"([+-]?(?:\d+(?:_\d{3})+|\d{1,3}(?:,\d{3})+|\d*)(?:\.\d*)?(?:e[+-]?\d+)?)\s*([kmbgt]?)", re.IGNORECASE)
NAMED_FLOATS = re.compile(r"(?<=[:\[,\s])(-?)(nan|inf|Infinity)(?=\s*[,}\]])")
DEEPEST = 20


def is_empty(column: pd.Series) -> pd.Series:
    """Whether each cell says nothing."""
    return column.isna() | column.isin(EMPTY) if _mixed(column) else column.isna()


def is_nan(column: pd.Series) -> pd.Series:
    """Whether each cell is written as NaN, which an empty one is not."""
    return column.isin(NAN) if _mixed(column) else pd.Series(False, column.index)


def _mixed(column: pd.Series) -> bool:
    return pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column)


def numbers(column: pd.Series) -> tuple[pd.Series, pd.Series]:
    """(floats, bad): text such as 1e-3, 125M, 2.6B, 1,000,000 read as numbers, nan and inf too; bad marks the cells
    that are neither a number nor empty, NaN in the first."""
    if pd.api.types.is_bool_dtype(column):
        return pd.Series(np.nan, column.index), pd.Series(True, column.index)
    if pd.api.types.is_numeric_dtype(column):
        return column.astype(float), pd.Series(False, column.index)
    values = pd.to_numeric(column, errors="coerce").astype(float)
    left = values.isna() & ~is_empty(column) & ~is_nan(column)
    if left.any():
        values[left] = column[left].map(_number).astype(float)
    return values, left & values.isna()


def _number(cell: Any) -> float:
    if isinstance(cell, bool) or not isinstance(cell, str):
        return np.nan
    match = NUMBER.fullmatch(cell.strip())
    try:
        return float(match[1].replace(",", "").replace("_", "")) * SIZES.get(match[2].lower(), 1.0) if match else np.nan
    except ValueError:  # no digit before the e, or none at all
        return np.nan


def holds_dicts(column: pd.Series) -> bool:
    """Whether the first cell that says something is a dict, or the text of one."""
    if not _mixed(column):
        return False
    first = next((cell for cell in column if isinstance(cell, dict) or (isinstance(cell, str) and cell.strip())), None)
    return isinstance(first, dict) or (isinstance(first, str) and first.strip()[0] == "{" and first.strip()[-1] == "}")


def as_dict(cell: Any) -> dict | None:
    """The dict that a cell holds as JSON or in Python's words (wandb's own recipe for an export writes the latter);
    None if it holds none. Nothing is evaluated."""
    if isinstance(cell, dict):
        return cell
    if not isinstance(cell, str):
        return None
    try:
        found = json.loads(cell, parse_constant=str)  # NaN stays a word: it is not what is missing
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(NAMED_FLOATS.sub(r"'\1\2'", cell.strip()))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    return found if isinstance(found, dict) else None


def flatten(content: dict, prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """{dotted name: value}; {"value": x, "desc": ...} of wandb's config files is x, lists become their JSON, empty
    dicts nothing, and wandb's own entries (_wandb) are left out."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        key = str(key)
        if key == "_wandb":
            continue
        if isinstance(value, dict) and "value" in value and set(value) <= {"value", "desc"}:
            value = value["value"]
        name = f"{prefix}{key}"
        if isinstance(value, dict) and depth < DEEPEST:
            flat |= flatten(value, f"{name}.", depth + 1)
        else:
            flat[name] = value if value is None or isinstance(value, str | int | float | bool) else _text(value)
    return flat


def _text(value: Any) -> str:
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):
        return str(value)[:1000]
