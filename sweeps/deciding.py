"""Launches that decide what an adaptive sweep trains next: between two rounds nothing trains, and yet the sweep goes on.

Each holds a lease (lease.py) on a folder of its own, `<out>/deciding/N`, the first that is free: whoever waits for the sweep
sees from any machine that a launcher is alive, and a launch that must be alone sees another.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import UserError
from harness.untrusted import no_link
from sweeps.clock import file_system_time
from sweeps.lease import Attempt, Lease, claim, newest_attempt

FOLDER = "deciding"


@contextmanager
def deciding(out: Path, lease_seconds: float, alone: bool) -> Iterator[Lease | None]:
    """Tells others that this launch decides; `still_mine` of the lease says whether it may go on. `alone`: raises UserError
    where another one decides, OSError where `out` cannot be written; else there is then no lease, and only those who wait
    know less. Raises UserError where the folder is a link."""
    lease = _claim(Path(out), lease_seconds, alone)
    try:
        yield lease
    finally:
        if lease is not None:
            lease.release()


def _claim(out: Path, lease_seconds: float, alone: bool) -> Lease | None:
    for n in itertools.count():
        try:
            no_link(out / FOLDER)
            lease = claim(out / FOLDER / str(n), lease_seconds)
        except ValueError as error:
            raise UserError(f"{error}.") from None
        except OSError:
            if alone:
                raise
            return None
        if lease is not None:
            return lease
        if alone:
            raise _taken(out, lease_seconds)


def decider(out: Path, lease_seconds: float) -> Attempt | None:
    """A launch that decides now for the sweep in `out`."""
    folder = Path(out) / FOLDER
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    now = file_system_time(folder)
    attempts = (newest_attempt(folder / name, now) for name in names)
    return next((a for a in attempts if a is not None and a.live(lease_seconds)), None)


def _taken(out: Path, lease_seconds: float) -> UserError:
    by = decider(out, lease_seconds)
    who = f" (process {by.pid} on {by.host})" if by else ""
    return UserError(f"another launch refines {out}{who}, and two would spend the budget twice:\n"
                     "wait for it with `hyperlaw status ... --wait`, or choose another out=DIR.")  # fmt: skip
