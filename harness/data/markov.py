"""A Markov chain of known entropy rate: the loss that no model can beat, exactly."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from harness.errors import UserError

BLOCK = 1 << 18  # tokens generated at a time
_ONE = 1 << 32  # probabilities are multiples of 2^-32, so that tokens agree between machines


@dataclass(frozen=True)
class Chain:
    """`counts` (states, states) int64: transition probabilities in units of 2^-32; every row sums to 2^32."""

    counts: np.ndarray

    @property
    def transition(self) -> np.ndarray:
        """P (states, states) float64, P[i, j] = probability that j follows i."""
        return self.counts / _ONE

    @property
    def stationary(self) -> np.ndarray:
        """pi (states,) with pi P = pi."""
        n = len(self.counts)
        equations = np.vstack([self.transition.T - np.eye(n), np.ones(n)])
        pi = np.linalg.lstsq(equations, np.append(np.zeros(n), 1.0), rcond=None)[0]
        return np.clip(pi, 0, None) / np.clip(pi, 0, None).sum()

    @property
    def entropy_rate(self) -> float:
        """H = -sum_i pi_i sum_j P_ij ln P_ij, nats per token (Shannon 1948, section 7)."""
        p = self.transition
        return float(self.stationary @ -(p * np.log(p)).sum(1))

    def blocks(self, tokens: int, seed: int) -> Iterator[np.ndarray]:
        """One path of `tokens` tokens, in blocks of int64, started from the stationary distribution."""
        bits = np.random.PCG64([seed, len(self.counts)])  # raw output: stable over NumPy versions
        rows = [row.tolist() for row in np.cumsum(self.counts, 1)]
        start = np.cumsum(np.round(self.stationary * _ONE)).astype(np.int64)
        state = min(bisect_right(start.tolist(), int(bits.random_raw() >> 32)), len(rows) - 1)
        for first in range(0, tokens, BLOCK):
            path = []
            for u in (bits.random_raw(min(BLOCK, tokens - first)) >> 32).tolist():
                path.append(state)
                state = bisect_right(rows[state], u)
            yield np.array(path, np.int64)


def chain(states: int, entropy: float) -> Chain:
    """The chain P = softmax(beta * logits) with fixed uniform logits and beta such that its entropy rate is `entropy`.

    Raises UserError unless 0 < entropy < ln(states), or where 2^-32 is too coarse to come within 1e-3 of it.
    """
    if states < 2 or not 0 < entropy < np.log(states):
        raise UserError(
            f"data.entropy={entropy:g} with data.states={states}: the entropy rate must lie between 0 and "
            f"ln(states) = {np.log(max(states, 1)):.4f} nats"
        )
    raw = np.random.PCG64(states).random_raw(states * states).reshape(states, states)
    logits = (raw >> 11) * 2.0**-53
    low, high = 0.0, 1.0
    while _chain(high * logits).entropy_rate > entropy and high < 1e6:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _chain(middle * logits).entropy_rate > entropy else (low, middle)
    found = _chain(round(high, 6) * logits)
    if abs(found.entropy_rate - entropy) > 1e-3:
        raise UserError(
            f"data.entropy={entropy:g} is out of reach with data.states={states}; nearest is "
            f"{found.entropy_rate:.4g} nats"
        )
    return found


def _chain(logits: np.ndarray) -> Chain:
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    n = len(p)
    counts = 1 + np.floor(p * (_ONE - n)).astype(np.int64)  # at least one: every state can follow every other
    counts[np.arange(n), p.argmax(1)] += _ONE - counts.sum(1)
    return Chain(counts)
