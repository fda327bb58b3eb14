"""Laws in one stage from the losses of all slices; coverage: test_planted.py."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.joint import fit_joint
from analysis.optimum import find_optima
from benchmarks.coverage import BOTH, LR, measure
from benchmarks.planted import Plan, cut, sweep

EXACT = Plan(noise=0.0)
WANTED = {"lr": ["params", "tokens"], "batch_size": ["tokens"]}


def laws(plan, seed=0, **options):
    return fit_joint(cut(sweep(plan, np.random.default_rng(seed)), plan), WANTED, **options)


@pytest.mark.parametrize("levels", ["own", "parametric"])
@pytest.mark.parametrize("curvature", ["own", "power"])
def test_a_law_without_noise_is_exact(levels, curvature):
    (law,) = laws(EXACT, levels=levels, curvature=curvature)
    p = {name: entry["value"] for name, entry in law["parameters"].items()}
    tolerance = 1e-6 if levels == "own" else 1e-3  # five terms of a floor: a flat valley
    assert p["params"] == pytest.approx(-0.4, abs=tolerance) and p["tokens"] == pytest.approx(-0.15, abs=tolerance)
    assert p["coefficient"] == pytest.approx(3.0, rel=20 * tolerance)
    assert law["method"] == "joint" and law["counts"] == "slices" and law["n"] == 9
    assert law["r2"] == pytest.approx(1.0, abs=1e-4) and law["form"] == "coefficient * params^params * tokens^tokens"
    assert law["heldout"]["n"] > 0 and law["heldout"]["mean_abs_log_error"] < 20 * tolerance


def test_two_hyper_parameters_with_interaction_are_exact():
    lr, batch = laws(replace(BOTH, noise=0.0))
    assert lr["parameters"]["params"]["value"] == pytest.approx(-0.4, abs=1e-6)
    assert lr["parameters"]["tokens"]["value"] == pytest.approx(-0.15, abs=1e-6)
    assert batch["parameters"]["tokens"]["value"] == pytest.approx(0.55, abs=1e-6)
    assert lr["heldout"]["mean_excess_loss"] == batch["heldout"]["mean_excess_loss"] < 1e-8


def test_a_bend_is_no_bias():
    found = [laws(replace(LR, noise=0.0005), seed)[0]["parameters"] for seed in range(6)]
    logs = np.log([each["coefficient"]["value"] for each in found])
    assert np.mean(logs) == pytest.approx(np.log(3.0), abs=0.05)
    assert np.mean([each["params"]["value"] for each in found]) == pytest.approx(-0.4, abs=0.01)


def test_a_slice_at_the_edge_counts():
    plan = Plan(noise=0.0005)
    table = sweep(plan, np.random.default_rng(1))
    first = (table["params"] == 1e6) & (table["tpp"] == 5)
    best = table.attrs["optima"][1e6, 5e6][0]
    slices = cut(table[~(first & (table["lr"] < 1.3 * best))], plan)
    optima = find_optima(slices, bootstrap=0)
    assert [o.verdict for o in optima].count("edge") == 1
    (law,) = fit_joint(slices, WANTED, optima=optima)
    assert law["n"] == 9 and law["parameters"]["params"]["value"] == pytest.approx(-0.4, abs=0.02)


def test_too_few_slices_give_no_law():
    plan = Plan(params=(1e6,), tpp=(20.0,))
    assert laws(plan) == []
    (law,) = laws(replace(plan, params=(1e6, 4e6), exponents=(("params", -0.4),)), heldout=None)
    assert law["covariance"] is None and law["parameters"]["params"]["low"] is None and law["heldout"]["n"] == 0
    with pytest.raises(ValueError, match="curvature"):
        laws(plan, curvature="wide")


def test_diverged_runs_do_not_decide():
    table = sweep(LR, np.random.default_rng(2))
    slices = cut(table, LR)
    assert any(s.diverged.any() for s in slices)
    (law,) = fit_joint(slices, WANTED)
    exploded = [replace(s, loss=np.where(s.diverged, 11.0, s.loss), diverged=s.diverged & False) for s in slices]
    assert fit_joint(exploded, WANTED)[0]["parameters"] == law["parameters"]


def test_scatter_of_the_true_optima_widens_the_interval():
    def width(scatter):
        widths = [laws(Plan(scatter=scatter), seed, heldout=None)[0]["parameters"]["params"] for seed in range(6)]
        return np.median([p["high"] - p["low"] for p in widths])

    assert width(0.3) > 5 * width(0.0)


def test_one_stage_and_two_stages_side_by_side():
    """Equal where every slice tells alike, the joint fit no worse; both cover."""
    result = measure(replace(LR, noise=0.004), 30, seed=3)
    print(result)
    for name in ("params", "tokens", "coefficient"):
        assert result["rms_error"][f"joint {name}"] < 1.15 * result["rms_error"][name]
        assert result["coverage"][f"joint {name}"] > 0.6
