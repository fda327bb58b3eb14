"""Counts by hand, against the published sizes, and against the tensors and the matrix products of the model."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.count import ParamCount, count_params, flops_per_token
from models.llama import Llama
from models.parameterization import Parameterization, scales
from models.shape import LlamaShape


def test_counts_by_hand():
    shape = LlamaShape(width=8, depth=3, head_dim=2, n_heads=4, n_kv_heads=2, ffn_width=10, vocab=11, context=5)
    #       q, out      k, v       gate, up, down   two norms
    block = 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 10 + 2 * 8
    assert block == 448
    assert count_params(shape) == ParamCount(3 * 448 + 8 + 88, 3 * 448 + 8 + 2 * 88, 3 * 448 + 8)
    # 1440 parameters cost 6 each; scores and values cost 2 * 2 * 5 * 8 in each of 3 layers, and twice that backward
    assert flops_per_token(shape) == 6 * 1440 + 3 * 3 * 160


def test_tied_counts_the_shared_matrix_once_and_as_the_head():
    shape = LlamaShape.build(8, 1, head_dim=4, vocab=100, context=4, tied=True, qk_norm=True)
    count = count_params(shape)
    assert count.params == count.params_total == count.params_non_embedding + 800


@pytest.mark.parametrize(
    ("width", "depth", "ffn_width", "tokens_at_20_tpp"),
    [(768, 10, 2048, 2.19e9), (768, 32, 2048, 5.31e9), (2048, 10, 5461, 12.1e9), (2048, 32, 5461, 34.3e9),
     (2048, 64, 5461, 66.5e9)],
)  # fmt: skip
def test_power_lines_sizes(width, depth, ffn_width, tokens_at_20_tpp):
    """N of Power Lines follows from its published tokens at 20 TPP (2509.25087, App. B.1), to their rounding."""
    shape = LlamaShape.build(width, depth, head_dim=64, ffn_width=ffn_width, vocab=50257, context=2048, tied=True)
    assert count_params(shape).params == pytest.approx(tokens_at_20_tpp / 20, rel=0.003)


VARIANTS = [
    dict(tied=False),
    dict(tied=True, qk_norm=True, n_kv_heads=1),
    dict(tied=False, head_dim=8, n_heads=3, n_kv_heads=3, ffn_width=50),
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_equal_the_tensors_of_the_model(variant):
    shape = LlamaShape.build(32, 3, vocab=40, context=8, **variant)
    size = {n: w.numel() for n, w in model_of(shape).named_parameters()}
    count = count_params(shape)
    vocabulary = {n for n in size if n.startswith(("embedding", "head"))}
    assert count.params_total == sum(size.values())
    assert count.params_non_embedding == sum(s for n, s in size.items() if n not in vocabulary)
    assert count.params == count.params_non_embedding + 40 * 32


@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_equal_the_matrix_products_pytorch_counts(variant):
    shape = LlamaShape.build(32, 3, vocab=40, context=8, **variant)
    model = model_of(shape)
    with FlopCounterMode(display=False) as counter:
        model.loss(torch.zeros(2, 9, dtype=torch.int64))[1].backward()
    gains = sum(w.numel() for n, w in model.named_parameters() if w.ndim == 1)
    assert flops_per_token(shape) * 2 * 8 == counter.get_total_flops() + 6 * gains * 2 * 8


def model_of(shape):
    return Llama(shape, scales(shape, Parameterization.build("standard", shape.width, shape.depth)))
