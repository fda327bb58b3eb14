"""Points that another sweep has trained: taken from its runs directory instead of trained again.

A run is taken when it has ended, its files are as they were then, and it is the same point: equal id. What is copied is
what its end sealed, and its status; nothing is linked, so that either folder may be deleted. With keep_weights=true its
weights come along, and a run that kept none is not taken.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from harness.config import Config
from harness.places import out_dir
from harness.point import Point
from harness.rundir import SEALED, LostRun, RunDirectory, digest, finished, point_yaml, read_point, read_status
from harness.untrusted import read_bytes
from sweeps.lease import claim
from sweeps.prune import drop_checkpoints

WEIGHTS, WEIGHTS_LIMIT = "weights.safetensors", 1 << 40


def sources(config: Config, name: str, runs_dir: Path, report: Callable[[str], None]) -> list[Path]:
    """Runs directories to look in: those of `reuse`, else, where all is where it is by default, `out/*/runs`. One of
    `reuse` that is not there is reported: it may have been deleted since its points were taken."""
    if config.reuse is not None:
        found = [Path(os.path.expanduser(folder)).absolute() for folder in config.reuse]
    elif config.out is None and config.runs is None:
        found = sorted(out_dir(config, name).parent.glob("*/runs"))
    else:
        found = []
    for folder in config.reuse or ():
        if not Path(os.path.expanduser(folder)).is_dir():
            report(f"reuse: {folder} is no folder here, nothing is taken from it")
    return [folder for folder in found if folder != runs_dir and folder.is_dir()]


def reusable(points: Iterable[Point], runs_dir: Path, folders: Iterable[Path], weights: bool = False) -> dict[str, Path]:
    """Run id -> run directory of those `points` that have ended in one of `folders`, and not in `runs_dir`. `weights`: with
    the weights that they ended with."""
    points, found = list(points), {}
    for folder in folders:
        with contextlib.suppress(OSError):
            there = set(os.listdir(folder))
            for point in points:
                wanted = point.id in there and point.id not in found and finished(runs_dir / point.id) is None
                if wanted and _ended(folder / point.id) and (not weights or _kept_weights(folder / point.id)):
                    found[point.id] = folder / point.id
    return found


def taken(points: Iterable[Point], runs_dir: Path, found: dict[str, Path], lease_seconds: float,
          weights: bool = False) -> dict[str, Path]:  # fmt: skip
    """Those of `found` that could be copied into `runs_dir`, `weights` too where that is said; the others are trained."""
    copied = {}
    for point in points:
        with contextlib.suppress(OSError):
            if point.id in found and _take(point, found[point.id], runs_dir, lease_seconds, weights):
                copied[point.id] = found[point.id]
    return copied


def _ended(run_dir: Path) -> bool:
    """All of it sealed, so that it is known to be whole; a pruned run is the other sweep's verdict."""
    if finished(run_dir) not in ("done", "diverged"):
        return False
    sealed = read_status(run_dir).get("sealed")
    return isinstance(sealed, dict) and sealed.keys() == set(SEALED)


def _kept_weights(run_dir: Path) -> bool:
    """A diverged run has none to keep."""
    return read_status(run_dir)["status"] == "diverged" or (run_dir / WEIGHTS).is_file()


def _read_weights(run_dir: Path) -> bytes:
    """Of the length that their header says, since nothing seals them. Raises OSError, ValueError."""
    content = read_bytes(run_dir / WEIGHTS, WEIGHTS_LIMIT)
    start = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:start])
        end = max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
    except (LookupError, TypeError, AttributeError, RecursionError):
        end = None
    if end is None or len(content) != start + end:
        raise ValueError(f"{run_dir / WEIGHTS} is not whole")
    return content


def _take(point: Point, source: Path, runs_dir: Path, lease_seconds: float, weights: bool) -> bool:
    """Copy the run of `point` in `source` into `runs_dir`, in place of what may have been trained there of it, unless
    another attempt has it or has ended it. Raises OSError."""
    run_dir = runs_dir / point.id
    lease = None
    try:
        if not _ended(source) or read_point(source).id != point.id:  # another's folder under this name
            return False
        kept = _read_weights(source) if weights and read_status(source)["status"] == "done" else None
        run_dir.mkdir(parents=True, exist_ok=True)
        lease = claim(run_dir, lease_seconds)
        if lease is None or finished(run_dir) is not None:  # asked before the claim it could end until then
            return False
        run = RunDirectory(run_dir, point, lease.still_mine, lease.number, lease.scratch)
        run.begin()
        for name in SEALED[1:]:  # the first is point.yaml, ours: names of data in it decide nothing
            run.write(name, read_bytes(source / name))
        if kept is not None:
            run.write(WEIGHTS, kept)
        said = read_status(source)
        said["sealed"]["point.yaml"] = digest(point_yaml(point))
        run.write_json("status.json", said)  # last: only then it has ended
        whole = finished(run_dir) is not None
        if whole:
            drop_checkpoints(run_dir)
        return whole
    except (LostRun, ValueError, TypeError, KeyError):  # what is written there may change meanwhile
        return False
    finally:
        if lease is not None:
            lease.release()
