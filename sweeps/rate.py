"""How fast this device trains, from what it has trained: seconds per step = t0 + work / rate, for eager and compiled.

`work` is a step's FLOPs with the run's validation spread over its steps. Records are lines of `<cache>/rates.jsonl`,
appended as points finish. Without any, a short probe runs eager steps of two small shapes in a process of its own, so
that planning itself needs no torch. What was measured and what is assumed is said in `Speed.source`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from math import log
from pathlib import Path
from statistics import median

from harness.build import KEPT_SECONDS, build
from harness.point import Point
from sweeps.peaks import known_peak, record_peak

FILE = "rates.jsonl"
RECENT = 400  # records that count, per device
LARGEST = 1e30  # what a number of a record may be
# Assumed where nothing was measured: overhead (s/step) and rate (FLOP/s) of eager steps of one CPU core or one GPU;
# compiled steps against eager ones; seconds to compile a shape, and to load it from the disk's cache.
ASSUMED = {"cpu": (16e-3, 80e9), "cuda": (8e-3, 60e12)}
COMPILED_OVERHEAD, COMPILED_RATE = 0.05, 1.5
COMPILE_SECONDS = {"cpu": (25.0, 0.1), "cuda": (40.0, 8.0)}
PRIOR_WEIGHT = 0.05  # of the assumption beside one measured shape
START_SECONDS = 4.0  # a worker's imports


@dataclass(frozen=True)
class Speed:
    """Seconds per step = overhead + work / rate."""

    overhead: float
    rate: float
    source: str

    def step_seconds(self, work: float) -> float:
        return self.overhead + work / self.rate


@dataclass(frozen=True)
class Rates:
    """Speeds of one device at one precision, per worker."""

    device: str
    eager: Speed
    compiled: Speed
    compile_cold: float  # seconds until a shape's first step
    compile_warm: float  # the same, from the disk's cache

    def seconds(self, point: Point, compiled: bool) -> float:
        """Expected training time of `point` on one worker, compilation aside."""
        return point.steps * (self.compiled if compiled else self.eager).step_seconds(step_work(point))


def step_work(point: Point) -> float:
    """FLOPs per step, validation (forward only: a third) spread over the steps."""
    validated = point.validation.sequences * point.shape.context * (len(point.validation.fractions) + 1)
    return point.step_flops * (1 + validated / 3 / point.tokens)


def measured_rates(cache_dir: Path, kind: str, precision: str, probe: bool = True) -> Rates:
    """The rates of this machine's device of `kind` (cpu or cuda). `probe`: measure (about 6 s) what is not known, the
    peak of its matrix products included (sweeps/peaks.py)."""
    name = device_name(kind)
    records = _read(cache_dir, name, precision)
    if probe and (all(r["compiled"] for r in records) or known_peak(cache_dir, name, precision) is None):
        _probe(cache_dir, kind, precision)
        records = _read(cache_dir, name, precision)
    overhead, rate = ASSUMED[kind]
    eager = _fit([r for r in records if not r["compiled"]], Speed(overhead, rate, "assumed"))
    assumed = Speed(eager.overhead * COMPILED_OVERHEAD, eager.rate * COMPILED_RATE, "assumed from eager")
    compiled = _fit([r for r in records if r["compiled"]], assumed)
    cold, warm = COMPILE_SECONDS[kind]
    return Rates(name, eager, compiled, _first_step(records, True, cold), _first_step(records, False, warm))


def record(cache_dir: Path, kind: str, point: Point, compiled: bool, step_seconds: float, **more) -> None:
    """Append one measurement. Never fails: a rate is a convenience."""
    line = {"device": device_name(kind), "precision": point.precision, "compiled": compiled, "work": step_work(point),
            "step_seconds": step_seconds, "time": time.time(), **more}  # fmt: skip
    _append(cache_dir, line)


def device_kind(device: str) -> str:
    """`auto` as this machine has it: cuda where nvidia-smi lists a GPU and PyTorch is no CPU build."""
    if device != "auto":
        return device
    return "cuda" if gpu_names() and not version("torch").endswith("+cpu") else "cpu"


@cache
def gpu_names() -> tuple[str, ...]:
    """Names of the visible NVIDIA GPUs, without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        out = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    names = tuple(line.strip() for line in out.splitlines() if line.strip())
    return names if visible is None else names[: len([v for v in visible.split(",") if v.strip() not in ("", "-1")])]


@cache
def device_name(kind: str) -> str:
    """The device's model: rates are kept per model."""
    if kind == "cuda":
        return (gpu_names() or ("cuda",))[0]
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "cpu"


def cores() -> list[int]:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class CompiledShapes:
    """Which shapes this cache has compiled code for, so that the plan knows a cold compile from a load."""

    def __init__(self, cache_dir: Path, threads: int = 1):
        self.folder = Path(cache_dir) / "compiled" / f"{build()}-{threads}"

    def __contains__(self, key: str) -> bool:
        with contextlib.suppress(OSError):
            return time.time() - (self.folder / key).stat().st_mtime < KEPT_SECONDS  # then the library is deleted
        return False

    def add(self, key: str) -> None:
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / key).touch()


def _fit(records: list[dict], assumed: Speed) -> Speed:
    """Least squares of relative errors in (t0, 1/rate), both kept positive, over the median of each size of step."""
    by_size: dict[int, list[dict]] = {}
    for r in records:
        by_size.setdefault(round(4 * log(r["work"])), []).append(r)
    rows = [(median(r["work"] for r in group), median(r["step_seconds"] for r in group), 1.0)
            for group in by_size.values()]  # fmt: skip
    if not rows:
        return assumed
    # The assumption decides only the direction that the measured sizes leave open.
    middle = median(work for work, _, _ in rows)
    factor = median(seconds / assumed.step_seconds(work) for work, seconds, _ in rows)
    rows += [(w, factor * assumed.step_seconds(w), PRIOR_WEIGHT) for w in (middle / 30, middle, middle * 30)]
    a11 = a12 = a22 = b1 = b2 = 0.0
    for work, seconds, weight in rows:
        x, y = weight / seconds, weight * work / seconds
        a11, a12, a22, b1, b2 = a11 + x * x, a12 + x * y, a22 + y * y, b1 + x * weight, b2 + y * weight
    determinant = a11 * a22 - a12 * a12
    overhead = (b1 * a22 - b2 * a12) / determinant
    cost = (a11 * b2 - a12 * b1) / determinant
    if overhead <= 0:
        overhead, cost = 0.0, b2 / a22
    elif cost <= 0:
        overhead, cost = b1 / a11, 1e-18
    probes = sum(1 for r in records if r.get("probe"))
    source = f"{len(records)} runs here" if probes < len(records) else "a probe just made or kept"
    return Speed(overhead, 1 / cost, source)


def _first_step(records: list[dict], cold: bool, assumed: float) -> float:
    seen = [r["first_seconds"] for r in records if r["compiled"] and r.get("cold") is cold and "first_seconds" in r]
    return median(seen[-20:]) if seen else assumed


def _read(cache_dir: Path, device: str, precision: str) -> list[dict]:
    """The recent records; probes only while there is nothing better."""
    try:
        lines = (Path(cache_dir) / FILE).read_text(errors="replace").splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # a damaged line
            r = json.loads(line)
            numbers = [r["work"], r["step_seconds"], r.get("first_seconds", 1.0)]
            if (r["device"], r["precision"]) == (device, precision) and isinstance(r["compiled"], bool):
                if all(isinstance(x, int | float) and 0 < x < LARGEST for x in numbers):
                    records.append(r)
    records = records[-RECENT:]
    real = [r for r in records if not r.get("probe")]
    return real if any(not r["compiled"] for r in real) else records


def _append(cache_dir: Path, line: dict) -> None:
    """One write per line: lines of several processes do not mix."""
    with contextlib.suppress(OSError):
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        with open(Path(cache_dir) / FILE, "a") as f:
            f.write(json.dumps(line) + "\n")


def _probe(cache_dir: Path, kind: str, precision: str) -> None:
    command = [sys.executable, "-m", "sweeps.probe", kind, precision]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, KeyError):
        out = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
        found = json.loads(out)
        record_peak(cache_dir, device_name(kind), precision, found["peak"])
        for row in found["steps"]:
            _append(cache_dir, {"device": device_name(kind), "precision": precision, "compiled": False, "probe": True,
                                "time": time.time(), **row})  # fmt: skip

