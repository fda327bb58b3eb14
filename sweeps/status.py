"""What happened to the points of a sweep, read from their run directories and nothing else."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.files import read_json
from harness.point import Point
from sweeps.lease import newest_attempt
from sweeps.text import count_noun, duration, table

FINISHED = ("done", "diverged")  # a diverged point is a result
FAILED = ("out_of_memory", "failed")
ORDER = ("done", "diverged", "running", "interrupted", "pending", "out_of_memory", "failed")
LEASE_SECONDS = 60.0


@dataclass(frozen=True)
class RunState:
    """`status` is the file's, but `interrupted` where it says running and nobody trains any more: as good as pending,
    with `step` steps behind it. `reason` as in status.json."""

    run_id: str
    status: str = "pending"
    step: int = 0
    steps: int = 0
    attempt: int = 0
    reason: dict | None = None

    @property
    def left(self) -> bool:
        """Still to be trained, or to be tried again."""
        return self.status not in FINISHED

    @property
    def why(self) -> str:
        """The reason in one line."""
        reason = self.reason or {}
        at = f" at step {reason['step']}" if reason.get("step") is not None else ""
        first = (str(reason.get("message") or "").strip().splitlines() or [""])[0]
        return f"{reason.get('type', self.status)}{at}{': ' if first else ''}{first}"


def read_states(points: Iterable[Point], runs_dir: Path, lease_seconds: float = LEASE_SECONDS) -> dict[str, RunState]:
    """State of each point by id. A point without a directory is pending."""
    try:
        present = set(os.listdir(runs_dir))
    except OSError:
        present = set()
    return {
        point.id: read_state(runs_dir, point, lease_seconds) if point.id in present
        else RunState(point.id, steps=point.steps)
        for point in points
    }  # fmt: skip


def read_state(runs_dir: Path, point: Point, lease_seconds: float = LEASE_SECONDS) -> RunState:
    """State of one run."""
    run_dir = Path(runs_dir) / point.id
    said = read_json(run_dir / "status.json") or {}
    status = said.get("status")
    if status not in ORDER:
        status = "pending"
    if status in ("pending", "running"):
        attempt = newest_attempt(run_dir)
        live = attempt is not None and attempt.live(lease_seconds)
        status = "running" if live else "interrupted" if status == "running" else "pending"
    return RunState(point.id, status, int(said.get("step") or 0), point.steps, int(said.get("attempt") or 0),
                    said.get("reason"))  # fmt: skip


def status(
    points: list[Point],
    runs_dir: Path,
    rates: dict | None = None,
    workers: int = 1,
    lease_seconds: float = LEASE_SECONDS,
) -> dict:
    """One JSON object: counts by status, share done, ETA, what runs and what failed and why.

    `rates`: precision -> sweeps.rate.Rates, for the ETA (seconds; None without rates or when nothing is running).
    """
    states = read_states(points, runs_dir, lease_seconds)
    counts = Counter(state.status for state in states.values())
    by_id = {point.id: point for point in points}
    total = sum(point.flops for point in points)
    behind = sum(by_id[s.run_id].flops * _share(s) for s in states.values())
    running = [s for s in states.values() if s.status == "running"]
    return {
        "runs": str(runs_dir),
        "points": len(points),
        "counts": {name: counts[name] for name in ORDER},
        "progress": behind / total if total else 1.0,
        "eta_seconds": _eta(states.values(), by_id, rates, max(len(running), 1)) if running else None,
        "running": [{"run_id": s.run_id, "step": s.step, "steps": s.steps} for s in running],
        "failed": [{"run_id": s.run_id, "status": s.status, "reason": s.reason, "why": s.why}
                   for s in states.values() if s.status in FAILED],
        "diverged": [{"run_id": s.run_id, "reason": s.reason, "why": s.why}
                     for s in states.values() if s.status == "diverged"],
    }  # fmt: skip


def render_status(report: dict) -> str:
    """The report for people: under 100 columns."""
    counts = {name: n for name, n in report["counts"].items() if n}
    said = ", ".join(f"{n} {name}" for name, n in counts.items())
    lines = [f"{count_noun(report['points'], 'point')} in {report['runs']}: {said or 'none'}"]
    eta = report["eta_seconds"]
    lines.append(f"{report['progress']:.0%} of the FLOPs done" + (f", about {duration(eta)} left" if eta else ""))
    if counts.get("interrupted"):
        lines.append("interrupted: began, and nobody trains them now; the same sweep command goes on with them")
    rows = [[r["run_id"], f"step {r['step']}/{r['steps']}"] for r in report["running"][:16]]
    rows += [[r["run_id"], r["why"]] for r in report["failed"] + report["diverged"]]
    if rows:
        lines += table(["run", "what"], rows)
    if report["failed"]:
        lines.append("failed points are tried again by the same sweep command")
    return "\n".join(lines)


def _share(state: RunState) -> float:
    return 1.0 if not state.left else min(state.step / state.steps, 1.0) if state.steps else 0.0


def _eta(states: Iterable[RunState], by_id: dict[str, Point], rates: dict | None, workers: int) -> float | None:
    if not rates:
        return None
    left = [(by_id[s.run_id], 1 - _share(s)) for s in states if s.left and s.status not in FAILED]
    seconds = [rates[p.precision].seconds(p, compiled=True) * share for p, share in left if p.precision in rates]
    return max(sum(seconds) / workers, max(seconds, default=0.0))
