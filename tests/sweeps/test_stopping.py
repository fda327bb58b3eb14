"""The rule that stops what cannot win, at the risk it states: planted basins that move."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.stopping import PRIOR, Shift, judge, moved, noise_of

X = np.log(2.0) * np.arange(-11, -2)  # nine values, each twice the one before


def planted(rng, rate, n=9):
    """(x, losses at a share of the run) of a basin whose optimum moves by `rate` a unit of ln(1/t), steeper towards high
    values, flatter at the end than before: learning-rate curves that cross."""
    best, depth, steep = rng.uniform(X[1], X[n - 2]), rng.uniform(0.02, 0.1), rng.uniform(0.0, 0.5)

    def loss(share):
        off = X[:n] - best + rate * math.log(1 / share)
        wall = steep * depth * np.expm1(np.maximum(off, 0.0)) ** 2
        return 2 + 0.3 / share + (depth * off**2 + wall) * share**-0.3 + 0.002 * rng.standard_normal(n)

    return X[:n], loss


def stopped_by(x, loss, rungs=(0.25, 0.5), risk=0.05, keep=5):
    """(n,) bool after all rungs."""
    out = np.zeros(len(x), bool)
    for share in rungs:
        y, left = loss(share), np.flatnonzero(~out)
        verdict = judge(x[left], y[left], noise_of(y[left][:, None]), share, PRIOR, risk / len(rungs), keep)
        out[left[verdict.stopped]] = True
    return out


# Optima that move as those of real sweeps did (docs/throughput.md), and ones that all move far to one side.
@pytest.mark.parametrize("rates", [lambda rng: rng.normal(-0.15, 0.45), lambda rng: rng.choice([-0.9, 0.9])])
def test_the_risk_holds_where_curves_cross(rates):
    rng, draws, lost, crossed, saved = np.random.default_rng(3), 200, 0, 0, 0
    for _ in range(draws):
        x, loss = planted(rng, rates(rng))
        end, out = loss(1.0), stopped_by(x, loss)
        lost += out[end.argmin()]
        crossed += loss(0.25).argmin() != end.argmin()
        saved += out.sum()
    assert crossed > draws / 4  # who leads at the first rung often does not win
    assert saved > 1.5 * draws
    assert lost <= 0.05 * draws


def test_without_the_shift_of_the_optimum_the_risk_would_not_hold():
    rng, lost = np.random.default_rng(3), 0
    blind = Shift(0.0, 1e9, 1e-3, 1e3)
    for _ in range(200):
        x, loss = planted(rng, rng.choice([-0.9, 0.9]))
        y = loss(0.25)
        lost += judge(x, y, 0.006, 0.25, blind, 0.05, 3).stopped[loss(1.0).argmin()]
    assert lost > 0.2 * 200


@given(st.lists(st.one_of(st.floats(1.0, 9.0), st.just(math.inf)), min_size=3, max_size=14), st.floats(0.05, 0.95),
       st.floats(0.001, 0.9), st.integers(3, 7))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_best_and_its_neighbours_stay(losses, share, risk, keep):
    loss = np.array(losses)
    x = np.arange(len(loss)) * 0.5
    verdict = judge(x, loss, 0.01, share, PRIOR, risk, keep)
    alive = np.flatnonzero(np.isfinite(loss))
    kept = np.flatnonzero(np.isfinite(loss) & ~verdict.stopped)
    assert len(kept) >= min(keep, len(alive)) and verdict.risk <= risk
    assert not verdict.stopped[~np.isfinite(loss)].any()
    if len(alive):
        place = int(loss[alive].argmin())
        assert set(alive[max(place - 1, 0) : place + 2]) <= set(kept)
        first = list(alive).index(kept[0])
        assert list(kept) == list(alive[first : first + len(kept)])  # from the ends inward


def test_finished_slices_tell_how_optima_move():
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(6):
        x, loss = planted(rng, -0.6)
        seen.append(moved(x, loss(0.25), loss(1.0), 0.25))
    assert np.nanmean([s for s in seen if s is not None]) == pytest.approx(-0.6, abs=0.15)
    belief = PRIOR.updated([s for s in seen if s is not None])
    assert belief.mean == pytest.approx(-0.5, abs=0.15) and belief.scale < PRIOR.scale
    loss = 2 + 0.05 * (X - X[4]) ** 2
    count = [judge(X, loss, 0.006, 0.25, b, 0.025, 4).stopped.sum() for b in (PRIOR, belief)]
    assert count[1] > count[0]
    assert moved(X, X, loss, 0.25) is None  # no minimum inside


def test_noise_is_told_by_seeds_where_there_are_enough():
    rng = np.random.default_rng(0)
    rows = 2 + np.linspace(0, 1, 8)[:, None] ** 2 + 0.3 * np.arange(4) + 0.02 * rng.standard_normal((8, 4))
    assert noise_of(rows) == pytest.approx(0.02 / math.sqrt(4), rel=0.5)  # what seeds have in common is no noise
    assert noise_of(rows[:, :1]) == pytest.approx(0.003 * rows[0, 0])
