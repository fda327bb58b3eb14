"""Several processes for one point, two with Gloo on the CPU: the same curve and weights as one, whatever dies meanwhile."""

import contextlib
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
from safetensors.torch import load_file

from harness import supervisor
from harness.checkpoint import checkpoints, read_checkpoint
from harness.errors import UserError
from harness.private import compiled_folder
from harness.rundir import LostRun, read_status
from harness.supervisor import RankError, check_devices
from harness.train import train_point

from .helpers import point, tiny

STEPS = 100
RUN = [f"tokens={STEPS * 64}", "validation.fractions=[0.5]", "optimizer.lr=1e-3", "model.depth=2"]
# 17 states: a vocabulary that two ranks cannot halve.
UNTIED = ["data.states=17", "model.tied=false", "model.qk_norm=true", "model.z_loss=1e-3", "parameterization=completep",
          "parameterization.base_width=8"]  # fmt: skip
SHORT = ["tokens=1280", "optimizer.lr=1e-3", "validation.fractions=[]"]
LONG = ["tokens=960000", "data.epochs=100", "validation.fractions=[]", "optimizer.lr=1e-3"]  # nobody waits for their end
NEAR, BF16 = (1e-5, 1e-5), (4e-3, 1e-3)  # nats, weights: as harness/parallel.py promises
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
linux = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def setting(cache, *overrides, devices=2, parallel="ddp", **rest):
    p, runtime = tiny(cache, *overrides)
    for key, value in {"devices": devices, "parallel": parallel, "keep_weights": True, **rest}.items():
        setattr(runtime, key, value)
    return p, runtime


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    """(overrides, settings) -> run directory of the whole run, trained once; `told`: its progress."""

    def build(*overrides, **rest):
        key = (overrides, *sorted(rest.items()))
        if key not in found:
            folder, told = tmp_path_factory.mktemp("trained"), []
            assert train_point(*_run(cache, folder, *overrides, **rest), lambda *a: told.append(a)) == "done"
            found[key], build.told[folder] = folder, told
        return found[key]

    found, build.told = {}, {}
    return build


def _run(cache, run_dir, *overrides, **rest):
    p, runtime = setting(cache, *overrides, **rest)
    return p, run_dir, runtime


def curve(run_dir):
    return pd.read_parquet(run_dir / "curve.parquet")


def result(run_dir):
    return json.loads((run_dir / "result.json").read_text())


def weights(run_dir):
    return load_file(run_dir / "weights.safetensors")


def assert_near(a, b, near=NEAR):
    """Loss curves, final losses and weights within the tolerance (nats, weights); everything else equal."""
    nats, weight = near
    # The norm of bf16 gradients is that of rounded products; it has no tolerance of its own in bf16.
    columns = list(curve(a)) if near is NEAR else ["step", "tokens", "lr", "train_loss", "validation_loss"]
    pd.testing.assert_frame_equal(curve(a)[columns], curve(b)[columns], rtol=0, atol=nats, check_exact=False)
    assert result(a)["loss"] == pytest.approx(result(b)["loss"], abs=nats)
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for k, w in ours.items():
        np.testing.assert_allclose(w, theirs[k], rtol=0, atol=weight, err_msg=k)


def processes(module, environment=""):
    """(pid, command, parent) of those that run `module` with something in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().decode().split("\0")
            if module in words and environment in (path / "environ").read_bytes().decode():
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    found.append((int(path.name), words, int(fields[1])))
    return found


def ranks(parent=None):
    """rank -> pid of the rank processes of a supervisor."""
    found = [(pid, words) for pid, words, of in processes("harness.rank") if of == (parent or os.getpid())]
    return {int(words[words.index("harness.rank") + 1]): pid for pid, words in found}


class Midway:
    """still_mine, which is asked before each file, that acts once there is a checkpoint after `step` steps or more."""

    def __init__(self, run_dir, act, step=20):
        self.run_dir, self.act, self.step, self.reached = run_dir, act, step, False

    def __call__(self):
        newest = checkpoints(self.run_dir)[-1:]
        if not self.reached and newest and int(newest[0].stem.split("-")[1]) >= self.step:
            self.reached = True
            self.act()
        return True


class Once:
    """on_progress that does something at the first progress after `step`."""

    def __init__(self, step, act):
        self.step, self.act, self.done = step, act, False

    def __call__(self, step, steps, loss):
        if step >= self.step and not self.done:
            self.done = True
            self.act()


@pytest.mark.parametrize(
    ("parallel", "overrides", "micro_batch", "near"),
    [("ddp", (), None, NEAR), ("fsdp", (), 1, NEAR), ("ddp", tuple(UNTIED), 1, NEAR),
     ("fsdp", ("precision=bf16",), None, BF16)],
    ids=["ddp", "fsdp accumulated", "ddp accumulated untied", "fsdp bf16"],
)
def test_several_devices_train_as_one(cache, trained, tmp_path, parallel, overrides, micro_batch, near):
    one = trained(*RUN, *overrides, devices=1)
    two = trained(*RUN, *overrides, parallel=parallel, micro_batch=micro_batch)
    assert_near(two, one, near)
    assert trained.told[two][-1][:2] == (STEPS, STEPS) and not checkpoints(two)
    assert result(two)["micro_batch"] == (micro_batch or 2)
    assert result(two)["numerics"]["worlds"] == [2] and result(two)["numerics"]["parallel"] == parallel
    assert "worlds" not in result(one)["numerics"]


def test_compiled_blocks_train_as_those_that_are_not(cache, trained):
    """The compiler's hooks and FSDP's together, a step of each kind: forward, backward, validation."""
    one = trained(*SHORT, devices=1)
    two = trained(*SHORT, parallel="fsdp", compile=True, compiled_cache=str(compiled_folder(cache)))
    assert result(two)["numerics"]["compiled"] and list(compiled_folder(cache).rglob("*.so"))
    assert_near(two, one)


@pytest.mark.parametrize("worlds", [(2, 1), (1, 2)])
def test_a_checkpoint_goes_on_at_another_world_size(cache, trained, tmp_path, worlds):
    p, runtime = setting(cache, *RUN, *UNTIED, parallel="fsdp", devices=worlds[0], checkpoint_seconds=0)
    middle = Midway(tmp_path, lambda: None)
    assert train_point(p, tmp_path, runtime, should_stop=lambda: middle.reached, still_mine=middle) == "stopped"
    step = read_status(tmp_path)["step"]
    assert 20 <= step < STEPS and read_checkpoint(tmp_path)[1]["step"] == step
    runtime.devices = worlds[1]
    assert train_point(p, tmp_path, runtime) == "done"
    assert result(tmp_path)["numerics"]["worlds"] == list(worlds)
    assert_near(tmp_path, trained(*RUN, *UNTIED, devices=1))


@linux
def test_a_killed_rank_fails_the_attempt_and_the_next_ends_as_if_undisturbed(cache, trained, tmp_path):
    p, runtime = setting(cache, *RUN, checkpoint_seconds=0)
    for rank, step in ((1, 20), (0, 50)):
        kill = Midway(tmp_path, lambda rank=rank: os.kill(ranks()[rank], signal.SIGKILL), step)
        with pytest.raises(RankError, match=f"rank {rank} died of SIGKILL"):
            train_point(p, tmp_path, runtime, still_mine=kill)
        assert not ranks() and step <= read_checkpoint(tmp_path)[1]["step"] < STEPS
    assert train_point(p, tmp_path, runtime) == "done"
    whole = trained(*RUN, parallel="ddp", micro_batch=None)
    pd.testing.assert_frame_equal(curve(tmp_path), curve(whole), check_exact=True)
    assert (tmp_path / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


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
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() and b"harness.rank" in Path(f"/proc/{pid}/cmdline").read_bytes()
              for pid in left.values()):  # fmt: skip
        assert time.monotonic() < end
        time.sleep(0.05)


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
    end = time.monotonic() + 60
    while (tracking := processes("harness.tracking", str(package.parent))) or not begun.exists():
        assert time.monotonic() < end, tracking
        time.sleep(0.05)
    assert begun.read_text() == f"{p.id}\n"
    assert train_point(*_run(cache, tmp_path / "one", *hot, devices=1)) == "diverged"
    two, one = read_status(tmp_path / "two"), read_status(tmp_path / "one")
    assert two["step"] == one["step"] and two["reason"]["type"] == one["reason"]["type"]
    pd.testing.assert_series_equal(curve(tmp_path / "two").train_loss, curve(tmp_path / "one").train_loss, rtol=1e-3)


def test_devices_share_batches_evenly():
    check_devices(point("batch_size=6"), 3, "fsdp")
    with pytest.raises(UserError, match="devices_per_point=4 must divide batch_size=6"):
        check_devices(point("batch_size=6"), 4, "ddp")
    with pytest.raises(UserError, match="parallel=zero is not one of ddp, fsdp"):
        check_devices(point(), 2, "zero")
