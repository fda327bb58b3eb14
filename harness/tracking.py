"""Trackers read along; the run directory stays the truth.

wandb takes seconds to start and may fail or hang in many ways (no package, no network, no disk). It lives in a process of
its own, one per worker, at low priority and off the worker's core; the run only puts lines into a queue. What does not
fit is dropped, an error ends the tracking, with one line, and not the run, and nobody waits for it.

    python -m harness.tracking     reads {"begin": ...} | {"log": ..., "step": ...} | {"finish": true} lines on stdin
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

from harness.point import Point
from harness.redact import redact, redacted

QUEUE = 10_000  # lines that may wait


class NoTracker:
    def log(self, step: int, values: dict) -> None:
        pass


class WandbTracker:
    """One wandb run per point, its id the point's id, files in `wandb/` beside the folder of runs."""

    def __init__(self, settings: dict, point: Point, run_dir: Path):
        folder = str(run_dir.absolute().parent.parent)
        names = {k: settings.get(k) for k in ("project", "entity", "mode")}
        self._send({"begin": {**names, "dir": folder, "id": point.id, "config": point.columns()}})

    def log(self, step: int, values: dict) -> None:
        self._send({"log": values, "step": step})

    def finish(self) -> None:
        self._send({"finish": True})

    def _send(self, message: dict) -> None:
        with contextlib.suppress(queue.Full):
            _queue().put_nowait(json.dumps(message))


@contextlib.contextmanager
def tracker(settings: dict, point: Point, run_dir: Path):
    """The tracker that `settings` names, told of the end however the run ends."""
    if settings.get("name", "none") != "wandb":
        yield NoTracker()
        return
    track = WandbTracker(settings, point, run_dir)
    try:
        yield track
    finally:
        track.finish()


@cache
def _queue() -> queue.Queue:
    """Lines for this process's tracking process, which is started with the first."""
    lines: queue.Queue = queue.Queue(maxsize=QUEUE)
    threading.Thread(target=_feed, args=(lines,), daemon=True).start()
    return lines


def _feed(lines: queue.Queue) -> None:
    try:
        # In a session of its own: it ends by itself once its input does, after the last run is written.
        process = subprocess.Popen([sys.executable, "-m", "harness.tracking"], stdin=subprocess.PIPE, text=True,
                                   stdout=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        while True:
            process.stdin.write(lines.get() + "\n")
            process.stdin.flush()
    except OSError as e:
        print(redact(f"tracking stopped: {e}"), file=sys.stderr)


def main() -> None:
    """Serve the lines on stdin until they end; a broken run of wandb's is skipped, a broken wandb ends it all."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # not the core that the worker is pinned to
    sys.stderr = redacted(sys.stderr)
    run = None
    try:
        import wandb

        for line in sys.stdin:
            message = json.loads(line)
            if begin := message.get("begin"):
                run = wandb.init(project=begin["project"], entity=begin["entity"], mode=begin["mode"], dir=begin["dir"],
                                 id=begin["id"], name=begin["id"], resume="allow", config=begin["config"],
                                 settings=_quiet(wandb.Settings))  # fmt: skip
            elif run and "log" in message:
                run.log(message["log"], step=message["step"])
            elif run and message.get("finish"):
                run.finish()
                run = None
        if run:
            run.finish()
    except Exception as e:
        print(redact(f"tracking stopped: {type(e).__name__}: {e}".splitlines()[0]), file=sys.stderr)


def _quiet(settings):
    """wandb.Settings under which it writes down what is logged, and nothing of the machine, the user, the command line, git
    remotes (whose URLs may hold a token) or the environment. Keys of other versions of wandb are left out."""
    wanted = {"silent": True, "console": "off", "disable_git": True, "disable_code": True, "save_code": False}
    for name, value in (("disable_meta", True), ("disable_machine_info", True), ("disable_stats", True),
                        ("save_requirements", False)):  # fmt: skip
        wanted |= {f"x_{name}": value, f"_{name}": value}  # since 0.19 with x
    known = getattr(settings, "model_fields", None) or getattr(settings, "__fields__", None) or settings.__annotations__
    return settings(**{name: value for name, value in wanted.items() if name in known})


if __name__ == "__main__":
    main()
