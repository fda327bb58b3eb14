"""laws.json: every fit into one folder ends in one file, so that `recommend laws=DIR` reads one file.

    {"laws": [LAW, ...], "optima": [OPTIMUM, ...]}

A fit replaces the entries of its own analysis and keeps the rest; what it writes comes last, and of several laws of one
name the last is the one that `recommend` uses. Fits that write into one folder at once wait for each other
(analysis/lock.py), so that none loses another's entries. Numbers are finite or null. A file written by hand needs of
each law only `name` and `parameters`.
"""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis.errors import UserError
from analysis.lock import exclusive
from analysis.untrusted import LAWS_LIMIT, read_bytes

FILE = "laws.json"


def clean(value: Any) -> Any:
    """`value` with plain JSON types only: numpy scalars and arrays unpacked; NaN, infinities and NA become None."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return clean(value.tolist())
    if isinstance(value, list | tuple | set):
        return [clean(item) for item in value]
    if isinstance(value, np.generic):
        return clean(value.item())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # pandas Series and Index
        return clean(value.tolist())
    text = str(value)
    return None if text in ("<NA>", "NaT") else text


def location(laws: str | os.PathLike) -> Path:
    """The file meant by a folder or by the file itself."""
    path = Path(laws)
    return path if path.suffix == ".json" else path / FILE


def read(laws: str | os.PathLike) -> dict[str, list[dict]]:
    """`{"laws": [LAW], "optima": [OPTIMUM]}` of a folder (or of a laws.json).

    Raises UserError where the file is missing, is not JSON or has another shape; it names the file and the mend.
    """
    path = location(laws)
    try:
        text = read_bytes(path, LAWS_LIMIT).decode("utf-8")
    except FileNotFoundError:
        inside = sorted(path.parent.glob(f"*/{FILE}")) if path.parent.is_dir() else []
        mend = f"did you mean laws={inside[0].parent}?" if inside else "write it with `hyperlaw fit ... out=DIR`."
        raise UserError(f"{path} does not exist; {mend}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a folder that `hyperlaw fit` wrote.") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON (line {error.lineno}: {error.msg}); mend it or fit again.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be a laws.json; fit again.") from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path} cannot be read ({str(error)[:80]}); mend it or fit again.") from None
    _check(content, path)
    try:
        return {"laws": clean(content["laws"]), "optima": clean(content.get("optima") or [])}
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be a laws.json; fit again.") from None


def write(out: str | os.PathLike, analysis: str, laws: list[dict], optima: list[dict]) -> Path:
    """Puts the laws and optima of one analysis into `out`/laws.json, in place of its earlier ones; returns the path.

    Every entry is given the key `analysis`. An existing file that cannot be read is left alone (UserError).
    """
    path = location(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.parent):
        kept = read(path) if path.exists() else {"laws": [], "optima": []}
        merged = {
            key: [entry for entry in kept[key] if entry.get("analysis") != analysis]
            + [{**clean(entry), "analysis": analysis} for entry in new]
            for key, new in (("laws", laws), ("optima", optima))
        }
        _check(merged, path)
        write_atomic(path, (json.dumps(merged, indent=1, allow_nan=False) + "\n").encode())
    return path


def write_atomic(path: Path, content: bytes) -> None:
    """Whole or not at all: temporary in the same folder, fsync, rename."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _check(content: Any, path: Path) -> None:
    """The shape that every reader relies on; what a law's parameters mean is the reader's matter."""
    if not isinstance(content, dict) or not isinstance(content.get("laws"), list):
        raise UserError(f'{path} is not a laws.json: {{"laws": [...], "optima": [...]}} is expected.')
    optima = content.get("optima")
    if optima is not None and not (isinstance(optima, list) and all(isinstance(entry, dict) for entry in optima)):
        raise UserError(f'{path}: "optima" must be a list of objects.')
    for i, law in enumerate(content["laws"], start=1):
        if not isinstance(law, dict) or not isinstance(law.get("name"), str):
            raise UserError(f'{path}: law {i} must be an object with a "name", such as "lr".')
        parameters = law.get("parameters")
        if not isinstance(parameters, dict):
            raise UserError(f'{path}: law {i} ({law["name"]}) needs "parameters": {{"coefficient": {{"value": ...}}}}.')
        for symbol, entry in parameters.items():
            if not isinstance(entry, dict) or not _numbers(entry.get(key) for key in ("value", "low", "high")):
                raise UserError(
                    f"{path}: law {i} ({law['name']}), parameter {symbol} must be "
                    '{"value": NUMBER, "low": NUMBER or null, "high": NUMBER or null}.'
                )
            if entry.get("value") is not None and not _finite(entry["value"]):
                raise UserError(f"{path}: law {i} ({law['name']}), the value of {symbol} is not finite; mend or remove it.")
        behind = law.get("behind") or {}
        if isinstance(behind, dict) and not all(_words(names) for names in behind.values()):
            raise UserError(f'{path}: law {i} ({law["name"]}), "behind" must hold lists of predictors.')
        _check_keys(law, f"{path}: law {i} ({law['name']})", ("given", "range", "sampled", "held", "heldout", "behind"))
    for i, optimum in enumerate(optima or [], start=1):
        _check_keys(optimum, f"{path}: optimum {i}", ("given", "held"))


def _check_keys(entry: dict, where: str, objects: tuple[str, ...]) -> None:
    for key in objects:
        if entry.get(key) is not None and not isinstance(entry[key], dict):
            raise UserError(f'{where}, "{key}" must be an object.')
    for key in ("value", "low", "high", "loss", "n", "r2", "scatter", "true_scatter", "dof", "level"):
        if not _numbers([entry.get(key)]):
            raise UserError(f'{where}, "{key}" must be a number or null.')


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _finite(number: int | float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond every float
        return False


def _numbers(values: Any) -> bool:
    return all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values)
