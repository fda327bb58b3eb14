"""Bad tables: a clear line or a verdict, never a crash or a silent number."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import UserError
from analysis.fit import fit
from benchmarks.planted import Plan, sweep

ANALYSES = ("tau", "weight_decay", "lr", "batch", "lr_batch")
TABLE = sweep(Plan(noise=0.001), np.random.default_rng(0))


def test_one_slice_has_an_optimum_and_no_law():
    result = fit(TABLE[(TABLE["params"] == 1e6) & (TABLE["tpp"] == 20)], "lr")
    assert [o["verdict"] for o in result.optima] == ["interior"] and result.laws == []
    assert any("no law" in note for note in result.notes)


def test_all_diverged():
    result = fit(TABLE.assign(status="diverged"), "lr")
    assert {o["verdict"] for o in result.optima} == {"too_few"} and result.laws == []


def test_infinite_losses_are_diverged_and_missing_ones_are_named():
    table = TABLE.drop(columns="status")
    table["loss"] = table["loss"].where(table.index % 9 != 0, np.inf)
    assert fit(table, "lr").laws[0]["n"] == 9
    table["loss"] = TABLE["loss"].where(table.index % 9 != 0, np.nan)
    result = fit(table, "lr")
    assert any("8 rows have no loss, and the table has no status: taken as diverged" in note for note in result.notes)
    assert sum(s["status"].count("diverged") for s in result.slices) == 8
    result = fit(table.assign(status="done"), "lr")
    assert any("8 rows are done but have no loss" in note for note in result.notes)


def test_duplicate_rows_are_used_once():
    result = fit(pd.concat([TABLE, TABLE[:10]]), "lr")
    assert any("10 rows repeat" in note for note in result.notes)
    once = fit(TABLE, "lr")
    assert result.laws[0]["parameters"] == once.laws[0]["parameters"]


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda t: t.drop(columns="loss"), "no loss"),
        (lambda t: t.drop(columns="lr"), "columns.lr"),
        (lambda t: t.assign(loss=-t["loss"]), "loss is not above 0"),
        (lambda t: t.assign(lr="fast"), "lr is not a number"),
        (lambda t: t.assign(status="failed", loss=np.nan), "no row of the table can be used"),
        (lambda t: t.assign(params=0.0), "params is not above 0"),
        (lambda t: t.assign(weight_decay=-0.1), "weight_decay is below 0"),
        (lambda t: t[:0], "no row"),
    ],
)
def test_a_line_that_says_what_is_wrong(change, match):
    with pytest.raises(UserError, match=match) as error:
        fit(change(TABLE), "lr")
    assert len(str(error.value).splitlines()) <= 2


def test_two_hundred_thousand_rows():
    """Forty scales, each with 5,000 runs: grouped and fitted in seconds."""
    rng = np.random.default_rng(0)
    n = np.repeat(np.geomspace(1e6, 1e9, 40), 5_000)
    lr = 2.0 ** rng.integers(-14, -4, len(n)).astype(float)
    loss = 2 + 0.01 * np.log2(lr / (3 * n**-0.35)) ** 2 + 0.01 * rng.standard_normal(len(n))
    result = fit(pd.DataFrame({"params": n, "tokens": 20 * n, "lr": lr, "loss": loss}), "lr")
    assert result.laws[0]["parameters"]["params"]["value"] == pytest.approx(-0.35, abs=0.005)


cell = st.one_of(
    st.none(), st.sampled_from([0.0, -1.0, 1e-3, 2e-3, 4e-3, 8e-3, 1.0, 2.0, 3.0, 1e6, np.inf]), st.floats(1e-6, 1e9)
)
column = st.sampled_from("params tokens lr batch_size context weight_decay tau loss seed steps lr_adjusted".split())


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_table_is_fitted_or_refused_in_words(data):
    """Real columns with random cells spoilt, or columns of random cells alone."""
    table = TABLE.astype({"seed": float})
    if data.draw(st.booleans()):
        names = data.draw(st.lists(column, min_size=1, max_size=8, unique=True))
        rows = data.draw(st.integers(1, 12))
        table = pd.DataFrame({name: data.draw(st.lists(cell, min_size=rows, max_size=rows)) for name in names})
    else:
        for _ in range(data.draw(st.integers(1, 6))):
            name = data.draw(st.sampled_from(sorted(set(table) - {"run_id", "status"})))
            table.loc[data.draw(st.integers(0, len(table) - 1)), name] = data.draw(cell)
    analysis = data.draw(st.sampled_from(ANALYSES))
    options = data.draw(
        st.sampled_from([{}, {"estimator": "argmin"}, {"lr_adjusted": "lr"}, {"window": 0.1, "bootstrap": 0}])
    )
    try:
        result = fit(table, analysis, options)
    except UserError as error:
        assert 1 <= len(str(error).splitlines()) <= 2
        return
    json.dumps([result.laws, result.optima, result.slices], allow_nan=False)
    assert all((o["value"] is None) == (o["verdict"] != "interior") for o in result.optima)
    assert result.laws or result.notes
