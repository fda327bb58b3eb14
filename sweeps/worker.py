"""A persistent worker: trains points that come as JSON lines on stdin, tells of them as JSON lines on stdout.

    in   {"settings": {...}} first, then {"job": id, "point": {...}, "compile": bool} one at a time, {"stop": true}
    out  {"event": "ready"} | {"event": "progress", "job", "step", "steps", "loss"}
         {"event": "end", "job", "status", "reason", "trained", "device_seconds", "compile_seconds"}

The end of stdin (the launcher is gone) or a TERM means: checkpoint, say so, leave. What anything prints goes to stderr,
the worker's log. This is the only module of sweeps that imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from harness.files import read_json
from harness.point import Point
from harness.rundir import LostRun, RunDirectory, read_status
from sweeps.lease import Lease, claim
from sweeps.status import FINISHED

# A compilation cannot be interrupted, and nothing is lost by dying in it.
LEAVE_SECONDS = 8.0


class Stop(threading.Event):
    """`asked`: the training loop has seen that it shall stop, and is writing its checkpoint."""

    asked = False

    def ask(self) -> bool:
        self.asked = self.is_set()
        return self.asked


def main() -> None:
    """Serve until told to stop, or until stdin ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    stop, jobs = Stop(), queue.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _leave(stop, jobs))
    settings = json.loads(sys.stdin.readline())["settings"]
    _pin(settings["pin"])
    threading.Thread(target=_read, args=(jobs, stop), daemon=True).start()
    import torch

    import harness.train  # noqa: F401  seconds of imports, before the first job waits for them

    torch.set_num_threads(settings["threads"])

    def tell(**message) -> None:
        try:
            out.write(json.dumps(message) + "\n")
        except OSError:  # nobody listens any more
            _leave(stop, jobs)

    tell(event="ready")
    while (message := jobs.get()) is not None:
        if stop.is_set():
            break
        tell(event="end", job=message["job"], **_run(message, settings, tell, stop))
    out.close()
    sys.stderr.flush()
    os._exit(0)  # threads of compilers and trackers do not hold us up


def _read(jobs: queue.Queue, stop: Stop) -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("stop"):
            break
        jobs.put(message)
    _leave(stop, jobs)


def _leave(stop: Stop, jobs: queue.Queue) -> None:
    if not stop.is_set():
        stop.set()
        jobs.put(None)
        timer = threading.Timer(LEAVE_SECONDS, lambda: stop.asked or os._exit(0))
        timer.daemon = True
        timer.start()


def _pin(own: list[int]) -> None:
    if own and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, own)


def _run(message: dict, settings: dict, tell, stop: Stop) -> dict:
    """One job, from claiming its run directory to how it ended."""
    point = Point.from_dict(message["point"])
    run_dir = Path(settings["runs_dir"]) / point.id
    lease = None
    try:
        if (finished := read_status(run_dir)["status"]) in FINISHED:
            return {"status": finished, "trained": False}
        lease = claim(run_dir, settings["lease_seconds"])
        if lease is None:
            return {"status": "busy", "trained": False}
        if (finished := read_status(run_dir)["status"]) in FINISHED:  # since we looked
            return {"status": finished, "trained": False}
        status = _train(point, run_dir, message["compile"], settings, lease, tell, stop)
        result = read_json(run_dir / "result.json") or {}
        times = {k: result[k] for k in ("device_seconds", "compile_seconds") if k in result}
        compiled = (result.get("numerics") or {}).get("compiled", False)
        reason = read_status(run_dir).get("reason") if status != "done" else None
        return {"status": status, "trained": True, "reason": reason, "compiled": compiled, **times}
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


def _train(point: Point, run_dir: Path, compiled: bool, settings: dict, lease: Lease, tell, stop) -> str:
    from harness.train import Runtime, train_point

    corpus = settings["corpora"].get(point.data.fingerprint)
    if corpus is None:
        raise FileNotFoundError(errno.ENOENT, "no prepared data for this point", point.data.name)
    runtime = Runtime(
        corpus_dir=corpus,
        device=settings["device"],
        threads=settings["threads"],
        compile=compiled,
        micro_batch=settings["micro_batch"],
        checkpoint_seconds=settings["checkpoint_seconds"],
        curve_points=settings["curve_points"],
        keep_weights=settings["keep_weights"],
        compiled_cache=str(Path(settings["cache"]) / "inductor"),
        tracking=settings["tracking"],
    )
    said = 0.0

    def progress(step: int, steps: int, loss: float) -> None:
        nonlocal said
        if time.monotonic() - said > 0.4:
            said = time.monotonic()
            tell(event="progress", job=point.id, step=step, steps=steps, loss=loss if loss == loss else None)

    return train_point(point, run_dir, runtime, progress, stop.ask, lease.still_mine, lease.number)


def _say_failed(point: Point, run_dir: Path, lease: Lease | None, reason: dict) -> None:
    """Into status.json if that can be written; the launcher says it in any case."""
    if lease is not None:
        with contextlib.suppress(OSError, LostRun):
            RunDirectory(run_dir, point, lease.still_mine, lease.number).status("failed", reason["step"] or 0, reason)


def _plain(error: Exception) -> str:
    """One line that says what to mend."""
    if isinstance(error, OSError):
        what = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up",
                errno.EROFS: "the file system is read-only", errno.EACCES: "not allowed to write"}.get(error.errno)
        where = f": {error.filename}" if error.filename else ""
        return f"{what or error.strerror or error}{where}"
    return (str(error).strip().splitlines() or [repr(error)])[0]


if __name__ == "__main__":
    main()
