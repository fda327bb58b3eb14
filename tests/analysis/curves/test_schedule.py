"""The schedule of lowest predicted final loss: gradient, brute force, optima known in closed form."""

from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.curves.kernels import Exponential, MultiPower, Nothing, Power
from analysis.curves.schedule import FORMS, STARTS, FinalLoss, minimise, project
from analysis.curves.solve import Model
from analysis.fit import fit
from benchmarks.coverage_curves import MOMENTUM, Case, draw, planted

POWERED = np.log([2.4, 0.6, 0.45])
LAWS = {
    "power": (Model(Nothing(), 1.0, 1.0), POWERED),
    "annealing": (Model(Exponential(0.997), 1.0, 1.0), np.array([*POWERED, 0.8])),
    "power kernel": (Model(Power(), 1.0, 1.0), np.array([*POWERED, 6.0, np.log(0.7)])),
    "multi_power": (Model(MultiPower(1.0), 1.0, 1.0), np.array([*POWERED, 520.0, np.log(2.0), np.log(0.6), 0.63])),
}


def starts(nodes):
    return [FORMS[name](np.linspace(0, 1, nodes + 1)) for name in STARTS]


@pytest.mark.parametrize("name", LAWS)
def test_gradient(name):
    loss = FinalLoss(*LAWS[name], np.linspace(200, 4000, 31))
    lr = 3e-4 * (1 - 0.9 * np.linspace(0, 1, 31) ** 2)
    for k in range(0, 31, 5):
        h = 1e-9 * np.eye(31)[k]
        assert loss(lr)[1][k] == pytest.approx((loss(lr + h)[0] - loss(lr - h)[0]) / 2e-9, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", LAWS)
def test_brute_force_finds_nothing_lower(name):
    levels = np.linspace(0, 1, 21)
    loss = FinalLoss(*LAWS[name], np.linspace(100, 1500, 4))
    least = min(loss(3e-4 * np.array([1.0, *lower[::-1]]))[0] for lower in combinations_with_replacement(levels, 3))
    found = loss(minimise(loss, 3e-4, starts(3)))[0]
    assert least - 2e-3 < found <= least + 1e-9


def test_a_power_law_alone_wants_a_constant_lr():
    loss = FinalLoss(*LAWS["power"], np.linspace(100, 3000, 21))
    np.testing.assert_allclose(minimise(loss, 3e-4, starts(20)), 3e-4)


def test_the_annealing_law_wants_one_drop_where_both_gains_are_equal():
    """One drop of the whole peak x steps before the end is best where A alpha S^(-alpha-1) = C m^x (the gain of a step of
    annealing, sum_j m^j up to x, against that of a step of LR)."""
    model, theta = LAWS["annealing"]
    grid = np.linspace(100, 6000, 60)
    lr = minimise(FinalLoss(model, theta, grid), 3e-4, starts(59))
    falls = -np.diff(lr) / 3e-4
    assert falls.max() > 0.6 and np.sort(falls)[-2:].sum() > 0.99  # one place, between two nodes
    x = np.arange(1, 5000)
    total = 3e-4 * (6000 - 50 - x)
    loss = 2.4 + 0.6 * total**-0.45 - 0.8 * 3e-4 * (1 - 0.997**x) / (1 - 0.997)
    when = grid[:-1] @ falls / falls.sum() + 50
    assert 6000 - when == pytest.approx(x[loss.argmin()], abs=120)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_projection(d):
    d = np.array(d)
    p = project(d)
    assert (p >= 0).all() and p.sum() <= 1 + 1e-9
    for other in (np.zeros(len(d)), np.full(len(d), 1 / len(d)), np.eye(len(d))[0]):
        assert (d - p) @ (other - p) <= 1e-9  # the nearest point of a convex set


@given(st.floats(0.1, 3.0), st.floats(0.2, 1.5), st.floats(0.0, 0.9), st.floats(50, 900))
@settings(max_examples=8, deadline=None)
def test_schedules_never_rise_and_beat_the_usual_ones(c, beta, gamma, gain):
    model, theta = LAWS["multi_power"][0], np.array([*POWERED, gain, np.log(c), np.log(beta), gamma])
    loss = FinalLoss(model, theta, np.linspace(100, 2000, 13))
    lr = minimise(loss, 3e-4, starts(12))
    assert lr[0] == 3e-4 and (np.diff(lr) <= 1e-18).all() and (lr >= 0).all()
    u = np.linspace(0, 1, 13)
    assert loss(lr)[0] <= min(loss(3e-4 * form(u))[0] for form in FORMS.values()) + 1e-7


def test_from_a_fit(tmp_path):
    case = Case(noise=0.0)
    table = draw(case, planted(case), np.random.default_rng(0))
    options = {"momentum": MOMENTUM, "heldout_runs": ["unseen"], "bootstrap": 50, "optimise_steps": 8000, "nodes": 20,
               "peak_lr": 2e-3}  # fmt: skip
    result = fit(table, "curves", options)
    schedule = result.tables["annealing: the schedule of lowest predicted final loss"]
    compared = result.tables["annealing: schedules of 8000 steps"]
    assert list(schedule.columns) == ["step", "lr"] and len(schedule) == 21 and schedule["lr"].iloc[0] == 2e-3
    assert (compared["excess"] >= 0).all() and {"cosine to 0", "linear to 0", "constant"} <= set(compared["schedule"])
    words = " ".join(result.notes)
    assert "degenerate" in words and "law=multi_power" in words
    assert "2.0 times the longest" in words and "peak 0.002 lies outside" in words
    for name, draw_figure in result.figures.items():
        draw_figure(tmp_path / f"{name}.png")
    assert {p.name for p in tmp_path.iterdir()} == {"curves_annealing.png", "schedule_annealing.png"}
