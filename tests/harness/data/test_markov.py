"""The entropy rate that is reported is the loss of the best possible model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config import DataConfig
from harness.data import prepare
from harness.data.markov import BLOCK, Chain, chain


def test_a_chain_known_by_hand():
    """Two states, leaving with probability 1/4 and 1/2: pi = (2/3, 1/3), H = 2/3 h(1/4) + 1/3 h(1/2)."""
    counts = np.array([[3, 1], [2, 2]], np.int64) << 30
    h = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) * 2 / 3 + np.log(2) / 3
    assert np.allclose(Chain(counts).stationary, [2 / 3, 1 / 3]) and abs(Chain(counts).entropy_rate - h) < 1e-12


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 80), st.floats(0.02, 0.98))
def test_the_entropy_aimed_at_is_met(states, share):
    aim = share * np.log(states)
    found = chain(states, aim)
    assert abs(found.entropy_rate - aim) < 1e-3
    assert (found.counts.sum(1) == 1 << 32).all() and (found.counts > 0).all()
    assert np.allclose(found.stationary @ found.transition, found.stationary, atol=1e-9)


@pytest.mark.parametrize("entropy", [0.3, 2.0, 4.0])
def test_the_true_matrix_scores_the_entropy_rate_on_the_tokens(tmp_path, entropy):
    """Cross-entropy of P on the corpus = the entropy rate within 4 standard errors, and any other P does worse."""
    corpus = prepare(DataConfig(name="markov", tokens=6e5, entropy=entropy), tmp_path, lambda message: None)
    assert corpus.vocab == 64 and corpus.train_tokens + corpus.validation_tokens == 600_000
    tokens = np.concatenate(corpus.arrays("train")).astype(int)
    assert len(tokens) > 2 * BLOCK, "blocks must join without a seam"
    p = chain(64, entropy).transition
    loss = -np.log(p[tokens[:-1], tokens[1:]])
    # Batch means, since the terms are correlated along the path.
    means = loss[: len(loss) // 500 * 500].reshape(500, -1).mean(1)
    assert abs(loss.mean() - corpus.entropy_rate) < 4 * means.std() / np.sqrt(500)
    mixed = 0.9 * p + 0.1 / 64
    assert -np.log(mixed[tokens[:-1], tokens[1:]]).mean() > loss.mean()


def test_blocks_are_one_path():
    """Every transition has positive probability under a sparse chain only if no block starts afresh."""
    ring = np.ones((5, 5), np.int64)
    ring[np.arange(5), (np.arange(5) + 1) % 5] = (1 << 32) - 4  # i is followed by i + 1, nearly always
    path = np.concatenate(list(Chain(ring).blocks(2 * BLOCK + 10, seed=1)))
    assert len(path) == 2 * BLOCK + 10 and ((path[1:] - path[:-1]) % 5 == 1).all()


def test_splits_are_different_paths(tmp_path):
    corpus = prepare(DataConfig(name="markov", tokens=2000, validation_fraction=0.5), tmp_path, lambda message: None)
    assert not np.array_equal(*(np.concatenate(corpus.arrays(s)) for s in ("train", "validation")))
