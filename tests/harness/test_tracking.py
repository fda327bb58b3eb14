"""A tracker can never stop a run, nor slow it noticeably."""

import sys
import time

from harness import tracking
from harness.rundir import read_status
from harness.tracking import tracker
from harness.train import train_point

from ..support import wait_for
from .helpers import tiny

WANDB = {"name": "wandb", "project": "test", "mode": "offline"}


def test_wandb_offline_writes_its_files_beside_the_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    p, runtime = tiny(tmp_path / "cache", "tokens=6400")
    runtime.tracking = WANDB
    assert train_point(p, tmp_path / "out" / "runs" / p.id, runtime) == "done"
    folder = tmp_path / "out" / "wandb"
    assert wait_for(lambda: [f for f in folder.glob(f"*{p.id}*/*.wandb") if f.stat().st_size > 1000], 90)


def test_a_tracker_that_fails_or_hangs_leaves_the_run_alone(tmp_path, monkeypatch):
    """The tracking process dies at once, or never reads: either way the run is done in its own time."""
    for program in ("import sys; sys.exit(3)", "import time; time.sleep(30)"):
        tracking._queue.cache_clear()
        fake = tmp_path / "python"
        fake.write_text(f"#!{sys.executable}\n{program}\n")
        fake.chmod(0o755)
        monkeypatch.setattr(tracking.sys, "executable", str(fake))
        p, runtime = tiny(tmp_path / "cache", "tokens=6400", f"seed={len(program)}")
        runtime.tracking = WANDB
        began = time.monotonic()
        assert train_point(p, tmp_path / "runs" / p.id, runtime) == "done"
        assert read_status(tmp_path / "runs" / p.id)["status"] == "done" and time.monotonic() - began < 20
    tracking._queue.cache_clear()


def test_no_tracker_unless_asked(tmp_path, monkeypatch):
    # Other tests of this process may have read its files.
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    p, _ = tiny(tmp_path / "cache", "tokens=6400")
    tracking._queue.cache_clear()
    with tracker({"name": "none"}, p, tmp_path) as track:
        track.log(1, {"loss": 1.0})
    assert tracking._queue.cache_info().misses == 0 and "wandb" not in sys.modules
