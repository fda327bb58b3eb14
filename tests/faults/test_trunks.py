"""kill -9 while a trunk trains, behind it and while branches train; two launches at once; a diverging trunk.

Workers stop themselves where the test wants them: `STANDING` is the sitecustomize.py of their processes. Nothing depends on
who is faster, the test or the training.
"""

import contextlib
import json
import os
import signal

import pytest

from sweeps import sharing
from sweeps.jobs import trunks_dir
from sweeps.prefix import share

from ..launches import assert_same_runs

WSD = ("schedule=wsd", "schedule.warmup_tokens=1024", "schedule.cooldown=0.25", "optimizer.weight_decay=0.1",
       "validation.fractions=[0.25,0.5,0.75]")  # fmt: skip
# STAND: lines "MARK FILE PART": the first process that is about to rename a file to a name that begins with PART, while FILE
# (a pattern) is there already, makes the file MARK and stops.
STANDING = """
import glob, os, signal, sys

def look(event, args):
    if event == "os.rename":
        for line in os.environ["STAND"].splitlines():
            mark, there, part = line.split()
            if os.fspath(args[1]).startswith(part) and not os.path.exists(mark) and glob.glob(there):
                try:
                    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGSTOP)

if "sweeps.worker" in sys.orig_argv and os.environ.get("STAND"):
    sys.addaudithook(look)
"""
LONG = 300.0  # seconds to wait, for a machine that is busy


@pytest.fixture
def calm(tiny, launch, monkeypatch):
    """(points, the FLOPs that an undisturbed launch, in the folder `calm`, spends on them)."""
    monkeypatch.setattr(sharing, "JOB_SECONDS", 1e-6)  # trunks, however little they save: as in launch_script.py
    monkeypatch.setattr(sharing, "BYTES_PER_SECOND", 1e15)
    points, config = tiny(*WSD, "optimizer.lr=1e-2,30", tokens="32768,49152")
    summary = launch(points, config, "calm")
    assert (summary.done, summary.diverged, summary.exit_status) == (2, 2, 0)
    assert summary.flops_spent < 0.9 * sum(p.flops for p in points if p.optimizer.lr < 1)
    return points, summary.flops_spent


def kill(*pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_kills_change_nothing(calm, background, tmp_path):
    points, _ = calm
    runs = tmp_path / "killed/runs"
    sane = [p for p in points if p.optimizer.lr < 1]
    (name,) = share(sane).trunks
    trunk, longest = trunks_dir(runs) / name, runs / max(sane, key=lambda p: p.steps).id
    marks = [tmp_path / "in_trunk", tmp_path / "behind_trunk", tmp_path / "in_branch"]
    at = [(trunk / "checkpoints/step-*", trunk / "checkpoints/step-"),  # a second checkpoint
          (trunk / "trunk.json", trunk / "status.json"),
          (longest / "checkpoints/step-*", longest / "checkpoints/step-")]  # fmt: skip
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(STANDING)
    stand = "\n".join(f"{mark} {there} {part}" for mark, (there, part) in zip(marks, at, strict=True))

    def begin():
        found = {"PYTHONPATH": str(tmp_path / "hook"), "STAND": stand}
        return background(points, "killed", environment=found, checkpoint_seconds=0.0, max_attempts=1000)

    def wait(launcher, mark):
        background.wait_for(lambda: mark.exists() or launcher.poll() is not None, LONG)
        assert launcher.poll() is None, launcher.communicate()

    launcher = begin()
    wait(launcher, marks[0])
    assert not (trunk / "trunk.json").exists()
    kill(*background.children(launcher.pid))  # its launcher goes on
    wait(launcher, marks[1])
    kill(launcher.pid, *background.children(launcher.pid))
    launcher.wait()
    assert (trunk / "trunk.json").exists() and not any((runs / p.id / "result.json").exists() for p in sane)
    launcher = begin()
    wait(launcher, marks[2])
    kill(launcher.pid, *background.children(launcher.pid))
    launcher.wait()
    assert not (longest / "result.json").exists()
    launcher = begin()
    _, said = launcher.communicate(timeout=LONG)
    assert launcher.returncode == 0, said
    assert_same_runs(tmp_path / "calm/runs", runs)
    assert not trunks_dir(runs).exists()


def test_two_launches_train_each_trunk_once(calm, background, tmp_path):
    points, spent = calm
    both = [background(points, "both") for _ in range(2)]
    ended = [launcher.communicate(timeout=LONG) for launcher in both]
    assert [launcher.returncode for launcher in both] == [0, 0], ended
    assert sum(json.loads(out)["flops_spent"] for out, _ in ended) == spent
    assert_same_runs(tmp_path / "calm/runs", tmp_path / "both/runs")
    assert not trunks_dir(tmp_path / "both/runs").exists()
