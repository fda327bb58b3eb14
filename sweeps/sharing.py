"""Which beginnings of what is left of a sweep are trained once (prefix.py), and the jobs that follow: trunks, branches."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harness.point import Point
from sweeps.jobs import Job
from sweeps.passes import Passes
from sweeps.prefix import Forest, flops_between
from sweeps.prefix import share as common_beginnings
from sweeps.rate import Rates
from sweeps.status import RunState
from sweeps.trunks import known

EMPTY = Forest((), {}, {}, {}, frozenset())
# What a trunk costs beside its steps: a job, and a checkpoint of 12 bytes a parameter written, and read by each branch.
JOB_SECONDS, BYTES_PER_SECOND = 0.2, 200e6


@dataclass(frozen=True)
class Stretch:
    """Steps first ... last-1 of a point, or of several that go them together."""

    point: Point
    first: int
    last: int

    @property
    def flops(self) -> int:
        return flops_between(self.point, self.first, self.last)

    def seconds(self, rates: Rates, compiled: bool) -> float:
        """On one worker."""
        return rates.seconds(self.point, compiled) * self.flops / self.point.flops


def find_trunks(left: list[Point], states: Mapping[str, RunState], runs_dir: Path, rates: Mapping[str, Rates]) -> Forest:
    """Trunks of the points that are left. Points in training, and those with a checkpoint of their own, go on alone."""
    begun = _begun(runs_dir)
    fresh = [p for p in left if states[p.id].status != "running"
             and not (p.id in begun and _has_checkpoint(runs_dir / p.id))]  # fmt: skip
    there = known(runs_dir)
    if len(fresh) < 2 and not there:
        return EMPTY

    def worth(point: Point, first: int, last: int) -> float:
        """Seconds of these steps over those that a trunk costs."""
        seconds = rates[point.precision].seconds(point, compiled=True) * flops_between(point, first, last) / point.flops
        return seconds / (JOB_SECONDS + 12 * point.counts.params_total / BYTES_PER_SECOND)

    forest = common_beginnings(fresh, 1.0, worth, there)
    return forest if forest.start else EMPTY


def _begun(runs_dir: Path) -> set[str]:
    """Names of the run directories."""
    try:
        return set(os.listdir(runs_dir))
    except OSError:
        return set()


def _has_checkpoint(run_dir: Path) -> bool:
    try:
        return any(name.endswith(".safetensors") for name in os.listdir(run_dir / "checkpoints"))
    except OSError:
        return False


def stretches_of(left: list[Point], forest: Forest) -> list[Stretch]:
    """What is to be trained."""
    found = []
    for trunk in forest.trunks.values():
        if trunk.id not in forest.finished:
            first = forest.trunks[trunk.parent].steps if trunk.parent else 0
            found.append(Stretch(trunk.point, first, trunk.steps))
    for point in left:
        trunk = forest.trunks.get(forest.start.get(point.id))
        found.append(Stretch(point, trunk.steps if trunk else 0, point.steps))
    return found


def keys_that_share(forest: Forest, passes: Passes) -> list[set[str]]:
    """Compile keys of which one begins where another ended, together: a ramp shares its first batch with other ramps."""
    found: list[set[str]] = []
    pairs = [(t.point, forest.trunks[t.parent].point) for t in forest.trunks.values() if t.parent]
    pairs += [(p, forest.trunks[forest.start[p.id]].point) for p in forest.points if p.id in forest.start]
    for keys in {frozenset(passes.key(p) for p in pair) for pair in pairs}:
        joined = [group for group in found if group & keys]
        found = [group for group in found if not group & keys] + [set(keys).union(*joined)]
    return [group for group in found if len(group) > 1]


def make_jobs(groups: Iterable, forest: Forest, rates: Mapping[str, Rates], passes: Passes) -> list[Job]:
    """Of sweeps.plan.Groups: one job per trunk that is to be trained, parents first, then one per point."""
    by_key = {group.key: group for group in groups}

    def job(name: str, point: Point, start: str | None, last: int, shared: int | None, **more) -> Job:
        group = by_key[passes.key(point)]
        first = forest.trunks[start].steps if start else 0
        share = flops_between(point, first, last) / point.flops
        seconds = rates[point.precision].seconds(point, group.compile) * share * passes.slower(point, group.compile)
        needs = (start,) if start and start not in forest.finished else ()
        return Job(name, (point,), group.key, group.compile, seconds, needs, start=start, first=first,
                   shared_pass=shared if group.compile else None, **more)  # fmt: skip

    carried, own = _carried(forest), {p.id: passes.of(p) for p in forest.points}

    def passed_on(trunk: str) -> int | None:
        """The pass of a trunk: its branches take its numerics, and it may divide later batches of some of them."""
        return next((own[i] for i in carried[trunk] if own[i]), None)

    trunks = [job(t.id, t.point, t.parent, t.steps, passed_on(t.id), until=t.steps, validate_at=t.validate_at, trunk=True,
                  carries=tuple(carried[t.id])) for t in forest.trunks.values() if t.id not in forest.finished]  # fmt: skip
    points = [job(p.id, p, forest.start.get(p.id), p.steps, passes.of(p), root=forest.root.get(p.id))
              for group in groups for p in group.points]  # fmt: skip
    return _with_chains([*trunks, *points])


def _carried(forest: Forest) -> dict[str, list[str]]:
    """Ids of the points that go through each trunk."""
    found = {name: [] for name in forest.trunks}
    for point, name in forest.start.items():
        while name:
            found[name].append(point)
            name = forest.trunks[name].parent
    return found


def _with_chains(jobs: list[Job]) -> list[Job]:
    """With the seconds of what waits for each; jobs come behind those that they need."""
    after: dict[str, float] = defaultdict(float)
    for job in reversed(jobs):
        for need in job.needs:
            after[need] = max(after[need], job.seconds + after[job.id])
    return [replace(job, after=after[job.id]) for job in jobs]
