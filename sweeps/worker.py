"""A persistent worker: trains points that come as JSON lines on stdin, tells of them as JSON lines on stdout.

    in   {"settings": {...}} first, then {"job": id, "point": {...}, "compile": bool} one at a time, {"stop": true}
    out  {"event": "ready"} | {"event": "progress", "job", "step", "steps", "loss"}
         {"event": "end", "job", "status", "reason", "trained", "device_seconds", "compile_seconds"}

The end of stdin (the launcher is gone) or a TERM means: checkpoint, say so, leave. What anything prints goes to stderr,
the worker's log.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading

from harness.redact import redacted
from sweeps.execute import execute

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
    sys.stdout, sys.stderr = redacted(sys.stdout), redacted(sys.stderr)
    stop, jobs = Stop(), queue.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _leave(stop, jobs))
    settings = json.loads(sys.stdin.readline())["settings"]
    _pin(settings["cores"])
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
        tell(event="end", job=message["job"], **execute(message, settings, tell, stop.ask))
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


if __name__ == "__main__":
    main()
