"""Several processes for one point end together: hung, stopped, orphaned, out of memory, diverged."""

import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness import supervisor
from harness.checkpoint import checkpoints, read_checkpoint
from harness.rundir import LostRun, read_status
from harness.train import train_point

from ..support import wait_for
from .ranks import LONG, SHORT, Once, curve, linux, processes, ranks, result, run_of, setting


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


WANDB = """
class Settings:
    __annotations__ = {{}}

class Run:
    def log(self, values, step): pass
    def finish(self): pass

def init(id, **_):
    with open({path!r}, "a") as f:
        f.write(id + "\\n")
    return Run()
"""


@linux
def test_a_rank_that_hangs_is_ended_with_its_time(cache, tmp_path, monkeypatch):
    """The ranks keep to the minute themselves, unless they hang; their supervisor shall not wait as long here."""
    monkeypatch.setattr(supervisor, "OVERDUE_SECONDS", -59.0)
    p, runtime = setting(cache, *LONG, point_seconds=60.0)
    hang = Once(1, lambda: os.kill(ranks()[1], signal.SIGSTOP))
    assert train_point(p, tmp_path, runtime, hang) == "failed"
    assert hang.done and not ranks()
    reason = read_status(tmp_path)["reason"]
    assert reason["type"] == "time_limit"
    assert "launcher.point_seconds=60 is used up" in reason["message"] and "no answer" in reason["message"]


@linux
def test_a_rank_that_dies_once_the_run_has_ended_takes_nothing_back(cache, tmp_path):
    p, runtime = setting(cache, *SHORT)

    def kill_at_the_end():
        """Asked for the last time: may status.json say done?"""
        if (tmp_path / "result.json").exists() and (other := ranks().get(1)):
            os.kill(other, signal.SIGKILL)
            while Path(f"/proc/{other}").exists():  # until its supervisor knows of it
                time.sleep(0.01)
        return True

    assert train_point(p, tmp_path, runtime, still_mine=kill_at_the_end) == "done"
    assert read_status(tmp_path)["status"] == "done" and not checkpoints(tmp_path) and not ranks()


@linux
def test_stop_ends_all_ranks_at_one_step_within_seconds(cache, tmp_path):
    p, runtime = setting(cache, *LONG, parallel="fsdp")
    begun = threading.Event()
    asked = []

    def stop():
        if begun.is_set():
            asked.append(time.monotonic())
        return begun.is_set()

    assert train_point(p, tmp_path, runtime, lambda *a: begun.set(), stop) == "stopped"
    assert time.monotonic() - asked[0] < 20 and not ranks()  # seconds; a loaded machine takes longer
    status = read_status(tmp_path)
    tensors, facts, _ = read_checkpoint(tmp_path)
    assert status["status"] == "pending" and 0 < facts["step"] == status["step"] < p.steps
    assert len(tensors["log"]) == facts["step"] and np.isfinite(tensors["log"].numpy()).all()


@linux
def test_a_lost_run_is_written_to_no_more(cache, tmp_path):
    p, runtime = setting(cache, *LONG, checkpoint_seconds=0)
    mine = threading.Event()
    mine.set()
    with pytest.raises(LostRun):
        train_point(p, tmp_path, runtime, lambda *a: mine.clear(), still_mine=mine.is_set)
    assert not ranks() and read_status(tmp_path)["status"] == "running"


@linux
def test_ranks_leave_with_their_supervisor(cache, tmp_path):
    import subprocess

    p, runtime = setting(cache, *LONG)
    spec = json.dumps([p.to_dict(), vars(runtime)])
    script = ("import json, sys; from harness.point import Point; from harness.train import Runtime, train_point; "
              "p, r = json.loads(sys.argv[1]); "
              "train_point(Point.from_dict(p), sys.argv[2], Runtime(**r), lambda *a: print(*a, flush=True))")  # fmt: skip
    command = [sys.executable, "-c", script, spec, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        supervisor.stdout.readline()
        left = ranks(supervisor.pid)
        supervisor.kill()
    assert len(left) == 2
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() and b"harness.rank" in Path(f"/proc/{pid}/cmdline").read_bytes()
                             for pid in left.values()))  # fmt: skip


@linux
def test_no_memory_on_one_rank_halves_the_micro_batch(cache, tmp_path):
    """Attention scores of 8 sequences take 128 MiB, too large for the allocator to keep; rank 1 gets no more than it has."""
    shape = ["model.width=32", "model.head_dim=2", "model.context=256", "batch_size=16", "tokens=81920",
             "data.tokens=200000", "optimizer.lr=1e-3", "validation.fractions=[]"]  # fmt: skip
    p, runtime = setting(cache, *shape)

    def starve():
        pid = ranks()[1]
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.prlimit(pid, resource.RLIMIT_AS, (size, size))

    assert train_point(p, tmp_path / "run", runtime, Once(1, starve)) == "done"
    assert result(tmp_path / "run")["micro_batch"] == 4


@linux
def test_a_diverging_run_ends_as_on_one_device_and_is_tracked_once(cache, tmp_path, monkeypatch):
    """Tracked by a wandb that writes down which process began which run."""
    package, begun = tmp_path / "site" / "wandb.py", tmp_path / "begun"
    package.parent.mkdir()
    package.write_text(WANDB.format(path=str(begun)))
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)
    hot = ["tokens=6400", "optimizer.lr=30", "optimizer.clip=null", "schedule.warmup=0"]
    p, runtime = setting(cache, *hot, parallel="fsdp", tracking={"name": "wandb", "project": "test", "mode": "offline"})
    assert train_point(p, tmp_path / "two", runtime) == "diverged"
    wait_for(lambda: begun.exists() and not processes("harness.tracking", str(package.parent)))
    assert begun.read_text() == f"{p.id}\n"
    assert train_point(*run_of(cache, tmp_path / "one", *hot, devices=1)) == "diverged"
    two, one = read_status(tmp_path / "two"), read_status(tmp_path / "one")
    assert two["step"] == one["step"] and two["reason"]["type"] == one["reason"]["type"]
    pd.testing.assert_series_equal(curve(tmp_path / "two").train_loss, curve(tmp_path / "one").train_loss, rtol=1e-3)
