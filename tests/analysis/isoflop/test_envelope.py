"""The lower envelope of training curves, on planted surfaces."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.command import as_text, save
from analysis.errors import UserError
from analysis.fit import fit
from analysis.loss.envelope_curves import Curves, _lower_hull, crossings, hull, lowest, sample
from benchmarks.coverage_isoflop import CHINCHILLA, GEMSTONES, Plan, envelope_table, measure

PLAN = {"kind": "envelope", "sizes": 14, "ratio": 1.5, "noise": 0.0, "shape": 0.0}


def table(surface=CHINCHILLA, **keys):
    return envelope_table(Plan(surface, **PLAN | keys), np.random.default_rng(0))


def law(t, name="params_opt", **options):
    return next(each for each in fit(t, "envelope", {"bootstrap": 50, **options}).laws if each["name"] == name)


@pytest.mark.parametrize("surface", [CHINCHILLA, GEMSTONES])
@pytest.mark.parametrize("envelope, within", [("bins", 0.002), ("hull", 0.012)])
def test_crossings_give_the_exponents_without_noise(surface, envelope, within):
    t = table(surface)
    a, b = (law(t, name, envelope=envelope)["parameters"]["flops"]["value"] for name in ("params_opt", "tokens_opt"))
    assert a == pytest.approx(surface.a, abs=within) and a + b == pytest.approx(1.0, abs=1e-9)


def test_all_bins_are_a_staircase_whose_ends_tilt_the_fit():
    """Negative control of the crossings: the published way is off even without noise."""
    t = table()
    staircase = law(t, points="all")["parameters"]["flops"]["value"]
    crossing = law(t)["parameters"]["flops"]["value"]
    assert abs(staircase - CHINCHILLA.a) > 0.003 > 5 * abs(crossing - CHINCHILLA.a)


def test_edges_are_bins_won_by_the_smallest_or_the_largest_model():
    x = np.log(np.geomspace(1, 100, 50))
    y = [0.1 - 0.1 * x, 0.25 - 0.2 * x, 0.6 - 0.3 * x]
    curves = Curves(list("abc"), np.log([1.0, 2.0, 4.0]), np.zeros(3), [x] * 3, y)
    grid, losses = sample(curves, 500)
    e = lowest(grid, losses, curves.size)
    assert set(e.run[~e.edge]) == {1} and e.edge[e.run == 0].all() and e.edge[e.run == 2].all()
    c = crossings(e, curves)
    assert c.x == pytest.approx([1.5, 3.5], abs=0.01) and list(c.left) == [0, 1] and list(c.right) == [1, 2]


def test_a_curve_that_ends_makes_no_crossing():
    x = np.linspace(0, 4, 41)
    curves = Curves(["a", "b"], np.log([1.0, 2.0]), np.zeros(2), [x[:21], x], [1 - 0.2 * x[:21], 1.2 - 0.2 * x])
    e = lowest(*sample(curves, 400), curves.size)
    assert set(e.run) == {0, 1} and len(crossings(e, curves).x) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=3, max_size=40, unique_by=lambda p: round(p[0], 3)))
def test_lower_hull_lies_below_all_points_and_is_convex(points):
    x, y = np.array(sorted(points)).T
    corners = _lower_hull(x, y)
    assert corners[0] == 0 and corners[-1] == len(x) - 1
    assert (y >= np.interp(x, x[corners], y[corners]) - 1e-9).all()
    assert (np.diff(np.diff(y[corners]) / np.diff(x[corners])) > 0).all()


def test_hull_vertices_fall_and_belong_to_their_curves():
    t = table(noise=0.003, shape=0.003)
    x = [np.log(6 * g["params"] * g["tokens"]).to_numpy() for _, g in t.groupby("run_id")]
    y = [np.log(g["loss"]).to_numpy() for _, g in t.groupby("run_id")]
    sizes = np.log(t.groupby("run_id")["params"].first().to_numpy())
    e = hull(Curves(sorted(set(t["run_id"])), sizes, np.zeros(len(x)), x, y))
    assert (np.diff(e.x) > 0).all() and (np.diff(e.y) < 0).all()
    assert all(np.isclose(x[r], a).any() and np.isclose(y[r], b).any() for r, a, b in zip(e.run, e.x, e.y, strict=True))


def test_resampled_runs_give_an_interval_for_all_points():
    t = table(noise=0.001, shape=0.002)
    for envelope in ("bins", "hull"):
        p = law(t, points="all", envelope=envelope)["parameters"]["flops"]
        assert p["low"] < p["value"] < p["high"]
    assert law(t, points="all", bootstrap=0)["parameters"]["flops"]["low"] is None


def test_one_checkpoint_a_run_one_run_and_no_run_id_are_said():
    t = table()
    ends = t[t["tokens"] == t["tokens"].max()]
    result = fit(ends, "envelope")
    assert result.laws == [] and any("14 runs have one checkpoint" in n for n in result.notes)
    result = fit(t[t["run_id"] == "run3"], "envelope")
    assert result.laws == [] and any("1 training curves, no envelope" in n for n in result.notes)
    with pytest.raises(UserError, match="run_id"):
        fit(t.drop(columns="run_id"), "envelope")
    with pytest.raises(UserError, match="params differ within run"):
        fit(t.assign(run_id="one"), "envelope")


@pytest.mark.parametrize(
    "columns, words",
    [({}, "names no schedule"), ({"schedule": "constant"}, None), ({"schedule": "cosine"}, "schedule cosine: "),
     ({"lr": "moves"}, "LR moves along")],
)  # fmt: skip
def test_mid_schedule_checkpoints_are_warned_of(columns, words):
    t = table()
    columns = {"lr": 1e14 / t["tokens"]} if "lr" in columns else columns
    notes = [n for n in fit(t.assign(**columns), "envelope").notes if "biased" in n]
    assert (notes == []) if words is None else any(words in n for n in notes)


def test_json_text_and_files(tmp_path):
    result = fit(table(noise=0.001), "envelope")
    json.dumps([result.laws, result.optima], allow_nan=False)
    assert "runs on the envelope" in as_text(result) and result.laws[0]["counts"] == "crossings"
    assert {"laws.json", "envelope_curves.png", "envelope_params_opt_law.png"} <= {f.name for f in save(result, tmp_path)}
    (ax,) = result.figures["envelope_curves"](None).axes
    assert len([line for line in ax.lines if line.get_gid() == "curve"]) == 14
    (points,) = [line for line in ax.lines if line.get_gid() == "point"]
    assert list(points.get_xdata()) == pytest.approx(result.laws[0]["sampled"]["flops"])


def test_intervals_hold_the_truth():
    shares = measure(Plan(CHINCHILLA, **PLAN | {"noise": 0.001, "shape": 0.002}), 60)["coverage"]
    assert 0.65 <= shares["flops"] <= 0.93 and 0.65 <= shares["coefficient"] <= 0.93, shares


def test_order_and_repeated_rows_do_not_matter():
    t = table(noise=0.001)
    shuffled = t.sample(frac=1.0, random_state=1)
    assert law(shuffled)["parameters"] == law(t)["parameters"]
    doubled = pd.concat([t, t], ignore_index=True)
    assert law(doubled)["parameters"] == law(t)["parameters"]
