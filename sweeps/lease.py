"""Who may write into a run directory: one attempt at a time, an older one never again.

`<run>/attempts/000001.json` is attempt 1. Claiming creates the next number, whole and exclusively (hard link), so of
two that race one wins. An attempt owns the run as long as its own file is there and the next number is not. The holder
touches its file (heartbeat). A claim is refused while the newest attempt is alive: not ended, its process there (same
machine), its heartbeat younger than `lease_seconds` (by the file system's own clock, so that clock skew between hosts
is harmless).

Fencing: attempt 1 makes every file in its own folder `attempts/000001/` and renames it to its place. Who claims attempt 2
removes that folder. So a stale first attempt that wakes up anywhere, even between asking `still_mine` and the rename,
can no longer change a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import threading
import time
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.files import read_json, write_json
from harness.untrusted import no_link

FOLDER = "attempts"
HOLDER_BYTES = 2**16  # at most, of an attempt's file
NUMBER = re.compile(r"[0-9]{1,18}\.json")


@dataclass(frozen=True)
class Attempt:
    """What is known of the newest attempt of a run. `age`: seconds since its heartbeat."""

    number: int
    ended: bool
    here: bool  # held by this machine
    alive: bool | None  # its process; None: on another machine
    age: float
    pid: int
    host: str

    def live(self, lease_seconds: float) -> bool:
        """Whether somebody is training now."""
        return not self.ended and self.alive is not False and self.age < lease_seconds


class Lease:
    """A held attempt. `still_mine` is what RunDirectory asks before every write, `scratch` where it makes its files."""

    def __init__(self, run_dir: Path, number: int, lease_seconds: float):
        self.number = number
        self.path = attempt_path(run_dir, number)
        self.scratch = scratch_path(run_dir, number)
        self._next = attempt_path(run_dir, number + 1)
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._heartbeat, args=(lease_seconds / 4,), daemon=True)
        self._beat.start()

    def still_mine(self) -> bool:
        """False for ever once a later attempt has begun, or the attempt's file is gone."""
        return not self._next.exists() and self.path.exists()

    def release(self) -> None:
        """End the attempt: the next one may begin at once."""
        self._stop.set()
        self._beat.join()
        if self.still_mine():
            holder = read_json(self.path) or {}
            try:
                write_json(self.path, {**holder, "ended": time.time()}, self.scratch)
            except OSError:  # a full disk: no heartbeat since the epoch tells as much
                with contextlib.suppress(OSError):  # a read-only one: the lease runs out
                    os.utime(self.path, (0, 0))
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _heartbeat(self, every: float) -> None:
        while not self._stop.wait(every):
            with contextlib.suppress(OSError):
                os.utime(self.path)


def claim(run_dir: Path, lease_seconds: float) -> Lease | None:
    """Take the run, or None while another live attempt has it (or has just won the race). Raises OSError where the
    directory cannot be written."""
    folder = Path(run_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    no_link(run_dir)
    no_link(folder)
    mine = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        holder = {"pid": os.getpid(), "start": _start_time(os.getpid()), "machine": _machine(),
                  "host": socket.gethostname(), "begun": time.time()}  # fmt: skip
        write_json(mine, holder, folder)
        now = mine.stat().st_mtime
        newest = newest_attempt(run_dir, now)
        if newest and newest.live(lease_seconds):
            return None
        number = newest.number + 1 if newest else 1
        try:
            os.link(mine, attempt_path(run_dir, number))
        except FileExistsError:
            return None
        try:
            _fence(Path(run_dir), number, now - lease_seconds)
        except OSError:
            attempt_path(run_dir, number).unlink(missing_ok=True)  # nobody holds it
            raise
        return Lease(Path(run_dir), number, lease_seconds)
    finally:
        mine.unlink(missing_ok=True)


def newest_attempt(run_dir: Path, now: float | None = None) -> Attempt | None:
    """The newest attempt, or None before the first. `now`: the file system's time (default: this machine's)."""
    folder = Path(run_dir) / FOLDER
    try:
        numbers = [int(name[:-5]) for name in os.listdir(folder) if NUMBER.fullmatch(name)]
        if not numbers:
            return None
        touched, holder = _read(attempt_path(run_dir, max(numbers)))
    except OSError:
        return None
    here = holder.get("machine") == _machine()
    pid = holder.get("pid")
    pid = pid if isinstance(pid, int) and pid > 0 else 0  # none, in a damaged file
    return Attempt(
        number=max(numbers),
        ended="ended" in holder,
        here=here,
        alive=_alive(pid, holder.get("start")) if here else None,
        age=(time.time() if now is None else now) - touched,
        pid=pid,
        host=holder.get("host", "?"),
    )


def _read(path: Path) -> tuple[float, dict]:
    """(when it was last touched, what it says) of an attempt's file. Opened before it is looked at: on NFS that asks the
    server, where a mere stat may answer from seconds ago. Raises OSError where it is absent."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(file, "rb") as f:
        found = os.fstat(file)
        text = f.read(HOLDER_BYTES) if stat.S_ISREG(found.st_mode) else b""
    try:
        holder = json.loads(text)
    except (ValueError, RecursionError):
        holder = None
    return found.st_mtime, holder if isinstance(holder, dict) else {}


def attempt_path(run_dir: Path, number: int) -> Path:
    """The file of attempt `number` (from 1)."""
    return Path(run_dir) / FOLDER / f"{number:06d}.json"


def scratch_path(run_dir: Path, number: int) -> Path:
    """The folder in which attempt `number` makes its files."""
    return Path(run_dir) / FOLDER / f"{number:06d}"


def _fence(run_dir: Path, number: int, before: float) -> None:
    """Take their folders from all earlier attempts, and make that of attempt `number`. Raises OSError where one cannot
    be taken: its attempt might still write."""
    for path in (run_dir / FOLDER).iterdir():
        if NUMBER.fullmatch(f"{path.name}.json") and int(path.name) < number:
            gone = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
            with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
                os.rename(path, gone)  # at once, whatever is in it
                shutil.rmtree(gone, ignore_errors=True)
        elif path.name.endswith(".tmp"):  # a killed claim's; a younger one may be under way
            with contextlib.suppress(OSError):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.stat().st_mtime < before:
                    path.unlink()
    scratch_path(run_dir, number).mkdir(exist_ok=True)


@cache
def _machine() -> str:
    """This boot of this machine and its process numbering: only within it do process ids mean anything."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts = [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _alive(pid: int, start: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return _start_time(pid) == start


def _start_time(pid: int) -> str | None:
    """When the process started (clock ticks since boot): tells it from a later one with the same id. A zombie has
    none: it will never write again. None too where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
