"""Sums of LR and annealing terms against their per-step definitions, on any grid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.curves.history import MOST_CUTS, History, Points, jumps
from analysis.curves.kernels import Exponential, MultiPower, Power

levels = st.floats(0.0, 1.0).map(lambda x: round(x, 3))


@given(st.lists(st.tuples(st.integers(1, 40), levels), min_size=2, max_size=12), st.data())
@settings(max_examples=60, deadline=None)
def test_sums_are_those_of_single_steps(pieces, data):
    """LR linear between uneven rows: sum over steps 1..t, whatever the grid."""
    steps = np.concatenate([[0], np.cumsum([n for n, _ in pieces])])
    lr = np.array([0.5, *(v for _, v in pieces)])
    each = np.interp(np.arange(steps[-1] + 1), steps, lr)
    t = data.draw(st.integers(0, int(steps[-1])))
    assert History(steps.astype(float), lr).total(np.array([t]))[0] == pytest.approx(each[1 : t + 1].sum(), abs=1e-9)


def wsd(total=600, warmup=60, grid=1):
    t = np.arange(grid, total + 1, grid)
    return t, np.minimum(1, t / warmup) * np.clip((total - t) / (0.4 * total), 0, 1)


def test_warm_up_is_continued_to_the_first_step_and_ends_at_the_first_peak():
    t, lr = wsd(grid=10)
    history = History.of(t, lr)
    assert history.lr[0] == pytest.approx(0) and history.steps[history.warmup] == 60
    assert History.of(t[10:], lr[10:]).lr[0] == lr[10]
    constant = History.of(np.arange(1, 9), np.full(8, 0.3))
    assert constant.warmup == 0 and constant.total(np.array([8.0, 10.0])) == pytest.approx([2.4, 3.0])


def terms(kernel, psi, grid):
    t, lr = wsd(grid=grid)
    at = Points.of(History.of(t, lr), np.array([100.0, 300, 450, 590]))
    return at.gather(at.drop * kernel.value(psi, at)[0])


def brute(kind):
    t, lr = wsd()
    found = []
    for end in (100, 300, 450, 590):
        total = 0.0
        for k in range(61, end + 1):  # step k has lr[k - 1]
            drop, age = lr[k - 2] - lr[k - 1], end - k
            if kind == "exponential":
                weight = sum(0.99**j for j in range(age + 1))
            elif kind == "power":
                weight = sum((1.0 + j) ** -0.4 for j in range(age + 1))
            else:
                weight = 1 - (1 + 2.0 * lr[k - 1] ** -0.5 * lr[k - 1 : end].sum()) ** -0.6
            total += drop * weight
        found.append(total)
    return np.array(found)


@pytest.mark.parametrize("grid", [1, 10, 20])
@pytest.mark.parametrize("kind", ["exponential", "power", "multi_power"])
def test_annealing_terms_are_those_of_single_steps(kind, grid):
    kernel, psi = {
        "exponential": (Exponential(0.99), np.zeros(0)),
        "power": (Power(), np.log([0.4])),
        "multi_power": (MultiPower(1.0), np.array([np.log(2.0), np.log(0.6), 0.5])),
    }[kind]
    rtol = {"exponential": 1e-5, "power": 2e-2, "multi_power": 2e-2}[kind] if grid > 1 or kind == "power" else 1e-9
    np.testing.assert_allclose(terms(kernel, psi, grid), brute(kind), rtol=rtol, atol=1e-12)


def test_momentum_is_compounded_on_a_grid():
    """0.99 per step is not 0.99 per row: the same term on rows of 20 steps, another where it is mistaken."""
    right, wrong = terms(Exponential(0.99), np.zeros(0), 20)[3], terms(Exponential(0.99 ** (1 / 20)), np.zeros(0), 20)[3]
    assert abs(wrong / right - 1) > 0.5


@pytest.mark.parametrize("kernel", [Exponential(None), Power(), MultiPower(1e-3)])
def test_derivatives(kernel):
    t, lr = wsd(grid=10)
    at = Points.of(History.of(t, 1e-3 * lr), np.array([300.0, 500, 595]))
    psi = kernel.start()[len(kernel.start()) // 2]
    for k, slope in enumerate(kernel.value(psi, at)[1]):
        ends = [kernel.value(psi + h * np.eye(len(psi))[k], at)[0] for h in (-1e-5, 1e-5)]
        np.testing.assert_allclose(slope, (ends[1] - ends[0]) / 2e-5, rtol=1e-3, atol=1e-6)


def test_long_histories_are_thinned_where_little_happens():
    t = np.arange(1, 100_001)
    lr = np.where(t < 60_000, 1.0, 0.1)  # a jump between two rows
    history = History.of(t, lr)
    asked = np.array([70_000.0, 100_000.0])
    assert len(history.cuts(asked)) < 3 * MOST_CUTS
    at = Points.of(history, asked)
    assert at.drop.sum() == pytest.approx(2 * 0.9) and at.age.min() == pytest.approx(10_000, abs=3)


def two_stage(total=2000, drop=1200, share=0.3, warmup=200):
    """Per-step LR of steps 1..total: the first step with the new LR is drop + 1."""
    s = np.arange(1, total + 1)
    return s, np.where(s <= warmup, s / warmup, np.where(s > drop, share, 1.0))


@pytest.mark.parametrize("grid", [2, 10, 100])
def test_a_step_of_the_schedule_is_one_drop_on_any_grid(grid):
    """The multi-power kernel takes the LR after a drop: halves of a line across it would take LRs that never were."""
    s, lr = two_stage()
    kernel, psi = MultiPower(1.0), np.array([np.log(2.0), np.log(0.6), 0.5])
    asked = np.array([1300.0, 1600, 2000])
    at = Points.of(History.of(s[grid - 1 :: grid], lr[grid - 1 :: grid]), asked)
    area = np.array([lr[1200 : int(t)].sum() for t in asked])
    truth = 0.7 * (1 - (1 + 2.0 * 0.3**-0.5 * area) ** -0.6)
    np.testing.assert_allclose(at.gather(at.drop * kernel.value(psi, at)[0]), truth, rtol=1e-9)
    np.testing.assert_allclose(at.total, [lr[: int(t)].sum() for t in asked], rtol=1e-9)


def test_steps_far_apart_are_each_a_drop():
    s = np.arange(10, 3001, 10)
    lr = np.where(s > 2000, 0.01, np.where(s > 1000, 0.1, 1.0))
    assert jumps(s, lr).tolist() == [99, 199]
    history = History.of(s, lr)
    assert history.at(np.array([1000, 1001, 2001])) == pytest.approx([1.0, 0.1, 0.01])


@pytest.mark.parametrize(
    ("steps", "lr"),
    [
        ([0, 100, 200, 300, 400], [1, 1, 1, 1, 0.1]),  # a cooldown that ends the run
        ([0, 100, 200, 300, 400], [1, 1, 1, 0, 0]),  # one to nothing
        ([0, 1000, 20_000, 24_000, 25_000], [0, 1, 1, 0.1, 0.1]),  # corners of a schedule
        ([0, 100, 200, 300, 400], [0, 1, 0.5, 0.5, 0.5]),  # from warm-up into decay
        ([0, 100, 200, 300, 400], [1, 1, 0.75, 0.5, 0.5]),  # a cooldown of two segments
        ([0, 100, 200, 300, 400], [0.1, 0.1, 1, 1, 1]),  # a rise
        ([0, 100, 200, 300, 400], [1, 1, 0.999, 0.999, 0.999]),  # rounding
        ([0, 1, 2, 3, 4], [1, 1, 0.1, 0.1, 0.1]),  # single steps need no mending
        ([5], [1]),
        ([0, 5], [1, 0.5]),
    ],
)
def test_what_is_no_step_stays_a_line(steps, lr):
    assert not len(jumps(np.array(steps, float), np.array(lr, float)))
