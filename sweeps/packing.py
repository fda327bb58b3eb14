"""Jobs packed into allocations, without a cluster: which train together, which wait for which, which are one array.

A trunk and what begins from it share an allocation as far as they fit; a tree that is too large is cut, from its leaves on,
into sub-trees. Allocations of one level (behind how many others they wait) that wait for the same are a wave, one job array.
Where a level waits for more than WAVES different things, neighbours are one wave, which waits for all of theirs: the number
of submissions follows from how deep trees are, not from how many there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from sweeps.jobs import Job

WAVES = 8  # of a level


@dataclass
class Share:
    """The jobs of one allocation. `level`: 0 needs nothing of this submission, 1 needs something of level 0, ...; `wave`:
    of that level."""

    jobs: list[Job]
    level: int = 0
    needs: frozenset[str] = frozenset()  # job ids outside
    wave: int = 0


def pack(jobs: Iterable[Job], size: int) -> list[Share]:
    """Shares of at most `size` points (a job of more has its own) and as many trunks, even in number: of those that wait for
    the same those of one shape together, and the longest first. What a share needs is in earlier ones."""
    shares, home = [], {}
    for level, units in enumerate(_levels(_units(list(jobs), size))):
        alike: dict[tuple[str, ...], list[list[Job]]] = defaultdict(list)
        for unit in units:
            waits = {f"share {home[need]:09d}" if need in home else need for need in _needs(unit)}
            alike[tuple(sorted(waits))].append(unit)
        for wave, members in enumerate(_waves([alike[waits] for waits in sorted(alike)])):
            for part in _parts(_longest_first(members), size):
                home.update({job.id: len(shares) for job in part})
                shares.append(Share(part, level, _needs(part), wave))
    return shares


def _units(jobs: list[Job], size: int) -> list[list[Job]]:
    """What is not parted: trees of trunks and their branches, those that are too large cut into sub-trees."""
    ids, behind = {job.id for job in jobs}, defaultdict(list)
    for job in jobs:
        if job.start in ids and set(job.needs) <= {job.start}:
            behind[job.start].append(job)
    inside = {job.id for members in behind.values() for job in members}
    tops = [job for job in jobs if job.id not in inside]
    order, stack = [], tops[::-1]
    while stack:
        order.append(stack.pop())
        stack += behind[order[-1].id][::-1]
    units, closed = {}, []
    for job in reversed(order):  # what begins from a trunk before the trunk
        units[job.id] = unit = [job]
        points, trunks = _counts(unit)
        for part in sorted((units.pop(branch.id) for branch in behind[job.id]), key=_size, reverse=True):
            more, further = _counts(part)
            if max(points + more, trunks + further) <= size:
                points, trunks = points + more, trunks + further
                unit += part
            else:
                closed.append(part)
    return [units[job.id] for job in tops] + closed[::-1]


def _counts(unit: list[Job]) -> tuple[int, int]:
    """Points, trunks."""
    return sum(len(job.points) for job in unit if not job.trunk), sum(job.trunk for job in unit)


def _size(unit: list[Job]) -> int:
    """Points, or trunks if these are more."""
    return max(_counts(unit))


def _needs(unit: list[Job]) -> frozenset[str]:
    """Job ids outside."""
    return frozenset(need for job in unit for need in job.needs) - {job.id for job in unit}


def _levels(units: list[list[Job]]) -> list[list[list[Job]]]:
    """Units that need no other, those that need one of these, and so on."""
    of = {job.id: i for i, unit in enumerate(units) for job in unit}
    needs = [{of[need] for need in _needs(unit) if need in of} for unit in units]
    behind = defaultdict(list)
    for i, needed in enumerate(needs):
        for j in needed:
            behind[j].append(i)
    left, levels = [len(needed) for needed in needs], []
    ready = [i for i, count in enumerate(left) if not count]
    while ready:
        levels.append([units[i] for i in ready])
        coming = [j for i in ready for j in behind[i]]
        for j in coming:
            left[j] -= 1
        ready = sorted(j for j in set(coming) if not left[j])
    return levels


def _waves(groups: list[list[list[Job]]]) -> list[list[list[Job]]]:
    """At most WAVES of them, neighbours joined."""
    each = -(-len(groups) // WAVES)
    return [[unit for group in groups[i : i + each] for unit in group] for i in range(0, len(groups), max(each, 1))]


def _longest_first(units: list[list[Job]]) -> list[list[Job]]:
    """By shape, the shape of the longest first."""
    longest: dict[str, float] = defaultdict(float)
    for unit in units:
        longest[unit[0].key] = max(longest[unit[0].key], _seconds(unit))
    return sorted(units, key=lambda unit: (-longest[unit[0].key], unit[0].key, -_seconds(unit)))


def _seconds(unit: list[Job]) -> float:
    return sum(job.seconds for job in unit)


def _parts(units: list[list[Job]], size: int) -> list[list[Job]]:
    """Units one after the other, in parts of about equal size."""
    sizes = [_size(unit) for unit in units]
    left = sum(sizes)
    parts, count, i = [], max(-(-left // size), 1), 0
    while i < len(units):
        room, part, full = min(-(-left // max(count - len(parts), 1)), size), [], 0
        while i < len(units) and (not part or full + sizes[i] <= room):
            full += sizes[i]
            part += units[i]
            i += 1
        parts.append(part)
        left -= full
    return parts
