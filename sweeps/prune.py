"""Runs that are stopped though they could go on (sweeps/halving.py), and runs that go on after all.

A pruned run has the files of a finished one, sealed, with no loss in its result, and keeps its last checkpoint: whoever
trains the point under another strategy goes on from there.
"""

from __future__ import annotations

from pathlib import Path

from harness.point import Point
from harness.rundir import LostRun, RunDirectory, finished, read_status
from harness.untrusted import read_bytes
from sweeps.lease import claim

FILES = ("result.json", "curve.parquet")  # as the pause left them (harness/endings.py)


def prune(runs_dir: Path, point: Point, reason: dict, lease_seconds: float) -> bool:
    """Mark the paused run of `point` as pruned for `reason`; False where it could not be taken (another launch has it), has
    ended, or its files are not there. The same again changes nothing."""
    return _write(runs_dir, point, "pruned", reason, lease_seconds)


def reopen(runs_dir: Path, point: Point, lease_seconds: float) -> bool:
    """Mark the pruned run of `point` as pending, so that it goes on from its checkpoint."""
    reason = read_status(Path(runs_dir) / point.id).get("reason") or {}
    why = {"type": "reopened", "message": f"was pruned: {reason.get('message')}", "step": reason.get("step")}
    return _write(runs_dir, point, "pending", why, lease_seconds)


def _write(runs_dir: Path, point: Point, status: str, reason: dict, lease_seconds: float) -> bool:
    run_dir = Path(runs_dir) / point.id
    if (ended := finished(run_dir)) != ("pruned" if status == "pending" else None):
        return ended == status
    lease = claim(run_dir, lease_seconds)
    if lease is None:
        return False
    try:
        run = RunDirectory(run_dir, point, lease.still_mine, lease.number, lease.scratch)
        if status == "pruned":
            for name in FILES:  # once more through the run, which seals what it writes
                run.write(name, read_bytes(run_dir / name))
            _drop_older(run_dir)
        run.status(status, reason["step"] or 0, reason)
        return True
    except (LostRun, FileNotFoundError):
        return False
    finally:
        lease.release()


def _drop_older(run_dir: Path) -> None:
    """All checkpoints but the newest, as long as it is no longer in use."""
    kept = sorted(p for p in (run_dir / "checkpoints").glob("step-*.safetensors") if p.is_file() and not p.is_symlink())
    for old in kept[:-1]:
        old.unlink(missing_ok=True)
