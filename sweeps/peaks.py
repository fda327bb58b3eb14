"""The matrix-multiply peak of each device that was measured, in `<cache>/peaks.jsonl`: one core of a CPU, or one GPU.

A probe measures it (sweeps/probe.py, harness/gemm.py), a profile again; a run takes it into its result, so that a table
says which share of the peak it used without asking the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

FILE = "peaks.jsonl"
RECENT = 20  # records that count; the highest is the peak: whatever else ran there only took away from it
LARGEST = 1e30


def record_peak(cache: str | os.PathLike, device: str, precision: str, flops: float) -> None:
    """Append one measurement, FLOP/s. Never fails."""
    line = {"device": device, "precision": precision, "flops_per_second": flops, "time": time.time()}
    with contextlib.suppress(OSError):
        Path(cache).mkdir(parents=True, exist_ok=True)
        with open(Path(cache) / FILE, "a") as f:
            f.write(json.dumps(line) + "\n")


def known_peak(cache: str | os.PathLike, device: str, precision: str) -> float | None:
    """FLOP/s of `device` (a name, rate.device_name) at `precision`, or None where nothing was measured."""
    try:
        lines = (Path(cache) / FILE).read_text(errors="replace").splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # a damaged line
            r = json.loads(line)
            flops, mine = r["flops_per_second"], (r["device"], r["precision"]) == (device, precision)
            if mine and isinstance(flops, int | float) and 0 < flops < LARGEST:
                found.append(float(flops))
    return max(found[-RECENT:], default=None)
