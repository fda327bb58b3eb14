"""Trunks on disk: `<runs>-trunks/<id>/`, beside the runs directory, each a run directory that ends with a checkpoint.

    trunk.json      once it has come to its end: step, steps, diverged, validated, FLOPs and seconds spent
    needed/NAME     one empty file for each run (`<id>`) or trunk (`trunk-<id>`) that was planned to begin from it

A trunk goes as soon as all that need it have ended. Whoever plans leaves the marks first, so that no launch takes a trunk
from another; should it still happen, a branch without its trunk trains alone, to the same result.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterable
from pathlib import Path

from harness.files import read_json
from harness.rundir import finished, read_status
from sweeps.clock import file_system_time
from sweeps.jobs import Job, trunks_dir
from sweeps.lease import newest_attempt
from sweeps.status import RunState, read_states

NEEDED, TRUNK = "needed", "trunk-"
ABANDONED_SECONDS = 7 * 86400.0  # without a launch that needs it: its points are no longer asked for


def known(runs_dir: Path) -> dict[str, tuple[int, Collection[int]]]:
    """Id -> (steps, steps at which it validated) of the trunks that have come to their end. That their checkpoints are
    whole is seen when they are read."""
    return {name: found for name in _names(runs_dir) if (found := _ended(trunks_dir(runs_dir) / name))}


def _ended(folder: Path) -> tuple[int, Collection[int]] | None:
    said = read_json(folder / "trunk.json") or {}
    step, steps, diverged, validated = (said.get(key) for key in ("step", "steps", "diverged", "validated"))
    if not (isinstance(step, int) and isinstance(steps, int) and isinstance(validated, list)
            and all(isinstance(s, int) for s in validated)):  # fmt: skip
        return None
    if not (folder / "checkpoints" / f"step-{step:09d}.safetensors").is_file():
        return None
    return (steps, set(validated)) if step == steps or isinstance(diverged, int) else None


def ended(folder: Path, validate_at: Iterable[int]) -> bool:
    """Whether the trunk in `folder` has come to its end, and validated at these steps."""
    found = _ended(folder)
    return found is not None and set(validate_at) <= set(found[1])


def in_vain(runs_dir: Path, name: str, carries: Collection[str]) -> bool:
    """Whether all points that this trunk was planned for have ended, and nobody else needs it: another launch was faster,
    and may have deleted it."""
    return bool(carries) and all(finished(runs_dir / i) for i in carries) and not needed(runs_dir, name)


def _names(runs_dir: Path) -> list[str]:
    try:
        return [name for name in os.listdir(trunks_dir(runs_dir)) if not name.startswith(".")]
    except OSError:
        return []


# ---- states


def job_states(jobs: Iterable[Job], runs_dir: Path, lease_seconds: float, cache: Path | None = None) -> dict[str, RunState]:
    """State of every run of the jobs, by id; a trunk that has come to its end is `done`."""
    jobs = list(jobs)
    states = read_states([p for job in jobs if not job.trunk for p in job.points], runs_dir, lease_seconds, cache)
    trunks = [job for job in jobs if job.trunk]
    now = file_system_time(trunks_dir(runs_dir)) if trunks else None
    return states | {job.id: _state(job, runs_dir, lease_seconds, now) for job in trunks}


def _state(job: Job, runs_dir: Path, lease_seconds: float, now: float | None) -> RunState:
    folder = job.folder(runs_dir)
    said = read_status(folder)
    step, attempt, reason = said.get("step") or 0, said.get("attempt") or 0, said.get("reason")
    if ended(folder, job.validate_at):
        return RunState(job.id, "done", step, job.last, attempt)
    newest = newest_attempt(folder, now)
    live = newest is not None and newest.live(lease_seconds)
    status = "running" if live else "interrupted" if said["status"] == "running" else said["status"]
    return RunState(job.id, status, step, job.last, attempt, reason)


def trunk_report(jobs: Iterable[Job], runs_dir: Path, lease_seconds: float) -> list[dict]:
    """For `status`, of each trunk among the jobs: how far it is, how many points go through it, which wait for it alone."""
    jobs = list(jobs)
    states = job_states([job for job in jobs if job.trunk], runs_dir, lease_seconds)
    return [{"trunk": job.id, "status": states[job.id].status, "step": states[job.id].step, "steps": job.last,
             "points": len(job.carries), "waiting": [b.id for b in jobs if job.id in b.needs and not b.trunk]}
            for job in jobs if job.trunk]  # fmt: skip


def live(runs_dir: Path, lease_seconds: float) -> int:
    """How many trunks are in training."""
    names = _names(runs_dir)
    now = file_system_time(trunks_dir(runs_dir)) if names else None
    newest = [newest_attempt(trunks_dir(runs_dir) / name, now) for name in names]
    return sum(1 for attempt in newest if attempt and attempt.live(lease_seconds))


# ---- keeping and deleting


def need(jobs: Iterable[Job], runs_dir: Path) -> None:
    """Mark the trunks that `jobs` begin from as needed by them. Never fails."""
    for job in reversed(list(jobs)):  # a trunk's own marks before that of the trunk in its parent
        if job.start:
            mark = trunks_dir(runs_dir) / job.start / NEEDED / (f"{TRUNK}{job.id}" if job.trunk else job.id)
            for _ in range(3):  # somebody may just be deleting the folder
                with contextlib.suppress(OSError):
                    mark.parent.mkdir(parents=True, exist_ok=True)
                    mark.touch()
                    break


def clean(runs_dir: Path, planned: Collection[str] = ()) -> None:
    """Delete all trunks that nobody needs any more. `planned`: ids of runs and trunks that are still to be trained; a mark
    of another counts for a week. Never fails."""
    while any([drop(runs_dir, name, planned) for name in _names(runs_dir)]):
        pass  # a trunk may have been needed by one that is gone now
    for left in trunks_dir(runs_dir).glob(".*.tmp"):  # of one that was killed here
        shutil.rmtree(left, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rmdir(trunks_dir(runs_dir))


def drop(runs_dir: Path, name: str, planned: Collection[str] = ()) -> bool:
    """Delete this trunk if nobody needs it any more, and say whether that was done."""
    folder = trunks_dir(runs_dir) / name
    with contextlib.suppress(OSError):
        if folder.is_dir() and not folder.is_symlink() and not needed(runs_dir, name, planned):
            gone = folder.with_name(f".{name}.{uuid.uuid4().hex}.tmp")
            os.rename(folder, gone)  # at once, whatever is in it
            shutil.rmtree(gone, ignore_errors=True)
            return True
    return False


def needed(runs_dir: Path, name: str, planned: Collection[str] = ()) -> bool:
    """Whether anything that has not ended begins from this trunk; `planned` as of `clean`."""
    folder = trunks_dir(runs_dir) / name
    try:
        marks = list(os.scandir(folder / NEEDED))
    except OSError:
        marks = []
    for mark in marks:
        run_id = mark.name.removeprefix(TRUNK)
        if mark.name.startswith(TRUNK):
            child = folder.with_name(run_id)
            open_ = child.is_dir() and _ended(child) is None
        else:
            open_ = finished(runs_dir / run_id) is None
        if open_ and (run_id in planned or time.time() - mark.stat().st_mtime < ABANDONED_SECONDS):
            return True
    return False
