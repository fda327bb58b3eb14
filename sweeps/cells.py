"""The slices that sweep.strategy=refine spends on: those of the declared grid, and scales between them; and its target.

A cell is what the members of a sweep share that differ only in the refined key and in seed, as a slice of sweeps/extend.py.
Scales between two neighbours of an axis are cells too: they are cheap beside the largest, and a law of more slices has more
degrees of freedom. None lies outside the declared scales: there the law is the user's question, not ours to assume.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from harness.errors import UserError
from sweeps.axes import build_grids
from sweeps.expand import Facts, Member, describe, resolve_member
from sweeps.extend import SEEDS, TARGETS, cuts

ANALYSES = {"optimizer.lr": "lr", "tau": "tau", "optimizer.weight_decay": "weight_decay", "batch_size": "batch",
            "batch_tokens": "batch"}  # fmt: skip
SCALES = ("model.width", "model.depth", "tokens", "tpp")
CLOSEST = 1.15  # ratio of a scale between two to either
ENOUGH = 12  # cells of a law, for which no closer ones are sought
PASSES = 3
LARGER = 4.0  # the target, where none is given: times the largest model (or the most tokens) of the grid


@dataclass(frozen=True)
class Cell:
    """like: one member of it; values: of the key, ascending, and seeds, as declared (of a scale between two: the lower's);
    flops: of one run; at: columns of its point; law: equal for cells of one law; root: the member of the grid that it
    differs from in numbers alone."""

    key: str
    like: Member
    rest: dict[str, Any]
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    flops: float
    at: dict[str, Any]
    law: str
    root: Member
    declared: bool = True

    @property
    def label(self) -> str:
        return describe(self.rest) or "the sweep"

    @property
    def name(self) -> str:
        """What tells cells apart."""
        return repr(sorted(self.rest.items()))


def refined_key(members: list[Member], target: str | None) -> str:
    """The key that is refined: sweep.extend_target, or the only one that takes three values. Raises UserError."""
    wanted = list(TARGETS.values()) if target is None else [TARGETS.get(target, target)]
    found = [key for key in wanted if cuts(members, [key])]
    if not found:
        said = " or ".join(TARGETS) if target is None else target
        raise UserError(f"sweep.strategy=refine needs an axis of three values or more: {said}.")
    if len(found) > 1:
        raise UserError(f"sweep.strategy=refine refines one of {', '.join(found)}: choose it with sweep.extend_target.")
    return found[0]


def declared_cells(members: list[Member], key: str) -> list[Cell]:
    """The slices of the grid."""
    found = []
    for cut in cuts(members, [key]):
        seeds = tuple(sorted({m.values["seed"] for m in cut.members if "seed" in m.values}))
        like = min(cut.members, key=lambda m: m.values.get("seed", 0))
        found.append(_cell(key, like, tuple(cut.values), seeds or (like.point.seed,), None))
    return found


def cells_between(request, cells: list[Cell], facts: Facts) -> list[Cell]:
    """Cells halfway (in the log) between neighbours along each axis of scale, as far as there is such a model; then halfway
    between those, while a law has fewer than ENOUGH."""
    axes = {axis.keys for grid in build_grids(request) for axis in grid if set(axis.keys) <= set(SCALES)}
    found: list[Cell] = []
    for turn in range(PASSES):
        counts = Counter(cell.law for cell in [*cells, *found])
        known = [cell for cell in [*cells, *found] if not turn or counts[cell.law] < ENOUGH]
        found += _halves(request, known, sorted(axes), facts)
    return found


def _halves(request, cells: list[Cell], axes: list[tuple[str, ...]], facts: Facts) -> list[Cell]:
    known = {cell.name for cell in cells}
    found = []
    for keys in axes:
        lines: dict[str, list[Cell]] = {}
        for cell in cells:
            if all(k in cell.rest for k in keys):
                others = sorted((k, v) for k, v in cell.rest.items() if k not in keys)
                lines.setdefault(repr((cell.law, others)), []).append(cell)
        for line in lines.values():
            line.sort(key=lambda cell: cell.flops)
            for low, high in zip(line, line[1:], strict=False):
                new = _halfway(request, low, high, keys, facts)
                if new is not None and new.name not in known:
                    known.add(new.name)
                    found.append(new)
    return found


def _halfway(request, low: Cell, high: Cell, keys: Iterable[str], facts: Facts) -> Cell | None:
    values = dict(low.like.values)
    for key in keys:
        a, b = low.rest[key], high.rest[key]
        middle = math.sqrt(a * b)
        if key == "model.width":
            unit = math.gcd(a, b)
            unit = unit if unit < b - a else max(unit // 2, 1)
            middle = round(middle / unit) * unit
        elif key == "model.depth":
            middle = round(middle)
        values[key] = request.typed(key, middle)
    try:
        new = _cell(low.key, Member(resolve_member(request, values, facts), values), low.values, low.seeds, low.root)
    except UserError:  # no such model: heads that do not divide it
        return None
    size = [cell.at["params"] * cell.at["tokens"] for cell in (low, new, high)]
    if size[1] < CLOSEST * size[0] or size[2] < CLOSEST * size[1] or new.law != low.law:
        return None
    return new


def _cell(key: str, like: Member, values: tuple[float, ...], seeds: tuple[int, ...], root: Member | None) -> Cell:
    from analysis.columns import SETTINGS

    rest = {k: v for k, v in like.values.items() if k != key and k not in SEEDS}
    at = like.point.columns()
    law = repr([at.get(name) for name in SETTINGS])
    return Cell(key, like, rest, values, seeds, float(like.point.flops), at, law, root or like, root is None)


def lattice(cell: Cell, beyond: Iterable[float] = ()) -> list[float]:
    """Values that may be trained at: the grid's own, those halfway between, and two steps (of the ratio there) and their
    halves beyond either end, or beyond values that were added there."""
    values = sorted({*cell.values, *(v for v in beyond if v < cell.values[0] or v > cell.values[-1])})
    own = [*cell.values]
    steps = own[1] / own[0], own[-1] / own[-2]
    found = {math.sqrt(a * b) for a, b in zip(own, own[1:], strict=False)}
    for end, first, ratio in ((values[0], own[0], 1 / steps[0]), (values[-1], own[-1], steps[1])):
        most = round(2 * math.log(end / first) / math.log(ratio)) + 4
        found |= {first * ratio ** (i / 2) for i in range(1, most + 1)}
    if all(isinstance(v, int) for v in own):
        return sorted({*own, *(max(round(v), 1) for v in found)})
    return sorted({*own, *(float(f"{v:.12g}") for v in found)})


def target_of(request, cells: list[Cell], facts: Facts) -> dict[str, float]:
    """Columns of the scale that the law is extrapolated to: that of sweep.target, or LARGER times the parameters of the
    largest model, at the tokens where the cells' regression of tokens on parameters leads. Raises UserError."""
    given = request.config.sweep.target
    if given is not None:
        return _asked(request, cells, given, facts)
    params, tokens = ([cell.at[name] for cell in cells] for name in ("params", "tokens"))
    logs = [math.log(n) for n in params]
    mean, middle = sum(logs) / len(logs), sum(map(math.log, tokens)) / len(tokens)
    spread = sum((x - mean) ** 2 for x in logs)
    if spread > 1e-3:
        slope = sum((x - mean) * math.log(d) for x, d in zip(logs, tokens, strict=True)) / spread
        n = LARGER * max(params)
        d = math.exp(middle + slope * (math.log(n) - mean))
    else:
        n, d = max(params), LARGER * max(tokens)
    return {"params": n, "tokens": d, "tpp": d / n}


def _asked(request, cells: list[Cell], given: Any, facts: Facts) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise UserError(f"sweep.target={given} is no scale: write sweep.target={{model.width: 512, tpp: 20}}.")
    if not set(given) & set(SCALES):
        raise UserError(f"sweep.target={dict(given)} names no scale: it must hold one of {', '.join(SCALES)};\n"
                        "what else it may hold, as batch_size, is as in the largest slice unless given.")  # fmt: skip
    largest = max(cells, key=lambda cell: cell.flops)
    try:
        values = {**largest.like.values, **{key: request.typed(key, value) for key, value in given.items()}}
    except UserError as error:
        raise UserError(f"sweep.target: {error}") from None
    for one, other in (("tpp", "tokens"), ("batch_size", "batch_tokens"), ("tau", "optimizer.weight_decay")):
        for key, twin in ((one, other), (other, one)):
            if key in given and twin not in given:
                values.pop(twin, None)

    def endless(data):  # the data need not suffice for the target
        return replace(facts(data) if callable(facts) else facts, train_tokens=None)

    try:
        point = resolve_member(request, values, endless)
    except UserError as error:
        raise UserError(f"sweep.target: {error}") from None
    at = point.columns()
    return {name: float(at[name]) for name in ("params", "tokens", "tpp", "batch_size")}
