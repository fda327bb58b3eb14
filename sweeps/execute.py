"""One job, from claiming its run directory to how it ended: what every engine's worker process does.

The only module of sweeps that imports torch, and only inside.
"""

from __future__ import annotations

import contextlib
import errno
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from harness.errors import plain_os_error
from harness.files import read_json
from harness.point import Point
from harness.private import compiled_folder
from harness.redact import redact
from harness.rundir import LostRun, RunDirectory, finished, read_status
from sweeps import trunks
from sweeps.jobs import trunks_dir
from sweeps.lease import Lease, claim
from sweeps.peaks import known_peak
from sweeps.rate import device_name


def execute(message: dict, settings: dict, tell: Callable[..., None], should_stop: Callable[[], bool]) -> dict:
    """Do the job that `message` tells of (Job.message; of a point alone "job", "point" and "compile" suffice); `settings`
    as Settings.to_dict gives them.

    tell(event="progress", job=, step=, steps=, loss=) is called about twice a second. Returns {"status", "trained",
    "reason", "compiled", "uncompiled", "shared_pass", "device_seconds", "compile_seconds", "flops_spent", "alone"};
    status as in status.json, or "stopped" (should_stop() was true: checkpointed), "paused" (at message["until"]:
    checkpointed) or "busy" (another live attempt has the run); "alone" where it should have begun from a trunk, and could
    not; "uncompiled": why, where it should have been compiled, and could not. Raises nothing but what ends the process.
    """
    point = Point.from_dict(message["point"])
    trunk = message.get("trunk", False)
    run_dir = trunks_dir(settings["runs_dir"]) / message["job"] if trunk else Path(settings["runs_dir"]) / point.id
    lease = None
    try:
        if ended := _ended(run_dir, message, Path(settings["runs_dir"])):
            return {"status": ended, "trained": False}
        lease = claim(run_dir, settings["lease_seconds"])
        if lease is None:
            return {"status": "busy", "trained": False}
        RunDirectory(run_dir, point, lease.still_mine, lease.number, lease.scratch).begin()
        if ended := _ended(run_dir, message, Path(settings["runs_dir"])):  # since we looked, or with its point.yaml mended
            return {"status": ended, "trained": False}
        status = _train(point, run_dir, message, settings, lease, tell, should_stop)
        result = read_json(run_dir / ("trunk.json" if trunk else "result.json")) or {}
        times = {k: result[k] for k in ("device_seconds", "compile_seconds", "flops_spent") if k in result}
        numerics = result.get("numerics") or {}
        how = {"compiled": numerics.get("compiled", False), **{k: numerics.get(k) for k in ("uncompiled", "shared_pass")}}
        reason = read_status(run_dir).get("reason") if status != "done" else None
        alone = bool(not trunk and message.get("start") and result and result.get("trunk") is None)
        return {"status": status, "trained": True, "reason": reason, "alone": alone, **how, **times}
    except LostRun:
        return {"status": "busy", "trained": False}
    except Exception as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        reason = {"type": type(error).__name__, "message": _plain(error), "step": read_status(run_dir).get("step")}
        _say_failed(point, run_dir, lease, reason)
        return {"status": "failed", "trained": True, "reason": reason}
    finally:
        if lease is not None:
            lease.release()


def _ended(run_dir: Path, message: dict, runs_dir: Path) -> str | None:
    """How it ended, if it has; a trunk pauses at its end, and is not trained for points that have ended meanwhile."""
    if message.get("trunk"):
        there = trunks.ended(run_dir, message.get("validate_at", ()))
        return "paused" if there or trunks.in_vain(runs_dir, message["job"], message.get("carries", ())) else None
    return finished(run_dir)


def _train(point: Point, run_dir: Path, message: dict, settings: dict, lease: Lease, tell,
           should_stop) -> str:  # fmt: skip
    from harness.train import Runtime, train_point

    corpus = settings["corpora"].get(point.data.fingerprint)
    if corpus is None:
        raise FileNotFoundError(errno.ENOENT, "no prepared data for this point", point.data.name)
    start = message.get("start")
    runtime = Runtime(
        corpus_dir=corpus,
        device=settings["device"],
        threads=settings["threads"],
        compile=message["compile"],
        must_compile=settings["compile"] == "always",
        micro_batch=settings["micro_batch"],
        shared_pass=message.get("shared_pass"),
        checkpoint_seconds=settings["checkpoint_seconds"],
        curve_points=settings["curve_points"],
        keep_weights=settings["keep_weights"],
        compiled_cache=str(compiled_folder(settings["cache"])),
        tracking={} if message.get("trunk") else settings["tracking"],
        devices=settings["devices_per_point"],
        parallel=settings["parallel"],
        point_seconds=settings["point_seconds"],
        until=message.get("until"),
        start=str(trunks_dir(settings["runs_dir"]) / start) if start else None,
        first=message.get("first"),
        root=message.get("root"),
        trunk=message.get("trunk", False),
        peak_flops=known_peak(settings["cache"], device_name(settings["device"]), point.precision),
        validate_at=tuple(message.get("validate_at", ())),
    )
    said = 0.0

    def progress(step: int, steps: int, loss: float) -> None:
        nonlocal said
        if time.monotonic() - said > 0.4:
            said = time.monotonic()
            tell(event="progress", job=message["job"], step=step, steps=steps, loss=loss if loss == loss else None)

    return train_point(point, run_dir, runtime, progress, should_stop, lease.still_mine, lease.number, lease.scratch)


def _say_failed(point: Point, run_dir: Path, lease: Lease | None, reason: dict) -> None:
    """Into status.json if that can be written; the launcher says it in any case."""
    if lease is not None:
        with contextlib.suppress(OSError, LostRun):
            run = RunDirectory(run_dir, point, lease.still_mine, lease.number, lease.scratch)
            run.status("failed", reason["step"] or 0, reason)


def _plain(error: Exception) -> str:
    """One line that says what to mend."""
    if isinstance(error, OSError):
        return redact(plain_os_error(error))
    return redact((str(error).strip().splitlines() or [repr(error)])[0])
