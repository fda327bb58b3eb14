"""The tables against the papers' exponents, and the properties every table must have."""

import math

import pytest

from models.errors import UserError
from models.llama import Llama, group_of
from models.parameterization import NAMES, Parameterization, Rule, Scales, hidden, rules, scales
from models.shape import LlamaShape


def shape_of(width, depth=2, **given):
    return LlamaShape.build(width, depth, **{"head_dim": 16, "vocab": 64, "context": 16, "tied": False} | given)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_all_agree_at_the_base_shape(name, tied):
    """Tuned at the base, hyper-parameters mean the same under every parameterization."""
    shape = shape_of(48, 3, tied=tied)
    given = dict(init_std=0.05, embedding_lr_multiplier=3.0, logits_multiplier=1.1, embedding_multiplier=9.0)
    here, standard = (Parameterization.build(n, 48, 3, **given) for n in (name, "standard"))
    assert rules(shape, here) == rules(shape, standard)
    assert scales(shape, here) == scales(shape, standard)
    assert rules(shape, here)["embedding"].lr == 3.0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_group_of_the_model_has_a_rule_and_no_other(name, tied):
    shape = shape_of(32, tied=tied, qk_norm=True)
    p = Parameterization.build(name, 16, 1)
    groups = {group_of(n) for n, _ in Llama(shape, scales(shape, p)).named_parameters()}
    assert groups == set(rules(shape, p))


def exponents(name, axis, tied=False, **given):
    """Log-4 of what each multiplier gains when width (depth) grows 4x: the tables' exponents, in a form to read."""
    p = Parameterization.build(name, 32, 2, init_std=1.0, **given)
    small, large = shape_of(32, 2, tied=tied), shape_of(128 if axis == "width" else 32, 8 if axis == "depth" else 2,
                                                        tied=tied)  # fmt: skip
    base, grown = rules(small, p), rules(large, p)
    power = {}
    for group, rule in grown.items():
        ratios = {k: (v, getattr(base[group], k)) for k, v in vars(rule).items()}
        power[group] = tuple(round(math.log(v / b, 4), 9) if b else None for v, b in ratios.values())
    return power


def test_mup_exponents_in_width():
    """2203.03466, Table 8, with the head as 2505.01618, Table 1: (init std, LR, weight decay, epsilon)."""
    assert exponents("mup", "width") == {
        "embedding": (0, 0, 0, -1),
        "hidden": (-0.5, -1, 0, -1),
        "norm": (None, 0, None, -1),
        "final_norm": (None, 0, None, -1),
        "head": (0, 0, 0, -1),
    }
    assert set(exponents("mup", "depth").values()) <= {(0, 0, 0, 0), (None, 0, None, 0)}


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_completep_exponents_in_width_and_depth(alpha):
    width, depth = (exponents("completep", axis, depth_alpha=alpha) for axis in ("width", "depth"))
    assert width == exponents("mup", "width") | {"hidden": (-0.5, -1, 1, -1)}
    assert depth == {
        "embedding": (0, 0, 0, 0),
        "hidden": (0, alpha - 1, 0, -alpha),
        "norm": (None, alpha - 1, None, -alpha),
        "final_norm": (None, 0, None, 0),
        "head": (0, 0, 0, 0),
    }


def test_standard_exponents_and_the_embedding_that_follows_width():
    standard = exponents("standard", "width")
    assert standard == {
        "embedding": (0, 0, 0, 0),
        "hidden": (-0.5, 0, 0, 0),
        "norm": (None, 0, None, 0),
        "final_norm": (None, 0, None, 0),
        "head": (-0.5, 0, 0, 0),
    }
    assert exponents("standard_embedding", "width") == standard | {"embedding": (0, 1, 0, 0)}
    assert exponents("standard", "width", tied=True)["embedding"] == (-0.5, 0, 0, 0)
    assert "head" not in exponents("mup", "width", tied=True)


def test_forward_multipliers():
    shape = shape_of(128, 8)
    of = {n: scales(shape, Parameterization.build(n, 32, 2, embedding_multiplier=9.0)) for n in NAMES}
    assert of["standard"] == of["standard_embedding"] == Scales(9.0, 1.0, 0.25, 1.0)
    assert of["mup"] == Scales(9.0, 1.0, 0.25, 0.25)
    assert of["completep"] == Scales(9.0, 0.25, 0.25, 0.25)


def test_attention_scale_falls_as_one_over_head_dim_where_the_head_grows():
    p = Parameterization.build("mup", 32, 2, base_head_dim=16)
    assert scales(shape_of(64, head_dim=16), p).attention == 16**-0.5
    assert scales(shape_of(64, head_dim=64), p).attention == pytest.approx(16**-0.5 / 4)


def test_hidden_is_what_enters_tau():
    """Power Lines: base LR 1.62e-2 at width 256 is 2.025e-3 at 2048, lambda stays; CompleteP multiplies lambda."""
    shape = LlamaShape.build(2048, 10, head_dim=64, vocab=50257, context=2048, tied=True)
    lr, weight_decay = hidden(shape, Parameterization.build("mup", 256, 24))
    assert (1.62e-2 * lr, weight_decay) == (2.025e-3, 1)
    tau = 504 * 2048 / (1.62e-2 * lr * 0.1 * weight_decay * 48.5e9)
    assert round(tau, 3) == 0.105
    assert hidden(shape, Parameterization.build("completep", 256, 24)) == (1 / 8, 8)
    assert hidden(shape, Parameterization.build("mup", 256, 24, weight_decay_width_exponent=0.5))[1] == 8**0.5


def test_default_init_is_one_over_root_width_whatever_the_base():
    for name in NAMES:
        for base in (32, 256):
            rule = rules(shape_of(64), Parameterization.build(name, base, 2))["hidden"]
            assert rule.init_std == pytest.approx(64**-0.5)
    assert rules(shape_of(64), Parameterization.build("mup", 64, 2))["norm"] == Rule(0, 1, 0, 1)


@pytest.mark.parametrize(
    "given",
    [
        {"name": "sp"},
        {"base_width": 0},
        {"base_depth": -1},
        {"init_std": float("nan")},
        {"depth_alpha": 1.0},
        {"name": "completep", "depth_alpha": 0.2},
        {"base_head_dim": 16},
        {"name": "mup", "base_head_dim": 0},
        {"weight_decay_width_exponent": float("inf")},
    ],
)
def test_values_no_table_can_use_are_refused(given):
    with pytest.raises(UserError):
        Parameterization.build(**{"name": "standard", "base_width": 32, "base_depth": 2} | given)
