"""`expand(request, facts) -> [Point]`: the points of a sweep. Pure, in a fixed order, duplicates dropped."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from harness.config import Config, DataConfig
from harness.errors import UserError
from harness.point import Point
from harness.resolve import DataFacts, resolve
from sweeps.axes import Axis, build_grids

Facts = DataFacts | Callable[[DataConfig], DataFacts]


@dataclass(frozen=True)
class Member:
    """A point and the axis values that led to it, so that a grid can be extended from it (extend.py)."""

    point: Point
    values: dict[str, Any]


def expand(request, facts: Facts) -> list[Point]:
    """The points of `request` (harness.compose.Request), the last axis moving fastest; without axes one point.

    `facts` describes the data, or is a function of the data's config where that is itself an axis. Raises UserError,
    for a point that cannot be resolved naming its axis values.
    """
    return [member.point for member in expand_members(request, facts)]


def expand_members(request, facts: Facts) -> list[Member]:
    """As `expand`, with the axis values of each point."""
    members: dict[str, Member] = {}
    for axes in build_grids(request):
        for values in combinations(axes):
            point = resolve_member(request, values, facts)
            members.setdefault(point.id, Member(point, values))
    kept = _filtered(list(members.values()), request.config.sweep.filter)
    if not kept:
        raise UserError(f"sweep.filter={request.config.sweep.filter} leaves none of {len(members)} points.")
    return kept


def combinations(axes: list[Axis]) -> Iterator[dict[str, Any]]:
    """Axis values of each point of the grid."""
    for rows in itertools.product(*(axis.values for axis in axes)):
        yield {k: v for axis, row in zip(axes, rows, strict=True) for k, v in zip(axis.keys, row, strict=True)}


def resolve_member(request, values: dict[str, Any], facts: Facts) -> Point:
    """The point at `values`. A group (`schedule`) is set before its members (`schedule.warmup`)."""
    ordered = dict(sorted(values.items(), key=lambda item: item[0].count(".")))
    config: Config = request.with_values(ordered)
    try:
        return resolve(config, facts(config.data) if callable(facts) else facts)
    except UserError as error:
        if not values:
            raise
        raise UserError(f"At {describe(values)}: {error}") from None


def describe(values: dict[str, Any]) -> str:
    """`model.width=48, optimizer.lr=0.0039`, for messages."""
    return ", ".join(f"{key}={_short(value)}" for key, value in values.items())


def _short(value: Any) -> str:
    name = getattr(value, "name", None)  # a group's config object
    return name if isinstance(name, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _filtered(members: list[Member], filters: list[str]) -> list[Member]:
    if not filters:
        return members
    import pandas as pd

    from analysis.query import mask

    table = pd.DataFrame([member.point.columns() for member in members])
    for text in filters:
        try:
            kept = mask(table, text)
        except ValueError as error:
            raise UserError(f"sweep.filter: {str(error).removeprefix('where=')}") from None
        members, table = [m for m, keep in zip(members, kept, strict=True) if keep], table[kept]
    return members
