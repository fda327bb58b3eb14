"""Planted curve laws recovered, by generators that share no code with the fitter; properties; what cannot be fitted."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.curves.law import loss_along
from analysis.errors import UserError
from analysis.fit import fit
from benchmarks.coverage_curves import MOMENTUM, TRUTH, Case, draw, planted

BASE = {"momentum": MOMENTUM, "heldout_runs": ["unseen"], "bootstrap": 0}


def table(noise=0.0, seed=0, **case):
    case = Case(noise=noise, **case)
    return draw(case, planted(case), np.random.default_rng(seed))


@pytest.fixture(scope="module")
def clean():
    return table()


def values(result):
    return {k: p["value"] for k, p in result.laws[0]["parameters"].items()}


def test_a_planted_annealing_law_is_recovered(clean):
    result = fit(clean, "curves", BASE)
    assert values(result) == pytest.approx(TRUTH, rel=2e-3)
    assert result.laws[0]["heldout"]["mean_abs_error"] < 5e-4
    noisy = fit(table(noise=0.003), "curves", {**BASE, "bootstrap": 200})
    assert values(noisy) == pytest.approx(TRUTH, rel=0.15)
    for p in noisy.laws[0]["parameters"].values():
        assert p["low"] < p["value"] < p["high"]


def test_the_momentum_is_recovered(clean):
    found = values(fit(clean, "curves", {**BASE, "momentum": "fit"}))
    assert 1 - found["momentum"] == pytest.approx(1 - MOMENTUM, rel=0.03)
    wrong = fit(clean, "curves", {**BASE, "momentum": 0.98}).laws[0]
    assert wrong["heldout"]["mean_abs_error"] > 10 * fit(clean, "curves", BASE).laws[0]["heldout"]["mean_abs_error"]


def test_a_planted_multi_power_law_predicts():
    result = fit(table(dynamics="multi_power"), "curves", {**BASE, "law": "multi_power"})
    assert result.laws[0]["heldout"]["mean_abs_error"] < 0.004 and result.laws[0]["r2"] > 0.9999
    assert fit(table(dynamics="multi_power"), "curves", BASE).laws[0]["heldout"]["mean_abs_error"] > 0.01


def test_curves_of_no_such_law_are_predicted_within_their_interval():
    """A noisy quadratic under SGD: the law is wrong in kind, and its interval says about by how much."""
    inside = []
    for seed in range(6):
        result = fit(table(dynamics="quadratic", noise=0.001, rho=0.5, seed=seed), "curves", {**BASE, "bootstrap": 200})
        row = next(iter(result.tables.values())).iloc[0]
        inside.append((result.laws[0]["run_scatter"] > 0, row["low"] < row["loss"] < row["high"]))
    assert np.mean(inside, axis=0).min() >= 0.5


def test_the_law_in_json_is_the_law(clean):
    for name in ("annealing", "multi_power", "power"):
        result = fit(clean, "curves", {**BASE, "law": name})
        law = json.loads(json.dumps(result.laws[0], allow_nan=False))
        unseen = clean[clean["run_id"] == "unseen"]
        predicted = next(iter(result.tables.values())).iloc[0]["predicted"]
        assert loss_along(law, unseen["step"], unseen["lr"], [3000])[0] == pytest.approx(predicted, rel=1e-6)


@given(st.floats(0.01, 100.0), st.integers(0, 100))
@settings(max_examples=8, deadline=None)
def test_units_of_lr_and_order_of_rows_change_nothing(factor, seed):
    clean = CLEAN.sample(frac=1, random_state=seed)
    ours, theirs = (fit(t, "curves", BASE).laws[0] for t in (CLEAN, clean.assign(lr=clean["lr"] * factor)))
    for name in ("L0", "alpha"):
        assert theirs["parameters"][name]["value"] == pytest.approx(ours["parameters"][name]["value"], rel=1e-4)
    assert theirs["parameters"]["C"]["value"] * factor == pytest.approx(ours["parameters"]["C"]["value"], rel=1e-3)


CLEAN = table()


def test_runs_are_held_out_by_default(clean):
    options = {"momentum": MOMENTUM, "bootstrap": 0}
    result = fit(clean, "curves", options)
    assert result.laws[0]["heldout"]["n"] == 3 and result.laws[0]["runs"][-1] == "unseen"  # the longest three
    equal = fit(clean[clean["run_id"] != "unseen"], "curves", options)
    assert equal.laws[0]["heldout"]["n"] == 1  # of one length: the last
    assert any("second fit" in title for title in equal.tables)
    chosen = fit(clean, "curves", {**options, "fit_runs": ["constant/4000", "cosine to 0/4000"]})
    assert chosen.laws[0]["heldout"]["n"] == 2 and chosen.laws[0]["runs"] == ["constant/4000", "cosine to 0/4000"]


def test_models_of_two_sizes_get_laws_of_their_own(clean):
    larger = clean.assign(params=1e9, run_id="b" + clean["run_id"], loss=clean["loss"] - 0.5)
    both = pd.concat([clean.assign(params=1e8), larger])
    result = fit(both, "curves", {**BASE, "heldout_runs": ["unseen", "bunseen"]})
    assert [law["given"]["params"] for law in result.laws] == [1e8, 1e9]
    floors = [law["parameters"]["L0"]["value"] for law in result.laws]
    assert floors[0] - floors[1] == pytest.approx(0.5, abs=0.01)


def test_without_a_drop_there_is_no_annealing_term(clean):
    result = fit(clean[clean["run_id"] == "constant/4000"], "curves", {"bootstrap": 50})
    assert result.laws[0]["name"] == "power" and any("LR never falls" in note for note in result.notes)
    assert any("one run" in note for note in result.notes) and result.laws[0]["heldout"]["n"] == 0


def test_run_ids_compare_as_text(clean):
    numbered = clean.assign(run_id=pd.factorize(clean["run_id"])[0].astype(float))
    result = fit(numbered, "curves", {**BASE, "heldout_runs": [3]})
    assert result.laws[0]["heldout"]["n"] == 1 and result.laws[0]["runs"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fit_runs": ["constant/400"]}, r"no run constant/400; did you mean constant/4000\?"),
        ({"fit_runs": ["unseen"], "heldout_runs": ["unseen"]}, "in fit_runs and in heldout_runs"),
        ({"law": "aneling"}, "must be one of annealing"),
        ({"momentum": 1.0}, "momentum"),
        ({"run_by": ["size"]}, "no column size"),
        ({"by": ["size"]}, r"by=\[size\]"),
        ({"columns": {"stp": "step"}}, "did you mean step"),
        ({"where": "step < 0"}, "keeps none"),
        ({"optimise_steps": 3}, "optimise_steps"),
        ({"nodes": 10**9}, "nodes"),
    ],
)
def test_requests_that_cannot_be(clean, options, words):
    with pytest.raises(UserError, match=words) as error:
        fit(clean, "curves", options)
    assert len(str(error.value).splitlines()) <= 2


def spoilt(clean, column, value, row=77):
    other = clean.reset_index(drop=True).copy()
    other.loc[row, column] = value
    return other


def test_tables_that_cannot_be(clean):
    for name in ("run_id", "step", "lr", "loss"):
        with pytest.raises(UserError, match=f"no column {name}.*columns.{name}=THEIRS"):
            fit(clean.drop(columns=name), "curves", {})
    bad = (("loss", -1.0, "not above 0"), ("lr", -1e-3, "lr is below 0"), ("step", -5, "step is below"))
    for column, value, words in bad:
        with pytest.raises(UserError, match=words):
            fit(spoilt(clean, column, value), "curves", {})
    with pytest.raises(UserError, match="no loss at all"):
        fit(clean.assign(loss=np.nan), "curves", {})
    with pytest.raises(UserError, match="steps repeat"):
        fit(pd.concat([clean, clean.assign(lr=clean["lr"] * 2)]), "curves", {})
    with pytest.raises(UserError, match="not a number"):
        fit(spoilt(clean.astype({"lr": object}), "lr", "fast"), "curves", {})


def test_tables_that_can_be_mended(clean):
    ours = values(fit(clean, "curves", BASE))
    twice = fit(pd.concat([clean, clean]), "curves", BASE)
    assert values(twice) == pytest.approx(ours) and any("repeat a step" in note for note in twice.notes)
    holes = fit(spoilt(clean, "lr", np.nan, 150), "curves", BASE)  # LR from the rows beside it
    assert values(holes) == pytest.approx(ours, rel=1e-3)
    blown = pd.concat([clean, clean[clean["run_id"] == "unseen"].assign(run_id="blown", loss=np.inf)])
    result = fit(blown, "curves", BASE)
    assert values(result) == pytest.approx(ours) and any("blown diverged" in note for note in result.notes)
    nameless = fit(pd.concat([clean, clean[:5].assign(run_id=None)]), "curves", BASE)
    assert values(nameless) == pytest.approx(ours) and any("no run_id" in note for note in nameless.notes)


def test_too_few_losses_give_no_law(clean):
    few = clean[clean["step"] % 1000 == 0]
    result = fit(few[few["run_id"] == "constant/4000"], "curves", {})
    assert result.laws == [] and any("too few" in note for note in result.notes)
    late = fit(clean, "curves", {"from_step": 10_000})
    assert late.laws == [] and any("no fit run has a loss after step 10000" in note for note in late.notes)


def test_a_million_rows(clean):
    step = np.arange(1, 250_001)
    lr = 1e-3 * np.minimum(step / 2000, 1)
    decay = {"a": np.ones(len(step)), "b": np.cos(step / 250_000 * np.pi / 2), "c": 1 - 0.9 * step / 250_000}
    frames = []
    for name, share in {**decay, "d": np.clip((250_000 - step) / 50_000, 0, 1)}.items():
        eta = lr * share
        loss = 2 + 2 * np.cumsum(eta) ** -0.4 - 0.05 * (1 - share)
        frames.append(pd.DataFrame({"run_id": name, "step": step, "lr": eta, "loss": loss}))
    result = fit(pd.concat(frames), "curves", {"heldout_runs": ["d"], "bootstrap": 100})
    assert result.laws[0]["n"] == 750 and result.laws[0]["heldout"]["mean_abs_error"] < 0.005


@pytest.mark.parametrize("grid", [1, 100])
def test_a_two_stage_run_tells_as_much_on_coarse_rows(grid):
    """Cosine, constant and two-stage runs made step by step; losses of an unseen WSD run from rows of any grid."""
    truth = {"L0": 2.6, "A": 0.55, "alpha": 0.45, "B": 400.0, "C": 2.0, "beta": 0.55, "gamma": 0.6}
    frames, steps, warm = [], 8000, 500
    s = np.arange(1, steps + 1)
    u = (s - warm) / (steps - warm)
    forms = {
        "cosine": 0.1 + 0.45 * (1 + np.cos(np.pi * u)),
        "constant": np.ones(steps),
        "two": np.where(s > 4800, 0.3, 1.0),
        "unseen": np.where(u > 0.8, 1 - 0.9 * (u - 0.8) / 0.2, 1.0),
    }
    for name, form in forms.items():
        lr = 1e-3 * np.where(s <= warm, s / warm, form)
        area, drop = np.cumsum(lr), -np.diff(lr, prepend=lr[0])
        drop[:warm] = 0
        rows = s[99::100]
        k = np.flatnonzero(drop)
        loss = [
            truth["L0"] + truth["A"] * area[t - 1] ** -truth["alpha"] - truth["B"] * np.sum(
                (d := k[k < t], drop[d] * (1 - (1 + truth["C"] * lr[d] ** -truth["gamma"] * (area[t - 1] - area[d] + lr[d]))
                                           ** -truth["beta"]))[1])
            for t in rows
        ]  # fmt: skip
        every = s[grid - 1 :: grid]
        frame = pd.DataFrame({"run_id": name, "step": every, "lr": lr[every - 1]})
        frames.append(frame.assign(loss=frame["step"].map(dict(zip(rows, loss, strict=True)))))
    result = fit(pd.concat(frames), "curves", {"law": "multi_power", "heldout_runs": ["unseen"], "bootstrap": 0})
    assert values(result)["B"] == pytest.approx(400, rel=0.01) and values(result)["gamma"] == pytest.approx(0.6, abs=0.1)
    assert result.laws[0]["heldout"]["mean_abs_error"] < 1e-3
