"""Points that another sweep has trained are taken from it: whole ones, and nothing else."""

import json
import os
from dataclasses import replace

import pytest

from harness.config import Config
from harness.rundir import SEALED, digest, finished, read_status
from sweeps.execute import execute
from sweeps.jobs import Job, Settings
from sweeps.lease import claim
from sweeps.plan import make_plan
from sweeps.reuse import reusable, sources, taken

from ..launches import result


@pytest.fixture
def trained(tiny, launch, tmp_path):
    """(points, config, runs directory) of three points, of which one diverges and one is damaged."""
    points, config = tiny("optimizer.lr=1e-3,2e-3,1e9", tokens=1024)
    launch(points, config, "out/first")
    runs = tmp_path / "out/first/runs"
    curve = runs / points[1].id / "curve.parquet"
    curve.write_bytes(curve.read_bytes()[:-1])
    return points, config, runs


def test_whole_runs_are_copied_and_nothing_else(trained, tmp_path):
    points, config, first = trained
    own = tmp_path / "out/second/runs"
    found = reusable(points, own, [first, tmp_path / "nowhere"])
    assert found == {p.id: first / p.id for p in (points[0], points[2])}
    # --dry-run: counted, not copied.
    launcher = replace(config.launcher, compile="never", workers=2)
    plan = make_plan(points, own, launcher, tmp_path, "cpu", probe=False, reused=found)
    assert plan.left == [points[1]] and f"2 points taken from {first}" in plan.render() and not own.exists()
    lease = claim(own / points[2].id, 60)  # somebody trains it here
    assert taken(points, own, found, 60) == {points[0].id: first / points[0].id}
    lease.release()
    assert taken(points, own, found, 60) == {points[2].id: first / points[2].id}  # the other has ended here
    for point in (points[0], points[2]):
        assert finished(own / point.id) == read_status(first / point.id)["status"]
        assert result(own / point.id) == result(first / point.id)
    assert not reusable(points, own, [first]) and finished(own / points[1].id) is None
    (first / points[0].id / "result.json").unlink()  # a copy, no link
    assert finished(own / points[0].id) == "done"


@pytest.fixture
def two(tiny, corpus, tmp_path):
    """(point, runs directory where it is trained, that of another sweep, attempt(until)): `attempt` trains it in the other,
    and says how it ended."""
    (point, *_), _ = tiny(tokens=1024)
    first, second = (tmp_path / "out" / name / "runs" for name in ("first", "second"))

    def attempt(until=None, runs=second):
        settings = Settings(runs, tmp_path / "cache", tmp_path / "logs", {corpus.fingerprint: str(corpus.dir)})
        job = Job(point.id, (point,), "", False, 0.0, until=until)
        return execute(job.message(), settings.to_dict(), lambda **_: None, lambda: False)["status"]

    assert attempt(runs=first) == "done"
    return point, first, second, attempt


def test_a_run_that_ended_here_before_the_claim_stays_as_it_is(two, monkeypatch):
    point, first, runs, attempt = two
    found, files = reusable([point], runs, [first]), {}

    def late(*args):
        assert attempt() == "done"
        files.update({name: (runs / point.id / name).read_bytes() for name in (*SEALED, "status.json")})
        return claim(*args)

    monkeypatch.setattr("sweeps.reuse.claim", late)
    assert found and not taken([point], runs, found, 60)
    assert files and all((runs / point.id / name).read_bytes() == content for name, content in files.items())


def test_checkpoints_of_a_run_that_is_replaced_go(two):
    point, first, runs, attempt = two
    assert attempt(4) == "paused" and list((runs / point.id / "checkpoints").iterdir())
    assert taken([point], runs, reusable([point], runs, [first]), 60)
    assert finished(runs / point.id) == "done" and not list((runs / point.id / "checkpoints").iterdir())


def test_where_is_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / "out" / name / "runs").mkdir(parents=True)
    one, two = (tmp_path / "out" / name / "runs" for name in ("one", "two"))
    said = []
    assert sources(Config(), "one", one, said.append) == [two]
    assert sources(Config(out="elsewhere"), "one", tmp_path / "elsewhere/runs", said.append) == []
    assert sources(Config(reuse=[]), "one", one, said.append) == [] and not said
    asked = Config(reuse=["out/one/runs", "out/none"], out="x")
    assert sources(asked, "x", tmp_path / "x/runs", said.append) == [one]
    assert said == ["reuse: out/none is no folder here, nothing is taken from it"]


def test_a_run_of_another_point_is_not_taken(trained, tmp_path):
    points, _, first = trained
    os.rename(first / points[0].id, tmp_path / "set_aside")
    os.rename(first / points[2].id, first / points[0].id)
    own = tmp_path / "out/second/runs"
    found = reusable(points[:1], own, [first])
    assert found and not taken(points[:1], own, found, 60) and not own.exists()


def test_weights_come_along_where_they_are_kept(tiny, launch, tmp_path):
    points, config = tiny("optimizer.lr=1e-3,1e9", tokens=1024)
    launch(points, config, "out/first", keep_weights=True)
    launch(points, config, "out/none")
    first, none, own = (tmp_path / "out" / name / "runs" for name in ("first", "none", "second"))
    (diverged,) = (p for p in points if p.optimizer.lr == 1e9)
    assert reusable(points, own, [none], weights=True) == {diverged.id: none / diverged.id}
    found = reusable(points, own, [none, first], weights=True)
    done, (kept,) = points[0].id, first.glob("*/weights.safetensors")
    assert found[done] == kept.parent
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1])
    assert taken(points, own, found, 60, weights=True).keys() == {diverged.id} and finished(own / done) is None
    kept.write_bytes(whole)
    assert taken(points, own, found, 60, weights=True).keys() == {done}
    assert (own / done / "weights.safetensors").read_bytes() == whole and finished(own / done) == "done"
    plain = tmp_path / "out/third/runs"
    assert taken(points, plain, found, 60).keys() == {*found} and not list(plain.rglob("weights.safetensors"))


@pytest.mark.parametrize("seals", ["fewer", "more"])
def test_only_what_a_run_seals_is_copied(trained, tmp_path, seals):
    points, _, first = trained
    run, own = first / points[0].id, tmp_path / "out/second/runs"
    said = read_status(run)
    if seals == "fewer":
        del said["sealed"]["curve.parquet"]
    else:
        (first.parent / "else").write_text("of somebody else")
        said["sealed"]["../../else"] = digest(b"of somebody else")
    (run / "status.json").write_text(json.dumps(said))
    assert not reusable(points[:1], own, [first])
    assert not taken(points[:1], own, {points[0].id: run}, 60)
    assert not (own / points[0].id / "../../else").exists() and finished(own / points[0].id) is None


def test_a_run_folder_that_is_a_link_is_left_alone(trained, tmp_path):
    points, _, first = trained
    own, elsewhere = tmp_path / "out/second/runs", tmp_path / "elsewhere"
    own.mkdir(parents=True)
    elsewhere.mkdir()
    (own / points[0].id).symlink_to(elsewhere)
    assert not taken(points[:1], own, {points[0].id: first / points[0].id}, 60)
    assert not (elsewhere / "result.json").exists()
