"""Halving stops what cannot win, and nothing else changes: files written by hand, and real training, killed and not. The
rule itself: test_stopping.py."""

import math
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analysis.fit import fit
from analysis.table import read_runs
from harness.compose import compose
from harness.curve import curve_columns
from harness.errors import UserError
from harness.rundir import RunDirectory, finished, read_point, read_status
from sweeps.execute import execute
from sweeps.expand import expand_members
from sweeps.halving import Halving, chained
from sweeps.jobs import Job, Settings
from sweeps.launch import prepare_plan, run_plan
from sweeps.lease import claim
from sweeps.plan import make_plan
from sweeps.prune import prune, reopen
from sweeps.status import render_status, status

from ..launches import Background, result, table

# ---- decisions from files


@pytest.fixture
def sweep(request_of, facts, tmp_path):
    """build(axes, strategy, words, **sweep) -> planned; its runs lie in tmp_path/runs."""

    def build(axes=None, strategy="halving", words=(), **chosen):
        axes = axes or {"optimizer.lr": "log2(-11, -3, 9)"}
        r = request_of("tokens=102400", *words, axes=axes, strategy=strategy, **chosen)
        members = expand_members(r, facts)
        halving = strategy == "halving"
        plan = make_plan([m.point for m in members], tmp_path / "runs", r.config.launcher, tmp_path, "cpu", probe=False,
                         keep_pruned=halving, share=False)  # fmt: skip
        planned = SimpleNamespace(request=r, members=members, plan=plan, book=facts, out=tmp_path)
        if halving:
            planned.halving = Halving(planned, tmp_path)
            planned.plan = planned.halving.begin()
        return planned

    return build


def train(plan, best=2.0**-7, rate=-0.3, only=None):
    """What training up to where the plan pauses leaves: a basin in log2 of the LR that moves, no noise."""
    for p in plan.left:
        step = plan.until.get(p.id, p.steps)
        if only is not None and p.id not in only or read_status(plan.runs_dir / p.id).get("step", -1) == step:
            continue
        run = RunDirectory(plan.runs_dir / p.id, p)
        run.begin()
        u = np.arange(1, step + 1) / p.steps
        off = math.log(p.optimizer.lr / best) - rate * np.log(u)
        log = np.stack([2 + 0.5 / (u + 0.1) + 0.03 * off**2 + 0.01 * p.seed, np.ones(step)], axis=1).astype(np.float32)
        lost = p.optimizer.lr > 0.2
        run.curve(curve_columns(p, log[: step // 2 if lost else step], [], 200))
        end = {"loss": float(log[-1, 0]) if step == p.steps and not lost else None, "train_loss": float(log[-1, 0]),
               "tokens": step * p.batch_tokens, "flops": p.flops * step // p.steps}  # fmt: skip
        run.write_json("result.json", end)
        checkpoint = run.path / "checkpoints" / f"step-{step:09d}.safetensors"
        checkpoint.touch()
        reason = {"type": "paused", "message": "", "step": step}
        if lost:
            run.status("diverged", step, reason)
        else:
            run.status(*(("done", step) if step == p.steps else ("pending", step, reason)))


def follow(planned, **how):
    """All rounds; the notes."""
    notes = [*planned.plan.notes]
    train(planned.plan, **how)
    while (plan := planned.halving.more()) is not None:
        notes += plan.notes
        if not plan.points:
            break
        train(plan, **how)
    return notes


def verdicts(planned):
    """{(log2 lr, ...): (status, step)}"""
    said = {}
    for m in planned.members:
        s = read_status(planned.plan.runs_dir / m.point.id)
        key = tuple(round(math.log2(v)) if k == "optimizer.lr" else v for k, v in m.values.items())
        said[key if len(key) > 1 else key[0]] = (s["status"], s["step"])
    return said


def test_far_points_are_stopped_and_marked(sweep, tmp_path):
    planned = sweep()
    notes = follow(planned)
    said = verdicts(planned)
    steps = planned.members[0].point.steps
    pruned = {k for k, (word, _) in said.items() if word == "pruned"}
    assert pruned and pruned <= {-11, -10, -4, -3} and all(said[k] == ("done", steps) for k in said.keys() - pruned)
    assert {said[k][1] for k in pruned} <= {steps // 4, steps // 2}
    text = "\n".join(notes)
    assert "risk of 0.05" in text and "at most 33% of the FLOPs" in text and f"{len(pruned)} points of 9 stopped" in text
    one = next(m.point for m in planned.members if round(math.log2(m.values["optimizer.lr"])) == min(pruned))
    reason = read_status(tmp_path / "runs" / one.id)["reason"]
    assert reason["type"] == "pruned" and "nats behind optimizer.lr=0.0" in reason["message"]
    assert f"of {steps} steps; risk" in reason["message"] and reason["step"] in (steps // 4, steps // 2)
    assert len(list((tmp_path / "runs" / one.id / "checkpoints").iterdir())) == 1
    report = status([m.point for m in planned.members], tmp_path / "runs")
    assert report["counts"]["pruned"] == len(pruned) and report["progress"] == 1
    assert f"{len(pruned)} pruned" in render_status(report) and "nats behind" in render_status(report)
    assert not sweep().plan.left and sweep().halving.more().points == ()  # nothing more to do, under this strategy


@pytest.mark.parametrize("killed_after", range(4))
def test_a_launch_killed_while_deciding_decides_the_same(sweep, tmp_path, monkeypatch, killed_after):
    calm = tmp_path / "calm"
    planned = sweep()
    follow(planned)
    want = verdicts(planned)
    os.rename(tmp_path / "runs", calm)
    planned, left = sweep(), [killed_after]
    train(planned.plan)

    def dying(*args):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return prune(*args)

    monkeypatch.setattr("sweeps.halving.prune", dying)
    try:
        while (plan := planned.halving.more()) is not None and plan.points:
            ids = sorted(p.id for p in plan.left)
            train(plan, only=ids[: len(ids) // 2])  # killed again, half-way to the next rung
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    monkeypatch.setattr("sweeps.halving.prune", prune)
    planned = sweep()
    follow(planned)
    assert verdicts(planned) == want


# Close shares, and shares that a coarse curve has no marks for: one rung, at half of the run, with all of the risk.
@pytest.mark.parametrize(("rungs", "words"), [([0.5, 0.501], []), ([0.25, 0.5], ["curve_points=2"])])
def test_rungs_on_one_step_are_one(sweep, tmp_path, rungs, words):
    def decided(**how):
        planned = sweep(**how)
        notes = follow(planned)
        reasons = {m.point.id: read_status(tmp_path / "runs" / m.point.id) for m in planned.members}
        left = sweep(**how).plan.left
        os.rename(tmp_path / "runs", tmp_path / f"runs of {how}")
        return notes, {i: (said["status"], said["step"], said["reason"]) for i, said in reasons.items()}, left

    notes, said, left = decided(rungs=rungs, words=words)
    assert {status for status, *_ in said.values()} == {"done", "pruned"} and not left
    assert (notes, said, left) == decided(rungs=[0.5])
    assert "decided at 50% of the run; saves at most 22%" in notes[0]


def test_a_slice_whose_shortest_run_has_one_step_between_two_rungs(sweep):
    planned = sweep({"batch_size": [4, 8, 16, 32, 64, 128, 256, 512]}, words=["model.context=64"], rungs=[0.25, 0.3])
    steps = [planned.halving.rungs.steps(m) for m in planned.members]
    assert steps[-1][0] == steps[-1][1] and all(first < second for first, second in steps[:-2])
    assert planned.halving.stages == [[1]]  # which pauses none of them where the next rung would not let it go on
    follow(planned)
    assert {status for status, _ in verdicts(planned).values()} <= {"done", "pruned"}


def test_a_run_of_one_step_has_no_rung(sweep):
    planned = sweep(words=["batch_size=4096", "tokens=262144", "model.context=64"])
    assert planned.members[0].point.steps == 1
    follow(planned)
    assert {status for status, _ in verdicts(planned).values()} == {"done"}


@pytest.mark.parametrize("value", [-11, -7, -3])
def test_a_point_that_another_sweep_has_finished_stops_no_deciding(sweep, value):
    done = [m.point.id for m in sweep(strategy="grid").members if round(math.log2(m.values["optimizer.lr"])) == value]
    train(sweep(strategy="grid").plan, only=done)
    planned = sweep()
    assert len(planned.plan.until) == 9 and len(planned.plan.left) == 8 and "decided at 25%, 50%" in planned.plan.notes[0]
    follow(planned)
    said = verdicts(planned)
    assert said[value][0] == "done" and {-11, -3} - {value} <= {k for k, (word, _) in said.items() if word == "pruned"}
    assert not sweep().plan.left and sweep().halving.more().points == ()


def test_a_run_folder_that_became_a_link_is_not_stopped(sweep, tmp_path):
    planned = sweep(rungs=[0.5])
    train(planned.plan)
    losing = planned.halving.rungs.judge(planned.halving.all[0], 0, 1)
    one = next(m.point for m in planned.members if m.point.id in losing)
    run, elsewhere = tmp_path / "runs" / one.id, tmp_path / "elsewhere"
    os.rename(run, elsewhere)
    run.symlink_to(elsewhere)
    there = sorted(elsewhere.rglob("*"))
    plan = planned.halving.more()
    assert {*plan.pruned} == losing.keys() - {one.id} and read_status(elsewhere)["status"] == "pending"
    assert sorted(elsewhere.rglob("*")) == there
    assert one in plan.left  # a worker says what to mend


def test_a_point_that_another_slice_needs_goes_on(sweep):
    axes = {"optimizer.lr": "log2(-11, -3, 9)", "batch_size": [8, 16, 32]}
    planned = sweep(axes)
    assert not planned.plan.until and "nothing can be stopped" in planned.plan.notes[0]
    tuned = sweep(axes, extend_target="lr")
    assert len(tuned.plan.until) == 27
    follow(tuned)
    said = verdicts(tuned)
    for batch in (8, 16, 32):
        left = [lr for (lr, b), (word, _) in said.items() if b == batch and word == "done"]
        assert 5 <= len(left) < 9 and -7 in left


def test_seeds_go_together_and_diverged_values_are_out(sweep):
    planned = sweep({"optimizer.lr": "log2(-11, -1, 11)", "seed": [0, 1]})
    follow(planned)
    said = verdicts(planned)
    for lr in range(-11, 0):
        words = {said[lr, seed][0] for seed in (0, 1)}
        assert len(words) == 1
        assert words == {"diverged"} or lr not in (-2, -1)
    assert {lr for (lr, _), (word, _) in said.items() if word == "pruned"} & {-11, -10}


def test_the_cheapest_slice_is_trained_in_full_and_tells_of_the_others(sweep):
    axes = {"model.width": [16, 128], "optimizer.lr": "log2(-11, -3, 9)"}
    planned = sweep(axes)
    assert len(planned.plan.until) == 9 and "1 slice, the cheapest, in full" in planned.plan.notes[-1]
    train(planned.plan)
    group, stage = planned.halving.groups[0], 0
    belief = planned.halving.rungs.belief(group.cuts[0], stage)
    assert belief.mean == pytest.approx(-0.3 / 2, abs=0.05) and belief.counts == 2  # one slice, and the prior


def test_another_strategy_finishes_them(sweep, tmp_path):
    planned = sweep()
    follow(planned)
    stopped = {k for k, (word, _) in verdicts(planned).items() if word == "pruned"}
    grid = sweep(strategy="grid")
    assert len(grid.plan.left) == len(stopped) and grid.plan.counts["pruned"] == len(stopped)
    point = grid.plan.left[0]
    assert reopen(tmp_path / "runs", point, 60) and finished(tmp_path / "runs" / point.id) is None
    assert read_status(tmp_path / "runs" / point.id)["reason"]["type"] == "reopened"
    assert list((tmp_path / "runs" / point.id / "checkpoints").iterdir())


def test_the_extension_of_the_grid_comes_after(sweep):
    asked = []
    planned = sweep()
    train(planned.plan)
    more = chained(planned.halving, lambda: asked.append(1))
    while (plan := more()) is not None and plan.points:
        assert not asked
        train(plan)
    assert asked == [1] and "stopped" in plan.notes[-1]


@pytest.mark.parametrize("words", [["sweep.rungs=[0.5,0.25]"], ["sweep.rungs=[]"], ["sweep.rungs=[0.5,1]"], ["sweep.risk=0"],
                                   ["sweep.keep=2"], ["launcher=slurm"]])  # fmt: skip
def test_wrong_requests(words, tmp_path):
    request = compose(["sweep=bench", "sweep.strategy=halving", f"out={tmp_path}", f"cache={tmp_path}", *words], "sweep")
    with pytest.raises(UserError, match=words[0].partition("=")[0].replace(".", r"\.") if "sweep" in words[0] else "slurm"):
        prepare_plan(request, dry_run=True, probe=False)


# ---- training


TINY = ["model.depth=1", "model.head_dim=8", "model.context=32", "batch_size=4", "precision=fp32",
        "validation.tokens=512", "data=markov", "data.tokens=200000", "data.states=16", "launcher.compile=never",
        "tokens=12288", "device=cpu", "launcher.workers=2"]  # fmt: skip
# Low ones cannot win, high ones diverge.
LRS, WIDTHS = [1e-5, 3e-5, 1e-4, 3e-4, 2e-3, 6e-3, 2e-2, 6e-2, 30], [16, 24]
FILE = f"# @package _global_\nsweep:\n  name: mine\n  axes:\n    model.width: {WIDTHS}\n    optimizer.lr: {LRS}\n"
FIRST, SECOND = 24, 48  # steps of the rungs, of 96


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, words(out, *more)): a sweep of two slices, trained in full (in grid) and halved (in halved)."""
    folder = tmp_path_factory.mktemp("halving")
    (folder / "configs" / "sweep").mkdir(parents=True)
    (folder / "configs" / "sweep" / "mine.yaml").write_text(FILE)

    def words(out, *more):
        return ["sweep=mine", *TINY, f"out={folder / out}", f"cache={folder / 'cache'}", *more]

    for out, more in (("grid", []), ("halved", ["sweep.strategy=halving"])):
        planned = prepare_plan(compose(words(out, *more), "sweep", folder / "configs"), report=lambda _: None, probe=False)
        summary = run_plan(planned, quiet=True)
        assert summary.exit_status == 0 and (summary.pruned > 0) == (out == "halved")
    return folder, words


def test_runs_that_paused_are_as_if_they_had_not(trained):
    folder, _ = trained
    kept = [run for run in (folder / "halved/runs").iterdir() if read_status(run)["status"] != "pruned"]
    assert 10 <= len(kept) < 18
    for run in kept:
        calm = folder / "grid/runs" / run.name
        assert (run / "curve.parquet").read_bytes() == (calm / "curve.parquet").read_bytes()
        assert result(run) == result(calm) and not list(run.glob("checkpoints/*.safetensors"))
    want, got = table(folder / "grid/runs"), table(folder / "halved/runs")
    for width in WIDTHS:
        full, half = (frame[frame.width == width] for frame in (want, got))
        assert half.loc[half.loss.idxmin(), "run_id"] == full.loc[full.loss.idxmin(), "run_id"]


def test_tables_and_fits_take_pruned_runs_as_censored(trained):
    folder, _ = trained
    frame = read_runs(folder / "halved/runs")
    pruned = frame[frame.status == "pruned"]
    assert len(pruned) and pruned.loss.isna().all() and pruned.train_loss.notna().all()
    assert (pruned.tokens < pruned.steps * pruned.batch_tokens).all() and not frame.attrs["damaged"]
    optima = [fit(read_runs(folder / out / "runs"), "lr") for out in ("grid", "halved")]
    assert any("pruned" in note for note in optima[1].notes) and not any("pruned" in note for note in optima[0].notes)
    for full, half in zip(*(found.optima for found in optima), strict=True):
        assert full["verdict"] == half["verdict"] == "interior"
        assert 1 / 3 < half["value"] / full["value"] < 3  # a step of the grid, whose losses are single runs
        lost = pruned[pruned.params == half["given"]["params"]].lr
        assert len(lost) and not lost.between(half["low"], half["high"]).any()  # they bound the range


RUNG = {"type": "pruned", "message": "", "step": 8}


@pytest.fixture
def paused(tiny, corpus, tmp_path):
    """(point, attempt) of a run in tmp_path/runs, paused at RUNG; attempt(until) trains it on, and says how it ended."""
    (point, *_), _ = tiny(tokens=4096)
    settings = Settings(tmp_path / "runs", tmp_path / "cache", tmp_path / "logs", {corpus.fingerprint: str(corpus.dir)})

    def attempt(until=None):
        job = Job(point.id, (point,), "", False, 0.0, until=until)
        return execute(job.message(), settings.to_dict(), lambda **_: None, lambda: False)["status"]

    assert attempt(RUNG["step"]) == "paused"
    return point, attempt


def test_a_run_that_was_killed_over_its_checkpoint_at_the_rung_has_its_curve(paused, tmp_path):
    point, attempt = paused
    run = tmp_path / "runs" / point.id
    curve = (run / "curve.parquet").read_bytes()
    for name in ("curve.parquet", "result.json", "status.json"):  # they come after the checkpoint
        (run / name).unlink()
    assert attempt(RUNG["step"]) == "paused" and (run / "curve.parquet").read_bytes() == curve
    assert prune(tmp_path / "runs", point, RUNG, 60)


@pytest.mark.parametrize(("until", "end", "now"), [(None, "done", "done"), (12, "paused", "pending")])
def test_a_run_that_another_launch_took_on_before_the_claim_is_not_stopped(paused, tmp_path, monkeypatch, until, end, now):
    point, attempt = paused
    said = []

    def late(*args):
        said.append(attempt(until))
        return claim(*args)

    monkeypatch.setattr("sweeps.prune.claim", late)
    assert not prune(tmp_path / "runs", point, RUNG, 60) and said == [end]
    assert read_status(tmp_path / "runs" / point.id)["status"] == now
    assert attempt() == "done" and result(tmp_path / "runs" / point.id)["loss"] > 0


def test_a_run_that_another_launch_ended_before_the_claim_is_not_opened_again(paused, tmp_path, monkeypatch):
    point, attempt = paused
    assert prune(tmp_path / "runs", point, RUNG, 60)

    def late(*args):
        monkeypatch.setattr("sweeps.prune.claim", claim)
        assert reopen(tmp_path / "runs", point, 60) and attempt() == "done"
        return claim(*args)

    monkeypatch.setattr("sweeps.prune.claim", late)
    assert not reopen(tmp_path / "runs", point, 60)
    assert finished(tmp_path / "runs" / point.id) == "done"


# Stands still, workers first, at a moment that is told by what has happened and not by the clock: where two points of each
# slice have paused at the step `moment` (of no slice more begin for that meanwhile), or at the second point to be stopped.
STANDING = """
import os, signal, sys
from collections import Counter
from harness.compose import compose
from sweeps import halving, launching
from sweeps.launch import prepare_plan, run_plan

moment, folder, words = sys.argv[1], sys.argv[2], sys.argv[3:]
launches, paused, pruned = [], Counter(), []
ready, end_of, prune = launching.Launch.ready, launching.Launch._paused, halving.prune

def stand():
    for worker in launches[0].workers:
        os.kill(worker.process.pid, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)

def holding(self):
    launches[:] = [self]
    return {i: job for i, job in ready(self).items()
            if str(job.until) != moment or paused[job.points[0].shape.width] < 2}

def counting(self, job, *more):
    end_of(self, job, *more)
    paused[job.points[0].shape.width] += str(job.until) == moment
    if min(paused[16], paused[24]) >= 2:
        stand()

def pruning(*args):
    pruned.append(args)
    if moment == "prune" and len(pruned) == 2:
        stand()
    return prune(*args)

launching.Launch.ready, launching.Launch._paused, halving.prune = holding, counting, pruning
planned = prepare_plan(compose(words, "sweep", folder), report=print, probe=False)
sys.exit(run_plan(planned, quiet=True).exit_status)
"""


def decisions(runs):
    """{run id: (status, step, reason)}"""
    return {run.name: tuple(read_status(run).get(k) for k in ("status", "step", "reason")) for run in runs.iterdir()}


def test_killed_in_mid_rung_of_two_slices_the_same_comes_out_and_the_grid_finishes_it(trained):
    folder, words = trained
    runs, chosen = folder / "killed/runs", words("killed", "sweep.strategy=halving", "checkpoint_seconds=0.05")
    command = [sys.executable, "-c", STANDING]

    def pauses(step):
        """How many points of each slice are paused at `step`."""
        said = [(read_point(run).shape.width, read_status(run)) for run in runs.iterdir()]
        return [sum(width == w and s["step"] == step and (s.get("reason") or {}).get("type") == "paused" for w, s in said)
                for width in WIDTHS]  # fmt: skip

    for moment in (FIRST, "prune", SECOND):
        launch = subprocess.Popen([*command, str(moment), folder / "configs", *chosen], stdout=subprocess.DEVNULL)
        guard = threading.Timer(1200, launch.kill)
        guard.start()
        try:
            _, state = os.waitpid(launch.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(state)
        finally:
            guard.cancel()
            for pid in Background.children(launch.pid):
                os.kill(pid, signal.SIGKILL)
            launch.kill()
            launch.wait()
        stopped = sum(status == "pruned" for status, *_ in decisions(runs).values())
        assert stopped == 1 if moment == "prune" else all(2 <= n <= 4 for n in pauses(moment))
    assert subprocess.run([*command, "never", folder / "configs", *chosen], stdout=subprocess.DEVNULL).returncode == 0
    assert decisions(runs) == decisions(folder / "halved/runs")
    pd.testing.assert_frame_equal(table(runs), table(folder / "halved/runs"), check_exact=True)
    grid = prepare_plan(compose(words("killed"), "sweep", folder / "configs"), report=lambda _: None, probe=False)
    assert len(grid.plan.left) == sum(status == "pruned" for status, *_ in decisions(runs).values())
    summary = run_plan(grid, quiet=True)
    assert summary.exit_status == 0 and not any(status == "pruned" for status, *_ in decisions(runs).values())
    pd.testing.assert_frame_equal(table(runs), table(folder / "grid/runs"), check_exact=True)
