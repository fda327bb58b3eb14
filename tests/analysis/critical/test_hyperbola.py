"""The hyperbola: recovered exactly, its derivatives, the algebra of the two definitions; properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from analysis.critical import curves, hyperbola

BATCH = np.log(2.0 ** np.arange(4, 13))
size = st.floats(5.0, 8.0)


@settings(max_examples=40, deadline=None)
@given(st.floats(10, 30), size)
def test_exact_steps_give_exact_parameters(log_d_min, log_b_crit):
    fitted = hyperbola.fit(BATCH, hyperbola.at(BATCH, log_d_min, log_b_crit))
    assert fitted.log_d_min[0] == pytest.approx(log_d_min, abs=1e-6)
    assert fitted.log_b_crit[0] == pytest.approx(log_b_crit, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(size, st.integers(0, 10**6))
def test_minimum_is_that_of_scipy(log_b_crit, seed):
    y = hyperbola.at(BATCH, 20.0, log_b_crit) + 0.1 * np.random.default_rng(seed).standard_normal(len(BATCH))
    ours = hyperbola.fit(BATCH, y)
    theirs = optimize.least_squares(lambda p: y - hyperbola.at(BATCH, *p), [20.0, log_b_crit])
    assert ours.rss[0] == pytest.approx(2 * theirs.cost, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(size, st.floats(0.01, 2.0), st.floats(1.0, 200.0))
def test_overhead_is_where_steps_exceed_perfect_scaling(log_b_crit, overhead, optimal):
    """S(B*) = (1 + o) S(B_opt) B_opt / B*, from steps and not from the formula."""
    batch = np.exp(hyperbola.critical(log_b_crit, overhead, optimal))

    def steps(b):
        return 1.0 + np.exp(log_b_crit) / b

    assert steps(batch) == pytest.approx((1 + overhead) * steps(optimal) * optimal / batch, rel=1e-9)
    h = 1e-5
    up, down = (hyperbola.critical(log_b_crit + each, overhead, optimal) for each in (h, -h))
    assert hyperbola.critical_slope(log_b_crit, overhead, optimal) == pytest.approx((up - down) / 2 / h, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.floats(-5, 5), st.floats(-5, 5), st.integers(0, 10**6))
def test_units_and_order_do_not_matter(log_k, log_j, seed):
    """Tokens in other units (k) scale D_min, batches in other units (j) scale B_crit; the order of rows nothing."""
    rng = np.random.default_rng(seed)
    y = hyperbola.at(BATCH, 20.0, 6.5) + 0.05 * rng.standard_normal(len(BATCH))
    order = rng.permutation(len(BATCH))
    a, b = hyperbola.fit(BATCH, y), hyperbola.fit(BATCH[order] + log_j, y[order] + log_k)
    assert b.log_d_min[0] - a.log_d_min[0] == pytest.approx(log_k, abs=1e-6)
    assert b.log_b_crit[0] - a.log_b_crit[0] == pytest.approx(log_j, abs=1e-6)


def test_no_bend_is_infinite_and_no_scaling_is_nothing():
    assert hyperbola.fit(BATCH, np.full(len(BATCH), 20.0)).log_b_crit[0] == np.inf
    assert hyperbola.fit(BATCH, 20.0 + BATCH).log_b_crit[0] == -np.inf
    assert np.isnan(hyperbola.fit(BATCH, np.full(len(BATCH), np.nan)).log_b_crit[0])


def test_sensitivity_is_the_derivative():
    y = hyperbola.at(BATCH, 20.0, 6.5)
    h = 1e-4
    found = []
    for i in range(len(BATCH)):
        up, down = (hyperbola.fit(BATCH, y + sign * h * np.eye(len(BATCH))[i]) for sign in (1, -1))
        found.append([(up.log_d_min[0] - down.log_d_min[0]) / 2 / h, (up.log_b_crit[0] - down.log_b_crit[0]) / 2 / h])
    assert np.allclose(np.array(found).T, hyperbola.sensitivity(BATCH, 6.5), atol=1e-4)


@pytest.mark.parametrize("share", curves.SHARES)
def test_curves_find_exact_parameters_and_their_influence(share):
    batch = np.repeat(np.arange(4), 5)
    log_d = np.log(1e9 * 2.0 ** np.tile(np.arange(5), 4))
    beta = 0.3 + (0.03 * batch if share != "E_beta" else 0)
    floor = 1.7 + (0.05 * batch if share == "none" else 0)
    loss = floor + (0.5 + 0.1 * batch) * (np.exp(log_d) / 4e9) ** -beta
    fitted = curves.fit(log_d, batch, loss, share)
    assert fitted.rss < 1e-16
    assert np.allclose(curves.invert(fitted, fitted.theta[None], np.arange(4), loss[7])[0][1], log_d[7], atol=1e-6)
    slopes = curves.influence(fitted, np.arange(4), 2.3)
    h = 1e-5
    for row in (0, 7, 13):
        moved = loss[None] + h * np.array([[1.0], [-1.0]]) * np.eye(len(loss))[row]
        up, down = curves.invert(fitted, curves.refit(fitted, moved), np.arange(4), 2.3)
        assert np.allclose((up - down) / 2 / h, slopes[:, row], rtol=0.02, atol=0.05)


def test_an_error_on_tokens_left_out_tells_a_wrong_share():
    """Where beta grows with the batch one beta for all is seen to predict worse."""
    rng = np.random.default_rng(0)
    batch = np.repeat(np.arange(5), 5)
    log_d = np.log(1e9 * 2.0 ** np.tile(np.arange(5), 5))
    loss = 1.8 + 0.8 * np.exp(-(0.25 + 0.06 * batch) * (log_d - 21.0)) + 0.001 * rng.standard_normal(25)
    fits = {share: curves.fit(log_d, batch, loss, share) for share in curves.SHARES}
    errors = {share: np.sqrt(np.mean(curves.left_out(fitted, loss) ** 2)) for share, fitted in fits.items()}
    assert errors["E_beta"] > 3 * max(errors["E"], errors["none"])
