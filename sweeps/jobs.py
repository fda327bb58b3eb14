"""Jobs, and the small interface that every launcher has.

A Job is what an engine runs as one unit: points trained one after the other by one process, which keeps its compiled
step. `needs` names the jobs that come first (a branch needs its trunk); jobs form a DAG.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TextIO

from harness.passes import steps
from harness.point import Point


@dataclass(frozen=True)
class Job:
    """`key`: points of equal key share one compiled step. `seconds`: expected, on one worker; `after`: those of the longest
    chain of jobs that waits for this one. `id`: of the run, unless it has several points.

    until         step at which it pauses; None: the end
    start         id of the trunk whose checkpoint it begins from, at step `first`; where that is not to be had, from the
                  beginning
    validate_at   steps at which it validates beside its point's own
    trunk         whether it is one: its run lies among the trunks (trunks.py)
    carries       ids of the points that go through a trunk
    root          what it names as its trunk: common to all that begin as it does (prefix.py)
    shared_pass   sequences of the pass that its batches have in common with those of other points (passes.py)
    """

    id: str
    points: tuple[Point, ...]
    key: str
    compile: bool
    seconds: float
    needs: tuple[str, ...] = ()
    after: float = 0.0
    until: int | None = None
    start: str | None = None
    first: int = 0
    validate_at: tuple[int, ...] = ()
    trunk: bool = False
    carries: tuple[str, ...] = ()
    root: str | None = None
    shared_pass: int | None = None

    @property
    def runs(self) -> list[str]:
        """Ids of its runs."""
        return [self.id] if self.trunk else [point.id for point in self.points]

    @property
    def last(self) -> int:
        """The step at which it ends."""
        return self.until or self.points[0].steps

    def share_done(self, step: int) -> float:
        """Of its own steps, once the run is at `step`."""
        return min(max(step - self.first, 0) / max(self.last - self.first, 1), 1.0)

    def folder(self, runs_dir: Path) -> Path:
        """Its run directory."""
        return (trunks_dir(runs_dir) if self.trunk else Path(runs_dir)) / self.runs[0]

    def message(self) -> dict:
        """What a worker needs to know, in JSON (execute.py)."""
        return {"job": self.id, "point": self.points[0].to_dict(), "compile": self.compile, "until": self.until,
                "start": self.start, "first": self.first, "validate_at": list(self.validate_at), "trunk": self.trunk,
                "carries": list(self.carries), "root": self.root, "shared_pass": self.shared_pass}  # fmt: skip

    def alone(self) -> Job:
        """The same from the beginning, its trunk not to be had."""
        return replace(self, needs=tuple(n for n in self.needs if n != self.start), start=None, first=0, root=None)


def trunks_dir(runs_dir: Path) -> Path:
    """Where the trunks of the runs in `runs_dir` lie: beside it, as they are no runs of the sweep."""
    return Path(runs_dir).with_name(f"{Path(runs_dir).name}-trunks")


@dataclass(frozen=True)
class Settings:
    """Where and how jobs run; nothing of it is part of a point. `corpora`: tokenized data by fingerprint; `out`: the
    sweep's folder; `engine`: the launcher's keys that only one engine has."""

    runs_dir: Path
    cache: Path
    logs: Path
    corpora: dict[str, str]
    device: str = "cpu"
    workers: int = 1
    threads: int = 1
    points_per_device: int = 1
    devices_per_point: int = 1
    parallel: str = "ddp"
    max_attempts: int = 2
    point_seconds: float | None = None
    lease_seconds: float = 60.0
    pin: bool = True  # workers to cores; an engine that shares a host with other allocations leaves it to them
    compile: str = "auto"  # launcher.compile; "always": what cannot be compiled fails
    micro_batch: int | None = None
    checkpoint_seconds: float = 30.0
    curve_points: int = 200
    keep_weights: bool = False
    tracking: dict = field(default_factory=dict)
    engine: dict = field(default_factory=dict)
    detach: bool = False  # return once submitted

    @property
    def out(self) -> Path:
        """The sweep's folder."""
        return self.logs.parent

    def to_dict(self) -> dict:
        """JSON; `from_dict` reads it."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: dict) -> Settings:
        """Inverse of `to_dict`. Raises TypeError for an unknown key."""
        return cls(**{k: Path(v) if k in ("runs_dir", "cache", "logs") else v for k, v in value.items()})


@dataclass
class Summary:
    """What a launch came to. `failures`: run id -> reason, one line each."""

    done: int = 0
    diverged: int = 0
    pruned: int = 0  # stopped as worse than others of their slice
    failed: int = 0
    left: int = 0  # not trained: stopped before
    attempts: int = 0  # that ended badly: crashes included
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    signal: int | None = None  # that stopped the launch
    queued: int = 0  # left to an engine's queue: --detach
    flops_spent: int = 0  # on what it trained to its end, trunks included, where the engine tells

    @property
    def exit_status(self) -> int:
        """0 all points are trained (a diverged one is a result), 1 some failed, 128 + signal when stopped."""
        return 128 + self.signal if self.signal else int(self.failed > 0 or self.left > 0)


def pausing(jobs: list[Job], until: Mapping[str, int], states: Mapping[str, Any]) -> list[Job]:
    """Jobs of points as far as the steps `until` (run id -> step); those that have paused there, by their `states`
    (status.RunState), are left out."""
    found = []
    for job in jobs:
        end, state = until.get(job.id), states.get(job.id)
        if end is None:
            found.append(job)
        elif not (state.paused and state.step >= end):
            first = min(state.step, end)
            found.append(replace(job, until=end, first=first, seconds=job.seconds * (end - first) / job.points[0].steps))
    return found


class Launcher(Protocol):
    """An engine (`run` of sweeps.local, sweeps.slurm, sweeps.ray): trains what is left of a Plan, each point at most once,
    retries attempts that crash, asks `more` for further points, and blocks until all are through (or submitted, where
    `settings.detach`)."""

    def __call__(self, plan: Any, settings: Settings, more: Callable[[], Any] | None, stream: TextIO | None,
                 quiet: bool) -> Summary: ...  # fmt: skip


def compile_key(point: Point, micro_batch: int | None = None, shared_pass: int | None = None) -> str:
    """Equal for points that the same compiled steps serve: shape, sequences per pass and precision are built into one, of
    which a ramp may need one for each batch; learning rate, weight decay, multipliers, schedule, seed, the number of steps
    and that of passes in a batch are its inputs."""
    return _digest(point.shape, steps((size for _, size in point.stretches), micro_batch, shared_pass), point.precision)


@cache
def _digest(*built_in) -> str:
    built_in = [asdict(x) if is_dataclass(x) else x for x in built_in]
    return hashlib.sha256(json.dumps(built_in, sort_keys=True).encode()).hexdigest()[:16]
