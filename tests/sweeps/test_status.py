"""status: from files alone, each read once; the cache changes what is read and never the answer."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.rundir import RunDirectory, point_yaml
from sweeps import cache as states_cache
from sweeps.cache import SETTLED, cache_path
from sweeps.clock import file_system_time
from sweeps.lease import attempt_path
from sweeps.status import read_state, read_states, render_status, status

OLD = 1_000_000_000  # s since the epoch
KINDS = ("done", "diverged", "failed", "out_of_memory", "running", "pending")


@pytest.fixture(scope="module")
def points(request_of, facts):
    """Twelve points."""
    from sweeps.expand import expand

    return expand(request_of(axes={"seed": list(range(12))}), facts)


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files count as settled at once, as if they had been written long ago."""
    monkeypatch.setattr(states_cache, "SETTLED", -60.0)


def say(runs, point, word, step=1, **more):
    """A status.json as training writes it."""
    folder = runs / point.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "new").write_text(json.dumps({"status": word, "step": step, "attempt": 1, "reason": None, **more}))
    os.replace(folder / "new", folder / "status.json")


def end(runs, point):
    """A run that is done and sealed."""
    run = RunDirectory(runs / point.id, point)
    run.path.mkdir(parents=True, exist_ok=True)
    run.write("point.yaml", point_yaml(point))
    run.write_json("result.json", {})
    run.status("done", 9)


def hold(runs, point, touched, number=1):
    """An attempt of another machine whose heart beat last at `touched` (s since the epoch)."""
    path = attempt_path(runs / point.id, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pid": 1, "start": "1", "machine": "elsewhere", "host": "elsewhere"}))
    os.utime(path, (touched, touched))


class Opened:
    """Which files named status.json this process opens, as the interpreter's audit tells."""

    def __init__(self):
        self.paths = None
        sys.addaudithook(self._hear)

    def _hear(self, event, args):
        if event == "open" and self.paths is not None and str(args[0]).endswith("status.json"):
            self.paths.append(args[0])

    def take(self):
        taken, self.paths = self.paths, []
        return taken


OPENED = Opened()  # once: a hook stays


@pytest.fixture
def opened():
    OPENED.take()
    yield OPENED
    OPENED.paths = None


def test_of_what_is_cached_nothing_is_opened_again(request_of, facts, tmp_path, opened):
    from benchmarks.status import kind_of, write_states
    from sweeps.expand import expand

    points = expand(request_of(axes={"seed": list(range(20)), "tau": "geom(0.1, 1, 25)"}), facts)
    write_states(points, tmp_path / "runs")
    opened.take()
    first = read_states(points, tmp_path / "runs", cache=tmp_path / "cache")
    written = sum(1 for p in points if kind_of(p))
    assert len(opened.take()) == written > 400
    assert read_states(points, tmp_path / "runs", cache=tmp_path / "cache") == first
    assert opened.take() == []
    told = {p.id: {None: "pending", "running": "interrupted"}.get(kind_of(p), kind_of(p)) for p in points}
    assert {i: s.status for i, s in first.items()} == told
    say(tmp_path / "runs", points[0], "done", 77)
    assert read_states(points, tmp_path / "runs", cache=tmp_path / "cache")[points[0].id].step == 77
    assert len(opened.take()) == 1


CHANGE = st.one_of(
    st.tuples(st.just("say"), st.integers(0, 11), st.sampled_from(KINDS), st.integers(1, 9)),
    st.tuples(st.just("overwrite"), st.integers(0, 11), st.sampled_from(KINDS), st.integers(1, 9)),
    st.tuples(st.just("back"), st.integers(0, 11), st.sampled_from(KINDS), st.integers(1, 9)),
    st.tuples(st.sampled_from(["delete", "truncate", "flip", "hold", "end", "odd end", "unsay"]), st.integers(0, 11)),
    st.tuples(st.sampled_from(["swap", "all gone", "no cache", "cut cache", "flip cache", "odd cache", "half"])),
    st.tuples(st.just("read")),
)


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(CHANGE, max_size=25))
@example(changes=[("say", 0, "done", 1), ("read",), ("back", 0, "done", 2)])
@example(changes=[("end", 0), ("say", 1, "done", 1), ("read",), ("swap",)])
@example(changes=[("end", 0), ("read",), ("odd end", 0), ("read",), ("end", 0), ("read",), ("unsay", 0)])
def test_with_a_cache_the_answer_is_that_without(points, tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("runs")
    runs, cache = folder / "runs", folder / "cache"
    runs.mkdir()
    for change in [*changes, ("read",)]:
        make(change, points, runs, cache)
        if change[0] == "read":
            cached = read_states(points, runs, cache=cache)
            assert cached == read_states(points, runs)


def make(change, points, runs, cache):
    """One thing that may happen between two looks."""
    what, *more = change
    point = points[more[0]] if more else None
    file, kept = runs / (point or points[0]).id / "status.json", cache_path(cache, runs)
    if what == "say":
        say(runs, point, more[1], more[2])
    elif what in ("overwrite", "back") and file.exists():  # by hand, in place; with its old time
        times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
        time.sleep(0.011)  # the clock of files ticks every 4 or 10 ms: within one tick is what SETTLED is for
        file.write_text(json.dumps({"status": more[1], "step": more[2], "attempt": 1, "reason": None}))
        if what == "back":
            os.utime(file, ns=times)
    elif what == "end":
        end(runs, point)
    elif what == "odd end" and (runs / point.id / "result.json").exists():
        time.sleep(0.011)
        (runs / point.id / "result.json").write_text("{ }")
    elif what == "unsay" and (runs / point.id / "result.json").exists():
        (runs / point.id / "result.json").unlink()
    elif what == "delete":
        shutil.rmtree(runs / point.id, ignore_errors=True)
    elif what == "hold":
        hold(runs, point, time.time())
    elif what in ("truncate", "flip") and file.exists():
        time.sleep(0.011)
        file.write_bytes(file.read_bytes()[:9] if what == "truncate" else file.read_bytes().replace(b'"s', b'"r'))
    elif what == "swap" and all((runs / p.id).is_dir() for p in points[:2]):  # two runs change places
        for a, b in ((points[0].id, "x"), (points[1].id, points[0].id), ("x", points[1].id)):
            os.rename(runs / a, runs / b)
    elif what == "all gone":
        shutil.rmtree(runs)
        runs.mkdir()
    elif what == "no cache":
        shutil.rmtree(cache, ignore_errors=True)
    elif what == "half":  # another sweep in the same folder
        read_states(points[:6], runs, cache=cache)
    elif kept.is_file() and what.endswith("cache"):
        text = kept.read_bytes()
        kept.write_bytes({"cut": text[: len(text) // 2], "flip": text.replace(b"done", b"dove").replace(b":1", b":2"),
                          "odd": b"[]\n[]"}[what.split()[0]])  # fmt: skip


def test_a_file_that_may_yet_change_unseen_is_not_kept(points, tmp_path, monkeypatch, opened):
    monkeypatch.setattr(states_cache, "SETTLED", SETTLED)
    say(tmp_path / "runs", points[0], "done")
    for _ in range(2):
        read_states(points, tmp_path / "runs", cache=tmp_path / "cache")
        assert len(opened.take()) == 1


LOOK = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from harness.point import Point
from sweeps import cache, status
cache.SETTLED = -60.0
points = [Point.from_dict(p) for p in json.loads(sys.stdin.readline())]
for _ in range(40):
    states = status.read_states(points, Path(sys.argv[1]), cache=Path(sys.argv[2]))
    Path(sys.argv[2], "status").is_dir() and [p.unlink() for p in Path(sys.argv[2], "status").glob("[0-9a-f]*")]
print(json.dumps({i: asdict(s) for i, s in states.items()}))
"""


def test_two_may_write_the_cache_at_once(points, tmp_path):
    for i, point in enumerate(points):
        say(tmp_path / "runs", point, KINDS[i % 4])
    command = [sys.executable, "-c", LOOK.replace("p.unlink()", "p.unlink(missing_ok=True)"), tmp_path / "runs", tmp_path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    pair = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in pair:
        process.stdin.write(json.dumps([p.to_dict() for p in points]) + "\n")
        process.stdin.flush()
    told = {i: asdict(s) for i, s in read_states(points, tmp_path / "runs").items()}
    assert [json.loads(process.communicate(timeout=120)[0]) for process in pair] == [told, told]
    assert not list(tmp_path.glob("status/.*"))


def test_a_cache_folder_that_cannot_be_written_is_done_without(points, tmp_path):
    say(tmp_path / "runs", points[0], "done")
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", Path("/proc")):
        assert read_states(points, tmp_path / "runs", cache=cache)[points[0].id].status == "done"


def test_a_run_whose_result_is_damaged_is_not_done(points, tmp_path, opened):
    for point in points:
        end(tmp_path / "runs", point)

    def states():
        return [s.status for s in read_states(points, tmp_path / "runs", cache=tmp_path / "cache").values()]

    assert states() == ["done"] * 12 and len(opened.take()) == 12
    (tmp_path / "runs" / points[3].id / "result.json").write_text("{ }")
    assert states() == ["done"] * 3 + ["damaged"] + ["done"] * 8 and len(opened.take()) == 1
    assert states()[3] == "damaged" and not opened.take()
    end(tmp_path / "runs", points[3])
    assert states() == ["done"] * 12


@pytest.mark.parametrize("more", [{"step": "x"}, {"attempt": [1]}, {"reason": "odd"}, {"status": 3}, {"status": ["done"]}])
def test_a_damaged_status_stops_nobody(points, tmp_path, more):
    say(tmp_path, points[0], **{"word": "failed", **{"word" if k == "status" else k: v for k, v in more.items()}})
    assert render_status(status(points, tmp_path))


@pytest.mark.parametrize("skew", [-7200.0, 7200.0])
def test_who_trains_is_judged_by_the_file_systems_clock(points, tmp_path, monkeypatch, skew):
    real = time.time
    for point, age in zip(points[:2], (10, 100), strict=True):
        say(tmp_path, point, "running")
        hold(tmp_path, point, real() - age)
    monkeypatch.setattr(time, "time", lambda: real() + skew)
    states = read_states(points, tmp_path, 60)
    assert [states[p.id].status for p in points[:3]] == ["running", "interrupted", "pending"]
    assert read_state(tmp_path, points[0], 60).status == "running"


def test_a_status_asks_the_clock_once(points, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("sweeps.status.file_system_time", lambda folder: asked.append(folder) or file_system_time(folder))
    for point in points:
        say(tmp_path, point, "running")
        hold(tmp_path, point, time.time())
    assert status(points, tmp_path)["counts"]["running"] == 12 and asked == [tmp_path]
    assert sorted(os.listdir(tmp_path)) == sorted(p.id for p in points)  # and leaves nothing behind


def test_in_a_read_only_folder_the_clock_is_this_machines_and_not_before_the_last_change(points, tmp_path, monkeypatch):
    assert file_system_time(Path("/proc")) is None and abs(file_system_time(tmp_path) - time.time()) < 60
    monkeypatch.setattr("sweeps.status.file_system_time", lambda folder: None)
    real = time.time
    say(tmp_path, points[0], "running")
    hold(tmp_path, points[0], real() - 100)
    assert read_state(tmp_path, points[0], 60).status == "interrupted"
    monkeypatch.setattr(time, "time", lambda: real() - 7200)  # behind the server
    assert read_state(tmp_path, points[0], 60).status == "interrupted"


def test_long_lists_are_cut_and_what_waits_in_a_queue_is_said(points, tmp_path):
    many = [replace(points[0], seed=i) for i in range(100)]
    for point in many[:40]:
        say(tmp_path, point, "failed", reason={"type": "worker_SIGKILL", "message": "died", "step": 3})
    say(tmp_path, many[40], "done")
    queued = {p.id: f"waits in Slurm job 12_{i} (Priority)" for i, p in enumerate(many) if i >= 20} | {"other sweep": "x"}
    report = status(many, tmp_path, queued=queued)
    assert len(report["queued"]) == 79 and report["counts"]["pending"] == 59  # not what is done, nor of other sweeps
    assert report["queued"][many[99].id] == "waits in Slurm job 12_99 (Priority)" and len(report["failed"]) == 40
    text = render_status(report | {"runs": "runs"})
    assert "1 done, 59 pending, 40 failed; 79 queued" in text.splitlines()[0]
    assert "and 28 more failed; in all 40 worker_SIGKILL" in text and "and 67 more queued" in text
    assert len(text.splitlines()) < 35 and max(map(len, text.splitlines())) < 100
