"""Bad requests: 200 random ones a run. Each ends with exit status 2 and a line or two, before anything is trained, and
leaves the files as they were."""

import contextlib
import io
import json
import os
import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import cli
from harness.data import open_corpus

from .bad_requests import TINY, command_lines, sweep_files, without

EXAMPLES = 200
SCALE = float(os.environ.get("HYPERLAW_FUZZ", 1))  # how many times the usual number, for a long run by hand
LAW = {"analysis": "lr", "name": "lr", "given": {"parameterization": "mup", "batch_size": 4}, "form": "", "unit": "",
       "parameters": {"coefficient": {"value": 1.0, "low": 0.9, "high": 1.1},
                      "tokens": {"value": -0.3, "low": -0.35, "high": -0.25}},
       "r2": 0.9, "n": 5, "objective": 0.1, "heldout": {"n": 1}, "method": "quadratic"}  # fmt: skip


class Started(BaseException):
    """Training would have begun; no handler of the CLI catches it."""


def fuzz(examples):
    return settings(max_examples=int(examples * SCALE), deadline=None, derandomize=SCALE == 1, database=None,
                    suppress_health_check=list(HealthCheck))  # fmt: skip


# ---- where it happens


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a table, laws, a run and files of the wrong kind; a cache with the tiny corpus; training forbidden."""
    folder = tmp_path_factory.mktemp("bad")
    cache, here = folder / "cache", folder / "here"
    here.mkdir()
    noise = random.Random(0)
    table = pd.DataFrame([{"params": n, "tokens": 20 * n, "batch_size": 8, "context": 64, "lr": 2.0**-k,
                           "loss": 2 + (k - 2) ** 2 / 9,
                           "weight_decay": 0.1, "parameterization": "mup", "kind": "a", "seed": 0}
                          for n in (1e6, 2e6, 4e6) for k in range(5)])  # fmt: skip
    table.to_csv(here / "t.csv", index=False)
    table.to_parquet(here / "t.parquet")
    (here / "cut.parquet").write_bytes((here / "t.parquet").read_bytes()[:700])
    for name in ("noise.csv", "noise.parquet", "noise.jsonl", "noise.txt.gz", "noise.json", "noise"):
        (here / name).write_bytes(noise.randbytes(2000))
    for name in ("empty.csv", "empty.parquet", "empty.txt", "empty.jsonl"):
        (here / name).write_bytes(b"")
    for name in ("page.csv", "page.parquet", "page.jsonl", "page.json"):
        (here / name).write_text("<!DOCTYPE html><html><body>404, not, found</body></html>\n")
    (here / "header.csv").write_text("params,tokens,lr,loss\n")
    (here / "text.txt").write_text("Some words of prose.\n\n" * 2000)
    for name in ("nothing", "laws", "runs/0123456789abcdef"):
        (here / name).mkdir(parents=True)
    (here / "laws" / "laws.json").write_text(json.dumps({"laws": [LAW], "optima": []}))
    columns = {"run_id": "0123456789abcdef", "params": 10, "tokens": 200, "lr": 0.1}
    run = here / "runs" / "0123456789abcdef"
    (run / "point.yaml").write_text(yaml.safe_dump({"schema": 1, "id": run.name, "columns": columns, "spec": {}}))

    def started(*_, **__):
        raise Started

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERLAW_CACHE", str(cache))
        patch.chdir(here)
        patch.setattr("sweeps.commands.run_plan", started)
        patch.setattr("harness.coordinates.check", started)
        assert hyperlaw("train", *TINY)[0] == "started"
        yield folder


def hyperlaw(*argv):
    """(exit status or "started", stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(list(argv))
        except Started:
            status = "started"
        except SystemExit as e:
            status = e.code
    return status, err.getvalue()


def tree(folder):
    found = sorted(p for p in folder.rglob("*"))
    return {str(p): (p.is_dir() or (p.stat().st_size, p.stat().st_mtime_ns)) for p in found}


def whole(cache):
    """No temporary and no unfinished corpus lies in the cache."""
    assert not [p for p in cache.rglob("*") if p.name.endswith(".tmp")]
    for corpus in (p for p in (cache / "data").iterdir() if p.is_dir()):
        open_corpus(corpus).verify()


def refused(place, argv):
    before = tree(Path.cwd())
    status, err = hyperlaw(*argv)
    assert status == 2, (status, err)
    lines = err.strip().splitlines()
    assert lines and lines[0].startswith("hyperlaw: ") and len(lines) <= 2 and "Traceback" not in err, err
    assert len(lines[0]) > len("hyperlaw: ") + 10
    assert tree(Path.cwd()) == before
    whole(place / "cache")


@fuzz(EXAMPLES * 0.6)
@given(argv=command_lines)
def test_bad_command_lines_are_refused(place, argv):
    refused(place, argv)


@fuzz(EXAMPLES * 0.2)
@given(command=st.sampled_from(["sweep", "status"]), text=sweep_files)
def test_bad_sweep_files_are_refused(place, command, text):
    file = Path("mine/sweep/mine.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else f"# @package _global_\n{text}".encode())
    refused(place, [command, *without(TINY, ["tokens="]), "--config-dir", "mine", "sweep=mine"])


@fuzz(EXAMPLES * 0.1)
@given(data=st.data())
def test_a_damaged_corpus_is_prepared_anew(place, data):
    folder = next(p for p in (place / "cache" / "data").iterdir() if p.is_dir() and p.name.startswith("markov"))
    file = data.draw(st.sampled_from(sorted(p.name for p in folder.iterdir())))
    damage(folder / file, data)
    status, err = hyperlaw(*data.draw(st.sampled_from([["train"], ["sweep", "sweep=lr_width"]])), *TINY)
    assert status == "started", (status, err)
    whole(place / "cache")


@fuzz(EXAMPLES * 0.1)
@given(data=st.data())
def test_damaged_files_of_an_analysis_never_end_in_a_traceback(place, data):
    """Damage may leave a file readable; then the command does its work."""
    name, argv = data.draw(st.sampled_from([
        ("t.csv", ["fit", "analysis=lr", "table=t.csv", "bootstrap=0"]),
        ("t.parquet", ["fit", "analysis=lr", "table=t.parquet", "bootstrap=0"]),
        ("laws/laws.json", ["recommend", "laws=laws", "params=1e6", "tokens=2e7"]),
        ("runs/0123456789abcdef/point.yaml", ["table", "runs=runs"]),
    ]))  # fmt: skip
    whole_file = Path(name).read_bytes()
    try:
        damage(Path(name), data)
        before = tree(Path.cwd())
        status, err = hyperlaw(*argv)
        assert status in (0, 2) and "Traceback" not in err, err
        assert status == 0 or tree(Path.cwd()) == before
    finally:
        Path(name).write_bytes(whole_file)
        shutil.rmtree("out", ignore_errors=True)


def damage(path, data):
    """Cut, overwritten in places, replaced by something else, or gone."""
    content = path.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "flip", "replace", "gone"]))
    if kind == "gone":
        return path.unlink()
    if kind == "cut":
        content = content[: data.draw(st.integers(0, max(len(content) - 1, 0)))]
    elif kind == "flip":
        bytes_ = bytearray(content)
        for _ in range(data.draw(st.integers(1, 4)) if content else 0):
            bytes_[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        content = bytes(bytes_)
    else:
        content = data.draw(st.sampled_from([b"", b"[]", b"{}", b"null", b"5", b"<html>", b'{"laws": 5}', b"\xff" * 99,
                                             b'{"schema": 1, "seal": "x"}',
                                             b'{"laws": [1], "optima": {}}']))  # fmt: skip
    path.write_bytes(content)
