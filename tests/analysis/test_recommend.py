"""Recipes against numbers worked by hand, coverage of intervals on planted laws, distances, choices, bad targets."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis import laws_io, report
from analysis.errors import UserError
from analysis.fit import fit
from analysis.predict import predict
from analysis.recommend import as_table, recommend
from analysis.recommend.ladder import choose_shape, count_blocks


def power_law(name, coefficient, exponents, analysis=None, low_high=None, **extra):
    parameters = {"coefficient": {"value": coefficient}, **{k: {"value": v} for k, v in exponents.items()}}
    for symbol, (low, high) in (low_high or {}).items():
        parameters[symbol] |= {"low": low, "high": high}
    return {"analysis": analysis or name, "name": name, "given": {}, "parameters": parameters, **extra}


def laws(*entries, optima=()):
    return {"laws": list(entries), "optima": list(optima)}


def scales(params, tokens, **more):
    return {"params": list(params), "tokens": list(tokens), **more}


def fitted(name, points, y, dof=None, **extra):
    """Ordinary least squares in logs, as any textbook has it."""
    names = list(points)
    x = np.column_stack([np.ones(len(y)), *(np.log(points[n]) for n in names)])
    beta, *_ = np.linalg.lstsq(x, np.log(y), rcond=None)
    dof = len(y) - x.shape[1] if dof is None else dof
    variance = float(np.sum((np.log(y) - x @ beta) ** 2)) / max(dof, 1)
    return power_law(
        name,
        math.exp(beta[0]),
        dict(zip(names, beta[1:], strict=True)),
        predictors=names,
        covariance=(variance * np.linalg.inv(x.T @ x)).tolist(),
        scatter=math.sqrt(variance),
        dof=dof,
        **extra,
    )


POWER_LINES = (
    power_law("tau", 1.084, {"tpp": -0.527}, low_high={"tpp": (-0.529, -0.507)}),
    power_law("batch_size", 0.0306, {"tokens": 0.383}, given={"context": 2048}, low_high={"tokens": (0.367, 0.391)}),
)


def value(recipe, name):
    return recipe["recipe"][name]["value"]


def override(recipe, key):
    return next(word.split("=", 1)[1] for word in recipe["overrides"] if word.startswith(f"{key}="))


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


HELD_IN_TOKENS = power_law("lr", 0.1, {"params": -0.5}, held={"batch_tokens": 65536.0, "weight_decay": 0.1})


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


def test_params_and_shape_that_disagree():
    target = {"params": 1e9, "width": 64, "depth": 2, "tokens": 1e9}
    with pytest.raises(UserError, match=r"params=1e\+09 and model.width=64 model.depth=2 \(9.83e\+04 params\)"):
        recommend(laws(HELD_IN_TOKENS), target, count=lambda width, depth: 12 * depth * width**2)
    assert any("neither embedding" in note for note in recommend(laws(HELD_IN_TOKENS), target)["notes"])
    close = recommend(laws(HELD_IN_TOKENS), {**target, "params": 1e5}, count=lambda width, depth: 12 * depth * width**2)
    assert close["target"]["params"] == 1e5


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


def test_width_and_depth_follow_the_aspect_ratio():
    ladder = scales([1, 2, 3], [20, 40, 60], width=[256, 512, 1024], depth=[4, 8, 16], head_dim=[64, 64, 64])
    law = power_law("lr", 1.0, {"params": -0.5}, sampled=ladder)
    recipe = recommend(laws(law), {"params": 12 * 32 * 2048**2, "tokens": 1e9})
    assert (override(recipe, "model.width"), override(recipe, "model.depth")) == ("2048", "32")
    exact = recommend(laws(law), {"params": 1e9, "tokens": 1e9}, count=lambda w, d: 12 * d * w**2 + 50000 * w)
    width, depth = int(override(exact, "model.width")), int(override(exact, "model.depth"))
    assert width % 64 == 0 and width / depth == pytest.approx(64, rel=0.1)
    assert 12 * depth * width**2 + 50000 * width == pytest.approx(1e9, rel=0.05)
    explicit = recommend(laws(law), {"width": 512, "depth": 8, "params": 3e7, "tokens": 1e9})
    assert override(explicit, "model.width") == "512" and explicit["target"]["params"] == 3e7


@settings(max_examples=80, deadline=None)
@given(st.floats(1e5, 1e12), st.sampled_from([((32, 48, 64), (2, 2, 2)), ((256, 512), (4, 8)), ((768,), (12,))]))
def test_chosen_shapes_hit_the_size_near_the_ladder(params, ladder):
    widths, depths = ladder
    width, depth = choose_shape(params, widths, depths)
    smallest = count_blocks(math.gcd(*widths), 1)
    if params > 100 * smallest:
        assert abs(math.log(count_blocks(width, depth) / params)) < 0.2
        ratios = [w / d for w, d in zip(widths, depths, strict=True)]
        assert min(ratios) / 1.6 <= width / depth <= max(ratios) * 1.6


@pytest.mark.parametrize(
    ("target", "say"),
    [
        ({"params": 1e9}, "tokens"),
        ({"tokens": 1e9}, "size"),
        ({"width": 64, "tokens": 1e9}, "size"),
        ({"params": -1, "tokens": 1e9}, "above 0"),
        ({"params": math.nan, "tokens": 1e9}, "above 0"),
        ({"params": True, "tokens": 1e9}, "above 0"),
        ({"params": "many", "tokens": 1e9}, "above 0"),
        ({"params": 1e9, "tokens": 1e9, "batch_size": 0.5}, "at least 1"),
        ({"width": 64.5, "depth": 2, "tokens": 1e9}, "whole"),
        ({"params": 1e9, "tokens": 1e9, "tau": 0.1, "weight_decay": 0.1}, "give one"),
        ({"params": 1e9, "tokens": 1e9, "parametrization": "mup"}, "parametrization"),
        ({"params": 1e9, "tokens": 1e9, "level": 80}, "level"),
        ({"params": [1e9], "tokens": 1e9}, "above 0"),
        ({"params": 1e9, "tokens": 1e9, "batch_size": 8, "batch_tokens": 512}, "give one"),
        ({"params": 1e9, "tokens": 1e9, "batch_tokens": 512, "context": 2048}, "less than one sequence"),
    ],
)
def test_bad_targets(target, say):
    with pytest.raises(UserError, match=say) as error:
        recommend(laws(*POWER_LINES), target)
    assert len(str(error.value).splitlines()) <= 2


def test_no_usable_law():
    loss = {"analysis": "loss", "name": "loss", "parameters": {"E": {"value": 1.8}}}
    empty = {"analysis": "lr", "name": "lr", "parameters": {"coefficient": {"value": None}}}
    for content in (laws(), laws(loss), laws(loss, empty)):
        with pytest.raises(UserError, match="hyperlaw fit"):
            recommend(content, {"params": 1e9, "tokens": 1e9})
    needs = power_law("lr", 1.0, {"loss": 2.0})
    with pytest.raises(UserError, match="loss"):
        recommend(laws(needs), {"params": 1e9, "tokens": 1e9})
    assert value(recommend(laws(needs), {"params": 1e9, "tokens": 1e9, "loss": 2.0}), "lr") == pytest.approx(4.0)


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


NUMBER = st.none() | st.floats(-3, 3) | st.floats(1e-6, 1e6) | st.integers(-3, 10**12)
JUNK = NUMBER | st.text(max_size=3) | st.lists(NUMBER, max_size=3) | st.booleans()
COLUMN = st.sampled_from(["params", "tokens", "tpp", "batch_size", "flops", "lr", "tau", "width", "depth", "loss"])
PARAMETER = st.fixed_dictionaries({"value": NUMBER}, optional={"low": NUMBER, "high": NUMBER})
OPTIONAL = {
    **{key: NUMBER for key in ("scatter", "dof", "level", "n", "r2")},
    **{key: st.dictionaries(COLUMN, JUNK, max_size=3) for key in ("sampled", "range", "held", "behind")},
    "given": st.dictionaries(st.sampled_from(["parameterization", "context", "head_dim", "tokens"]), JUNK, max_size=3),
    "predictors": JUNK | st.lists(COLUMN, max_size=2),
    "covariance": JUNK | st.lists(st.lists(NUMBER, min_size=2, max_size=2), min_size=2, max_size=2),
    "heldout": st.dictionaries(st.sampled_from(["n", "mean_abs_log_error"]), NUMBER),
}
WRITTEN = st.builds(
    lambda name, coefficient, exponents, rest: {
        "name": name,
        "parameters": {"coefficient": coefficient, **exponents},
        **rest,
    },
    st.sampled_from(["lr", "tau", "batch_size", "weight_decay", "loss"]),
    PARAMETER,
    st.dictionaries(COLUMN, PARAMETER, max_size=2),
    st.fixed_dictionaries({}, optional=OPTIONAL),
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(WRITTEN, min_size=1, max_size=3), st.floats(1, 1e13), st.floats(1, 1e14))
def test_whatever_a_user_wrote_into_laws_json(tmp_path_factory, entries, params, tokens):
    """A recipe of finite numbers, or a UserError: never another exception."""
    path = tmp_path_factory.mktemp("laws") / "laws.json"
    path.write_text(json.dumps({"laws": entries}))
    try:
        content = laws_io.read(path)
        report.as_text(content["laws"], content["optima"])
        recipe = recommend(content, {"params": params, "tokens": tokens})
    except UserError as error:
        assert len(str(error).splitlines()) <= 2
        return
    json.dumps(recipe, allow_nan=False)
    assert as_table(recipe) and all(math.isfinite(entry["value"]) for entry in recipe["recipe"].values())


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


@pytest.mark.parametrize("batch", [{"batch_size": 1.1e10}, {"batch_size": 1e5, "context": 2e6}, {"batch_tokens": 1.1e10}])
def test_a_given_batch_larger_than_the_run(batch):
    with pytest.raises(UserError, match="larger than the run"):
        recommend(laws(power_law("lr", 1e-3, {})), {"params": 1e9, "tokens": 1e10, **batch})


def test_flops_that_contradict_size_and_tokens():
    law = power_law("lr", 1.0, {"flops": -0.1})
    target = {"params": 1e9, "tokens": 2e10}
    for flops in (1.2e20, 0.7 * 1.2e20, 1.9 * 1.2e20):
        assert value(recommend(laws(law), {**target, "flops": flops}), "lr") == pytest.approx(flops**-0.1)
    for flops in (1.2e20 / 2.1, 2.1 * 1.2e20, 1.0):
        with pytest.raises(UserError, match="contradicts"):
            recommend(laws(law), {**target, "flops": flops})


NAMED = st.sampled_from(["lr", "tau", "weight_decay", "batch_size"])
IN = st.sampled_from(["params", "tokens", "tpp", "flops", "batch_size", "batch_tokens", "steps", "lr", "tau"])
HAND = st.fixed_dictionaries(
    {
        "name": NAMED,
        "parameters": st.dictionaries(IN, st.floats(-1, 1), max_size=3).map(
            lambda powers: {k: {"value": v} for k, v in {"coefficient": 0.5, **powers}.items()}
        ),
    },
    optional={
        "unit": st.sampled_from(["tokens", "sequences", "sequences of 2048 tokens", None]),
        "method": st.just("joint"),
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(HAND, min_size=1, max_size=5), st.sampled_from([{}, {"context": 512}, {"batch_size": 64}, {"devices": 8}]))
def test_laws_written_by_hand(tmp_path_factory, written, more):
    """Names and parameters alone: a recipe that prints and is JSON, or a UserError."""
    path = tmp_path_factory.mktemp("hand") / "laws.json"
    path.write_text(json.dumps({"laws": written}))
    try:
        recipe = recommend(path.parent, {"params": 1e9, "tokens": 2e10, **more})
    except UserError as error:
        assert len(str(error).splitlines()) <= 2
        return
    json.dumps(recipe, allow_nan=False)
    assert as_table(recipe)
