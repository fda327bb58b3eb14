"""Points that two processes train, under a launcher."""

import json
import os
import signal

import pandas as pd
import pytest

from harness.checkpoint import checkpoints
from harness.errors import UserError
from harness.rundir import read_status
from sweeps.lease import newest_attempt
from sweeps.plan import make_plan

DEVICES = {"workers": 1, "devices_per_point": 2, "parallel": "fsdp", "checkpoint_seconds": 0.0}


def test_a_worker_killed_with_its_ranks_is_replaced_and_the_curve_is_the_same(launch, background, tiny, tmp_path):
    points, config = tiny("optimizer.lr=1e-3", tokens=64_000)
    (point,) = points
    assert launch(points, config, "whole", **DEVICES).done == 1
    run = tmp_path / "out/runs" / point.id
    process = background(points, **DEVICES)
    background.wait_for(lambda: background.children(process.pid))
    (worker,) = background.children(process.pid)
    background.wait_for(lambda: len(background.children(worker)) == 2)
    # Its first checkpoint comes after the first of 500 steps, and those of every stretch after it are synced to disk.
    background.wait_for(lambda: checkpoints(run))
    os.kill(worker, signal.SIGKILL)
    assert process.wait(timeout=300) == 0 and read_status(run)["status"] == "done"
    assert newest_attempt(run).number == 2
    assert json.loads((run / "result.json").read_text())["numerics"]["worlds"] == [2]
    whole = pd.read_parquet(tmp_path / "whole/runs" / point.id / "curve.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(run / "curve.parquet"), whole, check_exact=True)


def test_ctrl_c_checkpoints_what_two_train(background, tiny, tmp_path):
    points, _ = tiny("optimizer.lr=1e-3", tokens=2_000_000)
    run = tmp_path / "out/runs" / points[0].id
    process = background(points, **{**DEVICES, "checkpoint_seconds": 1000.0})
    background.wait_for(lambda: (read_status(run).get("step") or 0) > 0)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 128 + signal.SIGINT
    (checkpoint,) = checkpoints(run)
    status = read_status(run)
    assert status["status"] == "pending" and checkpoint.name == f"step-{status['step']:09d}.safetensors"


def test_batches_that_devices_cannot_share_are_refused(tiny, tmp_path):
    points, config = tiny()
    config.launcher.devices_per_point = 3
    with pytest.raises(UserError, match="devices_per_point=3 must divide batch_size=4"):
        make_plan(points, tmp_path / "runs", config.launcher, tmp_path / "cache", "cpu", probe=False)
