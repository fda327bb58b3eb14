"""A sweep on a Slurm of its own, and the faults that can strike the two (benchmarks/soak.py)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
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


class Faulty:
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

    # ---- amends

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

    def close(self) -> None:
        if self.launcher and self.launcher.poll() is None:
            self.launcher.kill()
            self.launcher.wait()
        for _, pid in self.frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.slurm("clean")
