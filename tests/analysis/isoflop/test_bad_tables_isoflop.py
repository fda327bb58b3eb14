"""Bad tables in isoflop and envelope: a clear line or a verdict, never a crash or a silent number."""

import json
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import UserError
from analysis.fit import fit
from benchmarks.coverage_isoflop import CHINCHILLA, Plan, envelope_table, isoflop_table

RNG = np.random.default_rng(0)
BUDGETS = isoflop_table(Plan(CHINCHILLA), RNG)
CURVES = envelope_table(Plan(CHINCHILLA, kind="envelope", sizes=8, ratio=2.0, noise=0.001), RNG)
TABLES = {"isoflop": BUDGETS, "envelope": CURVES}
QUICK = {"isoflop": {"approach3": False, "bootstrap": 20}, "envelope": {"bootstrap": 20, "bins": 200}}


def run(analysis, table, **options):
    return fit(table, analysis, {**QUICK[analysis], **options})


@pytest.mark.parametrize("analysis", TABLES)
@pytest.mark.parametrize(
    "change, match",
    [
        (lambda t: t.drop(columns="loss"), "no loss"),
        (lambda t: t.drop(columns=[c for c in ("tokens", "flops") if c in t]), "two of params, tokens and flops"),
        (lambda t: t.assign(loss=-t["loss"]), "loss is not above 0"),
        (lambda t: t.assign(loss="low"), "loss is not a number"),
        (lambda t: t.assign(params=0.0), "params is not above 0"),
        (lambda t: t.assign(status="diverged", loss=np.nan), "no row of the table can be used"),
        (lambda t: t.assign(loss=np.nan), "no row of the table can be used"),
        (lambda t: t[:0], "no row"),
    ],
)
def test_a_line_that_says_what_is_wrong(analysis, change, match):
    with pytest.raises(UserError, match=match) as error:
        run(analysis, change(TABLES[analysis]))
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize(
    "options, match",
    [
        ({"estimator": "cubic"}, "estimator"),
        ({"window": 2}, "window"),
        ({"tolerance": 2.0}, "tolerance"),
        ({"select": "worst"}, "select"),
        ({"weights": "yes"}, "weights"),
        ({"envelope": "bins"}, "envelope is no option"),
    ],
)
def test_options_are_checked(options, match):
    with pytest.raises(UserError, match=match):
        run("isoflop", BUDGETS, **options)


def test_quadratic_is_the_parabola():
    laws = [run("isoflop", BUDGETS, estimator=e).laws for e in ("quadratic", "parabola")]
    assert laws[0] == laws[1] and laws[0][0]["method"] == "parabola"


def test_one_budget_has_a_minimum_and_no_law():
    result = run("isoflop", BUDGETS[BUDGETS["flops"] == BUDGETS["flops"].min()])
    assert [o["verdict"] for o in result.optima] == ["interior"] * 2 and result.laws == []
    assert any("1 interior minima of 1 budgets, no law" in note for note in result.notes)


def test_two_budgets_have_a_law_without_an_interval():
    result = run("isoflop", BUDGETS[BUDGETS["flops"] < 8e18])
    law = result.laws[0]
    assert law["n"] == 2 and law["parameters"]["flops"]["value"] and law["parameters"]["flops"]["low"] is None
    assert law["covariance"] is None and any("no interval can be given" in note for note in result.notes)


def test_one_size_in_every_budget_is_too_few():
    result = run("isoflop", BUDGETS.groupby("flops").head(1))
    assert {o["verdict"] for o in result.optima} == {"too_few"} and result.laws == []
    result = run("isoflop", BUDGETS.groupby("flops").head(2))
    assert {o["verdict"] for o in result.optima} == {"too_few"} and result.laws == []


def test_one_model_size_on_the_envelope_has_no_law():
    t = CURVES.assign(params=1e8)
    for points in ("crossings", "all"):
        result = run("envelope", t, points=points)
        assert result.laws == [] and any("no law" in note for note in result.notes)


@pytest.mark.parametrize("analysis", TABLES)
def test_duplicate_rows_are_used_once(analysis):
    t = TABLES[analysis]
    result = run(analysis, pd.concat([t, t[:10]]))
    assert any("10 rows repeat" in note for note in result.notes)
    assert result.laws[0]["parameters"] == run(analysis, t).laws[0]["parameters"]


@pytest.mark.parametrize("analysis", TABLES)
def test_lost_runs_are_named_and_change_nothing_else(analysis):
    t = TABLES[analysis].reset_index(drop=True)
    spoilt = t.copy()
    spoilt.loc[::9, "loss"] = np.nan
    spoilt.loc[1::9, "loss"] = np.inf
    result = run(analysis, spoilt)
    lost = int((~np.isfinite(spoilt["loss"])).sum())
    assert any(f"{lost} rows diverged, failed or have no loss: not used" in note for note in result.notes)
    clean = run(analysis, t[np.isfinite(spoilt["loss"])])
    assert result.laws[0]["parameters"] == clean.laws[0]["parameters"]


def test_a_million_rows():
    """Forty budgets of 25 sizes, each with 1,000 settings of the learning rate: grouped and fitted in seconds."""
    rng = np.random.default_rng(0)
    c = np.repeat(np.geomspace(1e18, 1e21, 40), 25_000)
    n = CHINCHILLA.best(c) * np.tile(np.geomspace(1 / 6, 6, 25), 40_000)
    lr = np.tile(np.repeat(np.geomspace(1e-4, 1e-2, 1000), 25), 40)
    loss = CHINCHILLA.loss(n, c / (6 * n)) + 0.01 * np.log(lr / 1e-3) ** 2 + 1e-5 * rng.standard_normal(len(c))
    start = time.perf_counter()
    result = run("isoflop", pd.DataFrame({"params": n, "flops": c, "lr": lr, "loss": loss}))
    assert result.laws[0]["n"] == 40 and time.perf_counter() - start < 60
    assert result.laws[0]["parameters"]["flops"]["value"] == pytest.approx(CHINCHILLA.a, abs=0.001)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 100), st.floats(0.01, 100), st.sampled_from(["linex", "parabola", "akima"]))
def test_units_move_coefficients_and_no_exponent(n, d, estimator):
    plain = run("isoflop", BUDGETS, estimator=estimator, bootstrap=0).laws
    scaled = BUDGETS.assign(params=BUDGETS["params"] * n, tokens=BUDGETS["tokens"] * d, flops=BUDGETS["flops"] * n * d)
    laws = run("isoflop", scaled, estimator=estimator, bootstrap=0).laws
    for before, after, factor in zip(plain, laws, (n, d, 1.0), strict=True):
        a, b = before["parameters"], after["parameters"]
        assert b["flops"]["value"] == pytest.approx(a["flops"]["value"], abs=2e-4)
        moved = np.log(b["coefficient"]["value"] / a["coefficient"]["value"])
        assert moved == pytest.approx(np.log(factor) - a["flops"]["value"] * np.log(n * d), abs=0.02)


cell = st.one_of(st.none(), st.sampled_from([0.0, -1.0, 1.0, 2.0, 3.0, 1e6, 1e18, np.inf]), st.floats(1e-3, 1e20))
column = st.sampled_from("params tokens flops loss lr seed run_id".split())


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_table_is_fitted_or_refused_in_words(data):
    """Real columns with random cells spoilt, or columns of random cells alone."""
    analysis = data.draw(st.sampled_from(sorted(TABLES)))
    table = TABLES[analysis].copy()
    if analysis == "envelope":
        table = table[::6].reset_index(drop=True)
    if data.draw(st.booleans()):
        names = data.draw(st.lists(column, min_size=1, max_size=7, unique=True))
        rows = data.draw(st.integers(1, 12))
        table = pd.DataFrame({name: data.draw(st.lists(cell, min_size=rows, max_size=rows)) for name in names})
    else:
        for _ in range(data.draw(st.integers(1, 6))):
            name = data.draw(st.sampled_from(sorted(set(table) - {"run_id"})))
            table.loc[data.draw(st.integers(0, len(table) - 1)), name] = data.draw(cell)
    choices = [{}, {"estimator": "akima"}, {"estimator": "parabola", "window": 5}, {"weights": "std"}]
    if analysis == "envelope":
        choices = [{}, {"envelope": "hull"}, {"points": "all"}, {"points": "all", "edges": "keep", "envelope": "hull"}]
    try:
        result = run(analysis, table, **data.draw(st.sampled_from(choices)))
    except UserError as error:
        assert 1 <= len(str(error).splitlines()) <= 2
        return
    json.dumps([result.laws, result.optima], allow_nan=False)
    assert all((o["value"] is None) == (o["verdict"] != "interior") for o in result.optima)
    assert all(p["value"] is not None for law in result.laws for p in law["parameters"].values())
    assert result.laws or result.notes
