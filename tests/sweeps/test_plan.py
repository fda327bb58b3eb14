"""What is left, what it costs, and what the plan says about it."""

import json
from dataclasses import replace

import pytest

from harness.errors import UserError
from sweeps.expand import expand
from sweeps.plan import make_plan
from sweeps.rate import Rates, Speed, measured_rates, record, step_work

RATES = {"bf16": Rates("a chip", Speed(4e-3, 1e10, "20 runs here"), Speed(1e-3, 2e10, "20 runs here"), 20.0, 4.0)}


@pytest.fixture
def plan_of(request_of, facts, tmp_path):
    def build(*overrides, rates=RATES, **launcher):
        r = request_of(*overrides)
        config = replace(r.config.launcher, workers=2, **launcher)
        return make_plan(expand(r, facts), tmp_path / "runs", config, tmp_path, device="cpu", rates=rates, name="x")

    return build


def put(runs, point, status, **more):
    (runs / point.id).mkdir(parents=True, exist_ok=True)
    (runs / point.id / "status.json").write_text(json.dumps({"status": status, **more}))


def test_finished_points_are_dropped_failed_and_interrupted_ones_are_not(plan_of, tmp_path):
    points = plan_of("seed=0,1,2,3,4,5").points
    for point, status in zip(points, ["done", "diverged", "failed", "out_of_memory", "running"], strict=False):
        put(tmp_path / "runs", point, status, step=3)
    plan = plan_of("seed=0,1,2,3,4,5")
    assert [p.seed for p in plan.left] == [2, 3, 4, 5]
    assert plan.states[points[4].id].status == "interrupted"  # nobody holds it
    assert "2 failed points tried again" in plan.render()


def test_a_damaged_status_counts_as_pending(plan_of, tmp_path):
    point = plan_of().points[0]
    for text in ('{"status": "do', '{"status": "finished"}', "[]", ""):
        put(tmp_path / "runs", point, "x")
        (tmp_path / "runs" / point.id / "status.json").write_text(text)
        assert plan_of().states[point.id].status == "pending"


def test_the_price_adds_up(plan_of):
    plan = plan_of("model.width=32,64", "optimizer.lr=1e-3,2e-3")
    assert plan.flops == sum(p.flops for p in plan.points)
    seconds = sum(p.steps * (1e-3 + step_work(p) / 2e10) for p in plan.points)
    compile_seconds = sum(20 + 4 for g in plan.groups if g.compile)
    eager = sum(p.steps * (4e-3 + step_work(p) / 1e10) for g in plan.groups if not g.compile for p in g.points)
    compiled = sum(p.steps * (1e-3 + step_work(p) / 2e10) for g in plan.groups if g.compile for p in g.points)
    assert seconds > 0 and sum(g.seconds for g in plan.groups) == pytest.approx(eager + compiled + compile_seconds)
    assert sum(job.seconds for job in plan.jobs()) == pytest.approx(eager + compiled)
    assert len(plan.jobs()) == 4
    assert plan.checkpoint_bytes > 0


def test_compile_only_where_it_repays_itself(plan_of):
    small, large = plan_of("model.width=32", "tpp=1"), plan_of("model.width=32", "seed=linear(0, 59, 60)")
    assert [g.compile for g in small.groups] == [False] and [g.compile for g in large.groups] == [True]
    assert "eager takes" in large.render() and "compiled takes" in small.render()
    assert plan_of("tpp=1", compile="always").groups[0].compile
    with pytest.raises(UserError, match="launcher.compile"):
        plan_of(compile="sometimes")
    with pytest.raises(UserError, match="launcher.max_attempts"):
        plan_of(max_attempts=0)


def test_nothing_is_compiled_where_there_is_no_compiler(plan_of, monkeypatch):
    """`make demo` needs Python and make, nothing else: without g++ it trains eager instead of failing."""
    words = ("tpp=2000", "model.width=32")
    assert plan_of(*words).groups[0].compile
    monkeypatch.setenv("CXX", "no-such-compiler")
    (group,) = plan_of(*words).groups
    assert not group.compile and "C++ compiler" in group.reason


def test_the_text_fits_and_says_where_its_numbers_come_from(plan_of):
    widths = ",".join(str(16 * i) for i in range(1, 40))
    text = plan_of(f"model.width={widths}", "batch_size=8,16").render()
    assert max(map(len, text.splitlines())) < 100
    assert "more shapes" in text and "20 runs here" in text
    assert json.dumps(plan_of().to_dict())


def test_rates_are_recovered_from_records(plan_of, tmp_path):
    points = plan_of("model.width=32,64,128,256").points
    before = measured_rates(tmp_path, "cpu", "bf16", probe=False)
    assert before.eager.source == "assumed"
    for point in points:
        for wobble in (0.95, 1.0, 1.05, 3.0):  # one disturbed run
            seconds = 2e-3 + step_work(point) / 5e10
            record(tmp_path, "cpu", point, False, seconds * wobble)
            record(tmp_path, "cpu", point, True, seconds / 2 * wobble, first_seconds=17.0, cold=True)
    rates = measured_rates(tmp_path, "cpu", "bf16", probe=False)
    assert rates.eager.overhead == pytest.approx(2e-3, rel=0.15) and rates.eager.rate == pytest.approx(5e10, rel=0.15)
    assert rates.compiled.step_seconds(1e9) == pytest.approx(rates.eager.step_seconds(1e9) / 2, rel=0.1)
    assert rates.compile_cold == 17.0 and "16 runs here" in rates.eager.source
    assert measured_rates(tmp_path, "cpu", "fp32", probe=False).eager.source == "assumed"


def test_one_measured_size_keeps_the_other_sizes_plausible(plan_of, tmp_path):
    small, large = plan_of("model.width=32,256").points
    record(tmp_path, "cpu", small, False, 5e-3)
    speed = measured_rates(tmp_path, "cpu", "bf16", probe=False).eager
    assert speed.step_seconds(step_work(small)) == pytest.approx(5e-3, rel=0.1)
    assert speed.step_seconds(step_work(large)) > 1.5 * 5e-3
    (tmp_path / "rates.jsonl").open("a").write('{"half a line')
    assert measured_rates(tmp_path, "cpu", "bf16", probe=False).eager == speed
