"""Whatever a laws.json holds: a recipe of finite numbers, or a UserError."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis import laws_io, report
from analysis.errors import UserError
from analysis.recommend import as_table, recommend

from .recipes import laws, power_law, value


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
