"""Beginnings trained once: branches are bit for bit what they are alone, the plan says what is saved, trunks go then."""

import contextlib
import io
import json
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from analysis.table import read_runs
from harness.checkpoint import checkpoints
from harness.config import LauncherConfig
from harness.group import Alone
from harness.rundir import read_status
from harness.state import State
from sweeps import sharing, trunks
from sweeps.allocation import Part, _to_do, read_job
from sweeps.display import Display
from sweeps.engines import engine_settings
from sweeps.execute import execute
from sweeps.jobs import Settings, trunks_dir
from sweeps.local import LocalLaunch, run
from sweeps.packing import pack
from sweeps.plan import make_plan
from sweeps.rate import Rates, Speed
from sweeps.slurm import SlurmLaunch
from sweeps.status import render_status
from sweeps.status import status as report_of
from sweeps.submit import job_dict
from sweeps.trunks import job_states, trunk_report

from ..launches import result

COMMON = ("schedule.warmup_tokens=1024", "optimizer.weight_decay=0.1", "validation.fractions=[0.3,0.6]")
WSD = ("schedule=wsd", "schedule.cooldown=0.25", *COMMON)
OWN = ("trunk", "flops_spent")  # what a branch's result says of its trunk


@pytest.fixture(autouse=True)
def every_trunk(monkeypatch):
    """However little it saves."""
    monkeypatch.setattr(sharing, "JOB_SECONDS", 1e-6)
    monkeypatch.setattr(sharing, "BYTES_PER_SECOND", 1e15)


@pytest.fixture
def plan_of(tmp_path):
    def plan(points, config, name, **how):
        launcher = replace(config.launcher, compile="never", workers=2)
        return make_plan(points, tmp_path / name / "runs", launcher, tmp_path / "cache", "cpu", probe=False, **how)

    return plan


@pytest.fixture
def train(corpus, tmp_path):
    """(jobs, folder) -> what `execute` said of each, one after the other in this process."""

    def one_by_one(jobs, name, **more):
        chosen = {"runs_dir": tmp_path / name / "runs", "cache": tmp_path / "cache", "logs": tmp_path / name / "logs",
                  "corpora": {corpus.fingerprint: str(corpus.dir)}, **more}  # fmt: skip
        settings = Settings(**chosen).to_dict()
        with contextlib.redirect_stderr(io.StringIO()):
            return [execute(job.message(), settings, lambda **_: None, lambda: False) for job in jobs]

    return one_by_one


def assert_equal(alone, shared):
    """The runs of both folders are the same, byte by byte of the curve."""
    assert sorted(os.listdir(alone)) == sorted(os.listdir(shared))
    for name in os.listdir(alone):
        a, b = alone / name, shared / name
        assert (a / "curve.parquet").read_bytes() == (b / "curve.parquet").read_bytes()
        first, second = result(a), result(b)
        assert {k: v for k, v in first.items() if k not in OWN} == {k: v for k, v in second.items() if k not in OWN}
        said, again = read_status(a), read_status(b)
        assert (said["status"], said["reason"]) == (again["status"], again["reason"])
        assert not checkpoints(b)


def test_branches_are_what_they_are_alone(tiny, plan_of, train, tmp_path):
    """Horizons, both shapes of cooldown, a constant run that ends where others go on, batch ramps, one that diverges."""
    points, config = tiny(*WSD, "optimizer.lr=1e-2,30", tokens="8192,12288,16384")
    points += tiny(*WSD, "optimizer.lr=1e-2", "schedule.cooldown_shape=linear", tokens=16384)[0]
    # Up to where the longest two cool down.
    points += tiny("schedule=constant", *COMMON, "optimizer.lr=1e-2", tokens=12288)[0]
    ramp = ("schedule=wsd", "schedule.batch_ramp=[[4096,2]]", "schedule.cooldown=0.2,0.5")
    points += tiny(*ramp, *COMMON, "optimizer.lr=1e-2", tokens=16384)[0]
    # Batches behind the trunk that are larger than those of its point.
    points += tiny("schedule=constant", *COMMON, "optimizer.lr=1e-2", "batch_size=2", tokens=8192)[0]
    points += tiny("schedule=constant", "schedule.batch_ramp=[[4096,2]]", *COMMON, "optimizer.lr=1e-2", "batch_size=8",
                   tokens=8192)[0]  # fmt: skip
    shared, alone = plan_of(points, config, "shared"), plan_of(points, config, "alone", share=False)
    assert shared.flops + shared.flops_saved == alone.flops and shared.flops_saved > 0.2 * alone.flops
    assert not alone.forest.start and len(alone.jobs()) == len(points)
    train(alone.jobs(), "alone")
    said = train(shared.jobs(), "shared")
    assert_equal(tmp_path / "alone/runs", tmp_path / "shared/runs")
    table = read_runs(tmp_path / "shared/runs")
    spent = table["flops_spent"].sum() + sum(m["flops_spent"] for m in said if m["status"] == "paused")
    diverged = {p.id for p in points if p.optimizer.lr == 30}
    assert set(table[table["status"] == "diverged"]["run_id"]) == diverged
    # The plan cannot know where training diverges: nothing is spent behind the trunk's look at its log.
    planned = sum(trained_by_plan(shared, job) for job in shared.jobs() if job.points[0].optimizer.lr != 30)
    beyond = sum(m["flops_spent"] for m, job in zip(said, shared.jobs(), strict=True) if job.points[0].optimizer.lr == 30)
    assert spent == planned + beyond and beyond < sum(p.flops for p in points if p.id in diverged) / 2
    # One block per beginning, which tables keep.
    assert table["trunk"].notna().all() and table["trunk"].nunique() == 3
    assert (read_runs(tmp_path / "alone/runs").trunk.isna()).all()
    assert table.set_index("run_id")["trunk"].to_dict() == shared.forest.root
    line = next(line for line in shared.render().splitlines() if "saved" in line)
    assert f"{len(shared.forest.start)} points begin from {len(shared.forest.trunks)} trunks" in line
    assert shared.to_dict()["flops_saved"] == shared.flops_saved and not alone.to_dict()["trunks"]
    assert sum(job.seconds for job in shared.jobs()) < sum(job.seconds for job in alone.jobs())


def trained_by_plan(plan, job):
    return job.points[0].flops_at(job.last) - job.points[0].flops_at(job.first)


def test_a_later_round_names_what_it_shares_with_the_first(tiny, plan_of, train):
    """Also where it parts earlier, and the trunk of the first is gone."""
    for tokens in ("12288,16384", "8192,10240"):
        points, config = tiny(*WSD, tokens=tokens)
        plan = plan_of(points, config, "rounds")
        train(plan.jobs(), "rounds")
        trunks.clean(plan.runs_dir)
        assert not trunks_dir(plan.runs_dir).exists()
    assert len(trunk := read_runs(plan.runs_dir)["trunk"]) == 4 and trunk.notna().all() and trunk.nunique() == 1


@pytest.fixture
def pair(tiny, plan_of, train):
    """(points, config, plan, trunk's job, branches' jobs) of two horizons, trained alone in `alone`."""
    points, config = tiny(*WSD, tokens="8192,12288")
    train(plan_of(points, config, "alone", share=False).jobs(), "alone")
    plan = plan_of(points, config, "shared")
    trunk, *branches = plan.jobs()
    assert trunk.trunk and [b.needs for b in branches] == [(trunk.id,)] * 2 and trunk.after >= branches[1].seconds
    return points, config, plan, trunk, branches


def test_damaged_and_missing_trunks(pair, train, plan_of, tmp_path):
    points, config, plan, trunk, branches = pair
    (said,) = train([trunk], "shared")
    assert said["status"] == "paused" and trunks.known(plan.runs_dir).keys() == {trunk.id}
    assert train([trunk], "shared") == [{"status": "paused", "trained": False}]  # its FLOPs count once
    assert [job.trunk for job in plan_of(points, config, "shared").jobs()] == [False, False]  # it is used again
    (file,) = checkpoints(trunk.folder(plan.runs_dir))
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    (said,) = train(branches[:1], "shared")
    assert said["alone"] and said["status"] == "done"
    file.unlink()  # seen when planning: trained again, for one that is left not
    assert not trunks.known(plan.runs_dir)
    left = plan_of(points, config, "shared").jobs()
    assert [(job.trunk, job.start) for job in left] == [(False, None)]
    (said,) = train(branches[1:], "shared")  # planned before
    assert said["alone"] and said["status"] == "done"
    assert_equal(tmp_path / "alone/runs", tmp_path / "shared/runs")
    assert read_runs(plan.runs_dir)["trunk"].isna().all()


def test_a_trunk_that_measured_less_is_trained_anew(pair, train, plan_of, tmp_path):
    points, config, plan, trunk, branches = pair
    ends = [s for p in points for s in p.validation_steps if s <= trunk.last]
    assert set(ends) == set(trunk.validate_at)
    lacking = replace(points[0], validation=replace(points[0].validation, fractions=(0.99,)))
    train([replace(trunk, points=(lacking,), validate_at=())], "shared")
    again = plan_of(points, config, "shared").jobs()
    assert again[0].trunk and again[0].id == trunk.id
    assert job_states([trunk], plan.runs_dir, 60)[trunk.id].status == "pending"
    assert [m["status"] for m in train([*branches[:1], trunk, *branches[1:]], "shared")] == ["done", "paused", "done"]
    assert_equal(tmp_path / "alone/runs", tmp_path / "shared/runs")


def test_launches_that_validate_elsewhere_at_one_trunk(pair, tiny, plan_of, train, tmp_path):
    """Each trains the trunk for what it measures itself; a branch whose trunk has not measured that trains alone."""
    points, config, plan, trunk, branches = pair
    more, _ = tiny(*WSD, "validation.fractions=[0.2,0.5]", tokens="8192,12288")
    train(plan_of(more, config, "alone", share=False).jobs(), "alone")
    other = plan_of(more, config, "shared")
    theirs, *behind = other.jobs()
    assert theirs.id == trunk.id and theirs.validate_at != trunk.validate_at and not {*more} & {*points}
    for each in (plan, other):
        trunks.need(each.jobs(), plan.runs_dir)
    said = train([trunk, behind[0], branches[0], theirs, branches[1], behind[1]], "shared")
    assert [m["status"] for m in said] == ["paused", "done", "done", "paused", "done", "done"]
    assert [m.get("alone") for m in said] == [False, True, False, False, True, False]
    assert_equal(tmp_path / "alone/runs", tmp_path / "shared/runs")


def test_only_the_end_of_its_own_trunk_is_begun_from(pair, tiny, plan_of, train, tmp_path):
    points, config, plan, trunk, branches = pair
    others = plan_of(tiny(*WSD, "optimizer.lr=2e-2", tokens="8192,12288")[0], config, "others").jobs()
    train([trunk], "shared")
    train(others[:1], "others")
    (own,), (foreign,) = (checkpoints(job.folder(tmp_path / name / "runs"))
                          for job, name in ((trunk, "shared"), (others[0], "others")))  # fmt: skip
    own.write_bytes(foreign.read_bytes())  # whole, but of other steps
    assert train(branches[:1], "shared")[0]["alone"]
    own.unlink()
    train([replace(trunk, until=8)], "shared")  # its first steps: validated where it was due, but not at its end
    assert train(branches[1:], "shared")[0]["alone"]
    assert_equal(tmp_path / "alone/runs", tmp_path / "shared/runs")


def test_ranks_begin_where_the_first_does():
    class Second(Alone):
        rank, leads = 1, False

        def __init__(self, told):
            self.told = told

        def agree(self, *_):
            return (self.told,)

    def agreed(found, told):
        return State._agreed(SimpleNamespace(group=Second(told)), found)

    found = {}, {"step": 40}, []
    assert agreed(found, 40) is found and agreed(found, 0) is None and agreed(None, 0) is None
    for mine in (None, found):
        with pytest.raises(RuntimeError, match="rank 1 does not find the checkpoint of step 60"):
            agreed(mine, 60)


def test_compiled_in_bf16_by_micro_batches(tiny, plan_of, train, tmp_path):
    """Results are those of training alone there too."""
    points, config = tiny(*WSD, "precision=bf16", tokens="2048,3072")
    for name, share in (("alone", False), ("shared", True)):
        jobs = [replace(job, compile=True) for job in plan_of(points, config, name, share=share).jobs()]
        assert len(jobs) == 2 + share
        said = train(jobs, name, micro_batch=2)
        assert all(m["compiled"] and m["status"] in ("done", "paused") and not m["alone"] for m in said)
    assert_equal(tmp_path / "alone/runs", tmp_path / "shared/runs")
    assert {result(run)["micro_batch"] for run in (tmp_path / "shared/runs").iterdir()} == {2}


def test_shapes_that_share_trunks_are_compiled_alike(tiny, tmp_path):
    """Two ramps of one first batch: what begins from a trunk keeps its numerics."""
    ramp = ("schedule=wsd", "schedule.batch_ramp=[[4096,2]]", *COMMON)
    short, config = tiny(*ramp, "batch_size=4", tokens=8192)
    long, _ = tiny(*ramp, "batch_size=8", tokens=2_000_000)
    rates = {"fp32": Rates("a chip", Speed(4e-3, 1e10, ""), Speed(1e-3, 2e10, ""), 4.0, 0.2)}

    def groups(share):
        launcher = replace(config.launcher, workers=2)
        return make_plan([*short, *long], tmp_path / "runs", launcher, tmp_path, "cpu", rates=rates, share=share).groups

    assert sorted(g.compile for g in groups(False)) == [False, True]
    assert all(g.compile for g in groups(True)) and any("shares trunks" in g.reason for g in groups(True))


def test_own_progress_goes_on_alone(pair, plan_of):
    points, config, plan, trunk, branches = pair
    folder = plan.runs_dir / points[0].id / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "step-000000004.safetensors").touch()
    assert [(job.trunk, job.start) for job in plan_of(points, config, "shared").jobs()] == [(False, None)] * 2


def test_trunks_go_when_nobody_needs_them(pair, train, tmp_path):
    points, config, plan, trunk, branches = pair
    runs, folder = plan.runs_dir, trunk.folder(plan.runs_dir)
    trunks.need(plan.jobs(), runs)
    train([trunk, branches[0]], "shared")
    trunks.clean(runs)
    assert folder.exists()  # another launch may have planned the other branch
    for mark in (folder / trunks.NEEDED).iterdir():
        os.utime(mark, (0, time.time() - 2 * trunks.ABANDONED_SECONDS))
    trunks.clean(runs, {points[1].id})
    assert folder.exists()
    train(branches[1:], "shared")
    trunks.clean(runs)
    assert not trunks_dir(runs).exists()
    # A launch that had planned it before: nothing is trained for points that have ended.
    assert train([trunk], "shared") == [{"status": "paused", "trained": False}]
    trunks.need(plan.jobs(), runs)
    (folder / trunks.NEEDED / "0123456789abcdef").touch()  # a point that somebody else plans
    trunks.clean(runs)
    assert folder.exists()
    os.utime(folder / trunks.NEEDED / "0123456789abcdef", (0, time.time() - 2 * trunks.ABANDONED_SECONDS))
    trunks.clean(runs)
    assert not trunks_dir(runs).exists()


def test_status_tells_of_trunks(pair, train):
    points, config, plan, trunk, branches = pair
    train([replace(trunk, until=8)], "shared")  # some way
    report = trunk_report(plan.jobs(), plan.runs_dir, 60)
    assert report[0]["trunk"] == trunk.id and report[0]["points"] == 2 and report[0]["step"] == 8
    assert report[0]["waiting"] == [b.id for b in branches]
    text = render_status(report_of(points, plan.runs_dir, trunks=[{**report[0], "status": "running"}]))
    assert "2 points wait for a trunk" in text and f"trunk of 2 points, step 8/{trunk.last}" in text
    assert "2 pending" in text.splitlines()[0]


def test_slurm_keeps_trees_together_and_branches_of_lost_trunks_alone(pair, tiny, plan_of, tmp_path):
    points, config, plan, trunk, branches = pair
    assert [read_job(json.loads(json.dumps(job_dict(job)))) for job in plan.jobs()] == plan.jobs()
    more, _ = tiny(*WSD, "optimizer.lr=2e-2", tokens="8192,12288,16384")
    both = plan_of([*points, *more], config, "shared")
    shares = pack(both.jobs(), 3)
    assert [(share.level, share.needs) for share in shares] == [(0, frozenset())] * 2
    assert sorted(sum(not job.trunk for job in share.jobs) for share in shares) == [2, 3]
    apart = pack(both.jobs(), 1)  # a tree that is too large: what begins from a trunk waits for it
    assert sorted(map(sum, ((not job.trunk for job in share.jobs) for share in apart))) == [1] * 5
    assert {share.level for share in apart} == {0, 1, 2} and apart[-1].needs <= {job.id for job in both.jobs() if job.trunk}
    settings = Settings(plan.runs_dir, tmp_path, tmp_path / "logs", {})
    spec = {"needs": {trunk.id: [trunk.id]}, "attempts": {}}
    states = job_states(branches, plan.runs_dir, 60)
    said = io.StringIO()
    left = _to_do(branches, spec, settings, states, 0, said)
    assert [(job.start, job.needs, job.first) for job in left] == [(None, (), 0)] * 2 and "trained alone" in said.getvalue()


def test_a_trunk_is_trained_for_branches_of_other_launches_too(pair, train, tmp_path):
    """An allocation may hold a trunk alone; one whose branches have ended meanwhile is not trained."""
    points, config, plan, trunk, branches = pair
    trunks.need(plan.jobs(), plan.runs_dir)
    launch = LocalLaunch(Part((trunk,)), Settings(plan.runs_dir, tmp_path, tmp_path, {}), Display(io.StringIO()))
    launch._drop_dependents()
    assert list(launch.ready()) == [trunk.id]
    train([job.alone() for job in branches], "shared")
    launch._drop_dependents()
    assert not launch.waiting


def test_a_launch_with_a_lost_trunk_and_further_points(pair, tiny, plan_of, train, corpus, tmp_path):
    """One trunk cannot be trained, one comes with an extension."""
    points, config, plan, trunk, branches = pair
    added, _ = tiny(*WSD, "optimizer.lr=2e-2", tokens="8192,12288")
    train(plan_of(added, config, "alone", share=False).jobs(), "alone")
    trunk.folder(plan.runs_dir).mkdir(parents=True)
    (trunk.folder(plan.runs_dir) / "attempts").write_text("no folder")
    rounds = [plan_of(added, config, "shared")]
    settings = Settings(plan.runs_dir, tmp_path / "cache", tmp_path / "shared/logs", {corpus.fingerprint: str(corpus.dir)},
                        workers=2, max_attempts=1)  # fmt: skip
    stream = io.StringIO()
    summary = run(plan, settings, more=lambda: rounds.pop() if rounds else None, stream=stream)
    said = stream.getvalue()
    assert (summary.done, summary.failed, summary.left, summary.exit_status) == (4, 0, 0, 0)
    assert f"trunk of 2 points to step {trunk.last}: failed" in said and "they train alone" in said
    assert_equal(tmp_path / "alone/runs", tmp_path / "shared/runs")
    table = read_runs(plan.runs_dir).set_index("run_id")["trunk"]
    assert table[[p.id for p in points]].isna().all() and table[[p.id for p in added]].nunique() == 1
    assert summary.flops_spent == sum(p.flops for p in points) + plan_of(added, config, "new").flops
    assert not trunks_dir(plan.runs_dir).exists()


@pytest.mark.parametrize("engine", [LocalLaunch, SlurmLaunch])
def test_a_long_launch_keeps_what_it_needs(engine, pair, train, tmp_path):
    """Its marks do not grow old while it lasts, but for those of runs that have ended."""
    points, config, plan, trunk, branches = pair
    train([trunk], "shared")

    class OneLook(engine):
        def assign(self):
            pass

        def hear(self, timeout):
            self.summary.signal = 15

    settings = Settings(plan.runs_dir, tmp_path, tmp_path, {}, engine=engine_settings(LauncherConfig(name="slurm")))
    launch = OneLook(plan, settings, Display(io.StringIO()))
    marks = [trunk.folder(plan.runs_dir) / trunks.NEEDED / job.id for job in branches]
    for mark in marks:
        os.utime(mark, (0, 0))
    launch.finished.add(branches[0].id)
    launch.marked -= 2 * 86400
    launch._work_off()
    assert marks[0].stat().st_mtime == 0 and time.time() - marks[1].stat().st_mtime < 3600


def test_branches_sum_their_gradients_over_the_pass_of_their_trunk(pair, plan_of, train, tmp_path):
    """Whatever the batch sizes that are left made the plan choose since."""
    points, config, plan, trunk, branches = pair
    train([replace(job, shared_pass=2) for job in plan_of(points, config, "passes", share=False).jobs()], "passes")
    train([replace(trunk, shared_pass=2), *branches], "shared")
    assert_equal(tmp_path / "passes/runs", tmp_path / "shared/runs")
    assert {result(tmp_path / "shared/runs" / p.id)["micro_batch"] for p in points} == {2}
    assert {result(tmp_path / "alone/runs" / p.id)["micro_batch"] for p in points} == {4}
