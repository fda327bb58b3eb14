"""The plan: what is left to do for a list of points and what it costs, before anything runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.config import LauncherConfig
from harness.point import Point
from harness.supervisor import check_devices
from sweeps.compiling import Group, decided, missing_for_compile
from sweeps.engines import check_launcher, trains_here
from sweeps.jobs import Job
from sweeps.passes import Passes, choose_passes
from sweeps.prefix import Forest, Trunk
from sweeps.rate import START_SECONDS, CompiledShapes, Rates, cores, device_kind, gpu_names, measured_rates
from sweeps.rendering import render
from sweeps.sharing import EMPTY, Stretch, find_trunks, keys_that_share, make_jobs, stretches_of
from sweeps.status import RunState, read_states

CHECKPOINT_BYTES = 12  # per parameter: weights and both moments of AdamW, fp32
CHECKPOINTS_KEPT = 2  # of a run in progress: the newest and the one before it


@dataclass(frozen=True)
class Plan:
    """Points by status, what is left, and its price. `workers` train at once; `device` is cpu or cuda."""

    name: str
    points: tuple[Point, ...]
    runs_dir: Path
    states: dict[str, RunState]
    groups: tuple[Group, ...]
    rates: dict[str, Rates]
    device: str
    workers: int
    max_attempts: int
    forest: Forest = EMPTY  # trunks of the points that are left
    passes: Passes = Passes()
    reused: Mapping[str, Path] = field(default_factory=dict)  # run id -> run of another sweep that is taken
    notes: tuple[str, ...] = ()  # why these points, where that is not plain
    until: Mapping[str, int] = field(default_factory=dict)  # point id -> step at which it pauses for now (halving.py)
    pruned: tuple[str, ...] = ()  # points that were stopped before this plan was made
    whole: tuple[float, float] | None = None  # FLOPs and seconds of all rounds, where this is the first (refine.py)

    @property
    def left(self) -> list[Point]:
        """Points still to be trained, in the order of the sweep."""
        return [point for point in self.points if self.states[point.id].left]

    @property
    def counts(self) -> Counter:
        return Counter(state.status for state in self.states.values())

    @property
    def flops(self) -> int:
        """Training FLOPs of what is left, shared beginnings once; steps behind the last checkpoint are not subtracted."""
        return sum(group.flops for group in self.groups)

    @property
    def seconds(self) -> float:
        """Expected wall time: the work spread over the workers, at least the longest point, and their start."""
        if not self.groups:
            return 0.0
        longest = max(job.seconds + job.after for job in self.jobs())
        return START_SECONDS + max(sum(group.seconds for group in self.groups) / self.workers, longest)

    @property
    def flops_saved(self) -> int:
        """By shared beginnings, against training each point alone."""
        return sum(point.flops for group in self.groups for point in group.points) - self.flops

    @property
    def trunks_left(self) -> list[Trunk]:
        """Those to be trained."""
        return [trunk for trunk in self.forest.trunks.values() if trunk.id not in self.forest.finished]

    @property
    def checkpoint_bytes(self) -> int:
        """The most that checkpoints occupy at once: of the largest points, as many as train at once, and of all trunks and
        all points that pause."""
        sizes = [
            group.points[0].counts.params_total
            for group in self.groups
            for _ in range(min(len(group.points), self.workers))
        ]
        sizes.sort(reverse=True)
        trunks = sum(trunk.point.counts.params_total for trunk in self.forest.trunks.values())
        paused = sum(point.counts.params_total for point in self.left if point.id in self.until)
        return ((sum(sizes[: self.workers]) + paused) * CHECKPOINTS_KEPT + trunks) * CHECKPOINT_BYTES

    def jobs(self) -> list[Job]:
        """One job per trunk that is to be trained, parents first, and one per unfinished point; the launcher groups those
        of equal key (order.py)."""
        return make_jobs(self.groups, self.forest, self.rates, self.passes)

    def to_dict(self) -> dict:
        """For `--json`."""
        return {
            "name": self.name,
            "runs": str(self.runs_dir),
            "points": len(self.points),
            "counts": dict(self.counts),
            "left": len(self.left),
            "flops": self.flops,
            "reused": {run_id: str(folder) for run_id, folder in self.reused.items()},
            "trunks": len(self.trunks_left),
            "flops_saved": self.flops_saved,
            "hours": self.seconds / 3600,
            "whole": self.whole and {"flops": self.whole[0], "hours": self.whole[1] / 3600},
            "workers": self.workers,
            "device": self.device,
            "checkpoint_bytes": self.checkpoint_bytes,
            "notes": list(self.notes),
            "groups": [{"shape": g.label, "points": len(g.points), "flops": g.flops, "seconds": g.seconds,
                        "compile": g.compile, "reason": g.reason, "shared_pass": g.shared_pass} for g in self.groups],
            "rates": {p: {"device": r.device, "eager": vars(r.eager), "compiled": vars(r.compiled)}
                      for p, r in self.rates.items()},
        }  # fmt: skip

    def render(self) -> str:
        """The plan for people: under 100 columns."""
        return render(self)


def make_plan(
    points: list[Point],
    runs_dir: Path,
    launcher: LauncherConfig,
    cache: Path,
    device: str = "auto",
    micro_batch: int | None = None,
    name: str = "",
    rates: dict[str, Rates] | None = None,
    probe: bool = True,
    keep_pruned: bool = False,
    share: bool = True,
    reused: Mapping[str, Path] | None = None,
) -> Plan:
    """Price what is left of `points`, reading only their statuses and the rates measured on this device.

    `rates`: precision -> Rates, instead of measuring. `probe`: where no run here has told a rate, measure for some
    seconds. `keep_pruned`: points that halving stopped stay stopped, else they are trained to their end. `share`: train
    beginnings that several points have in common once. `reused`: run id -> run of another sweep, of points that need no
    training for it. Raises UserError for a launcher setting that cannot be.
    """
    check_launcher(launcher)
    states = read_states(points, runs_dir, launcher.lease_seconds, cache)
    if not keep_pruned:
        states = {i: replace(state, reopened=state.status == "pruned") for i, state in states.items()}
    reused = reused or {}
    states |= {i: replace(states[i], status="done") for i in reused if states[i].left}
    known = device != "auto" or trains_here(launcher)
    kind = device_kind(device) if known else "cuda" if launcher.gpus else "cpu"
    left = [point for point in points if states[point.id].left]
    for point in left:
        check_devices(point, launcher.devices_per_point, launcher.parallel)
    if rates is None:
        needed = sorted({point.precision for point in left})
        probe = probe and launcher.name != "slurm"  # a login node tells nothing of the nodes, and is shared
        rates = {precision: measured_rates(cache, kind, precision, probe) for precision in needed}
    workers = worker_count(launcher, kind)
    if launcher.name == "slurm":
        count = len(left)
        workers *= min(max(-(-count // launcher.points_per_job), 1), launcher.max_running or count or 1)
    shapes = CompiledShapes(cache, launcher.threads)
    forest = find_trunks(left, states, Path(runs_dir), rates) if share else EMPTY
    stretches, passes = stretches_of(left, forest), Passes(micro_batch)
    may_share = kind == "cpu" and launcher.devices_per_point == 1 and not micro_batch
    if may_share and launcher.compile != "never" and not (launcher.compile == "auto" and missing_for_compile(kind)):
        passes = choose_passes(stretches, rates, workers, shapes.__contains__, launcher.compile)
    by_key: dict[str, tuple[list[Point], list[Stretch]]] = defaultdict(lambda: ([], []))
    for point in left:
        by_key[passes.key(point)][0].append(point)
    for stretch in stretches:
        by_key[passes.key(stretch.point)][1].append(stretch)

    def group(key: str, mode: str) -> Group:
        members, steps = by_key[key]
        return decided(key, members, steps, rates[members[0].precision], mode, workers, key in shapes, kind, passes)

    groups = {key: group(key, launcher.compile) for key in by_key}
    for keys in keys_that_share(forest, passes):  # branches have the numerics of their trunk
        most = max((groups[key] for key in keys), key=lambda g: g.flops)
        for key in keys:
            if groups[key].compile != most.compile:
                mode = "always" if most.compile else "never"
                groups[key] = replace(group(key, mode), reason=f"as {most.label}, with which it shares trunks")
    return Plan(name, tuple(points), Path(runs_dir), states, tuple(groups.values()), rates, kind, workers,
                launcher.max_attempts, forest, passes, reused)  # fmt: skip


def worker_count(launcher: LauncherConfig, kind: str) -> int:
    """Workers that train at once (slurm: in one allocation): as asked, else one per `threads` cores, or
    `points_per_device` per GPU; a worker whose points take several devices has as many."""
    if launcher.workers is not None:
        return launcher.workers
    if kind == "cuda":
        shares = max(launcher.gpus or len(gpu_names()), 1) * launcher.points_per_device
        return max(shares // launcher.devices_per_point, 1)
    width = launcher.threads * launcher.devices_per_point
    available = launcher.cpus or (width if launcher.name == "slurm" else len(cores()))
    return max(available // width, 1)
