"""What the status.json of each run says, kept in the user's cache, so that those of 10,000 runs need not be read again.

`<cache>/status/<digest of the runs directory>`: the SHA-256 of the rest on a line, then JSON, {run id: [marks, said]}.
An entry counts while status.json, and the files that the end of a run seals, bear the same marks: when changed, size,
inode. A file younger than `SETTLED` seconds is not kept, since a second change within one tick of the clock may leave no
mark. Whatever is wrong with the cache, the files are read; a cache that cannot be written is done without.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from harness.files import read_json, write_atomic
from harness.rundir import FINISHED, SEALED, damage

FILES = ("status.json", *SEALED)
VERSION = 2  # of the format: another one lies in another file
SETTLED = 3.0  # seconds; the coarsest clock of a file system ticks every two


class StatusFiles:
    """What the files say of the runs in `runs_dir`. `now`: the file system's time. `cache` None: none is kept.

    `newest`: when the last of the files looked at was changed (s since the epoch, the file system's clock; 0 for none).
    """

    def __init__(self, runs_dir: Path, cache: Path | None, now: float):
        self.runs_dir, self.now, self.newest = str(runs_dir), now, 0.0
        self.path = cache_path(cache, runs_dir) if cache else None
        self.known = _load(self.path) if self.path else {}
        self.changed = False

    def read(self, run_ids: Iterable[str]) -> dict[str, dict]:
        """{run id: {status, step, attempt, reason, damage}} of those of `run_ids` whose status.json is there and whole.
        `damage`: what is wrong with the files of a finished run, or None."""
        found = {run_id: self._look(run_id) for run_id in run_ids}
        return {run_id: said for run_id, said in found.items() if said}

    def save(self, present: Collection[str]) -> None:
        """Write the cache if it is no longer true; of runs that are not `present` in the directory nothing is kept."""
        gone = self.known.keys() - set(present)
        if self.path is None or not (self.changed or gone):
            return
        kept = {run_id: entry for run_id, entry in self.known.items() if run_id not in gone}
        text = json.dumps(kept, separators=(",", ":")).encode()
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)

    def _look(self, run_id: str) -> dict | None:
        folder = f"{self.runs_dir}/{run_id}"
        entry = self.known.get(run_id)
        if entry and self._marks(folder, entry[0].count(";") + 1)[0] == entry[0]:
            return entry[1]
        if entry:
            del self.known[run_id]
            self.changed = True
        marks, changed = self._marks(folder, len(FILES))
        said = read_json(f"{folder}/{FILES[0]}") if marks[0] != "-" else None
        if said is None:
            return None
        plain = _plain(said)
        if plain["status"] in FINISHED:
            plain["damage"] = damage(folder, said)
        else:
            marks = marks.partition(";")[0]
        if changed < self.now - SETTLED and self._marks(folder, marks.count(";") + 1)[0] == marks:
            self.known[run_id] = [marks, plain]
            self.changed = True
        return plain

    def _marks(self, folder: str, n: int) -> tuple[str, float]:
        """(the marks of the first `n` of FILES, `-` for one that is not there; when the last of them was changed)."""
        marks, last = [], 0.0
        for name in FILES[:n]:
            try:
                s = os.stat(f"{folder}/{name}")
            except OSError:
                marks.append("-")
                continue
            marks.append(f"{s.st_mtime_ns} {s.st_ctime_ns} {s.st_size} {s.st_ino}")
            last = max(last, s.st_mtime, s.st_ctime)
            self.newest = max(self.newest, s.st_ctime)
        return ";".join(marks), last


def cache_path(cache: Path, runs_dir: Path) -> Path:
    """Where the states of the runs in `runs_dir` are kept."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(runs_dir))).hexdigest()[:16]
    return Path(cache) / "status" / f"{digest}.{VERSION}"


def _load(path: Path) -> dict:
    try:
        digest, _, text = path.read_bytes().partition(b"\n")
        return json.loads(text) if hashlib.sha256(text).hexdigest().encode() == digest else {}
    except (OSError, ValueError):
        return {}


def _plain(said: dict) -> dict:
    """What is kept, with the types it should have: a damaged file says less, and stops nobody."""
    step, attempt, reason = said.get("step"), said.get("attempt"), said.get("reason")
    return {
        "status": said["status"] if isinstance(said.get("status"), str) else None,
        "step": step if isinstance(step, int) else 0,
        "attempt": attempt if isinstance(attempt, int) else 0,
        "reason": reason if isinstance(reason, dict) else None,
    }
