"""Launch records: what was handed to an engine's queue, `<out>/launches/<id>.json`. With the run directories and squeue
all that anybody needs who comes later, on any machine that sees the folder: `status`, `--wait`, the same sweep again.

    {"format": 1, "engine": "slurm", "id", "submitted" (UTC), "user", "host", "folder",
     "arrays": [{"name", "job", "elements": [[run id, ...], ...]}], "attempts": {run id: attempts made before}}

`name` is the job's name in the queue and unique: ids are used anew when a cluster is rebuilt. A record is written before
its arrays are submitted ("job" null), so that not even kill -9 between the two loses sight of them.
"""

from __future__ import annotations

import os
import pwd
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.files import read_json, write_json
from sweeps import squeue
from sweeps.squeue import Entry

FOLDER = "launches"
FORMAT = 1


@dataclass
class Array:
    """One job array. `elements`: the run ids of each."""

    name: str
    elements: list[list[str]]
    job: str | None = None


@dataclass
class Record:
    """One submission."""

    id: str
    user: str
    host: str
    submitted: str
    folder: str  # of the engine's scratch
    arrays: list[Array] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    engine: str = "slurm"
    format: int = FORMAT

    def write(self, out: Path) -> None:
        """Raises OSError."""
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        write_json(out / FOLDER / f"{self.id}.json", asdict(self))


def new_record(folder: Path) -> Record:
    """`folder`: made for this submission alone; its name is the record's."""
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return Record(folder.name, user_name(), socket.gethostname(), now, str(folder))


def new_id() -> str:
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


def user_name() -> str:
    """As Slurm sees it, whatever $USER says; a number that has no name, which squeue takes too."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def read_records(out: Path) -> list[Record]:
    """Those in the sweep's folder, oldest first; what is damaged or of another format is passed over."""
    return [record for path in sorted((Path(out) / FOLDER).glob("*.json")) if (record := _read(path))]


def _read(path: Path) -> Record | None:
    value = read_json(path) or {}
    if value.get("format") != FORMAT or value.get("engine") != "slurm":
        return None
    try:
        record = Record(**{**value, "arrays": [Array(**a) for a in value["arrays"]]})
        whole = all(isinstance(a.name, str) and all(isinstance(e, list) for e in a.elements) for a in record.arrays)
        return record if whole and isinstance(record.attempts, dict) and isinstance(record.user, str) else None
    except (TypeError, KeyError):
        return None


def live(records: Iterable[Record], entries: Iterable[Entry]) -> Iterator[tuple[Record, Array, int, Entry]]:
    """The elements of these records that are in the queue."""
    arrays = {array.name: (record, array) for record in records for array in record.arrays}
    for entry in entries:
        if entry.name in arrays:
            record, array = arrays[entry.name]
            if entry.index < len(array.elements):
                yield record, array, entry.index, entry


def queued(out: Path) -> dict[str, str]:
    """Run id -> where it waits or runs, of what the sweep in `out` has in Slurm's queue, as far as this machine can
    tell. The caller leaves out those that are finished."""
    return look(out)[0]


def look(out: Path) -> tuple[dict[str, str], str]:
    """`queued`, and why the queue cannot be seen, "" where it can."""
    records = read_records(out)
    if not records:
        return {}, ""
    entries = squeue.queue(r.user for r in records) if squeue.here() else None
    if entries is not None:
        return {i: entry.where for _, array, n, entry in live(records, entries) for i in array.elements[n]}, ""
    why = "squeue does not answer" if squeue.here() else "squeue is not here"
    return {i: f"submitted to Slurm by {r.user} at {r.submitted}; {why}"
            for r in records for array in r.arrays for element in array.elements for i in element}, why  # fmt: skip
