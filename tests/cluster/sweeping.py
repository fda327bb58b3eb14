"""`hyperlaw sweep` and `status` as a user runs them, on tiny points, and what two sweeps' runs have to be alike in."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from harness.rundir import read_status
from sweeps.lease import newest_attempt

from .beds import wait_for

MEASURED = ("device_seconds", "compile_seconds", "numerics", "runtime")  # of result.json: not results
SLOW = 192_000  # tokens that take some seconds of training, and some more after a first checkpoint on a fast machine


class Sweeping:
    """Sweeps in a folder. `words`: of every command; `env`: where the engine is found."""

    def __init__(self, folder, *words, env=None):
        self.folder, self.words, self.started = Path(folder), words, []
        self.env = {**(env or os.environ), "OMP_NUM_THREADS": "1", "HYPERLAW_CACHE": str(self.folder / "cache")}

    def define(self, name="mine", tokens=8_192, **axes):
        """A sweep of this name: tiny points over the axes."""
        value = {
            "model": {"width": 16, "depth": 1, "context": 32},
            "tpp": None, "tokens": tokens, "batch_size": 4, "precision": "fp32", "device": "cpu",
            "validation": {"tokens": 512}, "checkpoint_seconds": 1, "curve_points": 20,
            "data": {"name": "markov", "states": 16, "tokens": 200_000, "epochs": 100},
            "sweep": {"name": name, "axes": axes or {"seed": [0, 1, 2]}},
        }  # fmt: skip
        path = self.folder / "conf" / "sweep" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# @package _global_\n" + yaml.safe_dump(value))
        return self

    def start(self, command, *words, out="out", name="mine", env=None, bare=False):
        """The process of `hyperlaw COMMAND sweep=NAME out=OUT`. `bare`: without self.words."""
        every = [f"sweep={name}", f"out={self.folder / out}", f"--config-dir={self.folder / 'conf'}",
                 "launcher.compile=never", *(() if bare else self.words), *words]  # fmt: skip
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.started.append(subprocess.Popen([sys.executable, "-m", "harness.cli", command, *every], cwd=self.folder,
                                             env={**self.env, **(env or {})}, **pipes))  # fmt: skip
        return self.started[-1]

    def run(self, command, *words, status=0, seconds=120, **how):
        """What it prints; its exit status must be `status`."""
        return self.end(self.start(command, *words, **how), status, seconds)

    def end(self, process, status=0, seconds=120):
        said, _ = process.communicate(timeout=seconds)
        assert process.returncode == status, said
        return said

    def statuses(self, out="out"):
        runs = self.folder / out / "runs"
        return [read_status(run)["status"] for run in runs.iterdir()] if runs.is_dir() else []

    def training(self, count=1, out="out"):
        """Waits until `count` runs have checkpointed in mid-training; their directories. Those that are there first stand
        still until the last is: on no machine does one end before another begins."""
        held = {}

        def found():
            for run in (self.folder / out / "runs").glob("*"):
                if run not in held and read_status(run)["status"] == "running" and any((run / "checkpoints").iterdir()):
                    with contextlib.suppress(ProcessLookupError):  # it ended just now, or was killed earlier
                        os.kill(pid := newest_attempt(run).pid, signal.SIGSTOP)
                        held[run] = pid
            return len(held) >= count

        try:
            wait_for(found)
        finally:
            for pid in held.values():
                os.kill(pid, signal.SIGCONT)
        return list(held)

    def attempts(self, out="out"):
        """How many attempts each run took."""
        return sorted(len(list((run / "attempts").glob("*.json"))) for run in (self.folder / out / "runs").iterdir())

    def records(self, out="out"):
        return [json.loads(path.read_text()) for path in sorted((self.folder / out / "launches").glob("*.json"))]

    def undisturbed(self, name="mine"):
        """Results of the same sweep, run by the local launcher in a folder of its own."""
        self.run("sweep", "launcher=local", "launcher.workers=2", out=f"undisturbed-{name}", name=name, bare=True)
        return results(self.folder / f"undisturbed-{name}" / "runs")

    def close(self):
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
            with contextlib.suppress(OSError):
                process.stdout.close()


def results(runs):
    """What the runs came to, by id: status, result and curve, without times."""
    found = {}
    for run in sorted(Path(runs).iterdir()):
        result = json.loads((run / "result.json").read_text())
        result = {k: v for k, v in result.items() if k not in MEASURED}
        found[run.name] = (read_status(run)["status"], result, str(pq.read_table(run / "curve.parquet").to_pydict()))
    return found
