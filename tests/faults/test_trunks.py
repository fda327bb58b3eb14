"""kill -9 while a trunk trains, behind it and while branches train; two launches at once; a diverging trunk."""

import contextlib
import json
import os
import signal

import pytest

from sweeps.jobs import trunks_dir

from ..launches import assert_same_runs

WSD = ("schedule=wsd", "schedule.warmup_tokens=1024", "schedule.cooldown=0.25", "optimizer.weight_decay=0.1",
       "validation.fractions=[0.25,0.5,0.75]")  # fmt: skip


@pytest.fixture
def calm(tiny, launch):
    """(points, the FLOPs that an undisturbed launch, in the folder `calm`, spends on them)."""
    points, config = tiny(*WSD, "optimizer.lr=1e-2,30", tokens="98304,163840")
    summary = launch(points, config, "calm")
    assert (summary.done, summary.diverged, summary.exit_status) == (2, 2, 0)
    assert summary.flops_spent < 0.8 * sum(p.flops for p in points if p.optimizer.lr < 1)
    return points, summary.flops_spent


def kill(*pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_kills_change_nothing(calm, background, tmp_path):
    points, _ = calm
    runs = tmp_path / "killed/runs"
    trunks = trunks_dir(runs)

    def begin():
        return background(points, "killed", checkpoint_seconds=0.02, max_attempts=1000)

    launcher = begin()
    background.wait_for(lambda: list(trunks.glob("*/checkpoints/step-*")) or launcher.poll() is not None)
    assert launcher.poll() is None and not list(runs.glob("*/result.json"))
    kill(*background.children(launcher.pid))  # its launcher goes on
    background.wait_for(lambda: list(trunks.glob("*/trunk.json")))
    kill(launcher.pid, *background.children(launcher.pid))
    launcher.wait()
    assert list(trunks.glob("*/trunk.json"))
    launcher = begin()
    background.wait_for(lambda: list(runs.glob("*/checkpoints/step-*")) or launcher.poll() is not None)
    assert launcher.poll() is None
    kill(launcher.pid, *background.children(launcher.pid))
    launcher.wait()
    launcher = begin()
    _, said = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, said
    assert_same_runs(tmp_path / "calm/runs", runs)
    assert not trunks.exists()


def test_two_launches_train_each_trunk_once(calm, background, tmp_path):
    points, spent = calm
    both = [background(points, "both") for _ in range(2)]
    ended = [launcher.communicate(timeout=300) for launcher in both]
    assert [launcher.returncode for launcher in both] == [0, 0], ended
    assert sum(json.loads(out)["flops_spent"] for out, _ in ended) == spent
    assert_same_runs(tmp_path / "calm/runs", tmp_path / "both/runs")
    assert not trunks_dir(tmp_path / "both/runs").exists()
