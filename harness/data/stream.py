"""Windows of tokens in an order that depends on the data seed only: sequence i is the same whatever the batch size."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from harness.data.corpus import Corpus
from harness.errors import UserError

ROUNDS = 6
_BLOCK = 1024  # sequences whose places are worked out at a time


class Stream:
    """Training and validation windows of `context` + 1 tokens (inputs and targets overlap by context - 1).

    Windows start every `context` tokens, so each token but the first is a target once. An epoch is a pseudo-random
    permutation of the training windows by (seed, epoch); `sequences` = floor(windows * epochs) are available.
    Raises UserError where a split is shorter than one window."""

    def __init__(self, corpus: Corpus, context: int, seed: int, epochs: float = 1.0):
        self.corpus, self.context, self.seed, self.epochs = corpus, context, seed, epochs
        self.windows = (corpus.train_tokens - 1) // context
        self.validation_windows = (corpus.validation_tokens - 1) // context
        if self.windows < 1 or self.validation_windows < 1:
            raise UserError(
                f"model.context={context}: data={corpus.name} has {corpus.train_tokens:,} training and "
                f"{corpus.validation_tokens:,} validation tokens, less than one window; shorten it or give more text"
            )
        self.sequences = math.floor(self.windows * epochs + 1e-6)  # 2.3 * 100 is 229.99...97
        self._train = _Reader(corpus, "train", context)
        self._validation = _Reader(corpus, "validation", context)
        self._places = lru_cache(maxsize=8)(self._place_block)

    def check(self, tokens: int) -> None:
        """Raises UserError where `tokens` of training need more sequences than there are."""
        if tokens <= self.sequences * self.context:
            return
        enough = math.ceil(100 * math.ceil(tokens / self.context) / self.windows) / 100
        raise UserError(
            f"{tokens:,} training tokens asked, but data={self.corpus.name} has {self.windows * self.context:,} unique "
            f"ones (data.epochs={self.epochs:g}); ask for fewer, or allow repeats with data.epochs={enough:.12g}"
        )

    def batch(self, first_sequence: int, n: int) -> np.ndarray:
        """Training sequences first_sequence ... + n - 1, int64 (n, context + 1). IndexError past the last one."""
        if first_sequence < 0 or first_sequence + n > self.sequences:
            raise IndexError(f"sequences {first_sequence}..{first_sequence + n - 1} of {self.sequences}")
        block, skip = divmod(first_sequence, _BLOCK)
        places = self._places(block)[skip : skip + n]
        while len(places) < n:
            block += 1
            places = np.concatenate([places, self._places(block)[: n - len(places)]])
        return self._train.read(places)

    def validation(self, n: int) -> np.ndarray:
        """n windows spread evenly over the validation split (all, where there are fewer), int64 (n, context + 1); the
        same for every seed."""
        n = min(n, self.validation_windows)
        return self._validation.read(np.arange(n) * self.validation_windows // n)

    def _place_block(self, block: int) -> np.ndarray:
        epoch, place = np.divmod(np.arange(block * _BLOCK, (block + 1) * _BLOCK), self.windows)
        parts = [permute(place[epoch == e], self.windows, self.seed, int(e)) for e in np.unique(epoch)]
        return np.concatenate(parts)


class _Reader:
    """Windows of one split, across its shards."""

    def __init__(self, corpus: Corpus, split: str, context: int):
        self.shards, self.shard_tokens, self.context = corpus.arrays(split), corpus.shard_tokens, context

    def read(self, windows: np.ndarray) -> np.ndarray:
        length, shards = self.context + 1, self.shards
        out = np.empty((len(windows), length), np.int64)
        for row, start in zip(out, (windows * self.context).tolist(), strict=True):
            shard, offset = divmod(start, self.shard_tokens)
            piece = shards[shard][offset : offset + length]
            row[: len(piece)] = piece
            done = len(piece)
            while done < length:
                shard += 1
                piece = shards[shard][: length - done]
                row[done : done + len(piece)] = piece
                done += len(piece)
        return out


def permute(index: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where `index` (int, each in [0, n)) goes under a pseudo-random permutation of [0, n) keyed by (seed, epoch).

    A Feistel network on pairs (left, right) in [0, a) x [0, b) with a*b just above n, walking on while the result is
    n or more (Black and Rogaway 2002, generalised Feistel with cycle walking). O(1) memory: no table of n entries."""
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    keys = np.random.PCG64([seed & (2**64 - 1), epoch]).random_raw(ROUNDS)
    out = _network(np.asarray(index, np.uint64), np.uint64(a), np.uint64(b), keys)
    while (outside := np.flatnonzero(out >= n)).size:
        out[outside] = _network(out[outside], np.uint64(a), np.uint64(b), keys)
    return out.astype(np.int64)


def _network(x: np.ndarray, a: np.uint64, b: np.uint64, keys: np.ndarray) -> np.ndarray:
    left, right = x // b, x % b
    for i, key in enumerate(keys):
        if i % 2:
            right = (right + _mix(left ^ key) % b) % b
        else:
            left = (left + _mix(right ^ key) % a) % a
    return left * b + right


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer: a bijection of 64 bits in which every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
