"""expand: pure, in order, without duplicates; every point says what its axes say."""

import sys
import time
from subprocess import run

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from harness.resolve import DataFacts
from sweeps.expand import expand, expand_members
from sweeps.plan import make_plan


def test_axes_are_crossed_in_order_the_last_fastest(request_of, facts):
    points = expand(request_of("model.width=32,48", "optimizer.lr=log2(-9,-7,3)"), facts)
    assert [(p.shape.width, p.optimizer.lr) for p in points] == [
        (w, 2.0**e) for w in (32, 48) for e in (-9, -8, -7)
    ]  # fmt: skip
    assert len({p.id for p in points}) == 6


def test_no_axes_is_one_point(request_of, facts):
    assert len(expand(request_of(), facts)) == 1


@settings(max_examples=30, deadline=None)
@given(
    widths=st.lists(st.sampled_from([16, 32, 48, 64]), min_size=1, max_size=4),
    seeds=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    taus=st.lists(st.floats(0.01, 10), min_size=1, max_size=3),
)
def test_expand_is_the_set_product_and_deterministic(request_of, facts, widths, seeds, taus):
    r = request_of(axes={"model.width": widths, "seed": seeds, "tau": taus})
    points = expand(r, facts)
    assert [p.id for p in points] == [p.id for p in expand(r, facts)]
    assert len(points) == len({p.id for p in points}) == len(set(widths)) * len(set(seeds)) * len(set(taus))
    assert {(p.shape.width, p.seed) for p in points} == {(w, s) for w in widths for s in seeds}
    assert all(min(abs(p.tau / tau - 1) for tau in taus) < 1e-9 for p in points)


def test_a_group_is_an_axis_and_keeps_what_is_set_beneath_it(request_of, facts):
    r = request_of("parameterization=standard,mup", "parameterization.base_width=32", "model.width=64")
    points = expand(r, facts)
    assert [p.parameterization.name for p in points] == ["standard", "mup"]
    assert [p.parameterization.base_width for p in points] == [32, 32]


def test_filters_see_the_columns_of_the_table(request_of, facts):
    axes = {"model.width": [32, 64], "tpp": [5, 20, 80]}
    points = expand(request_of(axes=axes, filter=["tpp < 50 or width == 32", "steps > 100"]), facts)
    assert len(points) == len([p for p in expand(request_of(axes=axes), facts) if p.steps > 100
                               and (p.shape.width == 32 or p.columns()["tpp"] < 50)]) > 0  # fmt: skip
    with pytest.raises(UserError, match="leaves none of 6 points"):
        expand(request_of(axes=axes, filter=["width > 100"]), facts)
    for bad in ("wdth > 3", "__import__('os').system('true')", "width.foo > 1", "width >"):
        with pytest.raises(ValueError):
            expand(request_of(axes=axes, filter=[bad]), facts)


def test_an_impossible_point_is_named_by_its_axis_values(request_of, facts):
    with pytest.raises(UserError, match=r"At model.width=32, tau=-1: "):
        expand(request_of(axes={"model.width": [32], "tau": [1.0, -1.0]}), facts)
    with pytest.raises(UserError, match="unique training tokens"):
        expand(request_of(axes={"tpp": [20, 2000]}), DataFacts("x", 256, 10_000_000))


def test_facts_may_depend_on_the_data(request_of):
    seen = []

    def facts(data):
        seen.append(data.name)
        return DataFacts(data.name, 256, None)

    points = expand(request_of("data=sotu,markov"), facts)
    assert [p.data.fingerprint for p in points] == ["sotu", "markov"] == seen


def test_members_keep_their_axis_values(request_of, facts):
    member = expand_members(request_of(axes={"tau": [0.5], "seed": [3]}), facts)[0]
    assert member.values == {"tau": 0.5, "seed": 3}


def test_planning_ten_thousand_points_takes_less_than_ten_seconds(request_of, facts, tmp_path):
    axes = {"model.width": [32, 48, 64, 96, 128], "tpp": "geom(5, 80, 10)", "tau": "geom(0.05, 1, 20)",
            "optimizer.lr": "log2(-11, -4, 10)"}  # fmt: skip
    begun = time.perf_counter()
    r = request_of(axes=axes)
    points = expand(r, facts)
    for point in points[::10]:
        folder = tmp_path / point.id
        folder.mkdir()
        (folder / "status.json").write_text('{"status": "done", "step": 1}')
    plan = make_plan(points, tmp_path, r.config.launcher, tmp_path, device="cpu", probe=False)
    plan.render()
    assert len(points) == 10_000 and plan.counts["done"] == 1000
    assert time.perf_counter() - begun < 10


def test_planning_needs_no_torch():
    code = "import sys, sweeps.expand, sweeps.plan, sweeps.status, sweeps.local, sweeps.extend\n"
    assert run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"]).returncode == 0
