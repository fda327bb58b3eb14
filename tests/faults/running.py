"""One point trained in this process, from claiming its run directory to its end; and what a reader then finds there."""

import contextlib
import io

import pandas as pd

from harness.checkpoint import _read, checkpoints
from harness.files import read_json
from harness.rundir import FINISHED, damage, read_point, read_status
from sweeps.execute import execute
from sweeps.jobs import Settings


def train(point, folder, corpus, should_stop=lambda: False, **settings):
    """What `execute` says of `point` in `folder`/runs, and under "said" what went to the log."""
    chosen = {"runs_dir": folder / "runs", "cache": folder / "cache", "logs": folder / "logs", "checkpoint_seconds": 0.0,
              "corpora": {corpus.fingerprint: str(corpus.dir)}, **settings}  # fmt: skip
    message = {"job": point.id, "point": point.to_dict(), "compile": False}
    with contextlib.redirect_stderr(io.StringIO()) as log:
        ended = execute(message, Settings(**chosen).to_dict(), lambda **_: None, should_stop)
    return {**ended, "said": log.getvalue()}


def assert_whole(run_dir):
    """Every file is absent or whole, no temporary is left, and a finished run has all that it should."""
    for path in run_dir.rglob("*"):
        if path.is_file():
            assert not path.name.endswith(".tmp"), path
            assert path.suffix != ".json" or read_json(path) is not None, path
            assert path.suffix != ".safetensors" or _read(path) is not None, path
    if (run_dir / "point.yaml").exists():
        read_point(run_dir)
    if (run_dir / "curve.parquet").exists():
        pd.read_parquet(run_dir / "curve.parquet")
    said = read_status(run_dir)
    if said["status"] in FINISHED:
        assert damage(run_dir, said) is None
        assert (run_dir / "result.json").exists() and (run_dir / "curve.parquet").exists()
    assert len(checkpoints(run_dir)) <= 2


class At:
    """should_stop that does something once, at its n-th call: before step n of the run."""

    def __init__(self, n, action):
        self.n, self.action = n, action

    def __call__(self):
        self.n -= 1
        if self.n == 0:
            self.action()
        return False


class StopAfter:
    """should_stop that turns true after n steps."""

    def __init__(self, n):
        self.left = n

    def __call__(self):
        self.left -= 1
        return self.left < 0
