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
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tests.cluster.beds import free_ports

HERE = Path(__file__).resolve().parent.parent
SLURM = HERE / "tests/cluster/slurm.sh"
LEASE_SECONDS = 6
SWEEP = """\
# @package _global_
defaults:
  - override /data: markov
data: {{states: 16, tokens: 200000, epochs: 1000}}
model: {{width: 16, depth: 1, context: 32}}
validation: {{tokens: 512, fractions: [{fractions}]}}
batch_size: 4
tokens: {tokens}
tau: null
precision: fp32
device: cpu
checkpoint_seconds: 0.5
launcher: {{points_per_job: {packed}, compile: never, workers: 2, cpus: 2, lease_seconds: {lease}, max_attempts: 1000,
           signal_seconds: 10, time: 60}}
sweep:
  name: soak
  axes: {{optimizer.lr: "log2(-10, -3, {lrs})", seed: {seeds}}}
"""


class Soak:
    """One Slurm, one sweep, and what can be done to them."""

    def __init__(self, folder: Path, points: int, tokens: int, seed: int):
        self.folder, self.rng, self.counts = folder, random.Random(seed), Counter()
        self.env = {**os.environ, "SLURM_TEST_DIR": str(folder / "slurm"), "SLURM_TEST_PORT": str(free_ports()),
                    "SLURM_CONF": str(folder / "slurm/slurm.conf"), "OMP_NUM_THREADS": "1",
                    "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}  # fmt: skip
        seeds = max(points // 25, 1)
        fractions = ", ".join(f"{i / 16}" for i in range(1, 16))
        text = SWEEP.format(tokens=tokens, lrs=-(-points // seeds), seeds=list(range(seeds)), lease=LEASE_SECONDS,
                            fractions=fractions, packed=8)  # fmt: skip
        (folder / "configs/sweep").mkdir(parents=True)
        (folder / "configs/sweep/soak.yaml").write_text(text)
        self.launcher: subprocess.Popen | None = None
        self.frozen: list[tuple[float, int]] = []
        self.dead: list[tuple[float, str]] = []

    def slurm(self, *words: str) -> str:
        done = subprocess.run([str(SLURM), *words], env=self.env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"slurm.sh {' '.join(words)}: {done.stderr or done.stdout}")
        return done.stdout

    def command(self, *words: str) -> str:
        """Output of a Slurm command; empty where it fails, as it may while nodes die."""
        with suppress(subprocess.SubprocessError):
            return subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=20).stdout
        return ""

    def launch(self, name: str) -> subprocess.Popen:
        """`hyperlaw sweep` into the folder `name`."""
        command = [sys.executable, "-m", "harness.cli", "sweep", "--config-dir", str(self.folder / "configs"), "sweep=soak",
                   "launcher=slurm", f"out={self.folder / name}", f"cache={self.folder / 'cache'}"]  # fmt: skip
        with open(self.folder / f"{name}.log", "ab") as log:
            self.launcher = subprocess.Popen(command, cwd=HERE, env=self.env, stdout=log, stderr=log,
                                             stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        return self.launcher

    def processes(self, what: str) -> list[int]:
        """Processes of this Slurm's jobs whose command line holds `what`."""
        found, mine = [], f"SLURM_CONF={self.env['SLURM_CONF']}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
                if what.encode() in words and mine in environment and b"SLURM_JOB_ID=" in environment:
                    found.append(int(entry.name))
        return found

    def jobs(self) -> list[str]:
        return self.command("squeue", "-h", "-t", "running", "-p", "main", "-o", "%i").split()

    # ---- faults: each returns whether it struck

    def worker(self) -> bool:
        return self._signal("sweeps.worker", signal.SIGKILL)

    def allocation(self) -> bool:
        return self._signal("submitit", signal.SIGKILL)

    def launcher_killed(self) -> bool:
        if self.launcher is None or self.launcher.poll() is not None:
            return False
        self.launcher.kill()
        self.launcher.wait()
        return True

    def requeue(self) -> bool:
        jobs = self.jobs()
        return bool(jobs) and self.command("scontrol", "requeue", self.rng.choice(jobs)) is not None

    def preempt(self) -> bool:
        running = bool(self.jobs())
        words = ("--exclusive", "-p", "high", "-o", "/dev/null", "--wrap", "sleep 2")
        return running and "Submitted" in self.command("sbatch", *words)

    def node(self, orphans: bool = True) -> bool:
        if self.dead:
            return False
        name = self.rng.choice(["n1", "n2"])
        self.slurm("kill-node", name, *([] if orphans else ["all"]))
        self.dead.append((time.monotonic() + self.rng.uniform(5, 30), name))
        return True

    def node_and_its_jobs(self) -> bool:
        return self.node(orphans=False)

    def freeze(self) -> bool:
        workers = self.processes("sweeps.worker")
        if not workers:
            return False
        pid = self.rng.choice(workers)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self.frozen.append((time.monotonic() + 2 * LEASE_SECONDS, pid))
        return True

    def damage(self) -> bool:
        found = sorted((self.folder / "disturbed/runs").glob("*/checkpoints/step-*"), key=lambda p: p.name)
        if not found:
            return False
        with suppress(OSError):
            path = self.rng.choice(found)
            newest = sorted(path.parent.glob("step-*"))[-1]
            data = bytearray(newest.read_bytes())
            if self.rng.random() < 0.5:
                data = data[: len(data) // 2]
            else:
                data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
            with open(newest, "r+b") as file:  # never a new file: the run may have removed it meanwhile
                file.write(data)
                file.truncate(len(data))
        return True

    def _signal(self, what: str, number: int) -> bool:
        pids = self.processes(what)
        if not pids:
            return False
        with suppress(ProcessLookupError):
            os.kill(self.rng.choice(pids), number)
        return True

    # ---- the soak

    def tend(self, everything: bool = False) -> None:
        """Thaw what was frozen and start dead nodes, once their time has come."""
        now = time.monotonic()
        for due in [f for f in self.frozen if everything or f[0] < now]:
            self.frozen.remove(due)
            with suppress(ProcessLookupError):
                os.kill(due[1], signal.SIGCONT)
        for due in [d for d in self.dead if everything or d[0] < now]:
            self.dead.remove(due)
            self.slurm("start-node", due[1])

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

    def close(self) -> None:
        if self.launcher and self.launcher.poll() is None:
            self.launcher.kill()
            self.launcher.wait()
        for _, pid in self.frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.slurm("clean")


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
