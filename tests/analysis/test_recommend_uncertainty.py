"""Uncertainty of a recipe: laws as inputs of laws, what follows from them, and what an error costs."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.fit import fit
from analysis.recommend import as_table, loss_law, recommend
from analysis.recommend.adjusted import multipliers
from analysis.recommend.penalty import at_scale
from analysis.recommend.propagate import sample
from benchmarks.coverage_recommend import CASES, QUICK, measure
from benchmarks.planted import Plan, sweep
from models.parameterization import Parameterization, hidden
from models.shape import LlamaShape

Z = 1.2815516  # 90 % of a normal


def normal(name, coefficient, exponents=None, sd=0.0, scatter=0.0, **extra):
    """A law whose log coefficient has the s.d. `sd`; no exponent is uncertain, no Student t."""
    exponents = exponents or {}
    covariance = np.zeros((1 + len(exponents),) * 2)
    covariance[0, 0] = sd**2
    parameters = {"coefficient": {"value": coefficient}, **{key: {"value": value} for key, value in exponents.items()}}
    return {"name": name, "analysis": name, "given": {}, "parameters": parameters, "predictors": list(exponents),
            "covariance": covariance.tolist(), "scatter": scatter, **extra}  # fmt: skip


def laws(*entries):
    return {"laws": list(entries), "optima": []}


def half(entry):
    return math.log(entry["high"] / entry["low"]) / 2


TARGET = {"params": 1e9, "tokens": 2e10, "context": 2048}


def test_a_batch_laws_error_is_in_the_lr_that_takes_the_batch():
    """ln LR = ... + 0.5 ln B: half width z sqrt(0.1^2 + 0.05^2 + 0.25 * 0.3^2); z 0.11 at the batch of the recipe."""
    lr = normal("lr", 1e-3, {"batch_size": 0.5}, 0.1, 0.05)
    recipe = recommend(laws(lr, normal("batch_size", 300.0, sd=0.3)), TARGET)["recipe"]
    assert half(recipe["lr"]) == pytest.approx(Z * math.sqrt(0.1**2 + 0.05**2 + 0.25 * 0.3**2), rel=0.02)
    assert half(recipe["lr"]["conditional"]) == pytest.approx(Z * math.hypot(0.1, 0.05), rel=1e-6)
    assert recipe["lr"]["conditional"]["on"] == "batch_size"
    assert math.log(recipe["lr"]["high"] / recipe["lr"]["value"]) == pytest.approx(half(recipe["lr"]), rel=0.02)
    given = recommend(laws(lr), {**TARGET, "batch_size": 300})["recipe"]["lr"]
    assert "conditional" not in given and half(given) == pytest.approx(Z * math.hypot(0.1, 0.05), rel=1e-6)
    sure = recommend(laws(lr, normal("batch_size", 300.0)), TARGET)["recipe"]["lr"]
    assert "conditional" not in sure


@pytest.mark.parametrize(("predictor", "exponent"), [("steps", 0.5), ("batch_tokens", -0.5)])
def test_steps_and_tokens_of_a_batch_are_as_uncertain_as_it(predictor, exponent):
    tau = normal("tau", 0.1, {predictor: exponent})
    recipe = recommend(laws(tau, normal("batch_size", 300.0, sd=0.3)), TARGET)
    assert half(recipe["recipe"]["tau"]) == pytest.approx(Z * 0.15, rel=0.02)
    assert half(recipe["derived"]["steps"]) == pytest.approx(Z * 0.3, rel=0.02)
    assert "at this batch_size" in as_table(recipe)


def test_draws_of_one_law_are_its_prediction():
    """Student t with 4 degrees of freedom and a correlated covariance: quantiles of the draws by hand."""
    law = {**normal("lr", 2.0, {"tokens": -0.3}), "covariance": [[0.04, -0.001], [-0.001, 0.0004]], "scatter": 0.2, "dof": 4}
    x = math.log(1e7)
    spread = 1.5332063 * math.sqrt(0.04 - 0.002 * x + 0.0004 * x**2 + 0.04)
    draws = sample(law, {"tokens": 1e7}, np.random.default_rng(1), 200_000)
    expected = math.log(2.0) - 0.3 * x
    assert np.quantile(draws, [0.1, 0.5, 0.9]) == pytest.approx([expected - spread, expected, expected + spread], abs=0.01)
    by_hand = normal("lr", 2.0, {"tokens": -0.3}) | {"covariance": None}
    by_hand["parameters"]["tokens"] |= {"low": -0.31, "high": -0.28}
    low, high = np.quantile(sample(by_hand, {"tokens": 1e7}, np.random.default_rng(1), 200_000), [0.1, 0.9])
    assert (low - expected, high - expected) == pytest.approx((-0.01 * x, 0.02 * x), abs=0.01)


@pytest.mark.parametrize("name", ["standard", "standard_embedding", "mup", "completep"])
@pytest.mark.parametrize("extra", [{}, {"weight_decay_width_exponent": 0.5}])
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_multipliers_are_those_of_the_models(name, extra, alpha):
    if alpha and name != "completep":
        return
    extra = extra | ({"depth_alpha": alpha} if alpha else {})
    shape = LlamaShape.build(width=512, depth=12, vocab=1000, context=128)
    built = Parameterization.build(name, 128, 4, **extra)
    mine = multipliers({"parameterization": name, "base_width": 128, "base_depth": 4, **extra}, 512, 12)
    assert mine == pytest.approx(hidden(shape, built))


def test_weight_decay_follows_from_tau_with_its_interval():
    """ln(weight decay) = -(ln tau + ln LR + ln steps) + ..., steps = D / B and LR ~ B^0.5: variances 0.2^2 of tau, 0.1^2 of
    LR and (0.5 * 0.3)^2 of the batch, whose effect on steps and LR partly cancels."""
    given = {"parameterization": "completep", "base_width": 256}
    lr = normal("lr", 1e-3, {"batch_size": 0.5}, 0.1, given=given)
    recipe = recommend(
        laws(lr, normal("batch_size", 256.0, sd=0.3), normal("tau", 0.2, sd=0.2)), {**TARGET, "width": 2048, "depth": 16}
    )
    found = recipe["derived"]
    steps = 2e10 / (256 * 2048)
    assert found["steps"]["value"] == pytest.approx(steps)
    assert found["lr_adjusted"]["value"] == pytest.approx(1e-3 * 16 / 8)
    assert found["weight_decay"]["value"] == pytest.approx(1 / (0.2 * 0.016 / 8 * steps) / 8)
    assert half(found["weight_decay"]) == pytest.approx(Z * math.sqrt(0.2**2 + 0.1**2 + 0.15**2), rel=0.03)
    assert "weight decay (base)" in as_table(recipe)


def test_tau_follows_from_weight_decay_and_independent_decay_needs_no_lr():
    lr = normal("lr", 1e-3, given={"parameterization": "standard"})
    target = {**TARGET, "batch_size": 256}
    steps = 2e10 / (256 * 2048)
    found = recommend(laws(lr), {**target, "weight_decay": 0.1})["derived"]
    assert found["tau"]["value"] == pytest.approx(1 / (0.1 * 1e-3 * steps)) and "weight_decay" not in found
    independent = normal("tau", 0.2, given={"parameterization": "mup", "base_width": 64, "weight_decay_mode": "independent"})
    found = recommend(laws(independent), {**target, "width": 512, "depth": 4})["derived"]
    assert found["weight_decay"]["value"] == pytest.approx(1 / (0.2 * steps))


def test_what_does_not_follow_is_said():
    notes = recommend(laws(normal("tau", 0.2)), TARGET)["notes"]
    line = next(note for note in notes if "weight_decay does not follow from tau" in note)
    assert "lr" in line and "batch" in line and "parameterization" in line


def planted(exponent=0.0, seed=0, **plan):
    """A sweep of bowls 0.010 z^2 (z in octaves), scaled by (N / 4e6)^exponent."""
    table = sweep(Plan(noise=1e-5, **plan), np.random.default_rng(seed))
    floor = 1.5 + 300.0 / table["params"] ** 0.4 + 400.0 / table["tokens"] ** 0.35
    return table.assign(loss=floor + (table["loss"] - floor) * (table["params"] / 4e6) ** exponent)


def test_the_cost_of_an_error_in_a_planted_basin():
    """0.010 nats an octave squared: curvature 0.02 / ln(2)^2, and ends of the interval cost 0.010 log2(end / value)^2."""
    result = fit(planted(scatter=0.3), "lr", QUICK)
    law = result.laws[0]
    assert law["curvature"]["value"] == pytest.approx(0.02 / math.log(2) ** 2, rel=0.02)
    assert law["curvature"]["exponent"] is None and law["curvature"]["n"] == 9
    law["covariance"] = (np.array(law["covariance"]) * 4).tolist()
    recipe = recommend({"laws": result.laws, "optima": result.optima}, {"params": 8e7, "tokens": 1.6e9})
    entry, cost = recipe["recipe"]["lr"], recipe["penalty"]["lr"]
    for end in ("low", "high"):
        assert cost[end] == pytest.approx(0.010 * math.log2(entry[end] / entry["value"]) ** 2, rel=0.03)
    assert 0.15 * cost["high"] < cost["mean"] < 0.4 * cost["high"]  # a uniform error would give 1/3, a normal one less
    assert cost["compute"] is None and any("analysis=loss" in note for note in recipe["notes"])
    assert "cost of being wrong" in as_table(recipe)


def test_curvature_that_moves_with_scale_is_followed():
    law = fit(planted(exponent=0.5), "lr", QUICK).laws[0]
    basin = law["curvature"]
    flops = 6 * 8e7 * 1.6e9
    # N alone moves it; on this grid ln N = 0.5 ln(N D) on average, so the trend in FLOPs is half of the exponent in N
    assert basin["exponent"] == pytest.approx(0.25, abs=0.06)
    assert at_scale(basin, flops) == pytest.approx(basin["value"] * (flops / basin["flops"]) ** basin["exponent"])
    assert at_scale({"value": 0.1}, flops) == 0.1 and at_scale({"value": None}, flops) is None


def test_nats_become_compute_with_a_loss_law():
    symbols = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
    loss = {"name": "loss", "analysis": "loss", "given": {}, "parameters": {k: {"value": v} for k, v in symbols.items()}}
    lr = normal("lr", 1e-3, sd=0.3, curvature={"value": 0.04, "exponent": None, "flops": 1e18})
    recipe = recommend(laws(lr, loss), TARGET)
    cost = recipe["penalty"]["lr"]
    assert cost["high"] == pytest.approx(0.02 * (Z * 0.3) ** 2)
    expected = loss_law.central(loss).more_compute(1e9, 2e10, cost["high"])
    assert cost["compute"]["high"] == pytest.approx(expected) and 0.001 < expected < 0.1
    assert "FLOPs" in as_table(recipe)
    without = recommend(laws(normal("lr", 1e-3, sd=0.3)), TARGET)
    assert without["penalty"] == {} and any("hold no `curvature`: a fit gives it" in note for note in without["notes"])


@pytest.mark.parametrize("junk", [[], 3, {"value": "x"}, {"value": -1}, {"value": 0.1, "exponent": "x", "flops": -1}])
def test_a_foreign_curvature_breaks_nothing(junk):
    recipe = recommend(laws(normal("lr", 1e-3, sd=0.3, curvature=junk)), TARGET)
    assert all(math.isfinite(entry["high"]) for entry in recipe["penalty"].values())


def ols(name, points, y):
    """Least squares in logs, as any textbook has it."""
    x = np.column_stack([np.ones(len(y)), *(np.log(values) for values in points.values())])
    beta = np.linalg.lstsq(x, np.log(y), rcond=None)[0]
    dof = len(y) - x.shape[1]
    variance = float(((np.log(y) - x @ beta) ** 2).sum()) / dof
    values = [math.exp(beta[0]), *map(float, beta[1:])]
    parameters = {key: {"value": value} for key, value in zip(["coefficient", *points], values, strict=True)}
    return {"name": name, "analysis": name, "given": {}, "parameters": parameters, "predictors": list(points), "dof": dof,
            "covariance": (variance * np.linalg.inv(x.T @ x)).tolist(), "scatter": math.sqrt(variance)}  # fmt: skip


def test_intervals_hold_the_joint_optimum_of_lr_and_batch():
    """300 draws of two laws, 10 times beyond: the LR at the new run's own best batch, both with scatter; 0.73 to
    0.87 is three standard errors."""
    rng = np.random.default_rng(0)
    tokens, params = np.geomspace(1e8, 1e10, 6), np.repeat(np.geomspace(1e6, 1e8, 3), 3)
    batches = np.tile([16.0, 64.0, 256.0], 3)
    held = {"lr": 0, "batch_size": 0, "conditional": 0}
    draws = 300
    for _ in range(draws):
        batch = ols("batch_size", {"tokens": tokens}, 0.02 * tokens**0.4 * np.exp(rng.normal(0, 0.3, 6)))
        y = 0.1 * params**-0.4 * batches**0.5 * np.exp(rng.normal(0, 0.1, 9))
        lr = ols("lr", {"params": params, "batch_size": batches}, y)
        recipe = recommend(laws(batch, lr), {"params": 1e9, "tokens": 1e11})["recipe"]
        best_batch = 0.02 * 1e11**0.4 * math.exp(rng.normal(0, 0.3))
        best = 0.1 * 1e9**-0.4 * math.exp(rng.normal(0, 0.1))
        here = best * round(recipe["batch_size"]["value"]) ** 0.5
        held["batch_size"] += recipe["batch_size"]["low"] <= best_batch <= recipe["batch_size"]["high"]
        held["lr"] += recipe["lr"]["low"] <= best * best_batch**0.5 <= recipe["lr"]["high"]
        held["conditional"] += recipe["lr"]["conditional"]["low"] <= here <= recipe["lr"]["conditional"]["high"]
    for name, count in held.items():
        assert 0.73 <= count / draws <= 0.87, (name, count / draws)


def test_intervals_of_fitted_sweeps_hold_the_optimum_of_a_larger_run():
    """The short form of benchmarks/coverage_recommend.py; 60 draws at 80 %: 0.63 to 0.95 is three standard errors."""
    found = measure(CASES["bowl, 3 slices"], 60)
    assert 0.63 <= found["coverage"]["lr"] <= 0.95 and found["without_law"] == 0


def test_a_table_without_parameters_shows_no_trend_of_curvature_with_flops():
    """There a slice's scale is its tokens; read as FLOPs, a target's cost would fall by powers of ten."""
    x = np.log(2.0 ** np.arange(-10, -3))
    rows = [
        {"tokens": d, "lr": np.exp(v), "loss": 2 + (d / 1e9) ** -0.4 * 0.05 * (v - x.mean() - 0.1 * np.log(d / 1e10)) ** 2}
        for d in (1e9, 4e9, 16e9, 64e9, 256e9)
        for v in x
    ]
    table = pd.DataFrame(rows)
    without = fit(table, "lr").laws[0]["curvature"]
    known = fit(table.assign(params=1e8), "lr").laws[0]["curvature"]
    assert without["exponent"] is None and without["flops"] is None and without["value"] == known["value"]
    assert known["exponent"] == pytest.approx(-0.4, abs=0.02) and known["flops"] > 1e18
