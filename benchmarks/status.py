"""Seconds of `hyperlaw status` and of planning for a sweep of many runs: whole commands, start to end, medians.

    python -m benchmarks.status [--runs 10000] [--times 3] [--folder DIR] [--json FILE]

cold   no cache of states, and what was read before is out of the page cache, as far as this user may drop it
first  no cache of states; the files are in the page cache
cached the states are in the cache
plan   `hyperlaw sweep ... --dry-run`, cached
parts  of `cached`, in one process: imports, compose, axes and points, ids, states, plan, report

The runs: 4 widths x 25 learning rates x 20 tau x seeds of a synthetic corpus; of 100 points 78 are done, 8 diverged, 4
failed, 2 interrupted, 1 pending with its directory, 7 without. `--folder` keeps them for the next time.
10,000 runs, local disk, two cores that others kept busy: cold 9.2 s at load 4 and 18 at 5 (the disk was theirs too),
cached 3.2 s at load 5, of which 1.6 s of CPU: what it takes where nobody else computes; planning 1.8 to 2.7 s.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from unittest import mock

from harness.point import Point
from harness.rundir import RunDirectory, point_yaml

SWEEP = """# @package _global_
defaults:
  - override /data: markov
data: {{states: 64, tokens: 1e6, epochs: 1000}}
model: {{depth: 2, context: 64}}
batch_size: 8
sweep:
  name: many
  axes:
    model.width: [32, 48, 64, 96]
    optimizer.lr: log2(-11, -4, 25)
    tau: geom(0.05, 1, 20)
    seed: {seeds}
"""
KINDS = ["done"] * 78 + ["diverged"] * 8 + ["failed"] * 4 + ["running"] * 2 + ["pending"] + [None] * 7
STEP_OF_100 = {"done": 100, "diverged": 40, "failed": 20, "running": 60, "pending": 50}
REASONS = {
    "diverged": {"type": "loss", "message": "loss 12.3 above 2 x its start", "step": 40},
    "failed": {"type": "worker_SIGKILL", "message": "worker died of SIGKILL: out of memory?", "step": 20},
}
DROP = Path("/proc/sys/vm/drop_caches")


def write_sweep(folder: Path, runs: int) -> list[str]:
    """A sweep file for at least `runs` points; the command line that names it and its folders."""
    (folder / "configs/sweep").mkdir(parents=True, exist_ok=True)
    seeds = list(range(max(runs // 2000, 1)))
    (folder / "configs/sweep/many.yaml").write_text(SWEEP.format(seeds=seeds))
    return ["sweep=many", f"out={folder / 'out'}", f"cache={folder / 'cache'}"]  # dry runs and status need no corpus


def kind_of(point: Point) -> str | None:
    """What became of it, by its id."""
    return KINDS[int(point.id[:8], 16) % len(KINDS)]


def write_runs(points: list[Point], runs_dir: Path) -> None:
    """Run directories as training leaves them, but for curves and checkpoints; nothing is synced to the disk."""
    quick = cache(point_yaml)  # as slow as all else together, and asked for thrice
    with mock.patch("os.fsync"), mock.patch("harness.rundir.point_yaml", quick):
        for point in points:
            if kind_of(point):
                _write_run(RunDirectory(runs_dir / point.id, point), kind_of(point))


def write_states(points: list[Point], runs_dir: Path) -> None:
    """Of the run directories only what says how each run ended: fast, for tests."""
    with mock.patch("os.fsync"), mock.patch("harness.rundir.point_yaml", lambda point: b"{}\n"):
        for point in points:
            if kind_of(point):
                _write_run(RunDirectory(runs_dir / point.id, point), kind_of(point))


def _write_run(run: RunDirectory, kind: str) -> None:
    run.begin()
    if kind in ("done", "diverged"):
        loss = 3.0 if kind == "done" else None
        run.write_json("result.json", {"loss": loss, "train_loss": loss, "flops": run.point.flops, "device_seconds": 1.0,
                                       "tokens": run.point.tokens, "micro_batch": run.point.batch_size})  # fmt: skip
        run.write("curve.parquet", bytes(8192))
    _end(run, kind)


def _end(run: RunDirectory, kind: str) -> None:
    (run.path / "attempts").mkdir(parents=True, exist_ok=True)
    holder = {"pid": 1, "start": "1", "machine": "elsewhere", "host": "elsewhere", "begun": 1.0}
    ended = {} if kind == "running" else {"ended": 2.0}
    attempt = run.path / "attempts/000001.json"
    attempt.write_text(json.dumps({**holder, **ended}))
    os.utime(attempt, (1e9, 1e9))
    step = max(run.point.steps * STEP_OF_100[kind] // 100, 1)
    run.status(kind, step, REASONS.get(kind))


def command(verb: str, words: list[str], folder: Path, *flags: str) -> float:
    """Seconds of `hyperlaw VERB`."""
    line = [sys.executable, "-m", "harness.cli", verb, *words, f"--config-dir={folder / 'configs'}", *flags]
    begun = time.perf_counter()
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).resolve().parents[1])
    return time.perf_counter() - begun


def drop(folder: Path) -> str:
    """Take what lies in `folder` out of the page cache; says how far that went."""
    try:
        os.sync()
        DROP.write_text("3")
        return "pages, names and inodes dropped"
    except OSError:
        for file in folder.rglob("*"):
            if file.is_file():
                descriptor = os.open(file, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
        return "pages dropped, names and inodes not"


def parts(words: list[str], folder: Path) -> dict[str, float]:
    """Seconds of each part of `status`, cached; imports in a process of their own."""
    from harness.compose import compose
    from harness.places import DataBook
    from sweeps.expand import expand_members
    from sweeps.plan import make_plan
    from sweeps.status import read_states, render_status, status

    seconds, clock = {}, time.perf_counter

    def part(name: str, call):
        begun = clock()
        value = call()
        seconds[name] = clock() - begun
        return value

    imports = [sys.executable, "-c", "import harness.compose, sweeps.launch, sweeps.status"]
    part("imports", lambda: subprocess.run(imports, check=True))
    request = part("compose", lambda: compose(words, "status", folder / "configs"))
    points = part("points", lambda: [m.point for m in expand_members(request, DataBook(folder / "cache", prepare=False))])
    runs, kept = folder / "out/runs", folder / "cache"
    states = part("states", lambda: read_states(points, runs, cache=kept))
    plan = part("plan, states again", lambda: make_plan(points, runs, request.config.launcher, kept, "cpu", probe=False))
    part("report", lambda: render_status(status(points, runs, plan.rates, states=states)))
    return seconds


def measure(folder: Path, runs: int, times: int) -> dict:
    """All figures; makes what is not yet in `folder`."""
    from harness.compose import compose
    from harness.places import DataBook
    from sweeps.expand import expand

    words = write_sweep(folder, runs)
    points = expand(compose(words, "status", folder / "configs"), DataBook(folder / "cache", prepare=False))
    if not (folder / "written").exists():
        write_runs(points, folder / "out/runs")
        (folder / "written").touch()
    time.sleep(4)  # younger files are not kept in the cache (sweeps/cache.py)
    command("sweep", words, folder, "--dry-run")  # measures this device's speed, once
    cold, first = [], []
    for _ in range(times):
        shutil.rmtree(folder / "cache/status", ignore_errors=True)
        dropped = drop(folder)
        cold.append(command("status", words, folder))
        shutil.rmtree(folder / "cache/status")
        first.append(command("status", words, folder))
    before = os.times()
    cached = [command("status", words, folder) for _ in range(times)]
    after = os.times()
    cpu = (after.children_user + after.children_system - before.children_user - before.children_system) / times
    plan = [command("sweep", words, folder, "--dry-run") for _ in range(times)]
    figures = {"cold": cold, "first": first, "cached": cached, "plan": plan}
    return {"points": len(points), "cold_means": dropped, "load": os.getloadavg()[0], "cached_cpu": cpu,
            "python": platform.python_version(), "all": figures, "parts": parts(words, folder),
            "seconds": {name: statistics.median(values) for name, values in figures.items()}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(given.folder or Path(scratch), given.runs, given.times)
    print(f"{result['points']:,} points; cold: {result['cold_means']}; load {result['load']:.1f}")
    for name, seconds in result["seconds"].items():
        print(f"{name:8} {seconds:6.2f} s   of {', '.join(f'{s:.2f}' for s in result['all'][name])}")
    print(f"cached   {result['cached_cpu']:6.2f} s of CPU, the mean: what it takes on an idle machine")
    print("parts    " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in result["parts"].items()))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
