"""Launches of the local launcher, here or in processes of their own, and whether two of them came to the same."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis.table import read_runs
from sweeps.jobs import Settings
from sweeps.local import run
from sweeps.plan import make_plan

from .support import wait_for

SCRIPT = Path(__file__).parent / "sweeps" / "launch_script.py"
# What may differ: how long it took, and how many attempts it took.
TIMES = ("device_seconds", "compile_seconds", "runtime")


def launch_here(corpus, folder, points, config, name="out", stream=None, **settings):
    """Summary of a launch in this process, of runs in `folder`/`name`/runs."""
    out = folder / name
    launcher = replace(config.launcher, compile="never", workers=settings.pop("workers", 2))
    plan = make_plan(points, out / "runs", launcher, folder / "cache", "cpu", probe=False)
    chosen = {"runs_dir": out / "runs", "cache": folder / "cache", "logs": out / "logs", "workers": plan.workers,
              "corpora": {corpus.fingerprint: str(corpus.dir)}, **settings}  # fmt: skip
    return run(plan, Settings(**chosen), stream=stream or io.StringIO())


class Background:
    """Launches in processes of their own. (points, folder, settings) -> the process; `before`: words before its command,
    `environment`: variables beside those of this process."""

    def __init__(self, folder, corpus):
        self.folder, self.corpus, self.started = folder, corpus, []

    def __call__(self, points, folder="out", before=(), environment=None, compile="never", **settings):
        out, n = self.folder / folder, len(self.started)
        chosen = {"runs_dir": out / "runs", "cache": self.folder / "cache", "logs": out / f"logs{n}", "workers": 2,
                  "corpora": {self.corpus.fingerprint: self.corpus.dir}, **settings}  # fmt: skip
        spec = self.folder / f"spec{n}.json"
        content = {"points": [p.to_dict() for p in points], "settings": chosen, "compile": compile}
        spec.write_text(json.dumps(content, default=str))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        env = None if environment is None else {**os.environ, **environment}
        self.started.append(subprocess.Popen([*before, sys.executable, str(SCRIPT), str(spec)], env=env, **pipes))
        return self.started[-1]

    @staticmethod
    def children(pid):
        """Worker processes of a launcher."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found

    wait_for = staticmethod(wait_for)

    def end(self):
        """Kill what still runs."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()


def result(run_dir):
    """result.json but for times."""
    return {k: v for k, v in json.loads((run_dir / "result.json").read_text()).items() if k not in TIMES}


def assert_same_runs(calm, other):
    """The runs in the folder `other` came to what those in `calm` did, bit for bit, and nothing is left over."""
    names = sorted(p.name for p in calm.iterdir())
    assert names == sorted(p.name for p in other.iterdir())
    for name in names:
        a, b = calm / name, other / name
        assert (a / "curve.parquet").read_bytes() == (b / "curve.parquet").read_bytes()
        assert (a / "point.yaml").read_bytes() == (b / "point.yaml").read_bytes()
        assert result(a) == result(b)
        assert not list(b.glob("checkpoints/*.safetensors")) and not list(b.rglob("*.tmp"))
    pd.testing.assert_frame_equal(table(calm), table(other), check_exact=True)


def table(runs, times=False):
    """The table of `runs`, without times unless asked for."""
    frame = read_runs(runs)
    assert not frame.attrs["damaged"]
    measured = [name for name in ("device_seconds", "model_flops_per_second", "utilisation") if name in frame]
    return frame.drop(columns=[] if times else measured).sort_values("run_id").reset_index(drop=True)
