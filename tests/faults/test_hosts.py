"""Two hosts share a sweep: their clocks differ by hours, one of them sleeps through its lease. No point is trained twice."""

import json
import os
import shutil
import signal
import subprocess

import pytest

from harness.rundir import read_status
from sweeps.lease import attempt_path, newest_attempt

from ..launches import assert_same_runs
from ..support import unavailable
from .running import train

# Another host, as far as leases see: process ids and a name of its own.
HOST = ("unshare", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
        'hostname other-host && exec "$@"', "sh")  # fmt: skip


@pytest.fixture
def other_host():
    """(words before a command, environment) of another host whose clock is so many hours ahead."""
    if subprocess.run([*HOST, "true"], capture_output=True).returncode:
        unavailable("no namespaces of process ids and host names can be made here")

    def build(hours):
        if not hours:
            return {"before": HOST}
        if not shutil.which("faketime"):
            unavailable("faketime is not installed (Debian: apt-get install faketime)")
        # Files keep the stamps that the file system gave them, as on a shared disk.
        clock = {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
        return {"before": (*HOST, "faketime", "-f", f"{hours:+d}h"), "environment": clock}

    return build


@pytest.fixture(scope="module")
def calm(tiny, corpus, tmp_path_factory):
    """(points, the runs that one process made of them)."""
    points, _ = tiny("seed=0,1,2,3", tokens=12_000)
    folder = tmp_path_factory.mktemp("calm")
    assert all(train(point, folder, corpus)["status"] == "done" for point in points)
    return points, folder / "runs"


@pytest.mark.parametrize("hours", [0, 2, -2])
def test_two_hosts_train_each_point_once(calm, background, other_host, tmp_path, hours):
    points, runs = calm
    skewed = other_host(hours)
    pair = [background(points, workers=1), background(points, workers=1, **skewed)]
    ended = [p.communicate(timeout=120) for p in pair]
    assert [p.returncode for p in pair] == [0, 0], ended
    sums = [json.loads(out) for out, _ in ended]
    assert [s["done"] for s in sums] == [4, 4] and all(s["failed"] == s["attempts"] == 0 for s in sums)
    run_dirs = [tmp_path / "out/runs" / p.id for p in points]
    assert all(len(list((r / "attempts").glob("*.json"))) == 1 for r in run_dirs)  # nothing was trained twice
    holders = [json.loads(attempt_path(r, 1).read_text()) for r in run_dirs]
    assert len({h["machine"] for h in holders}) == 2 and len({h["host"] for h in holders}) == 2
    if hours:  # the clock really was another
        begun = {h["host"]: h["begun"] for h in holders}
        ahead = (begun.pop("other-host") - begun.popitem()[1]) / 3600
        assert abs(ahead - hours) < 0.5
    assert_same_runs(runs, tmp_path / "out/runs")


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_holder_that_slept_through_its_lease_changes_no_file(tiny, corpus, background, other_host, tmp_path):
    points, _ = tiny("seed=0", tokens=120_000)
    run_dir = tmp_path / "out/runs" / points[0].id
    same = {"workers": 1, "checkpoint_seconds": 0.05, "lease_seconds": 3.0}
    first = background(points, **same)
    background.wait_for(lambda: list(run_dir.glob("checkpoints/step-*")) or first.poll() is not None)
    holder = newest_attempt(run_dir).pid
    os.kill(holder, signal.SIGSTOP)
    try:
        assert read_status(run_dir)["status"] == "running", "it was done before it could be stopped"
        second = background(points, **same, **other_host(0))
        out, err = second.communicate(timeout=120)
        assert second.returncode == 0 and json.loads(out)["done"] == 1, err
        assert read_status(run_dir)["attempt"] == 2
        before = snapshot(run_dir)
    finally:
        os.kill(holder, signal.SIGCONT)
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0 and json.loads(out)["done"] == 1, err
    assert snapshot(run_dir) == before
    assert train(points[0], tmp_path / "calm", corpus, checkpoint_seconds=30.0)["status"] == "done"
    assert_same_runs(tmp_path / "calm/runs", tmp_path / "out/runs")
