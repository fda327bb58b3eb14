"""One attempt at a time, and an older one never again."""

import json
import os
import subprocess
import sys
import time

import pytest

from harness import files
from harness.rundir import LostRun, RunDirectory, read_status
from sweeps.lease import attempt_path, claim, newest_attempt, scratch_path

CLAIM = """
import sys, time
from sweeps.lease import claim
sys.stdin.readline()
lease = claim(sys.argv[1], 60)
print("mine" if lease else "no", flush=True)
sys.stdin.readline()
"""


def test_of_processes_that_race_one_wins(tmp_path):
    racers = [subprocess.Popen([sys.executable, "-c", CLAIM, str(tmp_path)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True) for _ in range(6)]  # fmt: skip
    time.sleep(1.0)
    for r in racers:
        r.stdin.write("\n")
        r.stdin.flush()
    assert sorted(r.stdout.readline().strip() for r in racers) == ["mine"] + ["no"] * 5
    for r in racers:
        r.communicate("\n")
    assert sorted(os.listdir(tmp_path / "attempts")) == ["000001", "000001.json"]
    assert claim(tmp_path, 60).number == 2  # the holder is dead, whatever its heartbeat


def test_a_released_run_is_free_and_the_old_attempt_is_fenced_out(tmp_path):
    first = claim(tmp_path, 60)
    assert first.number == 1 and first.still_mine() and claim(tmp_path, 60) is None
    first.release()
    assert newest_attempt(tmp_path).ended
    second = claim(tmp_path, 60)
    assert second.number == 2 and second.still_mine() and not first.still_mine()
    first.release()  # changes nothing
    assert claim(tmp_path, 60) is None


def foreign(run_dir, number=1, age=0.0):
    """An attempt by another machine whose last heartbeat is `age` seconds ago."""
    path = attempt_path(run_dir, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pid": 1, "start": "1", "machine": "elsewhere", "host": "elsewhere"}))
    os.utime(path, (time.time() - age,) * 2)


def test_another_machine_keeps_its_run_while_its_heart_beats(tmp_path):
    foreign(tmp_path, age=10)
    assert claim(tmp_path, 60) is None
    foreign(tmp_path, age=61)
    assert claim(tmp_path, 60).number == 2


def test_the_heart_beats(tmp_path):
    lease = claim(tmp_path, 0.4)
    time.sleep(1.2)
    assert newest_attempt(tmp_path).live(0.4)
    lease.release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}'])
def test_a_damaged_attempt_goes_stale_by_its_age(tmp_path, text):
    foreign(tmp_path)
    attempt_path(tmp_path, 1).write_text(text)
    assert claim(tmp_path, 60) is None
    os.utime(attempt_path(tmp_path, 1), (time.time() - 100,) * 2)
    assert claim(tmp_path, 60).number == 2


def test_a_process_number_used_again_is_another_process(tmp_path):
    lease = claim(tmp_path, 60)
    lease.release()
    holder = json.loads(lease.path.read_text())
    del holder["ended"]
    lease.path.write_text(json.dumps({**holder, "start": "12345"}))
    assert claim(tmp_path, 60).number == 2


def test_what_killed_attempts_left_half_written_is_removed(tmp_path):
    foreign(tmp_path, age=100)
    scratch_path(tmp_path, 1).mkdir()
    left = [scratch_path(tmp_path, 1) / ".status.json.1.tmp", tmp_path / "attempts/.a.tmp", tmp_path / "attempts/.b.tmp"]
    for path in left:
        path.touch()
    os.utime(left[1], (time.time() - 100,) * 2)
    assert claim(tmp_path, 60)
    assert [path for path in left if path.exists()] == left[2:]  # a claim of this moment


@pytest.mark.parametrize("at", ["before the file is opened", "between writing and renaming"])
def test_an_attempt_that_wakes_up_inside_a_write_changes_nothing(tmp_path, tiny, monkeypatch, at):
    point = tiny("seed=0")[0][0]
    first = claim(tmp_path, 60)
    run = RunDirectory(tmp_path, point, first.still_mine, first.number, first.scratch)
    run.status("running", 1)

    def overtaken(real):
        """The attempt sleeps here until another one has begun and written."""

        def late(*arguments):
            monkeypatch.undo()
            os.utime(first.path, (time.time() - 100,) * 2)
            holder = json.loads(first.path.read_text())
            first.path.write_text(json.dumps({**holder, "machine": "elsewhere"}))
            os.utime(first.path, (time.time() - 100,) * 2)
            second = claim(tmp_path, 60)
            RunDirectory(tmp_path, point, second.still_mine, second.number, second.scratch).status("done", 7)
            return real(*arguments)

        return late

    if at == "between writing and renaming":
        monkeypatch.setattr(os, "replace", overtaken(os.replace))
    else:
        monkeypatch.setattr(files, "open", overtaken(open), raising=False)
    with pytest.raises(LostRun):
        run.status("running", 2)
    assert read_status(tmp_path) == {**read_status(tmp_path), "status": "done", "step": 7, "attempt": 2}


def test_a_removed_run_directory_is_nobodys(tmp_path):
    lease = claim(tmp_path / "run", 60)
    lease.path.unlink()
    assert not lease.still_mine()
