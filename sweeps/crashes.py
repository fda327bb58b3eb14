"""Runs whose process died without writing so: recorded as failed for it, once its lease lets us."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from harness.point import Point
from harness.rundir import LostRun, RunDirectory, finished, read_status
from sweeps.lease import claim, newest_attempt

AGAIN_SECONDS = 1.0  # between two tries


@dataclass
class _Crash:
    run_dir: Path
    point: Point
    reason: dict
    attempt: int  # that died
    due: float
    end: float


class Crashes:
    """Those of one launch. A process of another machine is known to be dead by its lease alone, so by then."""

    def __init__(self, lease_seconds: float):
        self.lease_seconds = lease_seconds
        self.open: list[_Crash] = []

    def record(self, run_dir: Path, point: Point, reason: dict) -> None:
        """Write into `run_dir` that `point` failed for `reason`, now or in a later `look`."""
        newest, now = newest_attempt(run_dir), time.monotonic()
        # Its last heartbeat is older than this moment; some seconds for a server's clock and cache.
        end = now + self.lease_seconds + 5.0
        self.open.append(_Crash(run_dir, point, reason, newest.number if newest else 0, now, end))
        self.look()

    def look(self) -> bool:
        """Whether any is still to be recorded, after those that are due were tried."""
        now = time.monotonic()
        for crash in [c for c in self.open if c.due <= now]:
            crash.due = now + AGAIN_SECONDS
            if self._recorded(crash) or now > crash.end:
                self.open.remove(crash)
        return bool(self.open)

    def _recorded(self, crash: _Crash) -> bool:
        """Whether this crash needs no further try: written, overtaken by another attempt, or not to be written at all."""
        run_dir = crash.run_dir
        with contextlib.suppress(OSError, ValueError, LostRun):
            newest = newest_attempt(run_dir)
            if newest and newest.number != crash.attempt:
                return True
            lease = claim(run_dir, self.lease_seconds)
            if lease is None:
                return False
            try:
                if lease.number == crash.attempt + 1 and not finished(run_dir):
                    step = read_status(run_dir).get("step") or 0
                    run = RunDirectory(run_dir, crash.point, lease.still_mine, lease.number, lease.scratch)
                    run.status("failed", step, {**crash.reason, "step": step})
            finally:
                lease.release()
        return True
