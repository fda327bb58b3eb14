"""The sweeps that come with hyperlaw: each can be planned without its data being there."""

import pytest

from harness.compose import choices, compose
from harness.places import DataBook
from sweeps.expand import expand
from sweeps.plan import make_plan

MEMBERS = {"lr_width": 36, "tau": 84, "batch": 108, "horizons": 30, "bench": 18}


@pytest.fixture
def points_of(tmp_path):
    def build(name, *overrides):
        request = compose([f"sweep={name}", *overrides], "sweep")
        assert request.config.sweep.name == name
        return expand(request, DataBook(tmp_path, prepare=False)), request.config

    return build


@pytest.mark.parametrize("name", choices("sweep"))
def test_every_sweep_has_a_price(name, points_of, tmp_path):
    points, config = points_of(name)
    plan = make_plan(points, tmp_path, config.launcher, tmp_path, "cpu", probe=False, name=name)
    assert max(map(len, plan.render().splitlines())) < 100
    assert len(points) == MEMBERS.get(name, len(points))
    assert ("one H100" in plan.render()) == (name == "powerlines")


def test_bench_has_three_shapes_of_six_points(points_of):
    points, _ = points_of("bench")
    assert sorted(p.shape.width for p in points) == sorted([32, 48, 64] * 6)
    assert all(p.columns()["tpp"] == pytest.approx(20, rel=0.01) for p in points)


def test_horizons_agree_in_all_but_their_length(points_of):
    points, _ = points_of("horizons")
    assert len({(p.optimizer.weight_decay, p.schedule.warmup_steps, p.batch_size) for p in points}) == 1
    steps = sorted({p.steps for p in points})
    assert len(steps) == 6 and {b - a for a, b in zip(steps, steps[1:], strict=False)} == {steps[0]}
    assert all(p.schedule.cooldown_steps == pytest.approx(0.2 * p.steps, abs=1) for p in points)


def test_powerlines_is_the_papers_grid(points_of):
    points, _ = points_of("powerlines")
    sizes = {(p.shape.width, p.shape.depth): p.columns()["params"] for p in points}
    published = {(768, 10): 2.19e9, (768, 32): 5.31e9, (2048, 10): 12.1e9, (2048, 32): 34.3e9, (2048, 64): 66.5e9}
    assert {k: v * 20 for k, v in sizes.items()} == pytest.approx(published, rel=0.01)  # tokens at 20 TPP
    known = [p for p in points if (p.shape.width, p.shape.depth) == (2048, 10) and p.batch_size == 504
             and round(p.columns()["tpp"]) == 80 and p.optimizer.weight_decay == 0.1]  # fmt: skip
    assert len(known) == 1 and known[0].tau == pytest.approx(0.105, abs=5e-4)
    assert 350 < len(points) < 450


def test_the_command_line_overrides_a_sweep_file(points_of):
    points, _ = points_of("bench", "optimizer.lr=1e-3,2e-3", "model.width=32", "tokens=65536")
    assert [(p.shape.width, p.optimizer.lr, p.tokens) for p in points] == [(32, 1e-3, 65536), (32, 2e-3, 65536)]
