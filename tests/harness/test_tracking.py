"""A tracker can never stop a run, nor slow it noticeably."""

import sys
import time
import types

from harness.rundir import read_status
from harness.tracking import tracker
from harness.train import train_point

from .helpers import tiny

WANDB = {"name": "wandb", "project": "test", "mode": "offline"}


def test_wandb_offline_writes_its_files_beside_the_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    p, runtime = tiny(tmp_path / "cache", "tokens=6400")
    runtime.tracking = WANDB
    assert train_point(p, tmp_path / "out" / "runs" / p.id, runtime) == "done"
    assert list((tmp_path / "out" / "wandb").glob(f"*{p.id}*"))


def test_a_tracker_that_fails_or_hangs_leaves_the_run_alone(tmp_path, monkeypatch, capfd):
    p, runtime = tiny(tmp_path / "cache", "tokens=6400")
    runtime.tracking = WANDB

    def fails(*args, **kwargs):
        raise RuntimeError("no such service")

    fake = types.SimpleNamespace(init=fails, Settings=lambda **k: None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert train_point(p, tmp_path / "a" / p.id, runtime) == "done"
    assert "no such service" in capfd.readouterr().err
    monkeypatch.setattr("harness.tracking.FINISH_SECONDS", 0.2)
    fake.init = lambda *a, **k: time.sleep(60)
    began = time.monotonic()
    assert train_point(p, tmp_path / "b" / p.id, runtime) == "done"
    assert read_status(tmp_path / "b" / p.id)["status"] == "done" and time.monotonic() - began < 30


def test_no_tracker_unless_asked(tmp_path):
    before = set(sys.modules)
    p, _ = tiny(tmp_path / "cache", "tokens=6400")
    with tracker({"name": "none"}, p, tmp_path) as track:
        track.log(1, {"loss": 1.0})
    assert "wandb" not in set(sys.modules) - before
