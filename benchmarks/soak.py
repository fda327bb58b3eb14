"""A sweep on a real Slurm of two nodes with a random fault every few seconds. `python -m benchmarks.soak [--json FILE]`

    [--points 200] [--minutes 10] [--every 4] [--seed 0] [--quick]

The sweep runs undisturbed first, then again into another folder under faults: a worker, an allocation or the launcher
killed with -9, `scontrol requeue`, preemption by another partition, a node's daemon killed (its jobs run on as orphans,
or die too) and started again, a worker frozen until its lease is over and thawed, the newest checkpoint of a run
truncated or one of its bits flipped. After `minutes`, or when the sweep has ended, the faults stop and the sweep finishes.

Reported: faults by kind, points lost, results changed (curve, loss, steps, against the undisturbed run), attempts, wall
time of both. Needs what tests/cluster/slurm.sh needs. Exit status 1 if a point is lost or a result changed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.soak_faults import Faulty


class Soak(Faulty):
    """The sweep undisturbed, the sweep under faults, and what became of its points."""

    def disturb(self, seconds: float, every: float) -> float:
        """The sweep under faults for `seconds`, then to its end. Returns its wall seconds."""
        faults = {self.worker: 6, self.allocation: 2, self.launcher_killed: 2, self.requeue: 3, self.preempt: 2,
                  self.node: 1, self.node_and_its_jobs: 1, self.freeze: 2, self.damage: 4}  # fmt: skip
        begun, last = time.monotonic(), 0.0
        self.launch("disturbed")
        while time.monotonic() - begun < seconds:
            time.sleep(0.5)
            self.tend()
            if self.launcher.poll() is not None:
                if self.launcher.returncode == 0:
                    break
                self.launch("disturbed")
            if time.monotonic() - last > every * self.rng.uniform(0.5, 1.5):
                last = time.monotonic()
                fault = self.rng.choices(list(faults), faults.values())[0]
                if fault():
                    self.counts[fault.__name__] += 1
        self.tend(everything=True)
        for _ in range(5):  # a launch that was killed, or saw too many failures
            if self.launcher.poll() is None:
                self.launcher.wait()
            if self.launcher.returncode == 0:
                break
            self.launch("disturbed").wait()
        return time.monotonic() - begun

    def calm(self) -> float:
        """Wall seconds of the undisturbed sweep."""
        begun = time.monotonic()
        if self.launch("calm").wait():
            raise RuntimeError(f"the undisturbed sweep failed: {(self.folder / 'calm.log').read_text()[-2000:]}")
        return time.monotonic() - begun

    def compare(self) -> dict:
        """What became of every point."""
        calm, disturbed = self.folder / "calm/runs", self.folder / "disturbed/runs"
        report = {"points": 0, "lost": [], "changed": [], "attempts": 0, "begun_again": 0}
        for a in sorted(calm.iterdir()):
            if not (a / "point.yaml").exists():
                continue
            b = disturbed / a.name
            report["points"] += 1
            attempts = len(list(b.glob("attempts/*.json")))
            report["attempts"] += attempts
            report["begun_again"] += attempts > 1
            if _status(a) not in ("done", "diverged") or _status(b) != _status(a):
                report["lost"].append(a.name)
            elif _outcome(a) != _outcome(b):
                report["changed"].append(a.name)
        return report


def _status(run_dir: Path) -> str | None:
    with suppress(OSError, ValueError):
        return json.loads((run_dir / "status.json").read_text())["status"]
    return None


def _outcome(run_dir: Path) -> tuple:
    """All that training decides, without times and numbers of attempts."""
    result = json.loads((run_dir / "result.json").read_text())
    kept = {k: v for k, v in result.items() if k not in ("device_seconds", "compile_seconds", "runtime")}
    return kept, (run_dir / "curve.parquet").read_bytes()


def soak(folder: Path, points: int, seconds: float, every: float, tokens: int, seed: int = 0) -> dict:
    """The report of one soak in `folder` (its path short: sockets lie in it)."""
    it = Soak(folder, points, tokens, seed)
    try:
        it.slurm("start")
        undisturbed = it.calm()
        disturbed = it.disturb(seconds, every)
        report = it.compare()
    finally:
        it.close()
    return {**report, "faults": dict(it.counts), "undisturbed_seconds": undisturbed, "disturbed_seconds": disturbed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--every", type=float, default=4, help="seconds between faults, on average")
    parser.add_argument("--tokens", type=int, default=131_072, help="of a point: 1,024 steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="24 points, a minute of faults")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    parser.add_argument("--json")
    a = parser.parse_args()
    if a.quick:
        a.points, a.minutes = 24, 1
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir="/var/tmp"))
    try:
        report = soak(folder, a.points, 60 * a.minutes, a.every, a.tokens, a.seed)
    finally:
        if not a.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(report, indent=1))
    if a.json:
        Path(a.json).write_text(json.dumps(report, indent=1))
    return int(bool(report["lost"] or report["changed"]))


if __name__ == "__main__":
    sys.exit(main())
