"""Axes of a sweep: which keys move, through which values, crossed or zipped.

Values are a list, one value, or a range:
    log2(a, b, n)      2^a ... 2^b      a and b are exponents
    log10(a, b, n)     10^a ... 10^b
    geom(x, y, n)      x ... y          equal ratios
    linear(x, y, n)    x ... y          equal steps
each of n values, both ends included.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from harness.errors import UserError
from harness.resolve import RELATIONS

COMMAND_LINE, SWEEP_FILE = "command line", "sweep file"
RANGES = ("log2", "log10", "geom", "linear")
MAX_VALUES = 10_000
LISTS = ("schedule.batch_ramp",)
_RANGE = re.compile(r"\s*(log2|log10|geom|linear|[a-z]\w*(?=\s*\([\d\s.,+-]*\)))\s*\((.*)\)\s*")


@dataclass(frozen=True)
class Axis:
    """Keys that move together: `values[i]` holds one typed value per key. One key: an ordinary, crossed axis."""

    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]


def build_grids(request) -> list[list[Axis]]:
    """The axes of each grid of `request`: one grid, or one per entry of `sweep.grids`, each of which adds its own axes
    to those of the sweep (a union of grids, such as a learning-rate grid and a tau grid)."""
    grids = request.config.sweep.grids or [{}]
    for grid in grids:
        if not isinstance(grid, Mapping) or set(grid) - {"axes", "zip"}:
            raise UserError(f"sweep.grids: each entry has axes: and zip: and nothing else, but one is {grid}.")
        if not isinstance(grid.get("axes") or {}, Mapping) or not isinstance(grid.get("zip") or [], (list, tuple)):
            raise UserError(f"sweep.grids: axes is KEY: VALUES, zip a list of such groups, but one entry is {grid}.")
    return [build_axes(request, grid) for grid in grids]


def build_axes(request, grid: Mapping = MappingProxyType({})) -> list[Axis]:
    """The typed axes of `request` (harness.compose.Request): of the command line, of the sweep file and of `grid`.

    A list typed on the command line replaces the file's axis of the same key, and a single typed value pins it.
    Raises UserError for a bad range or value, unequal lengths under `zip`, a key on two axes, and both sides of a
    relation (harness.resolve.RELATIONS).
    """
    typed = dict(request.axes)
    pinned = request.command_given
    groups: list[tuple[Mapping, str]] = []
    own = grid.get("axes") or {}
    if both := set(own) & set(request.config.sweep.axes):
        raise UserError(f"{min(both)} is an axis of the sweep and of one of its grids; keep one.")
    for key, raw in {**request.config.sweep.axes, **own}.items():
        if key in pinned:
            continue
        groups.append(({key: typed.pop(key)}, COMMAND_LINE) if key in typed else ({key: raw}, SWEEP_FILE))
    for group in [*request.config.sweep.zip, *(grid.get("zip") or [])]:
        if not isinstance(group, Mapping) or not group:
            raise UserError(f"sweep.zip={group}: each entry is a group of axes, {{KEY: VALUES, KEY: VALUES}}.")
        for key in group:
            if key in typed or key in pinned:
                raise UserError(f"{key} is zipped with {_others(group, key)} in the sweep file; set sweep.zip too.")
        groups.append((group, SWEEP_FILE))
    groups += [({key: raw}, COMMAND_LINE) for key, raw in typed.items()]
    _check_keys(groups, request)
    return [_axis(group, request.typed) for group, _ in groups]


def parse_values(key: str, raw: Any) -> list[Any]:
    """Plain values of an axis; ranges are expanded, integral numbers of a range become ints."""
    if isinstance(raw, (list, tuple)):
        values = [value for item in raw for value in parse_values(key, item)]
        if not values:
            raise UserError(f"{key}=[] has no values: give at least one, or drop the axis.")
        return values
    match = _RANGE.fullmatch(raw) if isinstance(raw, str) else None
    return _range(key, raw, match[1], match[2]) if match else [raw]


def _range(key: str, raw: str, name: str, inside: str) -> list[float | int]:
    if name not in RANGES:
        near = get_close_matches(name, RANGES, 1) or [", ".join(RANGES)]
        raise UserError(f"{key}={raw}: {name} is no range; did you mean {near[0]}?")
    try:
        first, last, n = (float(x) for x in inside.split(","))
        count = int(n)
        if count != n or not 1 <= count <= MAX_VALUES:
            raise ValueError
        steps = [i / (count - 1) if count > 1 else 0.0 for i in range(count)]
        if name == "geom" and not (first > 0 and last > 0):
            raise ValueError
        if name == "geom":
            values = [first ** (1 - t) * last**t for t in steps]
        else:
            values = [first + (last - first) * t for t in steps]
        if name in ("log2", "log10"):
            values = [float(name[3:]) ** x for x in values]
        if not all(map(math.isfinite, values)):
            raise ValueError
    except (ValueError, OverflowError):
        ends = {"log2": "exponents", "log10": "exponents", "geom": "two values above 0", "linear": "two numbers"}
        raise UserError(
            f"{key}={raw}: write {name}(first, last, n) with {ends[name]} and n, from 1 to {MAX_VALUES} values."
        ) from None
    return [_tidy(v) for v in values]


def _tidy(value: float) -> float | int:
    """Rounding of the range itself taken off: 8 for 7.999999999999998, 0.3 for 0.30000000000000004."""
    value = float(f"{value:.14g}") if value else 0.0
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _axis(group: Mapping, typed: Callable[[str, Any], Any]) -> Axis:
    columns = {key: _typed_values(str(key), raw, typed) for key, raw in group.items()}
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{key} has {n}" for key, n in lengths.items())
        raise UserError(f"Zipped axes have equally many values, but {said}.")
    return Axis(tuple(columns), tuple(zip(*columns.values(), strict=True)))


def _typed_values(key: str, raw: Any, typed: Callable[[str, Any], Any]) -> list[Any]:
    if key in LISTS:  # a value is a list itself
        return [_frozen(typed(key, value)) for value in (raw if isinstance(raw, (list, tuple)) else [raw])]
    out = []
    for value in parse_values(key, raw):
        try:
            out.append(typed(key, value))
        except UserError:
            # Ranges run through fractions; a key that takes whole numbers gets the nearest.
            if not isinstance(value, float) or raw == value or isinstance(raw, (list, tuple)) and value in raw:
                raise
            out.append(typed(key, round(value)))
    return out


def _frozen(value: Any) -> Any:
    """Lists as tuples: values of axes are compared and looked up."""
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _check_keys(groups: list[tuple[Mapping, str]], request) -> None:
    origins: dict[str, str] = {}
    for group, origin in groups:
        for key in group:
            if key in origins:
                raise UserError(f"{key} is on two axes; keep one.")
            if key in request.file_given and origin == SWEEP_FILE:
                raise UserError(f"{key} is both a fixed value and an axis of the sweep file; keep one.")
            origins[key] = origin
    for pair in RELATIONS:
        for axis, other in (pair, pair[::-1]):
            if axis in origins:
                _check_relation(axis, other, origins, request)


def _check_relation(axis: str, other: str, origins: Mapping[str, str], request) -> None:
    """The command line displaces a fixed value of the sweep file, never an axis of it; a default yields to all."""
    if other in origins:
        raise UserError(f"{axis} ({origins[axis]}) and {other} ({origins[other]}) are both axes, but say the same "
                        f"thing; keep one.")  # fmt: skip
    typed, in_file = other in request.command_given, other in request.file_given
    if typed or (in_file and origins[axis] == SWEEP_FILE):
        where = COMMAND_LINE if typed else SWEEP_FILE
        raise UserError(f"{axis} is an axis ({origins[axis]}) and {other} is given ({where}), but they say the same "
                        f"thing; keep one.")  # fmt: skip


def _others(group: Mapping, key: str) -> str:
    return ", ".join(str(k) for k in group if k != key) or "nothing"
