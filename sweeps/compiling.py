"""Eager or compiled, for the unfinished points of one shape: what compiling takes against what it saves."""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from harness.point import Point
from sweeps.passes import Passes, compilation
from sweeps.rate import Rates
from sweeps.sharing import Stretch
from sweeps.text import duration


@dataclass(frozen=True)
class Group:
    """Unfinished points of one shape, and what of them is still to be trained. `seconds`: on one worker, the compilation
    included."""

    key: str
    points: tuple[Point, ...]
    stretches: tuple[Stretch, ...]
    compile: bool
    reason: str
    seconds: float
    shared_pass: int | None = None  # sequences, where several batch sizes share one (passes.py)

    @property
    def batches(self) -> list[int]:
        """Their batch sizes, in sequences."""
        return sorted({size for point in self.points for _, size in point.stretches})

    @property
    def flops(self) -> int:
        return sum(stretch.flops for stretch in self.stretches)

    @property
    def label(self) -> str:
        point = self.points[0]
        s = point.shape
        sizes = "-".join(str(size) for _, size in point.stretches)
        if self.shared_pass and len(batches := self.batches) > 1:
            sizes = f"{batches[0]}..{batches[-1]} by {self.shared_pass}"
        return f"{s.width}x{s.depth} context {s.context} batch {sizes}"


def decided(key: str, points: list[Point], stretches: list[Stretch], rates: Rates, mode: str, workers: int, cached: bool,
            kind: str, passes: Passes) -> Group:  # fmt: skip
    """Compile where it repays itself: what it takes, once per worker, against what its faster steps save."""
    left = tuple(points), tuple(stretches)
    eager = sum(stretch.seconds(rates, compiled=False) for stretch in stretches)
    if mode == "auto" and (missing := missing_for_compile(kind)):
        return Group(key, *left, False, f"{missing} is missing here", eager)
    compiled = compilation(passes.steps(points[0]), len(points), rates, workers, cached)
    compiled += sum(stretch.seconds(rates, compiled=True) * passes.slower(stretch.point, True) for stretch in stretches)
    chosen = compiled < eager if mode == "auto" else mode == "always"
    other = f"eager takes {duration(eager)}" if chosen else f"compiled takes {duration(compiled)}"
    reason = other if mode == "auto" else f"launcher.compile={mode}; {other}"
    shared = passes.of(points[0]) if chosen else None
    return Group(key, *left, chosen, reason, compiled if chosen else eager, shared)


def missing_for_compile(kind: str) -> str | None:
    """What PyTorch's compiler needs on a CPU and does not find: a C++ compiler, Python's headers; None if all is there."""
    if kind != "cpu":
        return None
    if not shutil.which(os.environ.get("CXX") or "g++"):
        return "a C++ compiler (g++)"
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return None if headers.is_file() else "Python.h"
