"""`hyperlaw status --wait`: until nothing of a sweep trains or is queued any more. From files, and squeue where there is
one, so from any machine that sees the folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from harness.point import Point
from sweeps.records import queued
from sweeps.squeue import here
from sweeps.status import RunState, read_states

LOOK_SECONDS = 2.0, 30.0  # between two looks: at the start, after a while
AGING = 20.0
SAY_SECONDS = 30.0


def waiting(out: Path, states: Mapping[str, RunState]) -> dict[str, str]:
    """Run id -> where it waits, of the points that are not finished. Where squeue does not tell, what failed is taken for
    given up."""
    found = {i: where for i, where in queued(out).items() if i in states and states[i].left}
    if here():
        return found
    return {i: where for i, where in found.items() if states[i].status not in ("failed", "out_of_memory")}


def follow(points: Iterable[Point], runs_dir: Path, out: Path, lease_seconds: float, cache: Path,
           say: Callable[[str], None]) -> dict[str, RunState]:  # fmt: skip
    """Blocks; returns the last states. `say` gets a line now and then."""
    points, begun, said, quiet = list(points), time.monotonic(), None, 0
    while True:
        states = read_states(points, runs_dir, lease_seconds, cache)
        running = sum(1 for s in states.values() if s.status == "running")
        queue = waiting(out, states)
        # Between the end of one allocation and the start of the next a point may be seen in neither place.
        quiet = 0 if running or queue else quiet + 1
        if quiet > 1 or not any(s.left for s in states.values()):
            return states
        now = time.monotonic()
        line = f"{sum(1 for s in states.values() if not s.left)}/{len(points)} points finished, {running} in training"
        line += f", {len(queue)} in the queue" if queue else ""
        if said is None or (line != said[0] and now - said[1] >= SAY_SECONDS):
            say(line + ("" if here() or not queue else f" ({next(iter(queue.values())).rpartition('; ')[2]})"))
            said = line, now
        time.sleep(min(max((now - begun) / AGING, LOOK_SECONDS[0]), LOOK_SECONDS[1]))
