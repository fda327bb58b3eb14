"""What it costs to be safe. `python -m benchmarks.faults [--quick] [--json FILE]`

The same points at the demo's sizes, in one process, in turn: `safe` as a worker trains them (lease with its heartbeat,
point.yaml, status, curve, checkpoints, all with fsync), `bare` the same loop and nothing of it but result.json at the
end. Three figures for each size:

overhead    median of the ratios safe / bare of neighbouring runs, minus one. On a noisy machine it is uncertain by some
            percent; the interval is that of the ratios' median (bootstrap, 10-90 %).
accounted   of a safe run, the share of its wall time that passes inside claiming, releasing, writing and checkpointing,
            by a clock around these calls: what the ratio would be without the noise, but for what the heartbeat's thread
            takes.
checkpoint  median seconds of one, of a run that writes one after each stretch of steps, and what that is of the 30 s
            between two: the runs themselves are shorter and write none, so a long run costs this beside what is
            accounted once a run.
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
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

import harness.train as training
from harness import endings, state
from harness.compose import compose
from harness.places import DataBook
from harness.private import compiled_folder
from harness.rundir import RunDirectory
from harness.state import State
from harness.train import Runtime, train_point
from sweeps.expand import expand
from sweeps.lease import claim

TOKENS = 409_600  # the demo's most frequent length
LEASE_SECONDS = 60.0
BETWEEN = Runtime.checkpoint_seconds  # seconds of training


class Bare(RunDirectory):
    """Writes the result and nothing else."""

    def begin(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def status(self, status: str, step: int, reason: dict | None = None) -> None:
        pass

    def write(self, name: str, data: bytes) -> None:
        if name == "result.json":
            (self.path / name).write_bytes(data)


class Clock:
    """Seconds inside the calls that it wraps, nested ones counted once; `each`: one by one."""

    def __init__(self):
        self.each, self.depth = [], 0

    def __call__(self, function):
        def timed(*arguments, **named):
            self.depth += 1
            begun = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.each.append(time.perf_counter() - begun)

        return timed


def bare(point, runtime: Runtime, folder: Path) -> float:
    """Wall seconds of training alone."""
    with _replaced((training, "RunDirectory", Bare), (State, "checkpoint", _nothing), (State, "write_curve", _nothing)):
        begun = time.perf_counter()
        assert train_point(point, folder / "bare", runtime) == "done"
        return time.perf_counter() - begun


def safe(point, runtime: Runtime, folder: Path) -> tuple[float, float]:
    """(wall seconds as a worker trains it, of them inside the safe-keeping)."""
    clock = Clock()
    kept = [(RunDirectory, name) for name in ("begin", "write", "status")]
    kept += [(State, "checkpoint"), (State, "write_curve"), (state, "read_checkpoint"), (endings, "drop_checkpoints")]
    with _replaced(*((where, name, clock(getattr(where, name))) for where, name in kept)):
        begun = time.perf_counter()
        lease = clock(claim)(folder / "safe", LEASE_SECONDS)
        still_mine = lease.still_mine
        status = train_point(point, folder / "safe", runtime, still_mine=still_mine, attempt=lease.number,
                             scratch=lease.scratch)  # fmt: skip
        clock(lease.release)()
        seconds = time.perf_counter() - begun
    assert status == "done"
    return seconds, sum(clock.each)


def checkpoint_cost(point, runtime: Runtime, folder: Path) -> float:
    """Median seconds of one checkpoint."""
    clock = Clock()
    with _replaced((State, "checkpoint", clock(State.checkpoint))):
        lease = claim(folder / "often", LEASE_SECONDS)
        train_point(point, folder / "often", replace(runtime, checkpoint_seconds=0.0), still_mine=lease.still_mine,
                    attempt=lease.number, scratch=lease.scratch)  # fmt: skip
        lease.release()
    return statistics.median(clock.each)


@contextlib.contextmanager
def _replaced(*what):
    """(where, name, by what), for a while."""
    with contextlib.ExitStack() as patched:
        for where, name, new in what:
            patched.enter_context(mock.patch.object(where, name, new))
        yield


def _nothing(*_) -> None:
    pass


def measure(point, runtime: Runtime, repeats: int) -> dict:
    """Both ways `repeats` times in turn, after one of each that compiles."""
    ratios, accounted, seconds, checkpoints = [], [], [], []
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
            if i < 3:
                checkpoints.append(checkpoint_cost(point, runtime, folder))
        finally:
            shutil.rmtree(folder)
        if i >= 0:
            ratios.append(together / alone)
            accounted.append(inside / together)
            seconds.append(alone)
    low, high = _interval(ratios)
    return {"overhead": statistics.median(ratios) - 1, "low": low - 1, "high": high - 1, "n": repeats,
            "accounted": statistics.median(accounted), "seconds": statistics.median(seconds),
            "checkpoint_seconds": statistics.median(checkpoints)}  # fmt: skip


def _interval(ratios: list[float], draws: int = 2000) -> tuple[float, float]:
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[draws // 10], medians[-draws // 10]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest and the largest width, 5 repeats")
    parser.add_argument("--repeats", type=int)
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
            runtime = Runtime(book.corpora[point.data.fingerprint], compile=True, compiled_cache=str(compiled_folder(cache)))
            found = measure(point, runtime, arguments.repeats or (5 if arguments.quick else 15))
            results[f"width_{width}"] = found
            print(f"width {width}, {point.steps} steps, {found['seconds']:.2f} s: overhead {found['overhead']:+.2%} "
                  f"[{found['low']:+.2%}, {found['high']:+.2%}], accounted {found['accounted']:.2%} "
                  f"(n = {found['n']}); a checkpoint {1000 * found['checkpoint_seconds']:.1f} ms, one each {BETWEEN:g} s of "
                  f"training {found['checkpoint_seconds'] / BETWEEN:.3%}", flush=True)  # fmt: skip
    if arguments.json:
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        report = {"sizes": results, "device": platform.processor() or "cpu", "versions": versions}
        Path(arguments.json).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
