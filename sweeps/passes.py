"""Batch sizes of one shape that share a compiled step: a pass of so many sequences, over which each batch sums its gradient.

A compiled step is of one batch, and compiling takes longer than many a point of a batch sweep trains. A pass of LEAST_TOKENS
is nearly as fast per token as a whole batch on a CPU's core, so one library serves all batches that it divides, where what
it saves of compiling is more than what its slower steps cost. Chosen per shape and precision: points that share a trunk
share it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import TYPE_CHECKING

from harness.passes import steps
from harness.point import Point
from sweeps.jobs import compile_key
from sweeps.rate import Rates

if TYPE_CHECKING:
    from sweeps.sharing import Stretch

LEAST_TOKENS = 512  # of a shared pass
SLOWER = 0.1  # share by which steps of such passes take longer than whole ones; 0.02-0.11 was measured
Kind = tuple[object, str]  # (shape, precision)


@dataclass(frozen=True)
class Passes:
    """How the points of a plan cut their batches. `shared`: sequences of a pass, of those kinds of points whose batch sizes
    share one."""

    micro_batch: int | None = None  # as the user asked
    shared: Mapping[Kind, int] = field(default_factory=dict)

    def of(self, point: Point) -> int | None:
        """The shared pass of `point`; None where it divides none of its batches."""
        size = self.shared.get((point.shape, point.precision))
        return size if size and any(batch % size == 0 for _, batch in point.stretches) else None

    def key(self, point: Point) -> str:
        return compile_key(point, self.micro_batch, self.of(point))

    def steps(self, point: Point) -> tuple[tuple[str, int], ...]:
        """The steps that are compiled for `point`."""
        return steps((batch for _, batch in point.stretches), self.micro_batch, self.of(point))

    def slower(self, point: Point, compiled: bool) -> float:
        """Factor on the seconds of its steps."""
        return 1 + SLOWER if compiled and self.of(point) else 1.0


@dataclass(frozen=True)
class _Batches:
    """The points of one kind that have equal batches."""

    point: Point
    points: int
    eager: float  # seconds of their steps on one worker
    compiled: float


def choose_passes(stretches: Iterable[Stretch], rates: Mapping[str, Rates], workers: int, cached: Callable[[str], bool],
                  mode: str) -> Passes:  # fmt: skip
    """The passes that make these stretches cheapest in all, compilation included. `mode`: launcher.compile; `cached`:
    whether the steps of a compile key are there already."""
    found: dict[Kind, dict[tuple, list[Stretch]]] = defaultdict(lambda: defaultdict(list))
    for stretch in stretches:
        point = stretch.point
        found[point.shape, point.precision][tuple(sorted({batch for _, batch in point.stretches}))].append(stretch)
    shared = {}
    for kind, by_batches in found.items():
        sizes = {batch for batches in by_batches for batch in batches}
        if len(sizes) < 2:
            continue
        rate = rates[kind[1]]
        alike = [_Batches(members[0].point, len({s.point.id for s in members}), sum(s.seconds(rate, False) for s in members),
                          sum(s.seconds(rate, True) for s in members)) for members in by_batches.values()]  # fmt: skip

        def seconds(size: int | None, kind=kind, alike=alike, rate=rate) -> float:
            return _seconds(alike, Passes(shared={kind: size} if size else {}), rate, workers, cached, mode)

        least = -(-LEAST_TOKENS // kind[0].context)
        best = min(_divisors(sizes, least), key=seconds, default=None)  # of equals the smallest
        if best and seconds(best) < seconds(None):
            shared[kind] = best
    return Passes(shared=shared)


def _seconds(alike: list[_Batches], passes: Passes, rates: Rates, workers: int, cached: Callable[[str], bool],
             mode: str) -> float:  # fmt: skip
    by_key: dict[str, list[_Batches]] = defaultdict(list)
    for batches in alike:
        by_key[passes.key(batches.point)].append(batches)
    total = 0.0
    for key, members in by_key.items():
        point = members[0].point
        compiling = compilation(passes.steps(point), sum(b.points for b in members), rates, workers, cached(key))
        compiled = sum(b.compiled * passes.slower(b.point, True) for b in members) + compiling
        total += compiled if mode == "always" else min(compiled, sum(b.eager for b in members))
    return total


def compilation(steps: tuple, points: int, rates: Rates, workers: int, cached: bool) -> float:
    """Seconds until all workers that train these points have their compiled steps."""
    first = rates.compile_warm if cached else rates.compile_cold
    return len(steps) * (first + (min(workers, points) - 1) * rates.compile_warm)


def _divisors(sizes: Iterable[int], least: int) -> list[int]:
    """Those of at least one of `sizes`, from `least` on."""
    found = {n for size in sizes for d in range(1, isqrt(size) + 1) if size % d == 0 for n in (d, size // d)}
    return sorted(n for n in found if n >= least)
