"""Files that are cut or have a flipped bit: noticed where it matters, said in a line, and the sweep finishes as it would."""

import contextlib
import json
import os
import random
import shutil

import pytest

from analysis import UserError
from analysis.table import read_runs
from harness.data import prepare
from harness.rundir import finished, read_status
from harness.train import _data
from sweeps.lease import attempt_path, claim
from sweeps.rate import FILE as RATES
from sweeps.rate import measured_rates, record
from sweeps.status import read_states, render_status, status

from ..launches import assert_same_runs
from ..points import CORPUS, request_of
from .running import StopAfter, train

RUN = ("seed=0", "validation.fractions=[0.25,0.5,0.75]")  # checkpoints at each of them


def emptied(path, rng):
    path.write_bytes(b"")


def cut(path, rng):
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(1, len(content) - 1)])


def flipped(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def gone(path, rng):
    path.unlink()


HARM = [emptied, cut, gone, flipped, flipped]


@pytest.fixture(scope="module")
def trained(tiny, corpus, tmp_path_factory):
    """(point, the folder of its finished run, that of one stopped with two checkpoints)."""
    (point,), _ = tiny(*RUN)
    folders = [tmp_path_factory.mktemp(name) for name in ("calm", "stopped")]
    assert train(point, folders[0], corpus)["status"] == "done"
    assert train(point, folders[1], corpus, StopAfter(60))["status"] == "stopped"
    return point, *folders


def copy(folder, to):
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    return to


@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_checkpoint_is_passed_over_and_said(trained, corpus, tmp_path, both):
    point, calm, stopped = trained
    for n, harm in enumerate(HARM):
        folder = copy(stopped, tmp_path / "run")
        files = sorted((folder / "runs" / point.id / "checkpoints").iterdir())
        assert len(files) == 2
        for path in files if both else files[1:]:
            harm(path, random.Random(n))
        ended = train(point, folder, corpus)
        assert ended["status"] == "done"
        words = "no checkpoint is whole" if both else f"{files[1].name} is damaged"
        assert words in ended["said"] or harm is gone
        assert_same_runs(calm / "runs", folder / "runs")


@pytest.mark.parametrize("name", ["result.json", "curve.parquet", "point.yaml"])
def test_damaged_results_are_noticed_by_all_who_read_them(trained, corpus, tmp_path, name):
    point, calm, _ = trained
    for n, harm in enumerate(HARM):
        folder = copy(calm, tmp_path / "run")
        run_dir = folder / "runs" / point.id
        harm(run_dir / name, random.Random(n))
        states = read_states([point], folder / "runs", cache=folder / "cache")
        assert states[point.id].status == "damaged" and states[point.id].left
        report = status([point], folder / "runs", states=states)
        assert report["counts"]["damaged"] == 1 and f"{name} is " in render_status(report)
        if name != "point.yaml":
            frame = read_runs(folder / "runs")
            assert any(f"{name} is " in line for line in frame.attrs["damaged"])
            assert frame.status[0] == ("failed" if name == "result.json" else "done")
        ended = train(point, folder, corpus)
        assert ended["status"] == "done" and ended["trained"] == (name != "point.yaml")  # that is known without training
        assert_same_runs(calm / "runs", folder / "runs")


def test_a_damaged_status_leads_to_the_same_table(trained, corpus, tmp_path):
    point, calm, _ = trained
    for n, harm in enumerate([*HARM, *[flipped] * 15]):
        folder = copy(calm, tmp_path / "run")
        harm(folder / "runs" / point.id / "status.json", random.Random(n))
        render_status(status([point], folder / "runs"))
        with contextlib.suppress(UserError):  # the only run may be unreadable
            read_runs(folder / "runs")
        assert train(point, folder, corpus)["status"] == "done"
        assert_same_runs(calm / "runs", folder / "runs")


def test_a_damaged_attempt_is_overtaken_once_its_lease_is_over(trained, corpus, tmp_path):
    point, calm, stopped = trained
    for n, harm in enumerate(HARM):
        folder = copy(stopped, tmp_path / "run")
        path = attempt_path(folder / "runs" / point.id, 1)
        harm(path, random.Random(n))
        if harm is not gone:
            old = path.stat().st_mtime - 100
            os.utime(path, (old, old))
        assert train(point, folder, corpus)["status"] == "done"
        assert_same_runs(calm / "runs", folder / "runs")


def test_a_holder_whose_attempt_is_damaged_writes_on_or_is_fenced_out(tmp_path):
    for n, harm in enumerate(HARM):
        run_dir = tmp_path / str(n)
        first = claim(run_dir, 60)
        harm(first.path, random.Random(n))
        second = claim(run_dir, 60)
        assert second is None or second.number == 1 or not first.still_mine()
        first.release()
        if second:
            assert second.still_mine() or harm is gone
            second.release()


@pytest.mark.parametrize("name", ["train-00000.bin", "validation-00000.bin", "manifest.json", "verified.json"])
def test_damaged_data_is_told_before_training_or_prepared_anew(tiny, trained, tmp_path, name):
    point, calm, _ = trained
    data = request_of(*CORPUS).config.data
    corpus = prepare(data, tmp_path / "cache", report=lambda _: None)
    whole = {path.name: path.read_bytes() for path in corpus.dir.iterdir()}
    for n, harm in enumerate(HARM):
        harm(corpus.dir / name, random.Random(n))
        folder, told = tmp_path / "run", []
        shutil.rmtree(folder, ignore_errors=True)
        _data.cache_clear()  # what a worker of another launch has not opened yet
        ended = train(point, folder, corpus)
        if name == "verified.json":
            assert ended["status"] == "done"
        else:
            assert ended["status"] == "failed" and ended["reason"]["message"].startswith("damaged data: ")
            assert name in ended["reason"]["message"] and "checkpoint" not in ended["said"]
        again = prepare(data, tmp_path / "cache", report=told.append)
        assert again.fingerprint == corpus.fingerprint
        assert name == "verified.json" or any("preparing it again" in line for line in told)
        for path in (p for p in again.dir.iterdir() if p.name != "verified.json"):
            assert path.read_bytes() == whole[path.name]
        assert train(point, folder, corpus)["status"] == "done"
        assert_same_runs(calm / "runs", folder / "runs")


def test_damaged_rates_are_passed_over(tiny, tmp_path):
    (point,), _ = tiny("seed=0")
    for n, harm in enumerate([*HARM, *[flipped] * 60]):
        for i in range(4):
            record(tmp_path, "cpu", point, i % 2 == 0, 0.01, first_seconds=3.0, cold=True)
        harm(tmp_path / RATES, random.Random(n))
        rates = measured_rates(tmp_path, "cpu", "fp32", probe=False)
        assert 0 < rates.seconds(point, True) < 1e12 and 0 < rates.compile_cold < 1e31


def test_a_launch_trains_again_what_is_damaged_and_nothing_else(tiny, launch, tmp_path):
    points, config = tiny("seed=0,1,2")
    assert launch(points, config, "calm").done == 3
    shutil.copytree(tmp_path / "calm", tmp_path / "out")
    run_dirs = [tmp_path / "out/runs" / p.id for p in points]
    result = json.loads((run_dirs[0] / "result.json").read_text())
    (run_dirs[0] / "result.json").write_text(json.dumps({**result, "loss": result["loss"] + 0.5}))  # it still parses
    gone(run_dirs[1] / "curve.parquet", None)
    assert [finished(r) for r in run_dirs] == [None, None, "done"]
    assert launch(points, config).done == 2
    assert [read_status(r)["attempt"] for r in run_dirs] == [2, 2, 1]
    assert_same_runs(tmp_path / "calm/runs", tmp_path / "out/runs")
