"""The run directory: `<runs>/<point.id>/` with point.yaml, status.json, result.json, curve.parquet and checkpoints.

It is the truth, readable without us. Every write asks `still_mine` first, so that an attempt that was overtaken can
change nothing (DESIGN, decision 5).
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from harness.files import read_json, write_atomic
from harness.point import SCHEMA, Point
from harness.redact import redact_all
from harness.untrusted import load_yaml, no_link, read_bytes

STATUSES = ("pending", "running", "done", "diverged", "pruned", "out_of_memory", "failed")
# A diverged point is a result, and so is one that sweep.strategy=halving stopped: another strategy trains it to the end.
FINISHED = ("done", "diverged", "pruned")
SEALED = ("point.yaml", "result.json", "curve.parquet")  # their digests stand in a finished run's status.json
CURVE = ("step", "tokens", "lr", "train_loss", "validation_loss", "grad_norm")


class LostRun(RuntimeError):
    """A later attempt has taken this run; this one must stop and write nothing."""


class RunDirectory:
    """Writes of one attempt at one point. `scratch`: where its files are made; taken away with the run (sweeps/lease.py)."""

    def __init__(self, path: str | Path, point: Point, still_mine: Callable[[], bool] = lambda: True, attempt: int = 1,
                 scratch: Path | None = None):  # fmt: skip
        self.path, self.point, self.still_mine = Path(path), point, still_mine
        self.attempt, self.scratch = attempt, scratch
        self._digests: dict[str, str] = {}

    def begin(self) -> None:
        """Create the directory and say which point it is; a point.yaml that says something else is replaced."""
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        no_link(self.path / "checkpoints")
        content = point_yaml(self.point)
        try:
            whole = read_bytes(self.path / "point.yaml") == content
        except (OSError, ValueError):
            whole = False
        if not whole:
            self.write("point.yaml", content)

    def write(self, name: str, data: bytes) -> None:
        """Replace the file `name`. Raises LostRun where a later attempt has the run."""
        if not self.still_mine():
            raise LostRun(f"{self.path.name}: a later attempt has taken this run")
        try:
            write_atomic(self.path / name, data, self.scratch)
        except FileNotFoundError:
            if self.still_mine():
                raise
            raise LostRun(f"{self.path.name}: a later attempt has taken this run") from None
        if name in SEALED:
            self._digests[name] = digest(data)

    def write_json(self, name: str, value: dict) -> None:
        self.write(name, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    def status(self, status: str, step: int, reason: dict | None = None) -> None:
        """`reason`: {"type", "message", "step"} where there is one to give. The end of a run seals its files."""
        value = {"status": status, "reason": redact_all(reason), "step": step, "steps": self.point.steps,
                 "attempt": self.attempt, "updated": time.time()}  # fmt: skip
        if status in FINISHED:
            value["sealed"] = {"point.yaml": digest(point_yaml(self.point)), **self._digests}
        self.write_json("status.json", value)

    def curve(self, columns: dict[str, list]) -> None:
        """curve.parquet: one row per kept step, the columns of CURVE, null where not measured."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {"step": pa.int64(), "tokens": pa.int64()}
        table = pa.table({k: pa.array(columns[k], types.get(k, pa.float64())) for k in CURVE})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        self.write("curve.parquet", buffer.getvalue())


def digest(content: bytes) -> str:
    """32 hex digits of BLAKE2b."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def damage(run_dir: str | Path, said: dict) -> str | None:
    """What is wrong with the files of a finished run whose status.json says `said`, or None: missing, or not as they
    were sealed. A status without seals says nothing of them."""
    sealed = said.get("sealed")
    for name, sealed_as in sealed.items() if isinstance(sealed, dict) else ():
        if name not in SEALED:
            return "status.json is damaged"
        try:
            whole = digest(read_bytes(f"{run_dir}/{name}")) == sealed_as
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError):
            whole = False
        if not whole:
            return f"{name} is damaged"
    return None


def finished(run_dir: str | Path) -> str | None:
    """How the run ended, where it has and its files are whole."""
    said = read_status(run_dir)
    return said["status"] if said["status"] in FINISHED and not damage(run_dir, said) else None


def point_yaml(point: Point) -> bytes:
    """The point as its canonical columns, for any reader, and as its full content, for `read_point`."""
    value = {"schema": SCHEMA, "id": point.id, "columns": point.columns(), "spec": point.to_dict()}
    return yaml.safe_dump(value, sort_keys=False).encode()


def read_point(run_dir: str | Path) -> Point:
    """The Point of a run directory. Raises ValueError where point.yaml is damaged or of another schema."""
    value = load_yaml(Path(run_dir) / "point.yaml")
    try:
        point = Point.from_dict(value["spec"])
        whole = value.get("schema") == SCHEMA and point.id == value.get("id")
    except (KeyError, TypeError, AttributeError, ArithmeticError):
        whole = False
    if not whole:
        raise ValueError(f"{run_dir}/point.yaml does not describe the point it names")
    return point


def read_status(run_dir: str | Path) -> dict:
    """status.json, or {"status": "pending"} where it is absent or damaged."""
    value = read_json(Path(run_dir) / "status.json")
    return value if value and value.get("status") in STATUSES else {"status": "pending"}
