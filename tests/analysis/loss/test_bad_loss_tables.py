"""Tables that no loss law can be read from: a clear line or a note and no law, never a silent number."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.command import as_json, as_text
from analysis.errors import UserError
from analysis.fit import fit

QUICK = {"bootstrap": 60}


def table(sizes=5, horizons=6, noise=0.002, seed=0):
    rng = np.random.default_rng(seed)
    n, ratio = np.meshgrid(np.geomspace(2e7, 2e9, sizes), np.geomspace(5, 160, horizons), indexing="ij")
    n, d = n.ravel(), (n * ratio).ravel()
    loss = (1.8 + 480 / n**0.35 + 2000 / d**0.37) * np.exp(noise * rng.standard_normal(len(n)))
    return pd.DataFrame({"params": n, "tokens": d, "loss": loss})


T = table()


def notes_without_law(frame, **options):
    result = fit(frame, "loss", {**QUICK, **options})
    assert result.laws == [] and result.notes
    json.dumps(as_json(result), allow_nan=False)
    assert "no law" in as_text(result)
    return " ".join(result.notes)


def test_one_size_or_one_horizon_drops_the_term():
    one_n = fit(T.assign(params=1e8), "loss", QUICK)
    assert set(one_n.laws[0]["parameters"]) == {"E", "B", "beta"} and one_n.laws[0]["form"] == "E + B / tokens^beta"
    one_d = fit(T[T["tokens"] > 0].assign(tokens=1e10), "loss", QUICK)
    assert set(one_d.laws[0]["parameters"]) == {"E", "A", "alpha"} and len(one_d.laws) == 1
    assert any("tokens does not vary" in note for note in one_d.notes)
    assert "neither N nor D varies" in notes_without_law(T.assign(params=1e8, tokens=1e10))


def test_a_ray_has_one_term_for_both():
    result = fit(T.assign(tokens=20 * T["params"]), "loss", QUICK)
    law = result.laws[0]
    assert law["behind"] == {"params": ["tokens"]} and set(law["parameters"]) == {"E", "A", "alpha"}
    assert any("tokens moves with params" in note for note in result.notes)


def test_two_sizes_and_too_few_rows():
    two = T[T["params"].isin(sorted(T["params"].unique())[:2])]
    assert "its exponent needs 3" in notes_without_law(two)
    assert "do not determine 5 parameters" in notes_without_law(T.iloc[[0, 11, 13, 22, 25]])
    assert "do not determine" in notes_without_law(pd.concat([T.iloc[[0, 11, 13, 22]]] * 9).assign(run_id=range(36)))


def test_rows_that_are_left_out_are_counted():
    frame = T.assign(status="done")
    frame.loc[:2, "status"] = "diverged"
    frame.loc[3, "loss"] = np.nan
    frame = pd.concat([frame, frame.iloc[[10, 11]]])
    result = fit(frame, "loss", QUICK)
    assert result.laws[0]["n"] == 26
    text = " ".join(result.notes)
    assert "3 diverged" in text and "2 rows repeat others" in text and "1 rows lack loss" in text
    infinite = T.assign(loss=np.where(np.arange(30) == 4, np.inf, T["loss"]))
    assert fit(infinite, "loss", QUICK).laws[0]["n"] == 29


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda t: t.drop(columns="loss"), "no loss"),
        (lambda t: t.drop(columns="tokens"), "no column tokens"),
        (lambda t: t.assign(loss=-t["loss"]), "loss is not above 0"),
        (lambda t: t.assign(loss="low"), "loss is not a number"),
        (lambda t: t.assign(status="diverged"), "no row of the table can be used"),
        (lambda t: t.assign(loss=np.nan), "no row of the table can be used"),
        (lambda t: t.assign(params=0.0), "params is not above 0"),
        (lambda t: t[:0], "no row"),
    ],
)
def test_what_cannot_be_used_is_said(change, match):
    with pytest.raises(UserError, match=match) as error:
        fit(change(T), "loss", QUICK)
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize(
    "options, match",
    [
        ({"form": "chinchila"}, "did you mean chinchilla"),
        ({"select": "lowest"}, "select"),
        ({"fixed": {"gamma": 1.0}}, "no parameter of the law"),
        ({"fixed": {"R_D": 15.0}}, "data_constrained"),
        ({"fixed": {"E": -1.0}}, "not valid"),
        ({"delta": 0}, "delta"),
        ({"flops": ["much"]}, "flops"),
        ({"predictors": ["params"]}, "predictors"),
        ({"predictors": ["params", "tokenz"]}, "did you mean tokens"),
        ({"form": "data_constrained"}, "unique_tokens or epochs"),
        ({"by": ["optimizer"]}, "no column optimizer"),
        ({"heldout": "params > 0"}, "holds out every row"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(UserError, match=match):
        fit(T, "loss", {**QUICK, **options})


def test_data_constrained_without_repeats_is_refused():
    assert "no row repeats data" in notes_without_law(T.assign(epochs=1.0), form="data_constrained")


def test_settings_part_laws_and_tuned_ones_do_not():
    adamw = T.assign(optimizer="adamw", beta1=np.where(T.index % 2, 0.9, 0.95))
    both = pd.concat([adamw, table(seed=1).assign(optimizer="muon")])
    laws = [law for law in fit(both, "loss", QUICK).laws if law["name"] == "loss"]
    assert [law["given"]["optimizer"] for law in laws] == ["adamw", "muon"] and [law["n"] for law in laws] == [30, 30]


def test_a_sweep_needs_select_best():
    excess = {1e-3: 0.02, 2e-3: 0.0, 4e-3: 0.05}
    sweep = pd.concat([T.assign(lr=lr, loss=T["loss"] * (1 + by)) for lr, by in excess.items()])
    result = fit(sweep, "loss", QUICK)
    assert any("differ in lr: select=best" in note for note in result.notes)
    best = fit(sweep, "loss", {**QUICK, "select": "best"}).laws[0]
    assert best["n"] == 30 and best["parameters"]["E"]["value"] == fit(T, "loss", QUICK).laws[0]["parameters"]["E"]["value"]


def test_no_floor_is_said():
    n = T["params"]
    result = fit(T.assign(loss=30 * n**-0.09 + 60 * T["tokens"] ** -0.2), "loss", QUICK)
    entry = result.laws[0]["parameters"]["E"]
    assert entry["value"] < 1e-2 and any(note.startswith("E is") for note in result.notes)


def test_a_million_rows():
    frame = pd.concat([T] * 33_334, ignore_index=True)[:1_000_000]
    rng = np.random.default_rng(0)
    frame["loss"] *= np.exp(0.01 * rng.standard_normal(len(frame)))
    frame["run_id"] = np.arange(len(frame))
    result = fit(frame, "loss", {"bootstrap": 4000, "heldout": None})
    law = result.laws[0]
    assert law["n"] == 1_000_000 and abs(law["parameters"]["alpha"]["value"] - 0.35) < 0.02
    assert any("one Newton step" in note for note in result.notes)


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 14),
    spoil=st.sampled_from(["none", "nan", "equal", "huge", "tiny", "rising", "ties"]),
)
@settings(max_examples=20, deadline=None)
def test_any_small_table_gives_finite_numbers_or_none(seed, rows, spoil):
    rng = np.random.default_rng(seed)
    frame = T.sample(rows, random_state=seed).reset_index(drop=True)
    if spoil == "nan":
        frame.loc[rng.integers(0, rows), "loss"] = np.nan
    frame["loss"] = {
        "equal": 3.0 + 0 * frame["loss"],
        "huge": frame["loss"] * 1e9,
        "tiny": frame["loss"] * 1e-9,
        "rising": 1 / frame["loss"],
        "ties": frame["loss"].round(1),
    }.get(spoil, frame["loss"])
    try:
        result = fit(frame, "loss", {"bootstrap": 40})
    except UserError:
        return
    json.dumps(as_json(result), allow_nan=False)
    for law in result.laws:
        assert all(entry["value"] is not None for entry in law["parameters"].values())
    assert result.laws or result.notes
    as_text(result)
