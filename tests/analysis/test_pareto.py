"""Time against compute: against a list of every run, by the dominance property, and against what Power Lines reports."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import command
from analysis.errors import UserError
from analysis.recommend import as_table, loss_law, recommend
from analysis.recommend.critical_law import critical_tokens, sequence_tokens
from analysis.recommend.pareto import Machine, minimum_tokens, nondominated, place, plane
from analysis.recommend.published_laws import PUBLISHED
from analysis.recommend.trade import machine

EPOCH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}  # arXiv 2404.10102
LOSS = {"name": "loss", "analysis": "loss", "given": {}, "parameters": {k: {"value": v} for k, v in EPOCH.items()}}
POINT = loss_law.central(LOSS)
CRITICAL = {**PUBLISHED["power_lines"].laws[2], "published": None}
LR = {"name": "lr", "analysis": "lr", "given": {"context": 2048}, "parameters": {"coefficient": {"value": 1e-3}},
      "predictors": [], "covariance": [[0.04]], "scatter": 0.0, "held": {"batch_size": 256.0}}  # fmt: skip


def laws(*entries):
    return {"laws": list(entries), "optima": []}


def brute(x, y):
    """Not beaten: no other point at most equal in both and smaller in one."""
    runs = list(zip(x, y, strict=True))
    return [not any(a <= c and b <= d and (a < c or b < d) for a, b in runs) for c, d in runs]


PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)) | st.tuples(*[st.floats(1e-3, 1e3)] * 2), max_size=40)


@settings(max_examples=150, deadline=None)
@given(PAIRS)
def test_what_is_not_beaten(points):
    """No point of the front beats another, every other point is beaten by one of the front; ties all stay."""
    x, y = np.array(points, float).reshape(-1, 2).T
    front = nondominated(x, y)
    assert front.tolist() == brute(x, y)
    assert front.any() == bool(len(points))


def test_the_grid_against_single_runs():
    """Compute, time and tokens of the plane by the formulas, one run at a time; its front by comparing all pairs."""
    mine = Machine(device_batch=4096, devices=32, rate=1e14)
    found = plane(POINT, CRITICAL, 2.6, mine, 2048, 1e9)
    rng = np.random.default_rng(0)
    some = rng.choice(len(found.params), 120, replace=False)
    some = np.union1d(some, rng.choice(np.flatnonzero(found.front), 30))
    for i in some:
        n, d, b = found.params[i], found.minimum[i], found.batch[i]
        assert 1.8172 + 482.01 / n**0.3478 + 2085.43 / d**0.3658 == pytest.approx(2.6)
        tokens = d * (1 + b / (0.0471 * d**0.462 * 2048))
        assert found.tokens[i] == pytest.approx(tokens) and found.flops[i] == pytest.approx(6 * n * tokens)
        assert found.seconds[i] == pytest.approx(tokens / b * 6 * n * 4096 * math.ceil(b / (32 * 4096)) / 1e14)
    own = nondominated(found.flops[some], found.seconds[some])
    assert own.tolist() == brute(found.flops[some], found.seconds[some])
    assert set(np.flatnonzero(found.front)) & set(some) <= set(some[own])


@pytest.mark.parametrize("loss", [2.2, 2.6, 3.2])
def test_what_power_lines_found(loss):
    """Under-trained runs are beaten in both; small over-trained models are on the front; as B falls compute tends to the
    closed form. (Their optimal ratio at loss 2.6 is 20.6; with the law of Epoch it is 23.)"""
    found = plane(POINT, CRITICAL, loss, Machine(2048), 2048, 1e9)
    n, d = POINT.cheapest(loss)
    assert POINT.loss(n, d) == pytest.approx(loss) and 15 < d / n < 30
    assert n == pytest.approx(POINT.best(6 * n * d)[0])  # the least loss of that compute
    ratio = found.minimum[found.front] / found.params[found.front]
    assert ratio.min() > 0.9 * d / n and ratio.max() > 4 * d / n
    under = found.minimum / found.params < 0.7 * d / n
    assert under.any() and not found.front[under].any()
    cheapest = found.flops[found.front].argmin()
    assert found.flops[found.front][cheapest] == pytest.approx(6 * n * d, rel=0.005)
    assert found.params[found.front][cheapest] == pytest.approx(n, rel=0.04)
    if loss == 2.6:
        assert d / n == pytest.approx(23.1, abs=0.1)


def test_more_devices_than_the_batch_feeds_save_nothing():
    limited = plane(POINT, CRITICAL, 2.6, Machine(2048, devices=64), 2048, 1e9)
    assert limited.batch[limited.front].max() <= 64 * 2048 * 1.15
    free = plane(POINT, CRITICAL, 2.6, Machine(2048), 2048, 1e9)
    assert free.batch[free.front].max() > 64 * 2048 * 4
    assert free.seconds[free.front].min() < limited.seconds[limited.front].min() / 3
    unit, half = Machine(2048, rate=1e14), Machine(2048, rate=5e13)
    assert half.seconds(1e9, 1e6, 1e4) == pytest.approx(2 * unit.seconds(1e9, 1e6, 1e4))


def test_tokens_per_second_and_flops_say_the_same():
    """64 devices at 4e4 tokens a second and 1e9 parameters: 2e10 tokens in 2e10 / (64 * 4e4) seconds if the batch feeds
    them."""
    told = machine({"devices": 64, "tokens_per_second": 4e4}, {"params": 1e9, "context": 2048})
    batch = 64 * 2048
    assert told.seconds(1e9, batch, 2e10 / batch) == pytest.approx(2e10 / (64 * 4e4))
    assert machine({"device_flops": 2.4e14}, {"params": 1e9}).rate == pytest.approx(told.rate)
    other = machine({"tokens_per_second": 4e4, "reference_params": 5e8}, {"params": 1e9})
    assert other.rate == pytest.approx(told.rate / 2)


@settings(max_examples=20, deadline=None)
@given(st.floats(1e9, 1e12), st.floats(1e4, 1e8))
def test_tokens_of_a_large_batch_and_back(minimum, batch):
    tokens = minimum * (1 + batch / (0.0471 * minimum**0.462 * 2048))
    assert minimum_tokens(CRITICAL, 1e9, tokens, batch, lambda d: 2.0) == pytest.approx(minimum, rel=1e-6)


def test_the_target_on_the_front_and_behind_it():
    found = plane(POINT, CRITICAL, 2.6, Machine(2048), 2048, 1e9)
    i = np.flatnonzero(found.front)[20]
    on = place(found, found.flops[i], found.seconds[i])
    assert on == {"excess_time": 0.0, "excess_compute": 0.0, "dominated": False}
    off = place(found, found.flops[i] * 1.5, found.seconds[i] * 2)
    assert off["dominated"] and off["excess_time"] > 1 - 1e-9 and off["excess_compute"] > 0.5 - 1e-9


def test_the_overhead_definition_is_translated():
    """B* needs 20 % more steps than perfect scaling from B_0: on the hyperbola of B_crit exactly that."""
    critical, start = 1000.0, 100.0
    star = 1.2 * start + 0.2 * critical
    assert (1 + star / critical) / (1 + start / critical) == pytest.approx(1.2)
    law = {"name": "critical_batch", "unit": "sequences of 512 tokens", "parameters": {"coefficient": {"value": star}},
           "predictors": [], "given": {"definition": "overhead", "overhead": 0.2, "optimal_batch": start}}  # fmt: skip
    value, words = critical_tokens(law, {})
    assert float(value) == pytest.approx(critical * 512) and "overhead" in words
    assert sequence_tokens({"unit": "sequences of 2048 tokens"}) == 2048 and sequence_tokens({"unit": "tokens"}) == 1
    assert sequence_tokens({"unit": "sequences"}) is None and sequence_tokens({"unit": "sequences of 1e+06 tokens"}) == 1e6


@settings(max_examples=60, deadline=None)
@given(st.floats(1e7, 1e11), st.floats(1, 500), st.floats(1e-5, 0.3))
def test_nats_in_compute(n, tpp, nats):
    """N and D grown by one factor lower the loss by exactly the nats; where the floor lies closer there is no factor."""
    d = n * tpp
    more = POINT.more_compute(n, d, nats)
    if more is None:
        assert POINT.loss(n, d) - nats <= POINT.E
    else:
        factor = math.sqrt(1 + more)
        assert POINT.loss(n * factor, d * factor) == pytest.approx(POINT.loss(n, d) - nats, abs=1e-9)


def test_allocation_has_intervals_where_the_law_has_them():
    names = ["ln E", "ln A", "ln B", "alpha", "beta"]
    covariance = (np.diag([0.01, 0.05, 0.05, 0.005, 0.005]) ** 2).tolist()
    target = {"params": 1e9, "tokens": 2e10}
    found = recommend(laws(LR, {**LOSS, "covariance": covariance, "covariance_of": names}), target)["allocation"]
    n, d = POINT.best(1.2e20)
    for key, value in (("params", n), ("tokens", d), ("tpp", d / n), ("loss", POINT.loss(1e9, 2e10))):
        assert found[key]["value"] == pytest.approx(value)
        assert found[key]["low"] < value < found[key]["high"]
    assert found["params"]["value"] * found["tokens"]["value"] == pytest.approx(2e19)
    centre = [math.log(1.8172), math.log(482.01), math.log(2085.43), 0.3478, 0.3658]
    drawn = {"of": names, "values": [centre] * 60}
    sharp = recommend(laws(LR, {**LOSS, "draws": drawn}), target)["allocation"]["loss"]
    assert sharp["low"] == pytest.approx(sharp["value"]) == pytest.approx(sharp["high"])
    assert recommend(laws(LR, LOSS), target)["allocation"]["loss"]["low"] is None


def test_what_is_missing_is_named_and_nothing_else_breaks():
    target = {"params": 1e9, "tokens": 2e10}
    bare = recommend(laws(LR), target)
    assert bare["pareto"] is None and bare["allocation"] is None and any("analysis=loss" in n for n in bare["notes"])
    half = recommend(laws(LR, LOSS), target)
    assert half["pareto"] is None and half["allocation"] and any("analysis=critical_batch" in n for n in half["notes"])
    whole = recommend(laws(LR, LOSS, CRITICAL), target)
    assert whole["pareto"]["target"]["dominated"] and len(whole["pareto"]["front"]) > 5
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    lent = recommend(laws(LR, LOSS), target, published="power_lines")
    assert lent["pareto"]["critical_batch_from"] == "power_lines" and any("from memory" in note for note in lent["notes"])
    low = recommend(laws(LR, LOSS, CRITICAL), {**target, "loss": 1.7})
    assert low["pareto"] is None and any("below what the loss law can reach" in note for note in low["notes"])
    small = recommend(laws(LR, LOSS, CRITICAL), {"params": 1e7, "tokens": 2e10, "loss": 2.6})
    assert small["pareto"]["target"] is None and any("out of reach" in note for note in small["notes"])
    partial = {**LOSS, "parameters": {k: v for k, v in LOSS["parameters"].items() if k != "A"}}
    assert recommend(laws(LR, partial, CRITICAL), target)["pareto"] is None


def test_a_given_loss_moves_the_target_along_its_size():
    target = {"params": 1e9, "tokens": 2e10, "loss": 2.4, "devices": 64, "device_flops": 2e14}
    found = recommend(laws(LR, LOSS, CRITICAL), target)["pareto"]
    own, batch = found["target"], 256 * 2048
    least = float(POINT.tokens_for(2.4, 1e9))
    assert own["params"] == 1e9 and own["batch_size"] == pytest.approx(256)
    assert own["tokens"] == pytest.approx(least * (1 + batch / (0.0471 * least**0.462 * 2048)))
    assert own["seconds"] == pytest.approx(own["flops"] / (64 * 2e14))
    assert found["loss_from"] == "given" and found["machine"]["time_unit"] == "seconds"


def test_the_loss_law_of_the_recipes_own_settings_leads():
    other = {**LOSS, "given": {"parameterization": "standard"}, "parameters": {**LOSS["parameters"], "E": {"value": 1.0}}}
    mine = {**LOSS, "given": {"parameterization": "mup"}}
    lr = {**LR, "given": {"context": 2048, "parameterization": "mup"}}
    recipe = recommend(laws(lr, mine, other, CRITICAL), {"params": 1e9, "tokens": 2e10})
    assert recipe["allocation"]["loss"]["value"] == pytest.approx(POINT.loss(1e9, 2e10))
    alone = recommend(laws(lr, other, CRITICAL), {"params": 1e9, "tokens": 2e10})
    assert any("the loss law was fitted with parameterization=standard" in note for note in alone["notes"])


def test_the_command_line_writes_recipe_and_figure(tmp_path):
    (tmp_path / "laws.json").write_text(json.dumps(laws(LR, LOSS, CRITICAL)))
    words = {"laws": str(tmp_path), "params": 1e9, "tokens": 2e10, "devices": 64, "tokens_per_second": 4e4}
    recipe = command.recommend({**words, "out": str(tmp_path / "out"), "published": "power_lines"})
    assert [file.rsplit("/", 1)[1] for file in recipe["files"]] == ["recipe.json", "pareto.png"]
    assert (tmp_path / "out" / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    saved = json.loads((tmp_path / "out" / "recipe.json").read_text())
    steps, turns = saved["derived"]["steps"]["value"], math.ceil(round(saved["recipe"]["batch_size"]["value"]) / 64)
    assert saved["recipe"] == recipe["recipe"] and turns == 5
    assert saved["derived"]["hours"]["value"] == pytest.approx(steps * turns * 2048 / 4e4 / 3600)
    text = as_table({**recipe, "files": []})
    assert f"wrote {tmp_path}" in as_table(recipe)
    assert all(len(line) < 118 for line in text.splitlines())
    for title in ("against published laws", "predicted loss", "time against compute", "hours", "40000 per device"):
        assert title in text
    with pytest.raises(UserError, match="say the same"):
        command.recommend({**words, "device_flops": 1e14})
    with pytest.raises(UserError, match="published"):
        command.recommend({"params": 1e9, "tokens": 2e10})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another out"):
        command.recommend({**words, "out": str(tmp_path / "file")})


SCALE = st.floats(0, 14).map(lambda power: 10.0**power)


@settings(max_examples=60, deadline=None)
@given(SCALE, SCALE, st.none() | st.floats(1.5, 30), st.none() | st.integers(1, 10**9), st.floats(1, 1e7))
def test_any_target_gives_a_recipe_of_finite_numbers(params, tokens, loss, devices, batch):
    target = {"params": params, "tokens": tokens, "loss": loss, "devices": devices, "batch_size": batch}
    if batch * 2048 > tokens:
        with pytest.raises(UserError, match="larger than the run"):
            recommend(laws(LR, LOSS, CRITICAL), target)
        return
    recipe = recommend(laws(LR, LOSS, CRITICAL), target)
    json.dumps(recipe, allow_nan=False)
    assert all(len(line) < 118 for line in as_table(recipe).splitlines())
    if recipe["pareto"]:
        assert all(row["flops"] > 0 and row["time"] > 0 and row["steps"] >= 1 - 1e-9 for row in recipe["pareto"]["front"])


def test_the_loss_at_the_recipes_own_batch():
    """D_min of 2e10 tokens at the batch by D = D_min (1 + B / B_crit), by iteration; its loss, beside that of 2e10."""
    target = {"params": 1e9, "tokens": 2e10, "batch_size": 4096}
    recipe = recommend(laws(LR, LOSS, CRITICAL), target)
    found, minimum = recipe["allocation"], 2e10
    for _ in range(200):
        minimum = 2e10 / (1 + 4096 / (0.0471 * minimum**0.462))
    lowered = found["loss_at_batch"]["value"]
    assert lowered == pytest.approx(POINT.loss(1e9, minimum)) and lowered == pytest.approx(recipe["pareto"]["loss"])
    assert found["loss"]["value"] == pytest.approx(POINT.loss(1e9, 2e10)) and found["loss"]["value"] < lowered - 0.01
    assert found["batch_over_critical"] == pytest.approx(2e10 / minimum - 1)
    text = as_table(recipe)
    assert f"{found['loss_at_batch']['value']:.4f} at this batch" in text and "well below the critical" in text
    alone = recommend(laws(LR, LOSS), target)
    assert alone["allocation"]["loss_at_batch"] is None and "at this batch" not in as_table(alone)


def test_a_data_constrained_law_serves_at_one_epoch():
    names = ["ln E", "ln A", "ln B", "alpha", "beta", "ln R_D", "ln R_N"]
    covariance = (np.diag([0.01, 0.05, 0.05, 0.005, 0.005, 9.0, 9.0]) ** 2).tolist()
    more = {"parameters": {**LOSS["parameters"], "R_D": {"value": 15.4}, "R_N": {"value": None}}}
    law = {**LOSS, **more, "covariance": covariance, "covariance_of": names}
    recipe = recommend(laws(LR, law, CRITICAL), {"params": 1e9, "tokens": 2e10})
    found = recipe["allocation"]["loss"]
    assert found["value"] == pytest.approx(POINT.loss(1e9, 2e10)) and found["low"] < found["value"] < found["high"]
    assert recipe["pareto"] and any("one epoch" in note for note in recipe["notes"])
    assert not any("no loss law" in note for note in recipe["notes"])
    other = {**law, "parameters": {**law["parameters"], "E": {"value": 1.0}}}
    plain = recommend(laws(LR, LOSS, other), {"params": 1e9, "tokens": 2e10})
    assert plain["allocation"]["loss"]["value"] == pytest.approx(POINT.loss(1e9, 2e10))


def test_the_front_of_given_devices_uses_them_all():
    """Whole micro-batches: 65 sequences on 64 devices take the time of 128; the fastest run has a batch of 64, and no row
    saves less than a hundredth of compute for its time; rows are even in log time."""
    mine = Machine(2048, devices=64)
    assert mine.seconds(1e9, 65 * 2048, 1.0) == mine.seconds(1e9, 128 * 2048, 1.0) == 2 * mine.seconds(1e9, 64 * 2048, 1.0)
    told = {"params": 1e9, "tokens": 2e10, "devices": 64}
    recipe = recommend(laws(LR, LOSS, CRITICAL), told)
    front = recipe["pareto"]["front"]
    assert len(front) > 4 and front[-1]["batch_size"] == 64 == front[-1]["devices"] and front[0]["batch_size"] > 3
    assert all(row["batch_size"] <= 64 for row in front)
    assert any("tokens_per_second= (per device) or device_flops= for hours" in note for note in recipe["notes"])
    rated = recommend(laws(LR, LOSS, CRITICAL), {**told, "device_flops": 1e14})
    assert rated["derived"]["hours"] and not any("for hours" in note for note in rated["notes"])
    free = recommend(laws(LR, LOSS, CRITICAL), {**told, "devices": None})["pareto"]["front"]
    gaps = -np.diff(np.log([row["time"] for row in free]))  # batches of 1, 2, 3 sequences lie ln 2, ln 1.5 apart
    assert (gaps > 0).all() and gaps.max() / gaps.min() < 2
    for bad in (1.5, 0.5):
        with pytest.raises(UserError, match="whole number"):
            recommend(laws(LR, LOSS, CRITICAL), {**told, "devices": bad})
    many = recommend(laws(LR, LOSS, CRITICAL), {**told, "devices": 10**7})["pareto"]  # more than any batch feeds
    assert many["front"] and all(row["devices"] < 10**7 for row in many["front"])


def test_a_batch_of_the_laws_larger_than_the_run_is_said():
    big = {**LR, "held": {"batch_size": 1e9}}
    recipe = recommend(laws(big, LOSS, CRITICAL), {"params": 1e9, "tokens": 2e10})
    assert any("larger than the run" in note and "batch_size=" in note for note in recipe["notes"])
    assert recipe["allocation"]["loss_at_batch"] is None and recipe["pareto"]["target"] is None
    assert recipe["pareto"]["loss"] == pytest.approx(POINT.loss(1e9, 2e10))
