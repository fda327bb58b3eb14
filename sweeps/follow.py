"""`hyperlaw status --wait`: until nothing of a sweep trains or is queued any more, and no launch decides what comes
next. From files, and squeue where there is one, so from any machine that sees the folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from harness.point import Point
from sweeps.deciding import decider
from sweeps.records import look
from sweeps.squeue import here
from sweeps.status import FAILED, RunState, read_states
from sweeps.text import count_noun, duration
from sweeps.trunks import live

LOOK_SECONDS = 2.0, 30.0  # between two looks: at the start, after a while
AGING = 20.0
SAY_SECONDS = 30.0
UNSEEN_LEASES, UNSEEN_SECONDS = 3, 60.0  # without a sign of life where the queue cannot be seen: leases, at least seconds


def waiting(out: Path, states: Mapping[str, RunState]) -> tuple[dict[str, str], str]:
    """Run id -> where it waits, of the points that are neither finished nor in training, and why the queue cannot be seen
    ("" where it can). Where there is no squeue, what failed is taken for given up."""
    found, unseen = look(out)
    found = {i: where for i, where in found.items() if i in states and states[i].left and states[i].status != "running"}
    return {i: where for i, where in found.items() if here() or states[i].status not in FAILED}, unseen


def follow(points: Iterable[Point] | Callable[[], list[Point]], runs_dir: Path, out: Path, lease_seconds: float, cache: Path,
           say: Callable[[str], None]) -> dict[str, RunState]:  # fmt: skip
    """Blocks; returns the last states. `points`: or what tells them, where rounds add to them. `say` gets a line now and
    then. Where the queue cannot be seen and points are in it as far as is known, it ends once nothing has moved for so long
    that none of them may be left there."""
    points_now = points if callable(points) else list(points).copy
    begun, said, quiet = time.monotonic(), None, 0
    moved, before = begun, None
    patience = max(UNSEEN_LEASES * lease_seconds, UNSEEN_SECONDS)
    while True:
        decides = decider(out, lease_seconds) is not None  # before the points: what it adds is there once it has ended
        points = points_now()
        states = read_states(points, runs_dir, lease_seconds, cache)
        running = sum(1 for s in states.values() if s.status == "running") + live(runs_dir, lease_seconds)
        queue, unseen = waiting(out, states)
        # Between the end of one allocation and the start of the next a point may be seen in neither place.
        quiet = 0 if running or queue or decides else quiet + 1
        if quiet > 1 or not (decides or any(s.left for s in states.values())):
            return states
        now = time.monotonic()
        if running or decides or before != (states, queue):  # a new submission too
            moved, before = now, (states, queue)
        if unseen and queue and now - moved >= patience:
            say(f"{count_noun(len(queue), 'point')} may wait in Slurm's queue, which cannot be seen here ({unseen}); "
                f"nothing moved for {duration(now - moved)}: this ends, `hyperlaw status --wait` on a login node tells more")
            return states
        line = f"{sum(1 for s in states.values() if not s.left)}/{len(points)} points finished, {running} in training"
        line += f", {len(queue)} in the queue" if queue else ""
        line += ", and a launch decides what comes next" if decides and not running else ""
        if said is None or (line != said[0] and now - said[1] >= SAY_SECONDS):
            say(line + (f" ({unseen})" if queue and unseen else ""))
            said = line, now
        time.sleep(min(max((now - begun) / AGING, LOOK_SECONDS[0]), LOOK_SECONDS[1]))
