"""Loss laws that other groups report, from their own runs. Values and tolerances are those of the tables' READMEs; where a
README gives no tolerance, half of its last printed digit."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.fit import fit
from analysis.loss.huber import Rows, centred, natural, objective
from analysis.loss.point import fit_point
from analysis.loss.predict import loss_at
from analysis.loss.repeats import Problem
from analysis.table import read_table

N_D = {"params": "N", "tokens": "D"}
QUICK = {"bootstrap": 0, "heldout": None}


def law_of(path, columns, **options):
    result = fit(read_table(path, columns), "loss", {"columns": columns, **QUICK, **options})
    return next(law for law in result.laws if law["name"] == "loss")


def value(law, symbol):
    return law["objective"] if symbol == "objective" else law["parameters"][symbol]["value"]


def check(name, law, reported):
    """reported: {symbol: (value, tolerance)}; prints each before it asserts any."""
    for symbol, (expected, tolerance) in reported.items():
        print(f"{name} {symbol}: reported {expected:.8g}, here {value(law, symbol):.8g}, tolerance {tolerance:.3g}")
    for symbol, (expected, tolerance) in reported.items():
        assert value(law, symbol) == pytest.approx(expected, abs=tolerance), symbol


def test_chinchilla_240_rows(published):
    law = law_of(published("chinchilla_epoch"), N_D, where="epoch_outlier == False")
    for label, (e, a, b, alpha, beta) in {
        "chinchilla, recovered": (1.81722, 477.83, 2143.4, 0.34731, 0.36717),
        "chinchilla, notebook's optimum": (math.exp(0.5973), math.exp(6.168), math.exp(7.669), 0.3473, 0.3671),
        "chinchilla, printed": (1.817, 482.0, 2085.4, 0.3478, 0.3658),
    }.items():
        reported = {"E": (e, 0.002), "A": (a, 0.01 * a), "B": (b, 0.03 * b), "alpha": (alpha, 0.001), "beta": (beta, 0.002)}
        check(label, law, reported)
    check("chinchilla", law, {"objective": (1.01827402e-3, 5e-12)})
    assert law["objective"] <= 1.01827413e-3 and law["n"] == 240 and law["counts"] == "rows"
    exponent = value(law, "beta") / (value(law, "alpha") + value(law, "beta"))
    print(f"chinchilla a = beta / (alpha + beta): reported 0.513, recovered 0.5139, here {exponent:.4f}")
    assert exponent == pytest.approx(0.5139, abs=5e-5)


def test_chinchilla_with_its_outliers_is_another_law(published):
    """The negative control: five digitised points move beta from .367 to .453."""
    law = law_of(published("chinchilla_epoch"), N_D)
    reported = {"E": (1.891, 5e-4), "A": (496, 0.5), "B": (12846, 0.5), "alpha": (0.349, 5e-4), "beta": (0.453, 5e-4)}
    check("chinchilla, all 245", law, reported)
    assert law["n"] == 245


@pytest.mark.parametrize(
    "subset, alpha, beta, found, reported, printed",
    [
        ("hot", 0.29289, 0.71298, 1.9816128e-3, 1.9816129e-3, (0.29287, 0.71287)),
        ("hot_100b+", 0.25916, 0.59730, 6.5925342e-3, 6.5925344e-3, (0.2591125694, 0.5972679073)),
    ],
)
def test_gemstones(published, subset, alpha, beta, found, reported, printed):
    columns = {**N_D, "run_id": "run_name"}
    law = law_of(published("gemstones"), columns, where=f"subset == '{subset}'")
    print(f"gemstones {subset}: authors' alpha, beta {printed}, objective {reported:.10e}; here {law['objective']:.10e}")
    check(f"gemstones {subset}", law, {"alpha": (alpha, 5e-6), "beta": (beta, 5e-6), "objective": (found, 5e-11)})
    assert law["objective"] <= reported
    table = pd.read_csv(published("gemstones"))
    table = table[table["subset"] == subset]
    theirs = pd.read_csv(published("gemstones").parent / "reported.csv").set_index("subset").loc[subset]
    rows = Rows.of(table["N"], table["D"], table["loss"], theirs["delta"])
    at = objective(centred(theirs[["logE", "logA", "logB", "alpha", "beta"]].to_numpy(float), rows)[None], rows)[0]
    print(f"gemstones {subset}: objective at the authors' parameters, reported {theirs['huber_sum']}, here {at:.10f}")
    assert at == pytest.approx(theirs["huber_sum"], abs=5e-10) and law["objective"] <= at
    assert law["blocks"] == 22  # checkpoints of one run are one block


@pytest.mark.parametrize(
    "where, rows, predicted",
    [
        ("N < 1.5e9 and mult_x != 0.5 and rerun == False", 16, 2.3485),
        ("N < 1.5e9", 24, 2.371),
        ("N > 0", 30, 2.427),
    ],
)
def test_olmo_ladder_extrapolates_to_13b(published, where, rows, predicted):
    law = law_of(published("olmo_ladder"), {"params": "N", "tokens": "D_total"}, where=where)
    n = 13_202_396_160  # OLMo 2 13B without its input embedding, as the ladder counts N
    found = [loss_at(law, n, d).value for d in (5e12, 5.0001e12)]
    print(f"olmo_ladder {rows} rows, 13B at 5T: reported {predicted}, here {found[0]:.4f}")
    assert law["n"] == rows and found[0] == pytest.approx(predicted, abs=6e-4)
    if rows == 16:
        check("olmo_ladder", law, {"E": (1.042, 5e-4), "alpha": (0.1125, 5e-5), "beta": (0.1574, 5e-5)})


def test_olmo_ladder_says_that_its_floor_is_not_identified(published):
    columns = {"params": "N", "tokens": "D_total"}
    where = "N < 1.5e9 and mult_x != 0.5 and rerun == False"
    options = {"columns": columns, "where": where, "bootstrap": 300}
    result = fit(read_table(published("olmo_ladder"), columns), "loss", options)
    e = result.laws[0]["parameters"]["E"]
    print(f"olmo_ladder E {e['value']:.3f}, {e['low']} .. {e['high']}")
    assert e["low"] is None or e["high"] > 1.5 * e["low"]
    assert any("E is not identified" in note or "E is not bounded" in note for note in result.notes)


def test_steplaw_best_points(published):
    columns = {**N_D, "loss": "smooth_loss"}
    law = law_of(published("steplaw_dense"), columns, select="best", predictors=["params", "tokens"])
    check("steplaw", law, {"E": (0.906, 5e-4), "alpha": (0.133, 5e-4), "beta": (0.295, 5e-4)})
    assert law["n"] == 17


def test_marin_best_cells(published):
    """The README's .166, .290 and 1.774 lie on a flat valley: at them the objective is no lower than here."""
    law = law_of(published("marin_optimizer_sweep"), N_D, select="best", where="optimizer == 'adamw'")
    check("marin adamw", law, {"E": (1.774, 0.02), "alpha": (0.166, 0.005), "beta": (0.290, 0.002)})
    assert law["n"] == 18
    table = pd.read_csv(published("marin_optimizer_sweep")).query("optimizer == 'adamw'")
    best = table.loc[table.groupby(["N", "D"])["loss"].idxmin()]
    rows = Rows.of(best["N"], best["D"], best["loss"])
    there = fit_point(rows.holding({"E": 1.774, "alpha": 0.166, "beta": 0.290})).value
    print(f"marin adamw objective: at the reported E, alpha, beta {there:.6e}, here {law['objective']:.6e}")
    assert law["objective"] < there < 1.1 * law["objective"]


LLAMA_3 = {"E": (0.611, 5e-4), "A": (62.8, 0.05), "B": (192.8, 0.05), "alpha": (0.3137, 5e-5), "beta": (0.3254, 5e-5)}


@pytest.mark.parametrize(
    "where, reported, a",
    [
        ("source == 'llama_3' and condition == 'raw_loss'", LLAMA_3, 0.509),
        ("dataset == 'comma'", {}, 0.329),
        ("dataset == 'dclm'", {}, 0.368),
        ("dataset == 'nemotron'", {}, 0.374),
        ("source == 'misfitting'", {}, 0.509),
    ],
)
def test_isoflop_collection_by_approach_3(published, where, reported, a):
    law = law_of(published("isoflop_collection"), N_D, where=f"{where} and outlier == False")
    check(f"isoflop_collection {where}", law, reported)
    p = law["parameters"]
    exponent = p["beta"]["value"] / (p["alpha"]["value"] + p["beta"]["value"])
    print(f"isoflop_collection {where}: a reported {a}, here {exponent:.4f}, tolerance 0.001")
    assert exponent == pytest.approx(a, abs=0.001)


def test_hyperball_floor_from_one_size(published):
    """One model size: the term of N is dropped and said so."""
    table = read_table(published("hyperball_lr_horizon"), {"tokens": "D"})
    table["params"] = 1.3e8
    result = fit(table, "loss", {"columns": {"tokens": "D"}, "select": "best", **QUICK})
    law = result.laws[0]
    check("hyperball", law, {"E": (3.0787, 0.002), "beta": (0.4387, 0.003)})
    assert set(law["parameters"]) == {"E", "B", "beta"} and law["n"] == 13 and len(result.laws) == 1
    assert any("params does not vary" in note for note in result.notes)


C4 = {"E": math.exp(0.6254804), "A": math.exp(6.255414), "B": math.exp(7.3049974), "alpha": 0.3526596, "beta": 0.3526596}


def test_data_constrained_objective_at_the_reported_point_and_below(published):
    table = pd.read_csv(published("data_constrained"))
    epochs = np.maximum(table["D_total"] / table["D_unique"], 1)
    problem = Problem(table["N"], table["D_total"], epochs, table["loss"], held=C4)
    at = [0.6254804, 6.255414, 7.3049974, 0.3526596, 0.3526596, math.log(15.387756), math.log(5.309743)]
    there = problem.objective(np.array(at))[0]
    print(f"data_constrained objective at the reported point: reported 0.0158259366, README 0.0158259353, here {there:.10f}")
    assert there == pytest.approx(0.0158259353, abs=5e-10)
    columns = {"params": "N", "tokens": "D_total"}
    law = law_of(published("data_constrained"), columns, form="data_constrained", fixed=C4)
    check("data_constrained", law, {"objective": (0.0158047, 5e-8), "R_D": (95.4, 0.05), "R_N": (1.71, 0.005)})
    assert law["objective"] <= there and law["fixed"] == C4


def test_data_constrained_all_free_is_lower_still(published):
    columns = {"params": "N", "tokens": "D_total"}
    law = law_of(published("data_constrained"), columns, form="data_constrained")
    print(f"data_constrained, seven parameters free: objective {law['objective']:.7f}, R_D {value(law, 'R_D'):.1f}")
    plain = law_of(published("data_constrained"), columns)
    assert law["objective"] < 0.8 * plain["objective"] and law["objective"] < 0.0067


def test_natural_and_centred_are_inverse(published):
    table = pd.read_csv(published("chinchilla_epoch"))
    rows = Rows.of(table["N"], table["D"], table["loss"])
    theta = np.array([[0.6, -0.2, 0.35, -0.9, 0.37]])
    assert np.allclose(centred(natural(theta, rows), rows), theta)
