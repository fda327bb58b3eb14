"""The LAW of analysis=loss: contract, intervals, what follows from it, and the command line."""

import json
import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from analysis.command import as_text, save
from analysis.command import fit as fit_words
from analysis.fit import fit
from analysis.loss.allocation import log_loss_at, log_optimal
from analysis.loss.parametric import Options
from analysis.loss.predict import loss_at, optimal_at, parameters_of
from analysis.loss.repeats import Problem, effective
from analysis.loss.repeats import log_loss as repeated_loss
from analysis.loss.resample import interval
from analysis.request import CONFIGS
from benchmarks.coverage_loss import CASES, measure

TRUTH = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}


def planted_table() -> pd.DataFrame:
    """48 runs, 0.3 % of noise."""
    n, ratio = (axis.ravel() for axis in np.meshgrid(np.geomspace(2e7, 2e9, 8), np.geomspace(5, 160, 6), indexing="ij"))
    d = n * ratio
    loss = TRUTH["E"] + TRUTH["A"] * n ** -TRUTH["alpha"] + TRUTH["B"] * d ** -TRUTH["beta"]
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(48))
    return pd.DataFrame({"params": n, "tokens": d, "loss": loss * noise})


TABLE = planted_table()


@pytest.fixture(scope="module")
def result():
    return fit(TABLE, "loss", {"bootstrap": 300, "flops": [1e20, 1e21]})


def test_contract(result):
    law = next(law for law in result.laws if law["name"] == "loss")
    assert law["form"] == "E + A / params^alpha + B / tokens^beta" and law["counts"] == "rows" and law["n"] == 48
    assert list(law["parameters"]) == ["E", "A", "B", "alpha", "beta"] and law["r2"] > 0.99
    assert law["covariance_of"] == ["ln E", "ln A", "ln B", "alpha", "beta"] and np.shape(law["covariance"]) == (5, 5)
    assert law["heldout"]["n"] == 12 and 0 < law["heldout"]["mean_abs_log_error"] < 0.01
    assert law["heldout"]["mean_excess_loss"] is None
    assert law["range"]["params"] == {"low": TABLE["params"].min(), "high": TABLE["params"].max()}
    assert all(entry["low"] < entry["value"] < entry["high"] for entry in law["parameters"].values())
    json.dumps(result.laws, allow_nan=False)


def test_parameters_come_from_all_rows_and_heldout_from_a_refit(result):
    rows = fit(TABLE, "loss", {"bootstrap": 0, "heldout": None}).laws[0]
    assert rows["parameters"]["alpha"]["value"] == result.laws[0]["parameters"]["alpha"]["value"]
    assert rows["heldout"] == {"n": 0, "mean_abs_log_error": None, "mean_excess_loss": None}
    largest = TABLE["params"] > 1e9
    broken = TABLE.assign(loss=np.where(largest, 1.2 * TABLE["loss"], TABLE["loss"]))
    by_condition = fit(broken, "loss", {"bootstrap": 0, "heldout": "params > 1e9"}).laws[0]["heldout"]
    assert by_condition["n"] == largest.sum() and by_condition["mean_abs_log_error"] == pytest.approx(np.log(1.2), abs=0.02)


def test_compute_optimal_is_the_minimum_of_the_law_at_6nd(result):
    law = result.laws[0]
    found = optimal_at(law, 1e21)
    n = np.geomspace(1e7, 1e12, 200_001)
    loss = np.exp(log_loss_at(parameters_of(law), np.log(n), np.log(1e21 / 6 / n)))
    assert found["params"].value == pytest.approx(n[loss.argmin()], rel=1e-3)
    assert found["params"].value * found["tokens"].value * 6 == pytest.approx(1e21)
    assert found["loss"].value == pytest.approx(loss.min()) and found["params"].low < found["params"].value
    table = next(iter(result.tables.values()))
    assert table["params"].tolist()[1] == pytest.approx(found["params"].value)
    params, tokens = (next(law for law in result.laws if law["name"] == name) for name in ("params_opt", "tokens_opt"))
    coefficient, exponent = (params["parameters"][key]["value"] for key in ("coefficient", "flops"))
    assert coefficient * 1e21**exponent == pytest.approx(found["params"].value)
    assert exponent + tokens["parameters"]["flops"]["value"] == pytest.approx(1.0)
    assert exponent == pytest.approx(TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"]), abs=0.05)


def test_loss_at_and_its_interval(result):
    law = result.laws[0]
    inside, outside = loss_at(law, 3e8, 1e10), loss_at(law, 3e12, 1e14)
    truth = TRUTH["E"] + TRUTH["A"] / 3e8 ** TRUTH["alpha"] + TRUTH["B"] / 1e10 ** TRUTH["beta"]
    assert inside.low < truth < inside.high and inside.high / inside.low < outside.high / outside.low
    run = loss_at(law, 3e8, 1e10, new_run=True)
    assert run.low < inside.low and run.high > inside.high and run.value == inside.value
    by_covariance = loss_at({**law, "draws": None}, 3e8, 1e10)
    assert by_covariance.high - by_covariance.low == pytest.approx(inside.high - inside.low, rel=0.4)
    bare = loss_at({"parameters": {k: {"value": v} for k, v in TRUTH.items()}}, 3e8, 1e10)
    assert bare.value == pytest.approx(truth) and math.isnan(bare.low) and "no interval" in bare.note


def test_interval_follows_the_estimate_and_ties():
    draws = np.linspace(0, 1, 1001)
    low, high = interval(0.5, draws, 0.8)
    assert (low, high) == (pytest.approx(0.1, abs=0.01), pytest.approx(0.9, abs=0.01))
    assert interval(0.6, draws, 0.8)[0] > low
    assert interval(0.0, np.where(draws < 0.3, 0.0, draws), 0.8) == (0.0, pytest.approx(0.9, abs=0.01))


def test_checkpoints_of_a_run_are_one_block():
    rng = np.random.default_rng(1)
    run = np.repeat(np.arange(12), 8)
    n, d = np.repeat(np.geomspace(2e7, 2e9, 12), 8), np.tile(np.geomspace(1e9, 1e11, 8), 12)
    shared = np.repeat(0.005 * rng.standard_normal(12), 8)
    frame = pd.DataFrame({"params": n, "tokens": d, "loss": (1.8 + 480 / n**0.35 + 2000 / d**0.37) * np.exp(shared)})
    alone, blocks = (fit(f, "loss", {"bootstrap": 200, "heldout": None}) for f in (frame, frame.assign(run_id=run)))
    widths = [np.log(r.laws[0]["parameters"]["A"]["high"] / r.laws[0]["parameters"]["A"]["low"]) for r in (alone, blocks)]
    assert widths[1] > 1.5 * widths[0] and blocks.laws[0]["blocks"] == 12
    assert any("checkpoints of 12 runs" in note for note in blocks.notes)


def test_fixed_parameters_stay(result):
    law = fit(TABLE, "loss", {"bootstrap": 100, "fixed": {"E": 1.8, "alpha": 0.35}}).laws[0]
    assert law["parameters"]["E"] == {"value": pytest.approx(1.8), "low": pytest.approx(1.8), "high": pytest.approx(1.8)}
    assert law["parameters"]["alpha"]["value"] == 0.35 and law["objective"] >= result.laws[0]["objective"]


def test_repeats_planted():
    """R_D planted at 12 comes back; effective data are the tokens seen while nothing repeats."""
    rng = np.random.default_rng(2)
    theta = np.array([np.log(1.8), np.log(480.0), np.log(2000.0), 0.35, 0.37, np.log(12.0), np.log(6.0)])
    n = np.repeat(np.geomspace(5e7, 5e9, 6), 15)
    epochs = np.tile(np.repeat([1.0, 4.0, 12.0, 30.0, 60.0], 3), 6)
    d = np.tile([1e9, 6e9, 4e10], 30) * epochs
    clean = np.exp(repeated_loss(theta[None], np.log(n), np.log(d), np.log(epochs))[0])
    problem = Problem(n, d, epochs, clean * np.exp(0.001 * rng.standard_normal(len(n))))
    found, value = problem.fit()
    assert value <= problem.objective(theta)[0] * (1 + 1e-9) and np.exp(found[5]) == pytest.approx(12.0, rel=0.15)
    log_n, log_d = effective(theta, np.log(1e8), np.log(1e12), 0.0)
    assert log_d == pytest.approx(np.log(1e12)) and log_n == pytest.approx(np.log(1e8))
    assert effective(theta, np.log(1e8), np.log(1e12), np.log(1e4))[1] == pytest.approx(np.log(1e8 * 13.0), rel=1e-3)


def test_repeats_make_tokens_worth_less():
    frame = TABLE.assign(epochs=np.tile([1.0, 1.0, 2.0, 8.0], 12))
    frame["loss"] *= 1 + 0.01 * (frame["epochs"] - 1)
    law = fit(frame, "loss", {"form": "data_constrained", "bootstrap": 50, "heldout": None}).laws[0]
    assert loss_at(law, 1e8, 1e10, epochs=20).value > loss_at(law, 1e8, 1e10).value
    assert set(law["parameters"]) == {"E", "A", "B", "alpha", "beta", "R_D", "R_N"}


@pytest.mark.parametrize("case", ["grid 5 x 6", "20 runs of 10 checkpoints"])
def test_intervals_cover(case):
    """30 draws at 80 %: below 17 has a chance of 0.1 %, 30 of 0.1 %. 500 draws: benchmarks/coverage_loss.py."""
    coverage = measure(case, 30, seed=1, bootstrap=100)["coverage"]
    print(case, coverage)
    for name in ("E", "A", "B", "alpha", "beta", "params_opt exponent"):
        assert 17 / 30 <= coverage[name] <= 29 / 30, name


def test_optimum_of_a_compute_grid_agrees_with_log_optimal():
    p = np.array([0.6, 6.0, 7.5, 0.3, 0.5])
    n, d = log_optimal(p, 6e20)
    near = [log_loss_at(p, n + step, d - step) for step in (-0.1, 0.0, 0.1)]
    assert near[1] < min(near[0], near[2])


def test_defaults_are_those_of_the_config():
    config = OmegaConf.to_container(OmegaConf.load(CONFIGS / "loss.yaml"))
    assert config.pop("name") == "loss" and {**asdict(Options()), **config} == asdict(Options())
    assert set(config) == set(asdict(Options()))


def test_from_the_command_line_to_figures(tmp_path):
    TABLE.rename(columns={"params": "N"}).to_csv(tmp_path / "t.csv", index=False)
    words = {"analysis": "loss", "table": str(tmp_path / "t.csv"), "columns": {"params": "N"}, "bootstrap": 100}
    fitted = fit_words(words)
    files = save(fitted, tmp_path / "laws")
    assert {f.name for f in files} == {"laws.json", "loss_against_tokens.png", "loss_residuals.png"}
    assert all(f.stat().st_size > 5000 for f in files if f.suffix == ".png")
    text = as_text(fitted)
    assert "compute-optimal params and tokens" in text and "E 1." in text
    assert all(len(line) <= 120 for line in text.splitlines())
    reread = json.loads((tmp_path / "laws" / "laws.json").read_text())["laws"]
    law = next(law for law in reread if law["name"] == "loss")
    assert loss_at(law, 1e9, 1e11).low < loss_at(law, 1e9, 1e11).value


def test_a_form_that_does_not_hold_is_said_and_one_that_does_is_not():
    """Terms that interact bend the residuals; of ten tables of the true form none or one may be accused (p < 0.01)."""
    rng = np.random.default_rng(3)
    bent = CASES["terms interact, little noise"]
    notes = fit(bent.table(rng, bent.surface), "loss", {"bootstrap": 0, "heldout": None}).notes
    assert any("the residuals bend" in note for note in notes)
    plain = CASES["grid 8 x 8"]
    accused = 0
    for _ in range(10):
        notes = fit(plain.table(rng, plain.surface), "loss", {"bootstrap": 0, "heldout": None}).notes
        accused += any("the residuals bend" in note for note in notes)
    assert accused <= 1
