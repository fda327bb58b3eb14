"""Batch sizes that share one compiled pass: where that is cheaper, what it covers, and what it leaves as it is."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest

from sweeps.display import Display
from sweeps.expand import expand
from sweeps.jobs import Settings
from sweeps.launching import Launch, Running
from sweeps.outcomes import STEPS_MEASURED, Outcomes
from sweeps.passes import LEAST_TOKENS, SLOWER, Passes
from sweeps.plan import make_plan
from sweeps.rate import CompiledShapes, Rates, Speed, measured_rates

FAST = Speed(1e-3, 2e10, "20 runs here")
RATES = {"bf16": Rates("a chip", Speed(4e-3, 1e10, "20 runs here"), FAST, 20.0, 0.1)}
SHAPE = ("model.width=32", "tokens=2000000", "optimizer.lr=1e-3,2e-3")
BATCHES = "batch_size=8,16,32,64"


@pytest.fixture
def plan_of(request_of, facts, tmp_path):
    def build(*overrides, context=64, device="cpu", rates=RATES, micro_batch=None, share=True, more=(), **launcher):
        r = request_of(*SHAPE, f"model.context={context}", *overrides)
        config = replace(r.config.launcher, workers=2, **launcher)
        return make_plan([*more, *expand(r, facts)], tmp_path / "runs", config, tmp_path, device, micro_batch, "x", rates,
                         share=share)  # fmt: skip

    return build


def test_a_batch_sweep_compiles_one_pass(plan_of):
    plan = plan_of(BATCHES)
    (group,) = plan.groups
    assert group.compile and group.shared_pass == 8 and len(plan.jobs()) == 8
    assert {(job.key, job.shared_pass) for job in plan.jobs()} == {(group.key, 8)}
    assert all(job.message()["shared_pass"] == 8 for job in plan.jobs())
    text = plan.render()
    assert "batch 8..64 by 8" in text and "3 compilations less" in text and max(map(len, text.splitlines())) < 100
    trained = sum(RATES["bf16"].seconds(p, compiled=True) for p in plan.points)
    assert group.seconds == pytest.approx((1 + SLOWER) * trained + 20.0 + 0.1)
    assert sum(job.seconds for job in plan.jobs()) == pytest.approx((1 + SLOWER) * trained)
    alone = plan_of("batch_size=64")
    assert [g.shared_pass for g in alone.groups] == [None] and alone.points[0].id in {p.id for p in plan.points}
    assert alone.jobs()[0].key != group.key


@pytest.mark.parametrize("how", [
    {"micro_batch": 64},  # said by hand
    {"device": "cuda"},
    {"devices_per_point": 2},
    {"compile": "never"},
    {"rates": {"bf16": replace(RATES["bf16"], compile_cold=0.2)}},  # a compilation costs less than the slower steps
    {"rates": {"bf16": replace(RATES["bf16"], eager=FAST)}},  # nothing is worth compiling
])  # fmt: skip
def test_not_where_it_gains_nothing(plan_of, how):
    groups = plan_of(BATCHES, **how).groups
    assert len(groups) == 4 and not any(g.shared_pass for g in groups)


def test_a_micro_batch_said_by_hand_is_one_step_too(plan_of):
    groups = plan_of(BATCHES, micro_batch=16).groups
    assert sorted(tuple(g.batches) for g in groups) == [(8,), (16,), (32, 64)]


def test_a_batch_that_it_does_not_divide_keeps_its_own(plan_of):
    plan = plan_of("batch_size=4,16,24,40,50")  # 4: fewer tokens than a pass has; 50: no common divisor
    shared = {tuple(g.batches): g.shared_pass for g in plan.groups}
    assert shared == {(4,): None, (50,): None, (16, 24, 40): 8} and LEAST_TOKENS == 8 * 64
    assert len({g.key for g in plan.groups}) == 3


def test_shapes_choose_for_themselves(plan_of):
    plan = plan_of("batch_size=16,32", context="64,128")
    assert sorted((g.points[0].shape.context, g.shared_pass) for g in plan.groups) == [(64, 8), (128, 4)]


def test_steps_that_are_there_are_used(plan_of, tmp_path):
    """A sweep begun with whole batches, or with a pass, goes on so: their libraries cost nothing."""
    whole = {g.key for g in plan_of(BATCHES, micro_batch=64).groups}
    marks = CompiledShapes(tmp_path)
    for key in whole:
        marks.add(key)
    assert {g.key for g in plan_of(BATCHES).groups} == whole
    (pass_,) = {g.key for g in plan_of("batch_size=128,256,512").groups}
    marks.add(pass_)
    assert {g.key for g in plan_of("batch_size=128,256").groups} == {pass_}


def test_a_ramp_takes_the_pass_and_so_do_its_branches(plan_of):
    ramp = ("schedule=wsd", "schedule.batch_ramp=[[500000,16]]", "schedule.warmup_tokens=65536", "batch_size=32,64",
            "optimizer.weight_decay=0.1")  # fmt: skip
    plan = plan_of(*ramp)
    assert any(job.trunk for job in plan.jobs()) and {job.shared_pass for job in plan.jobs()} == {8}
    assert len({job.key for job in plan.jobs()}) == 1
    assert {g.shared_pass for g in plan_of(*ramp, share=False).groups} == {8}


def test_a_trunk_takes_the_pass_of_what_goes_through_it(plan_of):
    """Its branches take its numerics; of these two one alone has later batches that the pass divides."""
    ramp = ("schedule=wsd", "schedule.warmup_tokens=65536", "optimizer.weight_decay=0.1",
            "schedule.batch_ramp=[[1000000,20]]")  # fmt: skip
    ramps = [plan_of(*ramp, f"batch_size={last}").points[0] for last in (36, 16)]
    plan = plan_of("batch_size=24,32,40,48,56,64", more=ramps, compile="always")
    (trunk,) = [job for job in plan.jobs() if job.trunk]
    assert set(trunk.carries) == {p.id for p in ramps} and trunk.shared_pass == 8
    assert {job.id: job.shared_pass for job in plan.jobs() if job.start} == {ramps[0].id: None, ramps[1].id: 8}


def test_of_says_none_where_it_divides_nothing(request_of, facts):
    (point,) = expand(request_of("model.context=64", "batch_size=12"), facts)
    kind = point.shape, point.precision
    assert Passes(shared={kind: 8}).of(point) is None and Passes(shared={kind: 4}).of(point) == 4
    assert Passes(shared={kind: 8}).key(point) == Passes().key(point) == Passes(micro_batch=12).key(point)
    assert Passes().slower(point, True) == 1 and Passes(shared={kind: 4}).slower(point, True) == 1 + SLOWER


def ended(plan, tmp_path, **message):
    """(rates, job, launch, what it said) once the runs of the largest batch, one of them `job`, have ended, 10 ms a step."""
    launch = Outcomes(Settings(plan.runs_dir, tmp_path, tmp_path, {}), Display(said := io.StringIO()))
    jobs = [job for job in plan.jobs() if job.points[0].batch_size == 64]
    for job in jobs:
        flops = 2 * STEPS_MEASURED * job.points[0].step_flops
        took = {"device_seconds": 0.02 * STEPS_MEASURED, "compile_seconds": 9.0, "flops_spent": flops}
        launch.ended(job, {"status": "done", "trained": True, **took, **message}, 60.0)
    return measured_rates(tmp_path, "cpu", "bf16", probe=False), jobs[-1], launch, said.getvalue()


def test_what_steps_by_a_pass_took_is_not_counted_twice(plan_of, tmp_path):
    """Rates are those of whole steps: those by a pass are recorded so, since plans make them slower again."""
    plan = plan_of(BATCHES)
    rates, job, launch, _ = ended(plan, tmp_path, compiled=True, shared_pass=plan.groups[0].shared_pass)
    point = job.points[0]
    assert rates.compiled.source == "2 runs here" and job.key in launch.compiled
    assert (rates.compile_cold, rates.compile_warm) == (9.0, 0.1)  # the second waited for the first's: no time of a load
    assert rates.seconds(point, True) * plan.passes.slower(point, True) == pytest.approx(0.01 * point.steps)


def test_loads_are_timed_where_a_job_begins_with_its_code_there(plan_of, tmp_path):
    class Idle(Launch):
        running = lambda self: []  # noqa: E731

    plan = plan_of("batch_size=64")
    launch = Idle(plan, Settings(plan.runs_dir, tmp_path, tmp_path, {}), Display(io.StringIO()))
    for seconds, job in zip((9.0, 2.0), plan.jobs(), strict=True):
        launch.take(job)
        took = {"device_seconds": 0.02 * STEPS_MEASURED, "compile_seconds": seconds,
                "flops_spent": 2 * STEPS_MEASURED * job.points[0].step_flops}  # fmt: skip
        launch.ended(job, {"status": "done", "trained": True, "compiled": True, "shared_pass": None, **took}, 60.0)
    rates = measured_rates(tmp_path, "cpu", "bf16", probe=False)
    assert (rates.compile_cold, rates.compile_warm) == (9.0, 2.0)


def test_a_shape_is_left_to_who_compiles_it_until_it_has_validated(plan_of, tmp_path):
    """Its validation is a library, too. Then it is like any other, and the longest goes first."""
    class Busy(Launch):
        busy = ()
        running = lambda self: [Running(job, 1, 0.0, 1.0) for job in self.busy]  # noqa: E731

    plan = plan_of("batch_size=32,50", compile="always")
    launch = Busy(plan, Settings(plan.runs_dir, tmp_path, tmp_path, {}), Display(io.StringIO()))
    job = launch.chosen(launch.ready(), free := SimpleNamespace(key=None))
    launch.take(job)
    launch.busy = (job,)
    first = job.points[0].validation_steps[0]
    for step, alike in ((1, False), (first, False), (first + 1, True)):
        launch.heard(job, step)
        assert (job.key not in launch.cold) == alike
        assert launch.chosen(launch.ready(), free).key != job.key or alike
    assert launch.chosen(launch.ready(), SimpleNamespace(key=job.key)).key != job.key  # it takes longer: it compiles


def test_a_run_without_its_compiled_code_counts_as_eager(plan_of, tmp_path):
    rates, job, launch, said = ended(plan_of(BATCHES), tmp_path, compiled=False, uncompiled="no disk", shared_pass=None)
    assert job.key not in launch.compiled and said.count("trained uncompiled: no disk") == 1
    assert rates.eager.source == "2 runs here" and "assumed" in rates.compiled.source
