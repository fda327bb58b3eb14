"""Where a law was measured, and how far a target lies outside.

A law knows the scales of its slices (`sampled`, one entry per slice; else the optima beside it; else its `range`). A
target can leave them in two ways: past the ends of one predictor, or off the line on which all points lay though it is
inside every range (all points at 20 tokens per parameter, say). Distances are in decades (log10).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

SAME = math.log10(1.02)  # steps are whole, so tokens count as equal within 2 %
THIN = 0.03  # decades: a cloud thinner than 7 % in some direction has no extent there
AXES = ("params", "tokens", "batch_size")


@dataclass(frozen=True)
class Region:
    """points: one row per slice (params, tokens, batch_size, width, ... as far as known); ranges: low and high."""

    points: pd.DataFrame
    ranges: dict[str, tuple[float, float]]


def region(law: Mapping, optima: list[Mapping]) -> Region:
    """The region of `law`, from what it stores or from the optima of its analysis that agree with its `given`."""
    points = _stored(law)
    if points.empty:
        points = _from_optima(law, optima)
    constant = {**(law.get("held") or {}), **(law.get("given") or {})}
    for column, value in constant.items():
        if _positive(value) and column not in points:
            points[column] = [float(value)] * max(len(points), 1)
    if {"params", "tokens"} <= set(points):
        points["tpp"] = points["tokens"] / points["params"]
    known = {column: values.dropna() for column, values in points.items() if values.notna().any()}
    ranges = {column: (float(values.min()), float(values.max())) for column, values in known.items()}
    for column, ends in (law.get("range") or {}).items():
        if isinstance(ends, Mapping) and _positive(ends.get("low")) and _positive(ends.get("high")):
            ranges.setdefault(column, (float(ends["low"]), float(ends["high"])))
    return Region(points, ranges)


def _stored(law: Mapping) -> pd.DataFrame:
    """The columns of `sampled`, one row per slice; a single value holds for every slice."""
    columns = {k: v if isinstance(v, list) else [v] for k, v in (law.get("sampled") or {}).items()}
    columns = {k: [x if _positive(x) else math.nan for x in v] for k, v in columns.items() if any(map(is_number, v))}
    rows = max(map(len, columns.values()), default=0)
    columns = {k: v * rows if len(v) == 1 else v for k, v in columns.items() if len(v) in (1, rows)}
    return pd.DataFrame(columns, dtype=float)


def _from_optima(law: Mapping, optima: list[Mapping]) -> pd.DataFrame:
    rows = []
    for optimum in optima:
        where = {**(optimum.get("held") or {}), **(optimum.get("given") or {})}
        given = law.get("given") or {}
        agrees = all(same(where[key], given[key]) for key in where.keys() & given.keys())
        mine = optimum.get("analysis") == law.get("analysis") and optimum.get("target") == law["name"]
        if mine and agrees and optimum.get("verdict") == "interior":
            rows.append({key: float(value) for key, value in where.items() if _positive(value)})
    return pd.DataFrame(rows, dtype=float)


def same(a: object, b: object) -> bool:
    """Equal as numbers within 2 %, else as text."""
    if is_number(a) and is_number(b):
        return a == b or (a > 0 and b > 0 and abs(math.log10(a / b)) < SAME)
    return str(a) == str(b)


def distances(where: Region, target: Mapping[str, float]) -> dict[str, dict]:
    """{predictor: {"decades": outside the range (0 inside), "sampled": [low, high]}} for sizes and batch."""
    result = {}
    for name in ("params", "tokens", "tpp", "batch_size"):
        if name in where.ranges and target.get(name):
            low, high = where.ranges[name]
            outside = max(math.log10(low / target[name]), math.log10(target[name] / high), 0.0)
            result[name] = {"decades": 0.0 if outside < SAME else outside, "sampled": [low, high]}
    return result


def off_ray(where: Region, target: Mapping[str, float]) -> dict | None:
    """Perpendicular distance of the target from the line (or plane) on which all slices lie; None: they fill the space.

    Returns {"decades", "predictors", "ray"}: the axes that vary, and the line in words. One slice, or axes that do not
    vary, make no ray: `distances` speaks of those.
    """
    axes = [a for a in AXES if a in where.points and target.get(a) and where.points[a].notna().all()]
    logs = np.log10(where.points[axes].to_numpy(float)) if axes else np.empty((0, 0))
    varied = [i for i in range(len(axes)) if len(logs) > 1 and np.ptp(logs[:, i]) > THIN]
    if len(varied) < 2:
        return None
    axes, logs = [axes[i] for i in varied], logs[:, varied]
    centre = logs.mean(0)
    _, _, directions = np.linalg.svd(logs - centre)
    extent = np.ptp((logs - centre) @ directions.T, axis=0)
    thin = directions[extent <= THIN]
    if not len(thin):
        return None
    gap = np.array([math.log10(target[a]) for a in axes]) - centre
    distance = float(np.linalg.norm(thin @ gap))
    return {"decades": 0.0 if distance < THIN else distance, "predictors": axes, "ray": _in_words(axes, thin, centre)}


def _in_words(axes: list[str], thin: np.ndarray, centre: np.ndarray) -> str:
    if len(axes) == 2:
        slope = -thin[0][0] / thin[0][1] if thin[0][1] else math.inf
        if axes == ["params", "tokens"] and abs(slope - 1) < 0.05:
            return f"{10 ** (centre[1] - centre[0]):.3g} tokens per parameter"
        return f"{axes[1]} ~ {axes[0]}^{slope:.2f}"
    return f"{', '.join(axes[:-1])} and {axes[-1]} moved together"


def is_number(value: object) -> bool:
    """A finite number; no boolean, which Python counts among them."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: object) -> bool:
    """A scale; anything else that a hand-written file holds counts as unknown."""
    return is_number(value) and value > 0
