"""A point that takes too long is given up with its checkpoint kept, a worker that hangs is killed; later, with more time,
both go on to the same end."""

import contextlib
import io
import os
import signal
import threading

from harness.rundir import read_status
from sweeps import pool
from sweeps.lease import newest_attempt
from sweeps.status import read_states

from ..launches import assert_same_runs, table
from .running import train

LONG = 128 * 1000


def test_a_point_over_its_time_goes_on_with_a_higher_limit(tiny, corpus, tmp_path):
    (point,), _ = tiny("seed=0", tokens=LONG)
    assert train(point, tmp_path / "calm", corpus, checkpoint_seconds=30.0)["status"] == "done"
    late, steps = tmp_path / "late", []
    run_dir = late / "runs" / point.id
    seconds = float(table(tmp_path / "calm/runs", times=True).device_seconds[0])
    for limit in (seconds / 4, seconds / 4, seconds / 2):
        ended = train(point, late, corpus, point_seconds=limit, checkpoint_seconds=30.0)
        assert ended["status"] == "failed" and ended["reason"]["type"] == "time_limit"
        message = ended["reason"]["message"]
        assert "launcher.point_seconds" in message and f"step {ended['reason']['step']}" in message
        assert read_status(run_dir)["status"] == "failed" and list((run_dir / "checkpoints").glob("step-*"))
        steps.append(ended["reason"]["step"])
    assert 0 < steps[0] == steps[1] < steps[2] < point.steps  # all attempts together: no second helping of a used up limit
    assert train(point, late, corpus, point_seconds=1000.0)["status"] == "done"
    assert_same_runs(tmp_path / "calm/runs", late / "runs")


def test_a_launch_gives_each_point_its_time_once(tiny, launch, corpus, tmp_path):
    points, config = tiny("seed=0", tokens=LONG * 60)
    points = [*points, *tiny("seed=1", tokens=4096)[0]]
    stream = io.StringIO()
    summary = launch(points, config, stream=stream, workers=1, point_seconds=1.0)
    assert (summary.done, summary.failed, summary.attempts, summary.exit_status) == (1, 1, 1, 1)
    assert "launcher.point_seconds=1 is used up" in summary.failures[points[0].id] and "tried again" not in stream.getvalue()
    state = read_states(points, tmp_path / "out/runs")[points[0].id]
    assert state.status == "failed" and state.step > 0 and "goes on from step" in state.why


def test_a_worker_that_hangs_is_killed(tiny, launch, corpus, tmp_path, monkeypatch):
    """One of which the launcher has heard: until then it would wait for data and checkpoints, BEGIN_SECONDS. Its time is up
    when it hangs, not before."""
    points, config = tiny("seed=0", tokens=2 * LONG)
    monkeypatch.setattr(pool, "OVERDUE_SECONDS", 0.0)
    run_dir, stopped, heard = tmp_path / "out/runs" / points[0].id, [], threading.Event()
    hear = pool.Worker.hear
    monkeypatch.setattr(pool.Worker, "hear", lambda *progress: (hear(*progress), heard.set()))

    def hang():
        while not done.wait(0.02):
            if heard.is_set() and list(run_dir.glob("checkpoints/step-*")):
                break
        else:
            return
        stopped.append(newest_attempt(run_dir).pid)
        os.kill(stopped[0], signal.SIGSTOP)
        monkeypatch.setattr(pool, "OVERDUE_SECONDS", -500.0)

    done = threading.Event()
    thread = threading.Thread(target=hang)
    thread.start()
    try:
        summary = launch(points, config, workers=1, point_seconds=500.0, checkpoint_seconds=0.1)
    finally:
        done.set()
        thread.join()
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    assert stopped and (summary.done, summary.failed, summary.attempts) == (0, 1, 1)
    found = read_status(run_dir)
    assert found["status"] == "failed" and found["reason"]["type"] == "time_limit"
    assert "launcher.point_seconds=500" in found["reason"]["message"] and "no answer" in found["reason"]["message"]
    monkeypatch.setattr(pool, "OVERDUE_SECONDS", 30.0)
    assert launch(points, config, workers=1, point_seconds=1000.0).done == 1
    assert train(points[0], tmp_path / "calm", corpus, checkpoint_seconds=30.0)["status"] == "done"
    assert_same_runs(tmp_path / "calm/runs", tmp_path / "out/runs")
