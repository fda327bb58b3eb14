"""Runs that are stopped though they could go on (sweeps/halving.py), and runs that go on after all.

A pruned run has the files of a finished one, sealed, with no loss in its result, and keeps its last checkpoint: whoever
trains the point under another strategy goes on from there.
"""

from __future__ import annotations

from pathlib import Path

from harness.point import Point
from harness.rundir import LostRun, RunDirectory, finished, read_status
from harness.untrusted import no_link, read_bytes
from sweeps.lease import claim

FILES = ("result.json", "curve.parquet")  # as the pause left them (harness/endings.py)


def prune(runs_dir: Path, point: Point, reason: dict, lease_seconds: float) -> bool:
    """Mark the run of `point`, paused at reason["step"], as pruned; False where it could not be taken (another launch has
    it, its folder is a link), has gone on or ended, or its files are not there. The same again changes nothing."""
    return _write(runs_dir, point, "pruned", reason, lease_seconds)


def reopen(runs_dir: Path, point: Point, lease_seconds: float) -> bool:
    """Mark the pruned run of `point` as pending, so that it goes on from its checkpoint."""
    reason = read_status(Path(runs_dir) / point.id).get("reason") or {}
    why = {"type": "reopened", "message": f"was pruned: {reason.get('message')}", "step": reason.get("step")}
    return _write(runs_dir, point, "pending", why, lease_seconds)


def _write(runs_dir: Path, point: Point, status: str, reason: dict, lease_seconds: float) -> bool:
    run_dir, lease = Path(runs_dir) / point.id, None
    before = "pruned" if status == "pending" else None
    try:
        if (ended := finished(run_dir)) != before:
            return ended == status
        no_link(run_dir)
        no_link(run_dir / "checkpoints")
        lease = claim(run_dir, lease_seconds)
        if lease is None:
            return False
        # Another launch may have gone on with it before the claim.
        if (ended := finished(run_dir)) != before:
            return ended == status
        if status == "pruned" and not _paused(run_dir, reason["step"]):
            return False
        run = RunDirectory(run_dir, point, lease.still_mine, lease.number, lease.scratch)
        if status == "pruned":
            for name in FILES:  # once more through the run, which seals what it writes
                run.write(name, read_bytes(run_dir / name))
            drop_checkpoints(run_dir, keep=1)
        run.status(status, reason["step"] or 0, reason)
        return True
    except (LostRun, FileNotFoundError, ValueError):  # ValueError: a link in a folder's place, or no plain file
        return False
    finally:
        if lease is not None:
            lease.release()


def _paused(run_dir: Path, step: int) -> bool:
    said = read_status(run_dir)
    return said["status"] == "pending" and (said.get("reason") or {}).get("type") == "paused" and said.get("step") == step


def drop_checkpoints(run_dir: Path, keep: int = 0) -> None:
    """All but the newest `keep` of a run that is held here; without torch, which harness/checkpoint.py imports."""
    found = sorted(p for p in (run_dir / "checkpoints").glob("step-*.safetensors") if p.is_file() and not p.is_symlink())
    for old in found[: len(found) - keep]:
        old.unlink(missing_ok=True)
