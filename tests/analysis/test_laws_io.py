"""laws.json: entries replaced and kept, numbers finite or null, errors that name the file."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import laws_io, lock
from analysis.errors import UserError


def law(name="lr", value=1.0, **extra):
    return {"name": name, "given": {}, "parameters": {"coefficient": {"value": value}}, **extra}


def names(folder):
    return [(entry["analysis"], entry["name"]) for entry in laws_io.read(folder)["laws"]]


def test_a_fit_replaces_its_own_entries_and_keeps_the_rest(tmp_path):
    laws_io.write(tmp_path, "lr", [law("lr")], [{"target": "lr", "value": 1.0}])
    laws_io.write(tmp_path, "tau", [law("tau")], [{"target": "tau", "value": 0.2}])
    laws_io.write(tmp_path, "lr", [law("lr", 2.0), law("lr", 3.0)], [])
    content = laws_io.read(tmp_path)
    assert names(tmp_path) == [("tau", "tau"), ("lr", "lr"), ("lr", "lr")]
    assert [entry["parameters"]["coefficient"]["value"] for entry in content["laws"][1:]] == [2.0, 3.0]
    assert [entry["target"] for entry in content["optima"]] == ["tau"]
    assert [path.name for path in tmp_path.iterdir()] == ["laws.json"]


def test_numbers_are_finite_or_null(tmp_path):
    odd = {
        "r2": math.nan,
        "covariance": np.array([[1.0, np.inf], [0.0, 2.0]]),
        "n": np.int64(4),
        "range": {"params": {"low": np.float32(2.0), "high": -math.inf}},
        "sampled": {"params": pd.Series([1.0, math.nan]), "width": (1, pd.NA)},
        "flag": np.bool_(True),
    }
    path = laws_io.write(tmp_path / "deep" / "er", "lr", [law(**odd)], [])
    entry = json.loads(path.read_text(), parse_constant=pytest.fail)["laws"][0]
    assert entry["r2"] is None and entry["n"] == 4 and entry["flag"] is True
    assert entry["covariance"] == [[1.0, None], [0.0, 2.0]]
    assert entry["range"] == {"params": {"low": 2.0, "high": None}}
    assert entry["sampled"] == {"params": [1.0, None], "width": [1, None]}


def test_nan_in_a_foreign_file_reads_as_null(tmp_path):
    text = '{"laws": [{"name": "lr", "parameters": {"coefficient": {"value": 1, "low": NaN}}}]}'
    (tmp_path / "laws.json").write_text(text)
    assert laws_io.read(tmp_path)["laws"][0]["parameters"]["coefficient"]["low"] is None


@pytest.mark.parametrize(
    ("text", "say"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a laws.json"),
        ('{"laws": {}}', "not a laws.json"),
        ('{"laws": [1]}', "law 1"),
        ('{"laws": [{"name": "lr"}]}', "parameters"),
        ('{"laws": [{"name": "lr", "parameters": {"coefficient": 3}}]}', "coefficient"),
        ('{"laws": [{"name": "lr", "parameters": {"coefficient": {"value": "3"}}}]}', "coefficient"),
        ('{"laws": [{"name": "lr", "parameters": {}, "given": []}]}', "given"),
        ('{"laws": [{"name": "lr", "parameters": {}, "dof": "3"}]}', "dof"),
        ('{"laws": [{"name": "lr", "parameters": {"coefficient": {"value": NaN}}}]}', "value of coefficient is not finite"),
        ('{"laws": [{"name": "lr", "parameters": {"coefficient": {"value": 1e999}}}]}', "is not finite"),
        ('{"laws": [], "optima": [3]}', "optima"),
        ('{"laws": [], "optima": [{"given": 3}]}', "given"),
    ],
)
def test_a_foreign_file_is_named_and_left_alone(tmp_path, text, say):
    path = tmp_path / "laws.json"
    path.write_text(text)
    for act in (lambda: laws_io.read(tmp_path), lambda: laws_io.write(tmp_path, "lr", [law()], [])):
        with pytest.raises(UserError, match=say) as error:
            act()
        assert str(path) in str(error.value) and len(str(error.value).splitlines()) <= 2
    assert path.read_text() == text


def test_a_missing_file_says_where_one_is(tmp_path):
    with pytest.raises(UserError, match="hyperlaw fit"):
        laws_io.read(tmp_path / "nowhere")
    laws_io.write(tmp_path / "laws", "lr", [law()], [])
    with pytest.raises(UserError, match="did you mean laws=.*laws"):
        laws_io.read(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = laws_io.write(tmp_path, "lr", [law()], [])
    before = path.read_bytes()
    monkeypatch.setattr(laws_io.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError):
        laws_io.write(tmp_path, "tau", [law("tau")], [])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


WRITER = """
import sys
from analysis import lock, laws_io
if sys.argv[3] == "file":
    lock.fcntl = None
for i in range(25):
    law = {"name": sys.argv[2], "given": {}, "parameters": {"coefficient": {"value": float(i)}}}
    laws_io.write(sys.argv[1], f"{sys.argv[2]}{i}", [law], [])
"""


@pytest.mark.parametrize("kind", ["flock", "file"])
def test_two_fits_into_one_folder_at_once_keep_each_other(tmp_path, kind):
    """2 x 25 writes by two processes: without the lock, entries of one are read before the other's are written."""
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, name, kind], cwd=root, env={**os.environ, "PYTHONPATH": root}) for name in ("lr", "tau")
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    assert sorted(names(tmp_path)) == sorted((f"{name}{i}", name) for name in ("lr", "tau") for i in range(25))
    assert [path.name for path in tmp_path.iterdir()] == ["laws.json"]


def test_a_lock_that_is_held_is_named_and_a_dead_one_is_passed_over(tmp_path, monkeypatch):
    with lock.exclusive(tmp_path), pytest.raises(UserError, match="another process has held"):
        with lock.exclusive(tmp_path, wait=0.05):
            pass
    monkeypatch.setattr(lock, "fcntl", None)
    left = tmp_path / ".lock"
    left.touch()
    with pytest.raises(UserError, match="another process"), lock.exclusive(tmp_path, wait=0.05):
        pass
    os.utime(left, (0, 0))
    laws_io.write(tmp_path, "lr", [law()], [])
    assert not left.exists()
