"""Shapes: what is derived, and that no impossible one exists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UserError
from models.shape import LlamaShape


def build(width=64, depth=2, **given):
    return LlamaShape.build(width, depth, **{"vocab": 256, "context": 64} | given)


@pytest.mark.parametrize(("width", "ffn_width"), [(48, 128), (64, 176), (768, 2048), (2048, 5464), (4096, 10928)])
def test_ffn_width_is_eight_thirds_of_the_width_rounded_up_to_eight(width, ffn_width):
    assert build(width).ffn_width == ffn_width


def test_heads_follow_from_either_side_and_both_stand():
    assert (build(head_dim=32).n_heads, build(n_heads=2).head_dim, build().head_dim) == (2, 32, 16)
    free = build(head_dim=32, n_heads=5, n_kv_heads=1, ffn_width=7)
    assert (free.attention_width, free.kv_width, free.ffn_width) == (160, 32, 7)
    assert build().n_kv_heads == build().n_heads == 4


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"width": 72}, "head_dim"),
        ({"n_heads": 5}, "n_heads"),
        ({"head_dim": 1, "n_heads": 64}, "even"),
        ({"n_kv_heads": 3}, "n_kv_heads"),
        ({"ffn_width": 100, "ffn_ratio": 4.0}, "ffn_ratio"),
        ({"ffn_ratio": -1.0}, "ffn_ratio"),
        ({"depth": 0}, "depth"),
        ({"width": 64.0}, "width"),
        ({"context": -1}, "context"),
        ({"vocab": 0}, "vocab"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"z_loss": -1e-4}, "z_loss"),
        ({"tied": "yes"}, "tied"),
        ({"rope_theta": "big"}, "rope_theta"),
    ],
)
def test_an_impossible_shape_is_refused_by_name(given, names):
    with pytest.raises(UserError, match=names) as refused:
        build(**given)
    assert len(str(refused.value).splitlines()) <= 2


KEYS = "width depth head_dim n_heads n_kv_heads ffn_width ffn_ratio ffn_multiple vocab context z_loss qk_norm".split()
anything = st.none() | st.integers(-3, 200) | st.floats() | st.booleans() | st.text(max_size=3)


@given(st.fixed_dictionaries(dict.fromkeys(KEYS, anything)))
def test_any_input_gives_a_consistent_shape_or_a_user_error(given):
    try:
        shape = LlamaShape.build(**given)
    except UserError:
        return
    assert shape.head_dim % 2 == 0 and shape.n_heads % shape.n_kv_heads == 0 and shape.ffn_width >= 1
