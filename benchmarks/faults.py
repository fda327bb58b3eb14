"""What it costs to be safe. `python -m benchmarks.faults [--quick] [--json FILE]`

The same points at the demo's sizes, in one process, in turn: `safe` as a worker trains them (lease with its heartbeat,
point.yaml, status, curve, checkpoints, all with fsync), `bare` the same loop and nothing of it but result.json at the
end. Two figures for each size:

overhead   median of the ratios safe / bare of neighbouring runs, minus one. On a noisy machine it is uncertain by some
           percent; the interval is that of the ratios' median (bootstrap, 10-90 %).
accounted  of a safe run, the share of its wall time that passes inside claiming, releasing, writing and checkpointing, by
           a clock around these calls: what the ratio would be without the noise, but for what the heartbeat's thread
           takes.

Checkpoints come every `checkpoint_seconds` (30 by default, longer than these runs): `--checkpoint-seconds 2` shows what
one costs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch

import harness.train as training
from harness.compose import compose
from harness.places import DataBook
from harness.rundir import RunDirectory
from harness.train import Runtime, train_point
from sweeps.expand import expand
from sweeps.lease import claim

TOKENS = 409_600  # the demo's most frequent length
LEASE_SECONDS = 60.0


class Bare(RunDirectory):
    """Writes the result and nothing else."""

    def begin(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, data: bytes) -> None:
        if name == "result.json":
            (self.path / name).write_bytes(data)


class Clock:
    """Seconds inside the calls that it wraps, nested ones counted once."""

    def __init__(self):
        self.seconds, self.depth = 0.0, 0

    def __call__(self, function):
        def timed(*arguments, **named):
            self.depth += 1
            begun = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.seconds += time.perf_counter() - begun

        return timed


def bare(point, runtime: Runtime, folder: Path) -> float:
    """Wall seconds of training alone."""
    with mock.patch.object(training, "RunDirectory", Bare), mock.patch.object(training, "write_checkpoint", _nothing):
        begun = time.perf_counter()
        assert train_point(point, folder / "bare", runtime) == "done"
        return time.perf_counter() - begun


def safe(point, runtime: Runtime, folder: Path) -> tuple[float, float]:
    """(wall seconds as a worker trains it, of them inside the safe-keeping)."""
    clock = Clock()
    with contextlib.ExitStack() as patched:
        for name in ("begin", "write"):
            patched.enter_context(mock.patch.object(RunDirectory, name, clock(getattr(RunDirectory, name))))
        for name in ("write_checkpoint", "drop_checkpoints", "read_checkpoint"):
            patched.enter_context(mock.patch.object(training, name, clock(getattr(training, name))))
        begun = time.perf_counter()
        lease = clock(claim)(folder / "safe", LEASE_SECONDS)
        still_mine = lease.still_mine
        status = train_point(point, folder / "safe", runtime, still_mine=still_mine, attempt=lease.number,
                             scratch=lease.scratch)  # fmt: skip
        clock(lease.release)()
        seconds = time.perf_counter() - begun
    assert status == "done"
    return seconds, clock.seconds


def _nothing(*_) -> None:
    pass


def measure(point, runtime: Runtime, repeats: int) -> dict:
    """Both ways `repeats` times in turn, after one of each that compiles."""
    ratios, accounted, seconds = [], [], []
    for i in range(-1, repeats):
        folder = Path(tempfile.mkdtemp(prefix="hyperlaw-faults-"))
        try:
            # Who goes first alternates: a machine that slows down favours neither.
            if i % 2:
                alone = bare(point, runtime, folder)
                together, inside = safe(point, runtime, folder)
            else:
                together, inside = safe(point, runtime, folder)
                alone = bare(point, runtime, folder)
        finally:
            shutil.rmtree(folder)
        if i >= 0:
            ratios.append(together / alone)
            accounted.append(inside / together)
            seconds.append(alone)
    low, high = _interval(ratios)
    return {"overhead": statistics.median(ratios) - 1, "low": low - 1, "high": high - 1, "n": repeats,
            "accounted": statistics.median(accounted), "seconds": statistics.median(seconds)}  # fmt: skip


def _interval(ratios: list[float], draws: int = 2000) -> tuple[float, float]:
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[draws // 10], medians[-draws // 10]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest and the largest width, 5 repeats")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--checkpoint-seconds", type=float, default=30.0)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    widths = [16, 48] if arguments.quick else [16, 24, 32, 48]
    with tempfile.TemporaryDirectory(prefix="hyperlaw-faults-cache-") as cache:
        for width in widths:
            overrides = [f"model.width={width}", "optimizer.lr=0.01", f"tokens={TOKENS}", "tau=0.5", "seed=0"]
            request = compose(["sweep=demo", *overrides], "sweep")
            request.config.sweep.grids = []
            book = DataBook(Path(cache), prepare=True, report=_nothing)
            point = expand(request, book)[0]
            runtime = Runtime(book.corpora[point.data.fingerprint], compile=True, compiled_cache=f"{cache}/inductor",
                              checkpoint_seconds=arguments.checkpoint_seconds)  # fmt: skip
            found = measure(point, runtime, arguments.repeats or (5 if arguments.quick else 15))
            results[f"width_{width}"] = found
            print(f"width {width}, {point.steps} steps, {found['seconds']:.2f} s: overhead {found['overhead']:+.2%} "
                  f"[{found['low']:+.2%}, {found['high']:+.2%}], accounted {found['accounted']:.2%} "
                  f"(n = {found['n']}, a checkpoint every {arguments.checkpoint_seconds:g} s)", flush=True)  # fmt: skip
    if arguments.json:
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        report = {"sizes": results, "device": platform.processor() or "cpu", "versions": versions}
        Path(arguments.json).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
