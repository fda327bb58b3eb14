"""Planted laws are recovered, their intervals hold the truth as often as they say (long: benchmarks/coverage.py)."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.fit import fit
from analysis.optimum import find_optima
from benchmarks.coverage import TAU, measure, two_stages
from benchmarks.planted import Plan, cut, sweep

DRAWS = 60
LOW, HIGH = 0.66, 0.94  # 80 % of 60 draws has an s.d. of 5 %; the seed is fixed
FEW = 30, 0.56, 1.0


@pytest.mark.parametrize("case", ["bowl", "bowl, noise grows with scale, optima scatter", "bowl, 3 slices"])
def test_coverage_where_the_form_is_right(case):
    result = measure(case, DRAWS, seed=1)
    print(case, result)
    assert all(LOW <= share <= HIGH for share in result["coverage"].values()), result["coverage"]
    exponent = result["rms_error"]
    assert exponent["argmin params"] > 1.5 * exponent["params"] and exponent["joint params"] < 1.1 * exponent["params"]


@pytest.mark.parametrize("case", ["LR blows up and diverges", "tau has a plateau, noise grows, optima scatter, 2 seeds"])
def test_coverage_where_no_parabola_fits(case):
    """Exponents, coefficient and single optima, in two stages and in one. By whole parabolas hardly ever (below)."""
    result = measure(case, DRAWS, seed=2)
    print(case, result)
    assert all(LOW <= share for share in result["coverage"].values()), result["coverage"]
    name = "params" if "params" in result["bias"] else "tpp"
    assert result["rms_error"][f"argmin {name}"] > 1.5 * result["rms_error"][name]
    assert result["interior"] > 0.95


OTHERS = "weight decay has a shelf", "batch is dear above the critical one", "LR and batch, bent valley"


@pytest.mark.parametrize("case", OTHERS)
def test_coverage_of_the_other_laws(case):
    draws, low, high = FEW
    result = measure(case, draws, seed=3)
    print(case, result)
    laws = {name: share for name, share in result["coverage"].items() if not name.startswith("optimum")}
    assert len(laws) >= 4 and all(low <= share <= high for share in laws.values()), laws
    assert result["interior"] > 0.95


def test_parabolas_alone_do_not_cover_bent_basins():
    """A negative control of the coverage above: it sees the bias."""
    result = measure("tau has a plateau", 20, seed=2, window="none")
    assert result["coverage"]["optimum"] < 0.2 and result["coverage"]["coefficient"] < 0.2, result["coverage"]


def test_coverage_measures_what_fit_does():
    """The benchmark's short way through the engine and the whole way from a table give one law."""
    table = sweep(TAU, np.random.default_rng(6))
    law = fit(table, "tau", {"bootstrap": 0, "heldout": None}).laws[0]["parameters"]
    short = two_stages(find_optima(cut(table, TAU), bootstrap=0), TAU)["tau"]["parameters"]
    for name in ("coefficient", "tpp"):
        assert [law[name][end] for end in ("value", "low", "high")] == pytest.approx(
            [short[name][end] for end in ("value", "low", "high")], rel=1e-5
        )


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.004])
def test_lr_law_at_several_noise_levels(noise):
    plan = Plan(noise=noise)
    law = fit(sweep(plan, np.random.default_rng(3)), "lr").laws[0]
    for name, expected in plan.exponents:
        assert law["parameters"][name]["value"] == pytest.approx(expected, abs=1e-6 + 6 * noise)
    assert law["predictors"] == ["params", "tokens"] and law["n"] == 9
    assert law["form"] == "coefficient * params^params * tokens^tokens"
    assert law["given"]["batch_size"] == 64 and law["given"]["weight_decay"] == pytest.approx(0.1)
    assert 0 < law["heldout"]["n"] < 5 and law["heldout"]["mean_abs_log_error"] < 1e-6 + 30 * noise
    assert law["heldout"]["mean_excess_loss"] < 1e-6 + noise


def test_slices_at_the_edge_stay_out_and_do_no_harm():
    plan = Plan(noise=0.001)
    table = sweep(plan, np.random.default_rng(4))
    cut = (table["params"] == 1e6) & (table["tpp"] == 5)
    best = fit(table, "lr").optima
    value = next(o["value"] for o in best if o["given"]["params"] == 1e6 and o["given"]["tpp"] == 5)
    result = fit(table[~(cut & (table["lr"] < value * 1.3))], "lr")
    verdicts = {(o["given"]["params"], o["given"]["tpp"]): o for o in result.optima}
    edge = verdicts[(1e6, 5.0)]
    assert edge["verdict"] == "edge" and edge["value"] is None and edge["low"] is None and edge["loss"] is None
    assert result.laws[0]["n"] == 8
    assert result.laws[0]["parameters"]["params"]["value"] == pytest.approx(-0.4, abs=0.03)
    assert any("1 edge" in note for note in result.notes)


def test_a_lowest_point_at_the_end_is_no_edge_where_the_vertex_is_inside():
    """Power of the rule: the vertex lies a fifth of a step inside the last value, which is the lowest run."""
    x = 2.0 ** np.arange(-10, -4)
    loss = 2 + 0.01 * (np.log2(x) + 5.2) ** 2
    optimum = fit(frame(lr=x, loss=loss), "lr").optima[0]
    assert loss.argmin() == len(x) - 1
    assert optimum["verdict"] == "interior" and optimum["value"] == pytest.approx(2**-5.2, rel=1e-6)


@pytest.mark.parametrize("word", ["diverged", "pruned"])
def test_censored_rows_bound_the_range(word):
    x = 2.0 ** np.arange(-10, -5)
    loss = 2 + 0.01 * (np.log2(x) + 5.7) ** 2  # vertex between the last value that trained and the first that diverged
    table = frame(lr=np.append(x, 2.0**-5), loss=np.append(loss, np.nan))
    table["status"] = ["done"] * 5 + [word]
    assert fit(table, "lr").optima[0]["verdict"] == "interior"
    assert fit(table[:5], "lr").optima[0]["verdict"] == "edge"
    table.loc[5, "lr"] = 2.0**-5.9
    assert fit(table, "lr").optima[0]["verdict"] == "edge"


def test_a_diverged_row_with_a_loss_is_censored_all_the_same():
    plan = Plan(noise=0.001, params=(1e6, 4e6, 16e6), tpp=(20.0,), exponents=(("params", -0.4),), diverge_above=2.0)
    table = sweep(plan, np.random.default_rng(5))
    lost = table["status"] == "diverged"
    assert lost.any()
    expected = fit(table, "lr").laws[0]["parameters"]
    table.loc[lost, "loss"] = 11.0
    assert fit(table, "lr").laws[0]["parameters"] == expected
    table["status"] = "done"  # an exploded loss says so itself
    assert fit(table, "lr").laws[0]["parameters"] == expected


def test_tau_law():
    law = fit(sweep(replace(TAU, basin="bowl"), np.random.default_rng(11)), "tau").laws[0]
    tpp = law["parameters"]["tpp"]
    assert law["predictors"] == ["tpp"] and law["form"] == "coefficient * tpp^tpp"
    assert tpp["low"] < -0.5 < tpp["high"] < 0
    assert law["held"]["lr"] == pytest.approx(0.004) and law["held"]["batch_size"] == pytest.approx(64)


def test_joint_optimum_with_interaction():
    """Rotated basin, diverged corner: LR and batch laws at once."""
    rng, rows = np.random.default_rng(7), []
    for n in (1e6, 4e6, 16e6):
        for d in (2e7, 8e7, 32e7):
            lr0, b0 = 40 * n**-0.6 * d**0.1, 2e-3 * d**0.6
            for i in range(-3, 4):
                for j in range(-3, 4):
                    z, w = i + rng.uniform(-0.3, 0.3), j + rng.uniform(-0.3, 0.3)
                    loss = 2 + 0.008 * z**2 - 0.007 * z * w + 0.006 * w**2 + 0.001 * rng.standard_normal()
                    lost = z - w > 5
                    rows.append((n, d, lr0 * 2**z, b0 * 2**w, np.nan if lost else loss, "diverged" if lost else "done"))
    table = pd.DataFrame(rows, columns=["params", "tokens", "lr", "batch_size", "loss", "status"])
    lr, batch = fit(table, "lr_batch").laws
    for law, name, expected in ((lr, "params", -0.6), (lr, "tokens", 0.1), (batch, "tokens", 0.6)):
        p = law["parameters"][name]
        assert p["value"] == pytest.approx(expected, abs=0.04) and p["high"] - p["low"] < 0.1
    assert batch["unit"] == "sequences" and lr["heldout"]["mean_excess_loss"] == batch["heldout"]["mean_excess_loss"]


def test_several_parameterizations_give_several_laws():
    plan = Plan(noise=0.001, tpp=(20.0,), exponents=(("params", -0.4),))
    flat = replace(plan, exponents=(("params", 0.0),), coefficient=0.01)
    one, two = sweep(plan, np.random.default_rng(8)), sweep(flat, np.random.default_rng(9))
    result = fit(pd.concat([one.assign(parameterization="standard"), two.assign(parameterization="mup")]), "lr")
    laws = {law["given"]["parameterization"]: law["parameters"]["params"]["value"] for law in result.laws}
    assert laws["standard"] == pytest.approx(-0.4, abs=0.05) and laws["mup"] == pytest.approx(0.0, abs=0.05)


def frame(**columns):
    return pd.DataFrame({"params": 1e6, "tokens": 2e7, **columns})
