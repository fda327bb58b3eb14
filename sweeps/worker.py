"""A persistent worker: trains points that come as JSON lines on stdin, tells of them as JSON lines on stdout.

    in   {"settings": {...}} first, then {"job": id, "point": {...}, "compile": bool, ...} (Job.message) one at a time,
         {"stop": true}
    out  {"event": "ready"} | {"event": "progress", "job", "step", "steps", "loss"}
         {"event": "end", "job", "status", "reason", "trained", "device_seconds", "compile_seconds"}

The end of stdin (the launcher is gone) or a TERM means: checkpoint, say so, leave; a step, a validation or a check of the
data ends first. What anything prints goes to stderr, the worker's log.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time

from harness.redact import redacted
from sweeps.execute import execute

# A compilation cannot be interrupted, and nothing is lost by dying in it.
LEAVE_SECONDS = 8.0
GRACE_SECONDS = 30.0  # for anything else to end; a launcher kills then


class Stop(threading.Event):
    """The wish to stop, and what it meets. `asked`: the training loop has seen it, and is writing its checkpoint.
    `compiling`: the job has not done its first, compiled step, so that dying loses nothing."""

    asked, compiling = False, False
    _asks = 0

    def begin(self, compiled: bool) -> None:
        """A job begins."""
        self.compiling, self._asks = compiled, 0

    def ask(self) -> bool:
        """What the training loop calls before each step."""
        self.asked = self.is_set()
        self._asks += 1
        self.compiling = self.compiling and self._asks < 2
        return self.asked

    def in_vain(self, seconds: float) -> bool:
        """Whether to give up, `seconds` after it was set."""
        return not self.asked and seconds > (LEAVE_SECONDS if self.compiling else GRACE_SECONDS)


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
        stop.begin(message["compile"])
        tell(event="end", job=message["job"], **execute(message, settings, tell, stop.ask))
    with contextlib.suppress(OSError):  # the launcher is gone
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
        threading.Thread(target=_give_up, args=(stop,), daemon=True).start()


def _give_up(stop: Stop) -> None:
    begun = time.monotonic()
    while not stop.asked:
        time.sleep(0.05)
        if stop.in_vain(time.monotonic() - begun):
            os._exit(0)


def _pin(own: list[int]) -> None:
    if own and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, own)


if __name__ == "__main__":
    main()
