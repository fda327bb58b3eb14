"""Grid extension: where the optimum of a slice sits at the edge of its grid, train the next values beyond that edge.

A slice here is the members of a sweep that differ only in the extended key and in seed. It is at an edge where its
lowest loss (mean over seeds) is at an end, or where the fitted optimum lies outside (verdict `edge`, analysis.optimum).
The next value continues the grid's own ratio; two are added at once where the fitted optimum lies beyond the first.
At most `sweep.extend_rounds` rounds; what was added is in `<out>/extension.json` (rounds.py), from which later commands go
on: {"like": run id, "key", "value", "run_id"}.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from harness.errors import UserError
from sweeps.expand import Facts, Member, describe, resolve_member
from sweeps.plan import Plan
from sweeps.rounds import end_loss, plan_added, read_rounds, write_rounds

FILE = "extension.json"
TARGETS = {"lr": "optimizer.lr", "tau": "tau", "weight_decay": "optimizer.weight_decay", "batch_size": "batch_size",
           "batch_tokens": "batch_tokens"}  # fmt: skip
FEWEST = 3  # values before a slice has an edge
SEEDS = ("seed", "data.seed")


@dataclass
class Cut:
    """A slice: its members, by value of `key` ascending."""

    key: str
    members: list[Member]

    @property
    def values(self) -> list[float]:
        return sorted({m.values[self.key] for m in self.members})


def extension(planned, cache: Path) -> Callable[[], Plan | None]:
    """The `more` of sweeps.local.run for `planned` (sweeps.launch.Planned): after each round the plan of the points to
    add, its notes saying why; None when no optimum is at an edge. Rates are kept in `cache`."""
    config = planned.request.config
    keys = target_keys(config.sweep.extend_target)
    path = planned.out / FILE
    members, rounds, most = list(planned.members), read_rounds(path), config.sweep.extend_rounds

    def more() -> Plan | None:
        added, entries, lines = next_round(planned.request, members, keys, planned.plan.runs_dir, planned.book)
        if not added:
            return None
        if _rounds_of(rounds, members) >= most:
            return plan_added(planned, [], cache, (f"still at an edge after {most} rounds of extension:", *lines))
        rounds.append(entries)
        members.extend(added)
        write_rounds(path, rounds)
        number = _rounds_of(rounds, members)
        notes = (f"grid extended, round {number} of at most {most}:", *lines)
        return plan_added(planned, added, cache, notes)

    return more


def extended_members(request, members: list[Member], path: Path, facts: Facts) -> list[Member]:
    """`members` and those that earlier launches added according to `path`, as far as they belong to this sweep."""
    by_id = {m.point.id: m for m in members}
    for entry in (e for entries in read_rounds(path) for e in entries):
        like = by_id.get(entry.get("like"))
        if like is not None and entry.get("key") in like.values:
            member = _moved(request, like, entry["key"], entry["value"], facts)
            by_id.setdefault(member.point.id, member)
    return list(by_id.values())


def target_keys(target: str | None) -> list[str]:
    """The keys that are extended: the one asked for, or all that can be. Raises UserError for an unknown one."""
    if target is None:
        return list(TARGETS.values())
    key = TARGETS.get(target, target)
    if key not in TARGETS.values():
        raise UserError(f"sweep.extend_target={target} is not one of {', '.join(TARGETS)}.")
    return [key]


def _rounds_of(rounds: list[list[dict]], members: list[Member]) -> int:
    """Rounds that extended this sweep: another sweep may have written into the same folder."""
    mine = {m.point.id for m in members}
    return sum(any(entry.get("like") in mine for entry in entries) for entries in rounds)


def next_round(
    request, members: list[Member], keys: list[str], runs_dir: Path, facts: Facts
) -> tuple[list[Member], list[dict], list[str]]:
    """(members to add, their entries for the file, a line for people per slice) given the results so far."""
    known = {m.point.id for m in members}
    added, entries, lines = [], [], []
    for cut in cuts(members, keys):
        losses = [end_loss(runs_dir, m) for m in cut.members]
        for value in beyond(cut, losses):
            new = 0
            for member in _one_per_seed(cut):
                try:
                    moved = _moved(request, member, cut.key, request.typed(cut.key, value), facts)
                except UserError as error:
                    lines.append(f"  {where(cut)}: {cut.key}={value:.4g} cannot be added: {error}")
                    break
                if moved.point.id not in known:
                    known.add(moved.point.id)
                    added.append(moved)
                    entries.append({"like": member.point.id, "key": cut.key, "value": value, "run_id": moved.point.id})
                    new += 1
            if new:
                lines.append(f"  {where(cut)}: {cut.key}={value:.4g} beyond {_span(cut)}")
    return added, entries, lines


def cuts(members: list[Member], keys: list[str]) -> list[Cut]:
    """The slices of every key that takes at least three values in them."""
    found = []
    for key in keys:
        groups: dict[str, list[Member]] = defaultdict(list)
        for member in members:
            if isinstance(member.values.get(key), (int, float)):
                rest = {k: v for k, v in member.values.items() if k != key and k not in SEEDS}
                groups[repr(sorted(rest.items()))].append(member)
        found += [Cut(key, group) for group in groups.values()]
    return [cut for cut in found if len(cut.values) >= FEWEST and cut.values[0] > 0]


def beyond(cut: Cut, losses: list[float | None]) -> list[float]:
    """The values to add to `cut`, given the loss of each member (infinite where it diverged or was pruned, None while
    unknown)."""
    if any(loss is None for loss in losses):
        return []
    values = cut.values
    mean = {v: fmean(x for m, x in zip(cut.members, losses, strict=True) if m.values[cut.key] == v) for v in values}
    if not math.isfinite(min(mean.values())):
        return [values[0] * values[0] / values[1]]  # all diverged: less is the only way
    best = min(values, key=mean.get)
    fitted = _fitted_outside(cut, losses)
    low_ratio, high_ratio = values[1] / values[0], values[-1] / values[-2]
    if best == values[0] or (fitted is not None and fitted < values[0]):
        first = values[0] / low_ratio
        return [first, first / low_ratio] if fitted is not None and fitted < first else [first]
    if best == values[-1] or (fitted is not None and fitted > values[-1] and math.isfinite(mean[values[-1]])):
        first = values[-1] * high_ratio
        return [first, first * high_ratio] if fitted is not None and fitted > first else [first]
    return []


def _fitted_outside(cut: Cut, losses: list[float]) -> float | None:
    """The fitted optimum where its verdict is `edge`."""
    import numpy as np  # here: `status` does without

    from analysis.optimum import find_optima
    from analysis.slices import Slice

    n = len(losses)
    loss = np.array(losses, float)
    seeds = np.unique([repr([m.values.get(s) for s in SEEDS]) for m in cut.members], return_inverse=True)[1]
    one = Slice(
        targets=(cut.key,), settings={}, given={}, held={}, flops=float(cut.members[0].point.flops),
        x=np.log([[m.values[cut.key]] for m in cut.members]), loss=loss, diverged=~np.isfinite(loss),
        seed=seeds, block=np.array([m.point.id for m in cut.members], object), rows=np.arange(n),
    )  # fmt: skip
    optimum = find_optima([one], bootstrap=0)[0]
    return float(np.exp(optimum.fitted[0])) if optimum.verdict == "edge" and np.isfinite(optimum.fitted[0]) else None


def _moved(request, member: Member, key: str, value: float, facts: Facts) -> Member:
    values = {**member.values, key: value}
    return Member(resolve_member(request, values, facts), values)


def _one_per_seed(cut: Cut) -> list[Member]:
    return list({repr([m.values.get(s) for s in SEEDS]): m for m in cut.members}.values())


def where(cut: Cut) -> str:
    rest = {k: v for k, v in cut.members[0].values.items() if k != cut.key and k not in SEEDS}
    return describe(rest) or "the sweep"


def _span(cut: Cut) -> str:
    return f"{cut.values[0]:.4g} ... {cut.values[-1]:.4g}"
