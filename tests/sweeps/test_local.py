"""The local launcher, with real training: a worker may die, a launch may be stopped, two launches share the work."""

import io
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.rundir import read_status
from sweeps.display import Display, Progress, Work, labels
from sweeps.lease import newest_attempt
from sweeps.pool import exit_reason
from sweeps.status import read_states, render_status, status


def attempts(out):
    return {run.name: len(list((run / "attempts").glob("*.json"))) for run in (out / "runs").iterdir()}


def under_way(runs, points):
    return [s for s in read_states(points, runs).values() if s.status == "running"]


def training(runs, points):
    """Points whose status says that they train."""
    return [p for p in points if read_status(runs / p.id)["status"] == "running"]


def holder(runs, points):
    """A process that is training."""
    return newest_attempt(runs / under_way(runs, points)[0].run_id).pid


def test_a_sweep_is_trained_once_and_found_done(tiny, launch, tmp_path):
    points, config = tiny("seed=0,1,2", "optimizer.lr=1e-3,1e9")
    stream = io.StringIO()
    summary = launch(points, config, stream=stream)
    assert (summary.done, summary.diverged, summary.failed, summary.exit_status) == (3, 3, 0, 0)
    assert set(attempts(tmp_path / "out").values()) == {1}
    assert stream.getvalue().count(": done") == 3 and stream.getvalue().count(": diverged (") == 3
    again = launch(points, config)
    assert again.seconds < 2 and again.done == 0 and again.exit_status == 0
    assert set(attempts(tmp_path / "out").values()) == {1}
    report = status(points, tmp_path / "out" / "runs")
    assert report["counts"]["done"] == 3 and report["counts"]["diverged"] == 3 and report["progress"] == 1
    assert "3 done, 3 diverged" in render_status(report)


def test_a_killed_worker_fails_one_attempt_of_one_point(tiny, background, tmp_path):
    points, _ = tiny("seed=0,1,2", tokens=24_000)
    launcher = background(points)
    background.wait_for(lambda: under_way(tmp_path / "out/runs", points))
    os.kill(holder(tmp_path / "out/runs", points), signal.SIGKILL)
    out, err = launcher.communicate(timeout=60)
    summary = json.loads(out)
    assert summary["done"] == 3 and summary["failed"] == 0 and summary["attempts"] == 1, err
    assert sorted(attempts(tmp_path / "out").values()) == [1, 1, 2]
    assert "SIGKILL" in err and "tried again" in err


def test_a_point_that_kills_its_workers_fails_with_a_typed_reason_and_the_others_go_on(tiny, background, tmp_path):
    points, _ = tiny("seed=0,1,2", tokens=8_192)
    # A directory where a file must be written: this point can never write its status.
    (tmp_path / "out/runs" / points[1].id / "status.json").mkdir(parents=True)
    launcher = background(points)
    out, err = launcher.communicate(timeout=60)
    summary = json.loads(out)
    assert launcher.returncode == 1 and summary["done"] == 2 and summary["failed"] == 1
    assert list(summary["failures"]) == [points[1].id]
    assert err.count("seed=1: failed: ") == 2  # two attempts, a line each
    assert "Traceback" not in err


def test_crashes_are_recorded_as_failed_once_attempts_are_used_up(tiny, background, tmp_path):
    points, _ = tiny("seed=0", tokens=2_000_000)
    launcher = background(points, workers=1, max_attempts=1)
    background.wait_for(lambda: under_way(tmp_path / "out/runs", points))
    os.kill(holder(tmp_path / "out/runs", points), signal.SIGSEGV)
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 1 and "SIGSEGV" in err
    state = read_states(points, tmp_path / "out/runs")[points[0].id]
    assert state.status == "failed" and state.reason["type"] == "worker_SIGSEGV"
    report = status(points, tmp_path / "out/runs")
    lines = render_status(report | {"runs": "out/runs"}).splitlines()  # how long the folder's name is, is not ours
    assert any("SIGSEGV" in line for line in lines) and max(map(len, lines)) < 100


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_workers_checkpoint_and_leave(tiny, background, tmp_path, number, code):
    points, _ = tiny("seed=0,1,2", tokens=3_000_000)
    launcher = background(points)
    background.wait_for(lambda: len(training(tmp_path / "out/runs", points)) == 2)
    time.sleep(1)
    workers, begun = background.children(launcher.pid), time.monotonic()
    launcher.send_signal(number)
    out, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == code and time.monotonic() - begun < 8
    assert json.loads(out)["left"] == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    states = read_states(points, tmp_path / "out/runs")
    stopped = [s for s in states.values() if s.step]
    assert len(stopped) == 2 and all(s.status == "pending" for s in states.values())
    for s in stopped:
        assert list((tmp_path / "out/runs" / s.run_id / "checkpoints").glob(f"step-{s.step:09d}.*"))


def test_workers_of_a_killed_launcher_checkpoint_and_leave(tiny, background, tmp_path):
    points, _ = tiny("seed=0,1", tokens=3_000_000)
    launcher = background(points)
    background.wait_for(lambda: len(training(tmp_path / "out/runs", points)) == 2)
    workers = background.children(launcher.pid)
    launcher.kill()
    launcher.wait()
    background.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 10)
    assert not under_way(tmp_path / "out/runs", points)
    assert len(list((tmp_path / "out/runs").glob("*/checkpoints/*.safetensors"))) == 2


def test_two_launches_train_each_point_once(tiny, background, tmp_path):
    points, _ = tiny("seed=" + ",".join(map(str, range(6))), tokens=16_000)
    pair = [background(points, workers=1) for _ in range(2)]
    sums = [json.loads(p.communicate(timeout=90)[0]) for p in pair]
    assert [s["done"] for s in sums] == [6, 6]  # both end when all is done
    assert attempts(tmp_path / "out") == {p.id: 1 for p in points}


def test_a_launch_takes_over_what_another_left_behind(tiny, background, launch, tmp_path):
    points, config = tiny("seed=0,1", tokens=120_000)
    first = background(points)
    background.wait_for(lambda: len(under_way(tmp_path / "out/runs", points)) == 2)
    workers = background.children(first.pid)
    second = background(points)
    time.sleep(1)
    for pid in [first.pid, *workers]:
        os.kill(pid, signal.SIGKILL)
    out, err = second.communicate(timeout=90)
    assert json.loads(out)["done"] == 2, err
    assert attempts(tmp_path / "out") == {p.id: 2 for p in points}


def test_an_unprepared_corpus_is_one_clear_line(tiny, launch):
    points, config = tiny("seed=0")
    stream = io.StringIO()
    summary = launch(points, config, stream=stream, corpora={}, max_attempts=1)
    assert summary.exit_status == 1 and "no prepared data" in stream.getvalue()


def test_workers_that_do_not_start_end_the_launch(tiny, launch, monkeypatch):
    points, config = tiny("seed=0")
    monkeypatch.setattr("sweeps.pool.sys.executable", "/bin/false")
    stream = io.StringIO()
    summary = launch(points, config, stream=stream)
    assert summary.exit_status == 1 and summary.left == 1 and "did not start" in stream.getvalue()


def test_a_launch_outside_the_main_thread(tiny, launch):
    points, config = tiny("seed=0")
    result = []
    thread = threading.Thread(target=lambda: result.append(launch(points, config)))
    thread.start()
    thread.join()
    assert result[0].done == 1


def test_reasons():
    assert exit_reason(-9, "")["type"] == "worker_SIGKILL" and "memory" in exit_reason(-9, "")["message"]
    assert exit_reason(-11, "boom")["message"] == "worker died of SIGSEGV: boom"
    assert exit_reason(3, "")["type"] == "worker_exit_3"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [1, 7, 20, 80, 300])
def test_the_display_never_wraps(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    display = Display(stream)
    progress = Progress(total=10, done=3, failed=1, work={"a": Work(100, 30, 45)}, workers=2, elsewhere=1,
                        running=[("width=64 lr=0.0039", 5, 100, 3.2), ("width=32", 0, 9, None)])  # fmt: skip
    display.update(progress, force=True)
    display.line("width=64: failed: the disk is full", important=True)
    display.update(progress, force=True)
    drawn = stream.getvalue().split("\x1b[3A\x1b[J")[0].splitlines()
    assert len(drawn) == 3 and max(map(len, drawn)) <= max(columns - 1, 1)
    display.close(progress)
    assert display.stream.getvalue().endswith("\n")


def test_eta_learns_from_what_the_work_took():
    progress = Progress(work={"a": Work(1000, 500, 1000), "b": Work(1000, 0, 0)}, workers=2)
    assert progress.eta == pytest.approx((1000 + 2000) / 2, rel=0.02) and progress.share == 0.25
    assert replace(progress, compilations=40).eta == pytest.approx(progress.eta + 20)


def test_labels_say_what_differs(tiny):
    points, _ = tiny("seed=0,1", "optimizer.lr=1e-3,2e-3")
    assert sorted(labels(points).values()) == [f"lr={lr} seed={s}" for lr in ("0.001", "0.002") for s in (0, 1)]
    assert labels(points[:1]) == {points[0].id: points[0].id}


def test_a_broken_pipe_of_the_display_stops_nothing(tiny, launch):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    points, config = tiny("seed=0")
    assert launch(points, config, stream=Broken()).done == 1
