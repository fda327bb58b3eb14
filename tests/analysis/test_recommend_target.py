"""The target of a recipe: its shape, and what cannot be asked."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import UserError
from analysis.recommend import recommend
from analysis.recommend.ladder import choose_shape, count_blocks

from .recipes import HELD_IN_TOKENS, POWER_LINES, laws, override, power_law, scales, value


def test_params_and_shape_that_disagree():
    target = {"params": 1e9, "width": 64, "depth": 2, "tokens": 1e9}
    with pytest.raises(UserError, match=r"params=1e\+09 and model.width=64 model.depth=2 \(9.83e\+04 params\)"):
        recommend(laws(HELD_IN_TOKENS), target, count=lambda width, depth: 12 * depth * width**2)
    assert any("neither embedding" in note for note in recommend(laws(HELD_IN_TOKENS), target)["notes"])
    close = recommend(laws(HELD_IN_TOKENS), {**target, "params": 1e5}, count=lambda width, depth: 12 * depth * width**2)
    assert close["target"]["params"] == 1e5


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
