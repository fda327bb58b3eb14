"""What happened to the points of a sweep, read from their run directories and nothing else."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.point import Point
from harness.rundir import FINISHED
from sweeps.cache import StatusFiles
from sweeps.clock import file_system_time
from sweeps.lease import newest_attempt
from sweeps.text import count_noun, duration, table

FAILED = ("out_of_memory", "failed")
ORDER = ("done", "diverged", "pruned", "running", "interrupted", "pending", "damaged", "out_of_memory", "failed")
LEASE_SECONDS = 60.0
SHOWN = 12  # lines of a list


@dataclass(frozen=True)
class RunState:
    """`status` is the file's, but `interrupted` where it says running and nobody trains any more: as good as pending,
    with `step` steps behind it; `damaged` where the run has ended and its files are not as they were then: it is trained
    again. `reason` as in status.json. `reopened`: pruned, but to be trained to its end all the same (prune.py)."""

    run_id: str
    status: str = "pending"
    step: int = 0
    steps: int = 0
    attempt: int = 0
    reason: dict | None = None
    reopened: bool = False

    @property
    def left(self) -> bool:
        """Still to be trained, or to be tried again."""
        return self.reopened or self.status not in FINISHED

    @property
    def paused(self) -> bool:
        """At a step where it was to wait for a decision."""
        return self.status == "pending" and (self.reason or {}).get("type") == "paused"

    @property
    def why(self) -> str:
        """The reason in one line."""
        reason = self.reason or {}
        at = f" at step {reason['step']}" if reason.get("step") is not None else ""
        first = (str(reason.get("message") or "").strip().splitlines() or [""])[0]
        return f"{reason.get('type', self.status)}{at}{': ' if first else ''}{first}"


def read_states(
    points: Iterable[Point], runs_dir: Path, lease_seconds: float = LEASE_SECONDS, cache: Path | None = None
) -> dict[str, RunState]:
    """State of each point by id. A point without a directory is pending.

    `cache`: the user's cache folder, where what status.json files say is kept (cache.py). Who trains is judged anew
    each time, by the clock of the file system that the runs are on; where it cannot be asked, by this machine's.
    """
    points = list(points)
    try:
        present = set(os.listdir(runs_dir))
    except OSError:
        present = set()
    there = [point.id for point in points if point.id in present]
    now = file_system_time(runs_dir) if there else None
    files = StatusFiles(runs_dir, cache, time.time() if now is None else now)
    said = files.read(there)
    files.save(present)
    if now is None:  # a read-only directory: at least not before the last change in it
        now = max(time.time(), files.newest)
    return {
        point.id: _state(runs_dir, point, said.get(point.id, {}), lease_seconds, now) if point.id in present
        else RunState(point.id, steps=point.steps)
        for point in points
    }  # fmt: skip


def read_state(runs_dir: Path, point: Point, lease_seconds: float = LEASE_SECONDS) -> RunState:
    """State of one run."""
    return read_states([point], runs_dir, lease_seconds)[point.id]


def _state(runs_dir: Path, point: Point, said: dict, lease_seconds: float, now: float) -> RunState:
    """From what status.json says, and where that leaves it open from the newest attempt."""
    status = said.get("status")
    if status not in ORDER:
        status = "pending"
    if status in ("pending", "running"):
        attempt = newest_attempt(Path(runs_dir) / point.id, now)
        live = attempt is not None and attempt.live(lease_seconds)
        status = "running" if live else "interrupted" if status == "running" else "pending"
    if what := said.get("damage"):
        return RunState(point.id, "damaged", 0, point.steps, said.get("attempt", 0), {"type": "damaged", "message": what})
    return RunState(point.id, status, said.get("step", 0), point.steps, said.get("attempt", 0), said.get("reason"))


def status(
    points: list[Point],
    runs_dir: Path,
    rates: dict | None = None,
    workers: int = 1,
    lease_seconds: float = LEASE_SECONDS,
    states: Mapping[str, RunState] | None = None,
    queued: Mapping[str, str] | None = None,
    trunks: Sequence[dict] = (),
) -> dict:
    """One JSON object: counts by status, share done, ETA, what runs, what waits where, what failed and why.

    `rates`: precision -> sweeps.rate.Rates, for the ETA (seconds; None without rates or when nothing is running).
    `states`: as just read (default: read now). `queued`: run id -> where it waits, for points in an engine's queue;
    those that run or are finished by now are left out. `trunks`: as of sweeps.trunks.trunk_report.
    """
    states = read_states(points, runs_dir, lease_seconds) if states is None else states
    counts = Counter(state.status for state in states.values())
    by_id = {point.id: point for point in points}
    flops = {point.id: point.flops for point in points}
    total, behind = sum(flops.values()), sum(flops[s.run_id] * _share(s) for s in states.values())
    running = [s for s in states.values() if s.status == "running"]
    return {
        "runs": str(runs_dir),
        "points": len(points),
        "counts": {name: counts[name] for name in ORDER},
        "queued": {run_id: where for run_id, where in (queued or {}).items()
                   if run_id in states and states[run_id].left and states[run_id].status != "running"},
        "progress": behind / total if total else 1.0,
        "eta_seconds": _eta(states.values(), by_id, rates, max(len(running), 1)) if running else None,
        "trunks": list(trunks),
        "running": [{"run_id": s.run_id, "step": s.step, "steps": s.steps} for s in running],
        "damaged": [{"run_id": s.run_id, "why": s.why} for s in states.values() if s.status == "damaged"],
        "failed": [{"run_id": s.run_id, "status": s.status, "reason": s.reason, "why": s.why}
                   for s in states.values() if s.status in FAILED],
        "diverged": [{"run_id": s.run_id, "reason": s.reason, "why": s.why}
                     for s in states.values() if s.status == "diverged"],
        "pruned": [{"run_id": s.run_id, "reason": s.reason, "why": s.why}
                   for s in states.values() if s.status == "pruned"],
    }  # fmt: skip


def render_status(report: dict) -> str:
    """The report for people: under 100 columns, of each list the first `SHOWN`."""
    counts = {name: n for name, n in report["counts"].items() if n}
    said = ", ".join(f"{n:,} {name}" for name, n in counts.items()) or "none"
    said += f"; {len(report['queued']):,} queued" if report["queued"] else ""
    lines = [f"{count_noun(report['points'], 'point')} in {report['runs']}: {said}"]
    eta = report["eta_seconds"]
    lines.append(f"{report['progress']:.0%} of the FLOPs done" + (f", about {duration(eta)} left" if eta else ""))
    if waiting := sum(len(trunk["waiting"]) for trunk in report["trunks"]):
        lines.append(f"{count_noun(waiting, 'point')} {'waits' if waiting == 1 else 'wait'} for a trunk, a beginning "
                     "that is trained once for several")  # fmt: skip
    if counts.get("interrupted"):
        lines.append("interrupted: began, and nobody trains them now; the same sweep command goes on with them")
    rows = []
    running = [{**r, "why": f"step {r['step']}/{r['steps']}"} for r in report["running"]]
    queue = [{"run_id": run_id, "why": where} for run_id, where in report["queued"].items()]
    begun = [{"run_id": t["trunk"], "why": f"{t['status']}: trunk of {count_noun(t['points'], 'point')}, step "
              f"{t['step']}/{t['steps']}"} for t in report["trunks"] if t["status"] != "pending"]  # fmt: skip
    for name, entries in (("trunks", begun), ("running", running), ("queued", queue), ("damaged", report["damaged"]),
                          ("failed", report["failed"]), ("diverged", report["diverged"]),
                          ("pruned", report["pruned"])):  # fmt: skip
        rows += [[entry["run_id"], entry["why"]] for entry in entries[:SHOWN]]
        if len(entries) > SHOWN:
            rows.append(["", f"and {len(entries) - SHOWN:,} more {name}{_kinds(entries)}"])
    if rows:
        lines += table(["run", "what"], rows)
    if report["damaged"]:
        lines.append("damaged points are trained again by the same sweep command")
    if report["failed"]:
        lines.append("failed points are tried again by the same sweep command")
    return "\n".join(lines)


def _kinds(entries: list[dict]) -> str:
    """`; in all 398 worker_SIGKILL, 2 OSError`: the reasons of a long list."""
    kinds = Counter((entry["reason"] or {}).get("type", "?") for entry in entries if "reason" in entry)
    return f"; in all {', '.join(f'{n:,} {kind}' for kind, n in kinds.most_common(4))}" if kinds else ""


def _share(state: RunState) -> float:
    return 1.0 if not state.left else min(state.step / state.steps, 1.0) if state.steps else 0.0


def _eta(states: Iterable[RunState], by_id: dict[str, Point], rates: dict | None, workers: int) -> float | None:
    if not rates:
        return None
    left = [(by_id[s.run_id], 1 - _share(s)) for s in states if s.left and s.status not in FAILED]
    seconds = [rates[p.precision].seconds(p, compiled=True) * share for p, share in left if p.precision in rates]
    return max(sum(seconds) / workers, max(seconds, default=0.0))
