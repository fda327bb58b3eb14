"""Published laws against the numbers of their papers, their conventions, and the table of who disagrees."""

import math

import pytest

from analysis.errors import UserError
from analysis.predict import predict
from analysis.recommend import as_table, recommend
from analysis.recommend.convention import at_target
from analysis.recommend.published_laws import PUBLISHED, as_laws, named

EMPTY = {"laws": [], "optima": []}


def published(name, law, **at):
    entry = next(each for each in PUBLISHED[name].laws if each["name"] == law)
    return predict(entry, at_target(entry, {"tpp": at["tokens"] / at["params"], **at})).value


def fitted(name, value, width=0.0, **extra):
    """A law without predictors: `value`, with an 80 % interval of `width` either way in natural log."""
    law = {"name": name, "analysis": name, "given": {}, "parameters": {"coefficient": {"value": value}}, "predictors": []}
    return {**law, "covariance": [[(width / 1.2815516) ** 2]], "scatter": 0.0, **extra}


def row(recipe, name, against):
    return next(each for each in recipe["comparison"] if (each["name"], each["against"]) == (name, against))


def test_power_lines_at_610m_and_20_tokens_per_parameter():
    """papers.md, 1: tau 0.2235 (their best 0.21), batch 221 sequences of 2048 (their best 252)."""
    at = {"params": 6.05e8, "tokens": 12.1e9}
    assert published("power_lines", "tau", **at) == pytest.approx(0.2235, abs=2e-4)
    assert published("power_lines", "batch_size", **at) == pytest.approx(221, rel=0.01)
    assert published("power_lines", "critical_batch", **at) == pytest.approx(0.0471 * 12.1e9**0.462)


def test_weight_decay_of_power_lines_own_run():
    """papers.md, 1: 610M, 80 tokens per parameter, B = 504, base LR 1.62e-2 at width 256: tau 0.105 is lambda 0.1."""
    target = {"params": 6.06e8, "tokens": 48.5e9, "batch_size": 504, "tau": 0.105, "width": 2048, "depth": 10}
    recipe = recommend(None, target, published="power_lines")
    assert recipe["recipe"]["lr"] == {"value": 0.0162, "low": 0.0162, "high": 0.0162, "source": "held"}
    assert recipe["derived"]["weight_decay"]["value"] == pytest.approx(0.1, rel=0.005)
    assert recipe["derived"]["lr_adjusted"]["value"] == pytest.approx(2.025e-3)


def test_step_law_at_1b_and_100b_tokens():
    at = {"params": 1e9, "tokens": 1e11}
    assert published("step_law", "lr", **at) == pytest.approx(1.79 * 10 ** (-0.713 * 9 + 0.307 * 11))
    assert published("step_law", "lr", **at) == pytest.approx(1.63e-3, rel=0.005)
    assert published("step_law", "batch_size", **at) == pytest.approx(1.108e6, rel=0.005)  # tokens


@pytest.mark.parametrize(
    ("depth", "width", "vocab", "lr", "batch", "off"),
    [(30, 4096, 102400, 4.2e-4, 2304 * 4096, 0.03), (95, 8192, 102400, 3.2e-4, 4608 * 4096, 0.1)],
)
def test_deepseek_gives_its_own_models(depth, width, vocab, lr, batch, off):
    """Their 7B and 67B at 2T tokens, by their own laws and M = 72 L d^2 + 12 L d context (table of the paper recalled)."""
    params = 12 * depth * width**2 + vocab * width
    at = {"params": params, "tokens": 2e12, "width": width, "depth": depth, "vocab": vocab, "context": 4096}
    assert published("deepseek", "lr", **at) == pytest.approx(lr, rel=off)
    assert published("deepseek", "batch_size", **at) == pytest.approx(batch, rel=off)
    flops = at_target(PUBLISHED["deepseek"].laws[0], at)["flops"]
    assert flops == pytest.approx((72 * depth * width**2 + 12 * depth * width * 4096) * 2e12)


def test_parameters_are_counted_as_the_law_counts_them():
    """Step Law leaves the vocabulary out; unknown, that is said."""
    at = {"params": 1e9, "tokens": 1e11, "width": 1024, "vocab": 100_000}
    assert published("step_law", "lr", **at) == pytest.approx(published("step_law", "lr", **{**at, "params": 1e9 - 1.024e8,
                                                                                            "vocab": None}))  # fmt: skip
    notes = []
    at_target(PUBLISHED["step_law"].laws[0], {"params": 1e9, "tokens": 1e11}, notes)
    assert len(notes) == 1 and "vocabulary unknown" in notes[0]
    assert at_target(PUBLISHED["power_lines"].laws[0], at)["params"] == 1e9


def test_every_entry_is_cited_and_says_what_is_recalled():
    assert set(PUBLISHED) == {"power_lines", "step_law", "deepseek", "bjorck"}
    for name, entry in PUBLISHED.items():
        assert entry.arxiv in entry.citation and len(entry.conventions) > 60
        for law in entry.laws:
            assert law["published"] == name and law["equation"] and law["unit"]
            assert set(law["memory"]) <= set(law["parameters"])
    assert [law["memory"] for law in PUBLISHED["power_lines"].laws] == [["coefficient"]] * 3
    assert PUBLISHED["bjorck"].laws[0]["parameters"]["coefficient"]["value"] is None


def test_published_laws_alone_make_a_recipe_and_the_first_named_leads():
    target = {"params": 1e9, "tokens": 1e11}
    recipe = recommend(None, target, published="power_lines,step_law")
    assert recipe["laws"]["batch_size"]["published"] == "power_lines" and recipe["laws"]["lr"]["published"] == "step_law"
    assert recipe["recipe"]["batch_size"]["value"] == pytest.approx(0.0306 * 1e11**0.383)
    other = recommend(None, target, published="step_law, power_lines")
    assert other["recipe"]["batch_size"]["value"] == pytest.approx(0.58 * 1e11**0.571 / 2048)
    assert other["recipe"]["tau"]["value"] == pytest.approx(1.084 * 100**-0.527)
    assert not any(word.startswith("parameterization.base_width") for word in other["overrides"])
    assert all(len(line) < 118 for line in as_table(other).splitlines())


def test_a_named_source_leads_over_the_folder_and_unnamed_ones_do_not():
    laws = {"laws": [fitted("tau", 0.3, 0.1)], "optima": []}
    target = {"params": 1e9, "tokens": 2e10}
    assert recommend(laws, target)["recipe"]["tau"]["value"] == pytest.approx(0.3)
    assert recommend(laws, target, published=["power_lines"])["recipe"]["tau"]["value"] == pytest.approx(1.084 * 20**-0.527)


@pytest.mark.parametrize("words", ["power_line", "", "[]", "step_law,"])
def test_unknown_names(words):
    with pytest.raises(UserError, match="no such published law"):
        named(words)
    with pytest.raises(UserError, match="laws=DIR"):
        recommend(None, {"params": 1e9, "tokens": 1e9})


def test_who_disagrees():
    """tau 0.2236 by Power Lines: inside 0.3 give or take 40 %, outside 0.3 give or take 20 %."""
    for width, inside in ((0.4, True), (0.2, False)):
        recipe = recommend({"laws": [fitted("tau", 0.3, width)], "optima": []}, {"params": 1e9, "tokens": 2e10})
        found = row(recipe, "tau", "power_lines")
        assert found["inside"] is inside and found["ratio"] == pytest.approx(0.2236 / 0.3, rel=1e-3)
        assert found["low"] == pytest.approx(0.3 * math.exp(-width)) and "2505.13738" in found["citation"]
        assert "coefficient from memory" in found["caveats"]
        assert ("inside" if inside else "OUTSIDE") in as_table(recipe)
    given = recommend({"laws": [fitted("tau", 0.3, 0.2)], "optima": []}, {"params": 1e9, "tokens": 2e10, "tau": 0.5})
    assert row(given, "tau", "power_lines")["inside"] is None


def test_caveats_name_settings_that_differ_and_lr_is_compared_in_hidden_matrices():
    given = {"parameterization": "mup", "base_width": 256, "optimizer": "muon", "schedule": "linear", "context": 2048}
    laws = {"laws": [fitted("lr", 0.016, 0.5, given=given)], "optima": []}
    recipe = recommend(laws, {"params": 1e9, "tokens": 1e11, "width": 2048, "depth": 16, "vocab": 32_000})
    found = row(recipe, "lr", "step_law")
    assert found["recipe"] == pytest.approx(0.016 / 8) and found["high"] == pytest.approx(0.002 * math.exp(0.5))
    assert found["value"] == pytest.approx(1.79 * (1e9 - 32_000 * 2048) ** -0.713 * 1e11**0.307)
    said = "; ".join(found["caveats"])
    for word in ("optimizer adamw, here muon", "parameterization standard, here mup", "schedule cosine, here linear"):
        assert word in said
    assert "hidden" in said
    far = row(recommend(laws, {"params": 1e11, "tokens": 1e13}), "lr", "step_law")
    assert "2.0 decades beyond its params" in far["caveats"] and "2.0 decades beyond its tokens" in far["caveats"]


def test_bjorck_goes_through_an_anchor():
    """Exponents only: through the optimum at the largest N * D, eta (N/N0)^-0.23 (D/D0)^-0.32."""
    optima = [
        {"target": "lr", "given": {"params": n, "tokens": 20 * n}, "held": {}, "value": v, "verdict": verdict}
        for n, v, verdict in ((1e7, 9e-3, "interior"), (1e8, 4e-3, "interior"), (1e9, 1e-3, "edge"))
    ]
    laws = {"laws": [fitted("lr", 2e-3, 0.3)], "optima": optima}
    recipe = recommend(laws, {"params": 1e9, "tokens": 2e11})
    expected = 4e-3 * 10**-0.23 * 100**-0.32
    assert row(recipe, "lr", "bjorck")["value"] == pytest.approx(expected)
    assert any("anchored" in caveat and "1e+08" in caveat for caveat in row(recipe, "lr", "bjorck")["caveats"])
    source = recommend(laws, {"params": 1e9, "tokens": 2e11}, published="bjorck")
    assert source["recipe"]["lr"]["value"] == pytest.approx(expected)
    bare = row(recommend({**laws, "optima": []}, {"params": 1e9, "tokens": 2e11}), "lr", "bjorck")
    assert bare["value"] is None and bare["inside"] is None
    with pytest.raises(UserError, match="no usable law"):
        recommend(EMPTY, {"params": 1e9, "tokens": 2e11}, published="bjorck")


def test_a_critical_batch_of_ones_own_beside_power_lines():
    critical = {
        "name": "critical_batch", "analysis": "critical_batch", "given": {"definition": "overhead", "overhead": 0.2,
        "optimal_batch": 0.0}, "unit": "sequences of 512 tokens", "predictors": ["tokens"], "scatter": 0.0,
        "parameters": {"coefficient": {"value": 0.05}, "tokens": {"value": 0.45}},
    }  # fmt: skip
    recipe = recommend({"laws": [fitted("tau", 0.2), critical], "optima": []}, {"params": 1e9, "tokens": 2e10})
    found = row(recipe, "critical_batch", "power_lines")
    assert found["recipe"] == pytest.approx(0.05 * 2e10**0.45 * 512 / 0.2)
    assert found["value"] == pytest.approx(0.0471 * 2e10**0.462 * 2048)


def test_a_joint_law_and_other_names_confuse_nothing():
    """A one-stage law stands beside the two-stage one and leads only where it is alone; params_opt is no recipe's."""
    joint = fitted("lr", 0.004, 0.1, method="joint")
    others = [fitted("params_opt", 1e9), fitted("tokens_opt", 2e10), fitted("loss_opt", 2.0), fitted("tissue", 2.0)]
    laws = {"laws": [fitted("lr", 0.002, 0.1, method="quadratic"), joint, *others], "optima": []}
    recipe = recommend(laws, {"params": 1e9, "tokens": 2e10})
    assert recipe["recipe"]["lr"]["value"] == pytest.approx(0.002) and set(recipe["recipe"]) == {"lr"}
    found = row(recipe, "lr", "another law here")
    assert found["value"] == pytest.approx(0.004) and found["inside"] is False and "method joint" in found["caveats"]
    alone = recommend({"laws": [joint, *others], "optima": []}, {"params": 1e9, "tokens": 2e10})
    assert alone["recipe"]["lr"]["value"] == pytest.approx(0.004)


def test_the_first_named_source_is_last_in_line():
    assert [law["published"] for law in as_laws(named("step_law,deepseek"))] == ["deepseek"] * 2 + ["step_law"] * 2
