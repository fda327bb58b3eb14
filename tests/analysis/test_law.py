"""Power laws: predictors, intervals, held-out scales, and the keys that a recipe needs."""

import json

import numpy as np
import pandas as pd
import pytest

from analysis.errors import UserError
from analysis.fit import fit
from analysis.law import choose_predictors, fit_power_law, largest_scales
from analysis.options import ANALYSES, Options
from analysis.predict import predict
from analysis.request import options as composed
from benchmarks.planted import Plan, sweep


def at(**columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_constant_predictors_are_dropped_and_collinear_ones_named():
    params = [1e6, 4e6, 16e6, 64e6]
    chosen = choose_predictors(at(params=params, tokens=[20 * p for p in params], tpp=[20] * 4), ["params", "tokens", "tpp"])
    assert (chosen.kept, chosen.behind, chosen.constant) == (["params"], {"params": ["tokens"]}, ["tpp"])
    both = choose_predictors(at(params=params, tokens=[2e7, 8e7, 2e7, 8e7]), ["params", "tokens"])
    assert both.kept == ["params", "tokens"] and not both.behind


def test_a_line_says_what_was_dropped():
    plan = Plan(noise=0.001, tpp=(20.0,), exponents=(("params", -0.4),))
    result = fit(sweep(plan, np.random.default_rng(0)), "lr")
    law = result.laws[0]
    assert law["predictors"] == ["params"] and law["behind"] == {"params": ["tokens"]}
    assert any("tokens moves with params" in note for note in law["notes"])
    assert any("batch_size does not vary" in note for note in law["notes"])
    tokens = fit(sweep(plan, np.random.default_rng(0)), "lr", {"predictors": ["tokens", "params"]}).laws[0]
    assert tokens["predictors"] == ["tokens"]


def test_exact_law_and_r2():
    values = at(params=[1.0, 2, 4, 8], tokens=[1.0, 3, 2, 5])
    y = np.log(3.0) - 0.5 * np.log([1, 2, 4, 8]) + 0.25 * np.log([1, 3, 2, 5])
    law = fit_power_law(values, y, ["params", "tokens"])
    assert law.beta == pytest.approx([np.log(3), -0.5, 0.25]) and law.r2 == pytest.approx(1)
    assert np.exp(law.log_at(at(params=[16.0], tokens=[1.0]))) == pytest.approx([0.75])


def test_as_many_optima_as_parameters_give_no_interval():
    table = sweep(Plan(noise=0.001, params=(1e6, 4e6), tpp=(20.0,)), np.random.default_rng(1))
    result = fit(table, "lr")
    assert result.laws[0]["parameters"]["params"]["low"] is None and result.laws[0]["covariance"] is None
    assert any("no interval" in note for note in result.notes)
    assert fit(table, "lr", {"predictors": ["params"]}).laws[0]["heldout"]["n"] == 0


def test_three_optima_on_a_line_by_luck_do_not_make_a_certain_law():
    """Residuals say nothing, the runs' noise does: the interval is that of the noise."""
    y, x = np.array([0.0, -1.0, -2.0]), at(params=[1.0, np.e, np.e**2])
    own = 0.1**2 * np.eye(3)
    law = fit_power_law(x, y, ["params"], own, 20.0)
    assert law.covariance[1, 1] == pytest.approx(0.1**2 / 2, rel=0.1) and law.dof == pytest.approx(21)
    scattered = fit_power_law(x, y + [0.5, -1, 0.5], ["params"], own, 20.0)
    assert scattered.dof == pytest.approx(1) and scattered.covariance[1, 1] > 100 * 0.1**2 / 2


def test_noise_shared_by_branches_of_a_trunk_is_one_block():
    """One trunk at each LR, branched at three horizons: the same luck at all of them, so the exponent is surer than the
    coefficient; independent runs spread it over both."""
    rng, rows = np.random.default_rng(2), []
    for i, lr in enumerate(2.0 ** np.arange(-11, -4)):
        luck = 0.004 * rng.standard_normal()
        for tokens in (1e7, 2e7, 4e7, 8e7):
            best = np.log2(lr) + 8 + 0.3 * np.log2(tokens / 2e7)
            rows.append((1e6, tokens, lr, 2 + 0.01 * best**2 + luck, f"trunk{i}"))
    table = pd.DataFrame(rows, columns=["params", "tokens", "lr", "loss", "trunk"])
    options = {"heldout": None, "window": "none"}  # luck that all slices share is no bend (analysis/bend.py)
    shared, apart = (fit(t, "lr", options).laws[0] for t in (table, table.drop(columns="trunk")))

    def width(law):
        return law["parameters"]["tokens"]["high"] - law["parameters"]["tokens"]["low"]

    assert width(shared) < 0.75 * width(apart)


@pytest.mark.parametrize(
    "flops, held",
    [
        ([1, 2, 3, 4], [3]),
        ([4, 3, 2, 1, 1, 1, 1, 1], [0, 1]),
        ([1, 2, 4, 4, 4], [2, 3, 4]),  # never part of a scale
        ([1, 1.001, 1.002], []),  # one scale: nothing to hold out
        ([5.0], []),
    ],
)
def test_largest_scales(flops, held):
    assert np.flatnonzero(largest_scales(np.array(flops, float))).tolist() == held


def test_heldout_refit_does_not_see_the_largest_scale():
    plan = Plan(noise=0.0005, params=(1e6, 4e6, 16e6, 64e6), tpp=(20.0,), exponents=(("params", -0.4),))
    table = sweep(plan, np.random.default_rng(3))
    largest = table["params"] == 64e6
    honest = fit(table, "lr").laws[0]["heldout"]
    table.loc[largest, "lr"] *= 2  # the largest scale breaks the law by a factor of two
    broken = fit(table, "lr").laws[0]["heldout"]
    assert honest["n"] == broken["n"] == 1 and honest["mean_abs_log_error"] < 0.1
    assert broken["mean_abs_log_error"] == pytest.approx(np.log(2), abs=0.15)
    assert broken["mean_excess_loss"] == pytest.approx(0.010, abs=0.004)  # an octave off
    assert honest["mean_excess_loss"] < 0.001
    chosen = fit(table, "lr", {"heldout": "params < 5e6"}).laws[0]["heldout"]
    assert chosen["n"] == 2
    assert fit(table, "lr", {"heldout": "none"}).laws[0]["heldout"]["n"] == 0


def test_law_predicts_with_an_interval_that_grows_with_distance():
    law = fit(sweep(Plan(), np.random.default_rng(4)), "lr").laws[0]
    near, far = (predict(law, {"params": n, "tokens": 20 * n}) for n in (4e6, 4e9))
    assert near.low < near.value < near.high and far.high / far.low > near.high / near.low
    assert set(law["range"]) >= {"params", "tokens", "tpp", "batch_size"} and len(law["sampled"]["params"]) == law["n"]


def test_everything_is_json_without_nan():
    result = fit(sweep(Plan(diverge_above=2.0), np.random.default_rng(5)), "lr")
    json.dumps([result.laws, result.optima, result.slices, result.notes], allow_nan=False)
    assert len(result.frame()) == len(result.optima)
    for key in ("analysis", "name", "given", "form", "unit", "parameters", "r2", "n", "objective", "heldout", "method"):
        assert key in result.laws[0]
    for key in ("analysis", "target", "given", "held", "value", "low", "high", "verdict", "loss", "n"):
        assert key in result.optima[0]


def test_predictors_of_the_user():
    table = sweep(Plan(), np.random.default_rng(6))
    law = fit(table.assign(compute=table["params"] * table["tokens"]), "lr", {"predictors": ["compute"]}).laws[0]
    assert law["form"] == "coefficient * compute^compute" and law["range"]["compute"]["low"] > 0
    assert fit(table, "lr", {"predictors": ["flops"]}).laws[0]["predictors"] == ["flops"]
    for bad, match in ((["prams"], "did you mean params"), (["run_id"], "numbers above 0")):
        with pytest.raises(UserError, match=match):
            fit(table, "lr", {"predictors": bad})


@pytest.mark.parametrize("analysis", ANALYSES)
def test_configured_defaults_are_those_of_the_code(analysis):
    configured = Options.from_dict(composed(analysis, {}))
    plain = Options()
    for name in Options.__dataclass_fields__:
        if name == "predictors":
            for law in ("lr", "tau", "weight_decay", "batch_size"):
                if law in configured.predictors if isinstance(configured.predictors, dict) else analysis == law:
                    assert configured.predictors_of(analysis, law) == plain.predictors_of(analysis, law)
        elif name == "profile" and analysis != "batch":
            assert configured.profile == []
        else:
            assert getattr(configured, name) == getattr(plain, name), name


@pytest.mark.parametrize(
    "given, match",
    [
        ({"estimater": "argmin"}, "did you mean estimator"),
        ({"estimator": "quadratc"}, "did you mean quadratic"),
        ({"bootstrap": -1}, "bootstrap"),
        ({"bootstrap": "many"}, "bootstrap"),
        ({"level": 1.5}, "level"),
        ({"heldout": 2}, "heldout"),
        ({"hold": "lr_"}, "hold"),
        ({"profile": ["batch"]}, "profile"),
        ({"predictors": 3}, "predictors"),
        ({"columns": "N"}, "columns"),
        ({"unit": "docs"}, "unit"),
    ],
)
def test_options_are_checked(given, match):
    with pytest.raises(UserError, match=match) as error:
        Options.from_dict(given)
    assert len(str(error.value).splitlines()) <= 2


def test_choices_are_listed_once():
    with pytest.raises(UserError) as error:
        Options.from_dict({"estimator": "foo"})
    assert str(error.value) == "estimator=foo must be one of quadratic, shape, argmin, akima."
