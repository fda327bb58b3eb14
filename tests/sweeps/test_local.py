"""The local launcher, with real training: a worker may die, a launch may be stopped, two launches share the work."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.rundir import read_status
from sweeps.crashes import Crashes
from sweeps.display import Display, Progress, Work, labels
from sweeps.jobs import Settings
from sweeps.lease import claim, newest_attempt
from sweeps.pool import exit_reason
from sweeps.status import read_states, render_status, status
from sweeps.worker import GRACE_SECONDS, LEAVE_SECONDS, Stop

from ..launches import assert_same_runs, launch_here


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


def test_a_crash_on_another_machine_is_recorded_once_its_lease_has_run_out(tiny, background, tmp_path):
    patch = ["import sys", "if 'sweeps.worker' in sys.orig_argv:", " import sweeps.lease",
             " sweeps.lease._machine = lambda: 'elsewhere'"]  # fmt: skip
    (tmp_path / "sitecustomize.py").write_text("\n".join(patch))
    points, _ = tiny("seed=0", tokens=2_000_000)
    launcher = background(points, workers=1, max_attempts=1, lease_seconds=4, environment={"PYTHONPATH": str(tmp_path)})
    run = tmp_path / "out/runs" / points[0].id
    background.wait_for(lambda: training(run.parent, points))
    os.kill(newest_attempt(run).pid, signal.SIGKILL)
    _, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 1 and "waiting for the lease" in err
    state = read_states(points, run.parent)[run.name]
    assert state.status == "failed" and state.reason["type"] == "worker_SIGKILL"


def test_of_a_crash_elsewhere_only_the_attempt_that_died_is_recorded(tiny, tmp_path, monkeypatch):
    (point,), _ = tiny("seed=0")
    crashes, run = Crashes(60), tmp_path / point.id
    monkeypatch.setattr("sweeps.lease._machine", lambda: "elsewhere")
    first = claim(run, 60)
    monkeypatch.undo()
    crashes.record(run, point, {"type": "worker_died"})
    assert crashes.look() and not (run / "status.json").exists()
    first.release()
    claim(run, 60).release()  # another launch has taken it over
    crashes.open[0].due = 0
    assert not crashes.look() and not (run / "status.json").exists()


SLOW = 256_000  # tokens that take some seconds of training


@pytest.fixture(scope="module")
def calm(tiny, corpus, tmp_path_factory):
    """Runs of three slow points that nothing disturbed."""
    folder = tmp_path_factory.mktemp("calm")
    points, config = tiny("seed=0,1,2", tokens=SLOW)
    assert launch_here(corpus, folder, points, config).done == 3
    return folder / "out/runs"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_workers_checkpoint_and_leave(tiny, launch, background, calm, tmp_path, number, code):
    points, config = tiny("seed=0,1,2", tokens=SLOW)
    launcher = background(points)
    background.wait_for(lambda: len(training(tmp_path / "out/runs", points)) == 2)
    workers = background.children(launcher.pid)
    launcher.send_signal(number)
    out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == code, err
    assert json.loads(out)["left"] == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    states = read_states(points, tmp_path / "out/runs").values()
    stopped = [s for s in states if s.reason]
    assert len(stopped) == 2 and {s.reason["type"] for s in stopped} == {"stopped"}  # said by the workers: none was killed
    assert all(s.status == "pending" for s in states)
    for s in stopped:
        assert list((tmp_path / "out/runs" / s.run_id / "checkpoints").glob(f"step-{s.step:09d}.*"))
    assert launch(points, config).done == 3
    assert_same_runs(calm, tmp_path / "out/runs")
    assert sorted(attempts(tmp_path / "out").values()) == [1, 2, 2]


def test_a_step_longer_than_a_worker_waits_for_a_compiler_ends_in_a_checkpoint(tiny, corpus, tmp_path):
    (point,), _ = tiny("seed=0", "model.width=64", "model.context=256", "batch_size=64", tokens=10_000_000)
    settings = Settings(tmp_path / "runs", tmp_path / "cache", tmp_path / "logs", {corpus.fingerprint: str(corpus.dir)})
    code = "import sweeps.worker as w; w.LEAVE_SECONDS = 0.01; w.main()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as worker:
        for message in ({"settings": {**settings.to_dict(), "cores": []}},
                        {"job": point.id, "point": point.to_dict(), "compile": False}):  # fmt: skip
            print(json.dumps(message), file=worker.stdin, flush=True)
        assert json.loads(worker.stdout.readline())["event"] == "ready"
        assert json.loads(worker.stdout.readline())["step"] > 0
        time.sleep(0.2)  # progress is told between steps: into one
        worker.send_signal(signal.SIGTERM)
        events = [json.loads(line) for line in worker.stdout]
    assert events[-1]["event"] == "end" and events[-1]["status"] == "stopped"
    state = read_status(tmp_path / "runs" / point.id)
    assert state["status"] == "pending" and state["step"] > 0
    assert list((tmp_path / "runs" / point.id / "checkpoints").glob(f"step-{state['step']:09d}.*"))


def test_only_a_compilation_is_given_up_soon():
    stop = Stop()
    assert not stop.in_vain(GRACE_SECONDS - 1) and stop.in_vain(GRACE_SECONDS + 1)  # between jobs
    stop.begin(compiled=True)
    stop.ask()  # before the first step, which compiles
    stop.set()
    assert stop.in_vain(LEAVE_SECONDS + 1)
    stop.ask()
    assert not stop.in_vain(1e9)  # heard
    stop = Stop()
    stop.begin(compiled=True)
    stop.ask(), stop.ask()  # compiled by now
    stop.set()
    assert not stop.in_vain(LEAVE_SECONDS + 1)


def test_workers_of_a_killed_launcher_checkpoint_and_leave(tiny, background, tmp_path):
    points, _ = tiny("seed=0,1", tokens=3_000_000)
    launcher = background(points)
    background.wait_for(lambda: len(training(tmp_path / "out/runs", points)) == 2)
    workers = background.children(launcher.pid)
    launcher.kill()
    launcher.wait()
    background.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
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
