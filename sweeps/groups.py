"""Slices that sweep.strategy=halving decides together, and those that it trains in full to tell how optima move.

A slice is a cut of sweeps/extend.py: members that differ only in a tuned key and in seed. Slices that share points are
decided together; a point that lies in a slice which loses none of its points never pauses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sweeps.expand import Member
from sweeps.extend import Cut

REFERENCES = 0.1  # of the FLOPs of the slices of one key and schedule


@dataclass(frozen=True)
class Group:
    """Slices that share points, and are decided together. `pausing`: the members that may be stopped."""

    cuts: tuple[Cut, ...]
    pausing: tuple[Member, ...]


def join(found: Sequence[Cut], references: Collection[int], keep: int) -> list[Group]:
    """The slices of which points may be stopped, joined through the points they share; `references`: indices of others."""
    shut = [c for i, c in enumerate(found) if i in references or len(c.values) <= keep]
    open_ = [c for i, c in enumerate(found) if i not in references and len(c.values) > keep]
    bound = {m.point.id for c in shut for m in c.members}
    joined: list[tuple[set[str], list[Cut]]] = []
    for cut in open_:
        ids = {m.point.id for m in cut.members} - bound
        near = [entry for entry in joined if entry[0] & ids]
        joined = [entry for entry in joined if entry not in near]
        joined.append((ids.union(*(e[0] for e in near)), [c for e in near for c in e[1]] + [cut]))
    groups = []
    for ids, members in joined:
        pausing = {m.point.id: m for cut in members for m in cut.members if m.point.id in ids}
        if pausing:
            groups.append(Group(tuple(members), tuple(pausing.values())))
    return groups


def choose_references(found: Sequence[Cut]) -> set[int]:
    """Indices of the slices that are trained in full: the cheapest of each kind, up to REFERENCES of its FLOPs."""
    kinds: dict[tuple, list[int]] = defaultdict(list)
    for i, cut in enumerate(found):
        kinds[kind(cut)].append(i)
    chosen = set()
    for indices in kinds.values():
        costs = sorted((sum(m.point.flops for m in found[i].members), i) for i in indices)
        room = REFERENCES * sum(cost for cost, _ in costs)
        for cost, i in costs:
            room -= cost
            if room < 0:
                break
            chosen.add(i)
    return chosen


def kind(cut: Cut) -> tuple[str, str]:
    """Tuned key and schedule: the optima of slices of one kind move alike."""
    return cut.key, cut.members[0].point.schedule.name
