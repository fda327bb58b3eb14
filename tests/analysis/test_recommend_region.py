"""Intervals of a recipe, and how far it lies beyond what was sampled."""

import json
import math

import numpy as np
import pytest

from analysis.predict import predict
from analysis.recommend import as_table, recommend

from .recipes import POWER_LINES, fitted, laws, power_law, scales


def test_prediction_interval_by_hand():
    """ln y = ln c + p ln x, C diagonal: half width t_{0.9, 4} sqrt(0.01 + 0.0004 ln(x)^2 + 0.09)."""
    law = power_law("lr", 2.0, {"tokens": -0.3}, covariance=[[0.01, 0], [0, 0.0004]], scatter=0.3, dof=4)
    entry = recommend(laws(law), {"params": 1e6, "tokens": 1e7})["recipe"]["lr"]
    half = 1.5332063 * math.sqrt(0.01 + 0.0004 * math.log(1e7) ** 2 + 0.09)
    assert math.log(entry["high"] / entry["value"]) == pytest.approx(half, rel=1e-6)
    assert math.log(entry["value"] / entry["low"]) == pytest.approx(half, rel=1e-6)
    wide = recommend(laws(law), {"params": 1e6, "tokens": 1e7, "level": 0.95})["recipe"]["lr"]
    assert math.log(wide["high"] / wide["value"]) == pytest.approx(half / 1.5332063 * 2.7764451, rel=1e-6)


def test_a_law_by_hand_has_an_interval_from_its_parameters_and_says_so():
    recipe = recommend(laws(POWER_LINES[0]), {"params": 1e9, "tokens": 2e10})
    entry = recipe["recipe"]["tau"]
    assert entry["low"] == pytest.approx(1.084 * 20**-0.529) and entry["high"] == pytest.approx(1.084 * 20**-0.507)
    assert any("taken as independent" in note for note in recipe["notes"])
    bare = recommend(laws(power_law("tau", 1.0, {"tpp": -0.5})), {"params": 1e9, "tokens": 2e10})
    assert bare["recipe"]["tau"]["low"] is None and any("no interval" in note for note in bare["notes"])
    assert json.loads(json.dumps(bare, allow_nan=False)) == bare and "0.2236" in as_table(bare)


@pytest.mark.parametrize("slices", [4, 8])
def test_prediction_intervals_cover_new_optima(slices):
    """Optima scatter about a planted law; 80 % intervals 10x beyond the fit cover a new optimum in 75-85 % of draws."""
    rng = np.random.default_rng(slices)
    params = np.geomspace(1e6, 1e8, slices)
    covered = 0
    for _ in range(800):
        y = 0.3 * params**-0.4 * np.exp(rng.normal(0, 0.15, slices))
        new = 0.3 * 1e9**-0.4 * math.exp(rng.normal(0, 0.15))
        prediction = predict(fitted("lr", {"params": params}, y), {"params": 1e9})
        covered += prediction.low <= new <= prediction.high
    assert 0.75 <= covered / 800 <= 0.85


def test_distance_beyond_the_sampled_range():
    law = power_law("lr", 1.0, {"params": -0.5}, sampled=scales([1e6, 4e6, 4e6], [2e7, 2e7, 8e7], batch_size=[8, 8, 8]))
    recipe = recommend(laws(law), {"params": 4e8, "tokens": 8e6, "batch_size": 80})
    beyond = recipe["extrapolation"]
    assert beyond["params"]["decades"] == pytest.approx(2) and beyond["params"]["sampled"] == [1e6, 4e6]
    assert beyond["tokens"]["decades"] == pytest.approx(math.log10(2.5))
    assert beyond["batch_size"]["decades"] == pytest.approx(1)
    assert any("2.00 decades above" in note for note in recipe["notes"])
    inside = recommend(laws(law), {"params": 2e6, "tokens": 4e7, "batch_size": 8})
    assert all(entry["decades"] == 0 for entry in inside["extrapolation"].values())
    assert "inside the region" in as_table(inside)


def test_off_the_ray_of_collinear_predictors():
    """All slices at 20 tokens per parameter: 80 is log10(4) / sqrt(2) off that line, though N and D are in range."""
    params = np.geomspace(1e6, 1e8, 5)
    law = power_law("lr", 1.0, {"params": -0.5}, sampled=scales(params, 20 * params * [1.01, 0.99, 1, 1, 1.005]))
    recipe = recommend(laws(law), {"params": 1e7, "tokens": 8e8})
    ray = recipe["extrapolation"]["ray"]
    assert ray["decades"] == pytest.approx(math.log10(4) / math.sqrt(2), abs=0.01)
    assert ray["predictors"] == ["params", "tokens"]
    assert any(
        "20 tokens per parameter" in note and "0.42 decades" in note or "0.43 decades" in note
        for note in recipe["notes"]
    )
    on = recommend(laws(law), {"params": 1e7, "tokens": 2e8})
    assert on["extrapolation"]["ray"]["decades"] == 0


def test_a_batch_that_followed_tokens_is_a_ray_too():
    law = power_law(
        "lr", 1.0, {"params": -0.5}, sampled=scales([1e6, 1e6, 1e8], [1e8, 1e9, 1e9], batch_size=[10, 100, 100])
    )
    recipe = recommend(laws(law), {"params": 1e7, "tokens": 1e9, "batch_size": 10})
    assert recipe["extrapolation"]["ray"]["decades"] == pytest.approx(1 / math.sqrt(2))
    assert "moved together" in recipe["extrapolation"]["ray"]["ray"]


def test_one_token_budget_is_named():
    law = power_law("lr", 1.0, {"params": -0.5}, sampled=scales([1e6, 4e6], [2e7, 2e7]))
    notes = recommend(laws(law), {"params": 4e6, "tokens": 8e7})["notes"]
    assert any("one tokens only" in note for note in notes)
    assert any("2e+07 only" in note and "0.60 decades" in note for note in notes)


def test_a_law_that_held_tau_elsewhere_says_so():
    lr = power_law("lr", 1.0, {"params": -0.5}, sampled=scales([1e6, 4e6], [2e7, 8e7], tau=[1.0, 1.0]))
    notes = recommend(laws(lr, POWER_LINES[0]), {"params": 4e6, "tokens": 8e7})["notes"]
    assert any("measured at tau = 1" in note for note in notes)
