"""The optimum found is the global one: against scipy from many starts, and on planted laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize as scipy_minimize

from analysis.loss.huber import Rows, assessor, log_loss, natural, objective
from analysis.loss.point import fit_point
from analysis.loss.solver import minimise, solve
from analysis.loss.starts import non_negative


def planted(rng, rows=60, noise=0.01, truth=(1.8, 480.0, 2000.0, 0.35, 0.37)):
    n, d = np.exp(rng.uniform(17, 23, rows)), np.exp(rng.uniform(20, 26, rows))
    e, a, b, alpha, beta = truth
    return n, d, (e + a / n**alpha + b / d**beta) * np.exp(noise * rng.standard_normal(rows))


def plain_objective(theta, n, d, loss, delta):
    """By the definition, row by row, sharing nothing with the code under test."""
    total = 0.0
    for x, z, y in zip(np.log(n), np.log(d), np.log(loss), strict=True):
        r = np.logaddexp(np.logaddexp(theta[0], theta[1] - theta[3] * x), theta[2] - theta[4] * z) - y
        total += 0.5 * r * r if abs(r) <= delta else delta * (abs(r) - 0.5 * delta)
    return total


def test_objective_is_the_sum_of_huber_losses():
    n, d, loss = planted(np.random.default_rng(0), 20)
    rows = Rows.of(n, d, loss, 3e-3)
    theta = np.array([[0.5, -0.1, 0.3, -0.8, 0.4]])
    assert objective(theta, rows)[0] == pytest.approx(plain_objective(natural(theta, rows)[0], n, d, loss, 3e-3), rel=1e-10)


def test_gradient_and_hessian():
    rng = np.random.default_rng(1)
    rows = Rows.of(*planted(rng, 40), delta=0.02)
    weights = rng.uniform(0, 2, (1, 40))
    assess = assessor(rows, weights)
    theta, index = np.array([[0.5, 0.1, 0.3, -0.2, 0.4]]), np.zeros(1, int)
    _, g, h, m = assess(theta, index)
    for k in range(5):
        step = np.zeros((1, 5))
        step[0, k] = 1e-6
        up, down = assess(theta + step, index), assess(theta - step, index)
        assert (up[0] - down[0])[0] / 2e-6 == pytest.approx(g[0, k], abs=1e-8)
        assert (up[1] - down[1])[0] / 2e-6 == pytest.approx(h[0, k], abs=1e-7)
    assert np.linalg.eigvalsh(m[0]).min() > -1e-9  # the majorant is a sum of squares


def test_solve_and_what_is_not_positive_definite():
    rng = np.random.default_rng(2)
    root = rng.standard_normal((50, 5, 5))
    matrix, right = root @ root.transpose(0, 2, 1), rng.standard_normal((50, 5))
    matrix[0] -= 100 * np.eye(5)
    found, definite = solve(matrix, right)
    assert not definite[0] and definite[1:].all()
    assert np.allclose(np.einsum("sij,sj->si", matrix[1:], found[1:]), right[1:])


def test_non_negative_least_squares_is_exact():
    from scipy.optimize import nnls

    rng = np.random.default_rng(3)
    for _ in range(50):
        x, y = rng.standard_normal((12, 3)), rng.standard_normal(12)
        mine, _ = non_negative((x.T @ x)[None], (x.T @ y)[None])
        assert mine[0] == pytest.approx(nnls(x, y)[0], abs=1e-7)


def by_scipy(n, d, loss, delta, rng, starts=10):
    """Lowest objective of L-BFGS-B from random starts; written for itself."""
    x, z, y = np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean(), np.log(loss)

    def scaled(theta):
        terms = np.exp(np.stack([theta[0] + 0 * x, theta[1] - theta[3] * x, theta[2] - theta[4] * z]))
        total = terms.sum(axis=0)
        r = np.log(total) - y
        slope = np.clip(r, -delta, delta)
        shares = terms / total * slope
        return 1e4 * (slope * (r - slope / 2)).sum(), 1e4 * np.array([*shares.sum(axis=1), -shares[1] @ x, -shares[2] @ z])

    lowest = np.inf
    for _ in range(starts):
        start = [*(y.mean() - rng.uniform(0, 3, 3)), *rng.uniform(0.05, 1.0, 2)]
        bounds = [(None, y.max() + 6)] * 3 + [(0, 5)] * 2
        for _ in range(2):  # again from where it stopped: creases stop it
            found = scipy_minimize(scaled, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 150})
            start = found.x
        lowest = min(lowest, found.fun / 1e4)
    return lowest


@pytest.mark.parametrize("seed", range(3))
def test_no_better_optimum_by_scipy_from_many_starts(seed):
    rng = np.random.default_rng(seed)
    noise, delta = rng.choice([0.001, 0.01, 0.05]), rng.choice([1e-3, 1e-2])
    truth = rng.choice([0.3, 1.8]), 10 ** rng.uniform(1.5, 3), 10 ** rng.uniform(1.5, 4), *rng.uniform(0.1, 0.6, 2)
    n, d, loss = planted(rng, int(rng.integers(12, 60)), noise, truth)
    mine, lowest = fit_point(Rows.of(n, d, loss, delta)), by_scipy(n, d, loss, delta, rng)
    print(f"objective here {mine.value:.8e}, lowest of 10 scipy starts {lowest:.8e}")
    assert mine.converged and mine.value <= lowest * (1 + 1e-6)


@given(
    e=st.floats(0.5, 3),
    alpha=st.floats(0.15, 0.7),
    beta=st.floats(0.15, 0.7),
    share=st.floats(0.15, 0.6),
    seed=st.integers(0, 99),
)
@settings(max_examples=10, deadline=None)
def test_planted_laws_come_back_exactly(e, alpha, beta, share, seed):
    rng = np.random.default_rng(seed)
    n, d = np.exp(rng.uniform(16, 22, 40)), np.exp(rng.uniform(19, 25, 40))
    a, b = share * e * np.exp(19 * alpha), (0.8 - share) * e * np.exp(22 * beta)
    rows = Rows.of(n, d, e + a / n**alpha + b / d**beta)
    point = fit_point(rows)
    assert point.value < 1e-12
    assert natural(point.theta, rows)[3:] == pytest.approx([alpha, beta], abs=1e-3)


@given(factor_n=st.floats(1e-6, 1e6), factor_d=st.floats(1e-6, 1e6), factor_l=st.floats(0.1, 10))
@settings(max_examples=6, deadline=None)
def test_units_change_the_coefficients_only(factor_n, factor_d, factor_l):
    n, d, loss = planted(np.random.default_rng(5), 40)
    one, two = Rows.of(n, d, loss), Rows.of(n * factor_n, d * factor_d, loss * factor_l)
    first, second = fit_point(one), fit_point(two)
    assert second.value == pytest.approx(first.value, rel=1e-7)
    p, q = natural(first.theta, one), natural(second.theta, two)
    assert q[3:] == pytest.approx(p[3:], abs=1e-4) and q[0] - p[0] == pytest.approx(np.log(factor_l), abs=1e-3)


def test_one_outlier_does_not_move_the_law():
    """Huber's loss: a run 50 % off counts as one that is 0.1 % off on that side."""
    n, d, loss = planted(np.random.default_rng(6), 100, 0.002)
    rows = Rows.of(n, d, loss)
    worse = Rows.of(n, d, np.where(np.arange(100) == 7, 1.5 * loss, loss))
    moved = natural(fit_point(worse).theta, worse)[3:] - natural(fit_point(rows).theta, rows)[3:]
    assert np.abs(moved).max() < 0.01


def test_bounds_hold_parameters():
    n, d, loss = planted(np.random.default_rng(7))
    rows = Rows.of(n, d, loss)
    held = rows.holding({"A": 480.0, "beta": 0.37, "E": 1.8})
    found = natural(fit_point(held).theta, held)
    assert np.exp(found[:2]) == pytest.approx([1.8, 480.0]) and found[4] == 0.37
    assert fit_point(held).value >= fit_point(rows).value
    theta, _, _ = minimise(assessor(rows), np.full((1, 5), 9.0), *rows.bounds())
    assert np.isfinite(log_loss(theta, rows)).all()
