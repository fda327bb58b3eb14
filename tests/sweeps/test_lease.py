"""One attempt at a time, and an older one never again."""

import json
import os
import subprocess
import sys
import time

import pytest

from sweeps.lease import attempt_path, claim, newest_attempt

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
    assert os.listdir(tmp_path / "attempts") == ["000001.json"]
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
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "attempts").mkdir()
    left = [".status.json.1.tmp", "checkpoints/.step-1.safetensors.1.tmp", "attempts/.a.tmp", "attempts/.b.tmp"]
    for name in left:
        (tmp_path / name).touch()
    os.utime(tmp_path / left[2], (time.time() - 100,) * 2)
    assert claim(tmp_path, 60)
    assert [name for name in left if (tmp_path / name).exists()] == left[3:]  # a claim of this moment


def test_a_removed_run_directory_is_nobodys(tmp_path):
    lease = claim(tmp_path / "run", 60)
    lease.path.unlink()
    assert not lease.still_mine()
