"""Recipes against numbers worked by hand, coverage of intervals on planted laws, distances, choices, bad targets."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis import laws_io
from analysis.errors import UserError
from analysis.fit import fit
from analysis.recommend import as_table, recommend

from .recipes import HELD_IN_TOKENS, POWER_LINES, fitted, laws, override, power_law, scales, value


def test_published_laws_at_610m():
    """Power Lines (2505.13738), 610M at 20 tokens per parameter: tau 0.2235 (their best 0.21), batch 223 (252)."""
    recipe = recommend(laws(*POWER_LINES), {"params": 6.05e8, "tokens": 12.1e9})
    assert value(recipe, "tau") == pytest.approx(0.2235, rel=1e-3)
    assert value(recipe, "batch_size") == pytest.approx(0.0306 * 12.1e9**0.383)
    assert override(recipe, "batch_size") == "223"
    assert float(override(recipe, "tau")) == pytest.approx(0.2235, rel=1e-3)
    assert override(recipe, "tokens") == "12100000000"
    assert "lr" not in recipe["recipe"]


def test_batch_law_counts_sequences_of_its_own_length():
    recipe = recommend(laws(*POWER_LINES), {"params": 6.05e8, "tokens": 12.1e9, "context": 8192})
    assert value(recipe, "batch_size") == pytest.approx(0.0306 * 12.1e9**0.383 / 4)


def test_batch_law_in_tokens_needs_a_context():
    law = power_law("batch_size", 0.58, {"tokens": 0.571}, unit="tokens")  # Step Law (2503.04715)
    recipe = recommend(laws(law), {"params": 1e9, "tokens": 1e11, "context": 2048})
    assert value(recipe, "batch_size") == pytest.approx(0.58 * 1e11**0.571 / 2048)
    with pytest.raises(UserError, match="context"):
        recommend(laws(law), {"params": 1e9, "tokens": 1e11})


def test_a_law_of_batch_takes_the_batch_that_is_trained():
    law = power_law("lr", 1e-3, {"batch_size": 0.5, "tokens": -0.1})
    given_batch = recommend(laws(law), {"params": 1e8, "tokens": 1e9, "batch_size": 64})
    assert value(given_batch, "lr") == pytest.approx(1e-3 * 8 * 1e9**-0.1)
    recommended = recommend(laws(law, POWER_LINES[1]), {"params": 1e8, "tokens": 1e9})
    batch = round(0.0306 * 1e9**0.383)
    assert value(recommended, "lr") == pytest.approx(1e-3 * batch**0.5 * 1e9**-0.1)
    with pytest.raises(UserError, match="needs batch_size"):
        recommend(laws(law), {"params": 1e8, "tokens": 1e9})


def test_without_a_law_the_laws_held_values_stand():
    law = power_law(
        "lr", 0.1, {"params": -0.5}, sampled=scales([1e6, 4e6], [2e7, 8e7], batch_size=[32, 32], tau=[0.2, 0.2])
    )
    recipe = recommend(laws(law), {"params": 1.6e7, "tokens": 3.2e8})
    assert recipe["recipe"]["batch_size"] == {"value": 32, "low": 32, "high": 32, "source": "held"}
    assert override(recipe, "tau") == "0.2" and override(recipe, "batch_size") == "32"
    assert any("batch_size = 32" in note for note in recipe["notes"])


@pytest.mark.parametrize(
    ("target", "word", "source"),
    [
        ({}, "batch_tokens=65536", "held"),
        ({"context": 1024}, "batch_size=64", "held"),
        ({"batch_tokens": 2**17}, "batch_tokens=131072", "given"),
        ({"batch_tokens": 2**17, "context": 1024}, "batch_size=128", "given"),
    ],
)
def test_a_batch_in_tokens_serves_as_the_batch(target, word, source):
    recipe = recommend(laws(HELD_IN_TOKENS), {"params": 1e8, "tokens": 1e9, **target})
    assert word in recipe["overrides"] and sum(w.startswith("batch_") for w in recipe["overrides"]) == 1
    name = word.split("=")[0]
    assert recipe["recipe"][name]["source"] == source and name in as_table(recipe)
    law = power_law("lr", 0.1, {"steps": -0.5}, held={"batch_tokens": 65536.0})
    steps = 1e9 / target.get("batch_tokens", 65536)
    assert value(recommend(laws(law), {"params": 1e8, "tokens": 1e9, **target}), "lr") == pytest.approx(0.1 * steps**-0.5)


def test_held_values_come_from_the_optima_of_a_law_that_stores_none():
    optima = [
        {
            "analysis": "lr",
            "target": "lr",
            "given": {"params": n, "tokens": 20 * n},
            "held": {"batch_size": b, "weight_decay": 0.1},
            "value": 1e-3,
            "verdict": "interior",
        }
        for n, b in ((1e6, 16), (4e6, 64))
    ]
    recipe = recommend(laws(power_law("lr", 0.1, {"params": -0.5}), optima=optima), {"params": 8e6, "tokens": 1.6e8})
    assert override(recipe, "batch_size") == "64"  # of the slice nearest to the target
    assert override(recipe, "optimizer.weight_decay") == "0.1"
    assert "tau" not in recipe["recipe"]


def test_tau_wins_over_weight_decay_and_says_so():
    both = laws(POWER_LINES[0], power_law("weight_decay", 0.5, {"tokens": -0.1}))
    recipe = recommend(both, {"params": 1e8, "tokens": 2e9})
    assert "weight_decay" not in recipe["recipe"] and any("weight_decay law is not used" in n for n in recipe["notes"])
    other = recommend(both, {"params": 1e8, "tokens": 2e9, "weight_decay": 0.1})
    assert "tau" not in other["recipe"] and override(other, "optimizer.weight_decay") == "0.1"


def test_the_last_law_that_agrees_is_used_and_carries_its_parameterization():
    standard = power_law("lr", 1.0, {"params": -0.5}, given={"parameterization": "standard"})
    mup = power_law("lr", 0.01, {"params": -0.1}, given={"parameterization": "mup", "base_width": 32})
    target = {"params": 1e6, "tokens": 2e7}
    recipe = recommend(laws(standard, mup), target)
    assert value(recipe, "lr") == pytest.approx(0.01 * 1e6**-0.1)
    assert {"parameterization=mup", "parameterization.base_width=32"} <= set(recipe["overrides"])
    chosen = recommend(laws(standard, mup), {**target, "parameterization": "standard"})
    assert value(chosen, "lr") == pytest.approx(1e-3) and "parameterization=standard" in chosen["overrides"]
    with pytest.raises(UserError, match="no law agrees with parameterization=completep"):
        recommend(laws(standard, mup), {**target, "parameterization": "completep"})


def test_tau_of_another_parameterization_serves_with_a_note_and_weight_decay_does_not():
    lr = power_law("lr", 0.01, {"params": -0.1}, given={"parameterization": "mup"})
    tau = power_law("tau", 1.0, {"tpp": -0.5}, given={"parameterization": "standard"})
    decay = power_law("weight_decay", 1.0, {"params": -0.5}, given={"parameterization": "standard"})
    target = {"params": 1e6, "tokens": 2e7}
    recipe = recommend(laws(lr, tau), target)
    assert value(recipe, "tau") == pytest.approx(20**-0.5) and any(
        "parameterization=standard" in n for n in recipe["notes"]
    )
    recipe = recommend(laws(lr, decay), target)
    assert "weight_decay" not in recipe["recipe"] and any("no weight_decay law agrees" in n for n in recipe["notes"])


def test_the_table_shows_values_notes_and_the_command():
    law = fitted(
        "lr", {"params": np.array([1e6, 2e6, 8e6])}, np.array([0.01, 0.008, 0.004]), given={"parameterization": "mup"}
    )
    recipe = recommend(laws(law, *POWER_LINES), {"params": 1e9, "width": 1536, "depth": 24, "tokens": 2e10})
    text = as_table(recipe)
    assert all(len(line) < 120 for line in text.splitlines())
    assert "10-90 %" in text and "hyperlaw train" in text and "model.width=1536" in text.replace("\\\n", "")
    for note in recipe["notes"]:
        assert note.split()[0] in text


def test_from_runs_to_overrides(tmp_path):
    """A planted sweep, fitted, written and read back: the recipe holds the planted optimum within its interval."""
    rng = np.random.default_rng(3)
    rows = [
        {
            **{"params": n, "width": w, "depth": 2, "context": 64, "tokens": 1.3e6, "steps": 2539, "batch_size": 8},
            **{"lr": lr, "lr_adjusted": lr, "tau": 0.3, "weight_decay": 1 / (0.3 * lr * 2539), "seed": 0},
            **{"parameterization": "standard", "optimizer": "adamw", "schedule": "linear", "status": "done"},
            "loss": 2.4 - 0.1 * math.log(n / 3e4) + 0.02 * math.log2(lr / (2 * n**-0.55)) ** 2 + rng.normal(0, 0.003),
        }
        for w, n in ((32, 3e4), (48, 6e4), (64, 1.2e5), (96, 2.4e5))
        for lr in 2.0 ** np.arange(-12, -4)
    ]
    result = fit(pd.DataFrame(rows), "lr")
    laws_io.write(tmp_path, "lr", result.laws, result.optima)
    recipe = recommend(tmp_path, {"params": 9e5, "tokens": 1.3e6})
    entry = recipe["recipe"]["lr"]
    assert entry["low"] < 2 * 9e5**-0.55 < entry["high"] < 2 * entry["value"]
    assert {"parameterization=standard", "model.context=64", "tau=0.3", "batch_size=8"} <= set(recipe["overrides"])
    assert recipe["extrapolation"]["params"]["decades"] == pytest.approx(math.log10(9e5 / 2.4e5))
    assert 12 <= int(override(recipe, "model.width")) / int(override(recipe, "model.depth")) <= 60


@pytest.mark.parametrize("own", [{"given": {"context": 2048}}, {"unit": "sequences of 2048 tokens"}])
def test_the_unit_of_a_batch_law_says_its_sequences(own):
    """Power Lines' batch law, its length in `given` or in the unit: a quarter of the sequences where each is four times
    as long, and no disagreement with itself."""
    law = power_law("batch_size", 0.0306, {"tokens": 0.383}, **own)
    target = {"params": 6.05e8, "tokens": 12.1e9}
    for context, factor in ((None, 1), (2048, 1), (8192, 4)):
        recipe = recommend(laws(law), {**target, "context": context})
        assert value(recipe, "batch_size") == pytest.approx(0.0306 * 12.1e9**0.383 / factor)
        theirs = next(row for row in recipe["comparison"] if (row["name"], row["against"]) == ("batch_size", "power_lines"))
        assert theirs["ratio"] == pytest.approx(1.0)
        assert recipe["target"]["context"] == (context or 2048)
    joint = {**law, "method": "joint"}  # the same unit in a further law of the folder
    rows = recommend(laws(law, joint), {**target, "context": 8192})["comparison"]
    assert next(row["ratio"] for row in rows if row["against"] == "another law here") == pytest.approx(1.0)
