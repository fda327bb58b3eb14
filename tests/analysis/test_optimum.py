"""Verdicts, windows and intervals of optima; noise from seeds and from residuals."""

import numpy as np
import pandas as pd
import pytest

from analysis.errors import UserError
from analysis.fit import fit
from analysis.noise import choose, moderated, seed_noise
from analysis.surface import design, fit_surface
from analysis.window import Rows, choose_windows

X = 2.0 ** np.arange(-12, -4)
Z = np.log2(X) + 8.3  # octaves from the optimum


def optimum(loss, x=X, **options):
    columns = {"params": 1e6, "tokens": 2e7, "lr": x, "loss": loss}
    return fit(pd.DataFrame(columns), "lr", options).optima[0]


def noise(scale, seed=0):
    return scale * np.random.default_rng(seed).standard_normal(len(X))


@pytest.mark.parametrize(
    "loss, verdict",
    [
        (2 + 0.01 * Z**2, "interior"),
        (2 + 0.01 * Z**2 + noise(0.002), "interior"),
        (2 - 0.01 * Z**2 + noise(0.001), "non_convex"),
        (2 - 0.01 * Z**2, "non_convex"),
        (2 - 0.05 * Z, "edge"),
        (2 - 0.05 * Z + noise(0.005), "edge"),
        (2 + 0.002 * (Z - 9) ** 2 + noise(0.001), "edge"),
        (2 + 0 * Z, "flat"),
        (2 + noise(0.01, 4), "flat"),
    ],
)
def test_verdicts(loss, verdict):
    found = optimum(loss)
    assert found["verdict"] == verdict
    assert (found["value"] is None) == (verdict != "interior") and (found["loss"] is None) == (verdict != "interior")


@pytest.mark.parametrize("n", [1, 2])
def test_too_few(n):
    assert optimum((2 + 0.01 * Z**2)[:n], X[:n])["verdict"] == "too_few"


def test_a_saddle_is_non_convex():
    x, y = np.meshgrid(np.arange(-2.0, 3), np.arange(-2.0, 3))
    table = pd.DataFrame({"params": 1e6, "tokens": 2e7, "lr": 2 ** x.ravel(), "batch_size": 2 ** (y.ravel() + 5)})
    bowl = fit(table.assign(loss=2 + 0.01 * (x**2 + y**2 - x * y).ravel()), "lr_batch").optima
    saddle = fit(table.assign(loss=2 + 0.01 * (x**2 + y**2 - 3 * x * y).ravel()), "lr_batch").optima
    assert [o["verdict"] for o in bowl] == ["interior"] * 2 and [o["verdict"] for o in saddle] == ["non_convex"] * 2
    assert [o["value"] for o in bowl] == pytest.approx([1, 32])


def test_three_values_have_an_optimum_but_no_interval():
    found = optimum((2 + 0.01 * Z**2)[2:5], X[2:5])
    assert found["value"] == pytest.approx(2**-8.3) and found["low"] is None and found["n"] == 3


def test_interval_holds_the_optimum_and_widens_with_noise():
    widths = []
    for scale in (0.001, 0.004):
        found = optimum(2 + 0.01 * Z**2 + noise(scale), level=0.98)
        assert found["low"] < 2**-8.3 < found["high"]
        widths.append(np.log(found["high"] / found["low"]))
    assert widths[1] > 2 * widths[0]
    analytic = optimum(2 + 0.01 * Z**2 + noise(0.001), level=0.98, bootstrap=0)
    assert np.log(analytic["high"] / analytic["low"]) == pytest.approx(widths[0], rel=0.25)


def test_seed_offsets_are_no_noise():
    """Two seeds, one of them 0.05 nats worse throughout: the interval is that of the noise, not of the offset."""
    loss = np.concatenate([2 + 0.01 * Z**2 + noise(0.001, 1), 2.05 + 0.01 * Z**2 + noise(0.001, 2)])
    table = pd.DataFrame({"params": 1e6, "tokens": 2e7, "lr": np.tile(X, 2), "loss": loss, "seed": np.repeat([0, 1], 8)})
    found = fit(table, "lr").optima[0]
    assert np.log2(found["high"] / found["low"]) < 0.1
    unseeded = fit(table.drop(columns="seed"), "lr").optima[0]
    assert np.log2(unseeded["high"] / unseeded["low"]) > 0.2


# ---- window


def rows(loss, x=X):
    n = len(x)
    return Rows(np.log(x)[:, None], np.asarray(loss), np.zeros(n, int), np.ones(n, bool))


def blown(z):
    return 2 + 0.003 * z**2 + 0.01 * np.expm1(np.maximum(z, 0) ** 1.5)


def test_the_whole_slice_where_the_basin_is_a_parabola():
    assert choose_windows([rows(2 + 0.01 * Z**2)])[0].all()
    kept = [choose_windows([rows(2 + 0.01 * Z**2 + noise(0.002, s))])[0].sum() for s in range(100)]
    assert np.mean(np.array(kept) == 8) > 0.9


def test_the_window_closes_round_the_minimum_where_it_is_none():
    (kept,) = choose_windows([rows(blown(Z) + noise(1e-4))])
    assert kept.sum() < 7 and kept[blown(Z).argmin()]
    error, whole = (abs(np.log2(optimum(blown(Z), window=w)["value"]) + 8.3) for w in ("auto", "none"))
    assert error < 0.8 * whole


def test_a_bend_that_all_slices_share_counts_for_all():
    """Too noisy to show in most slices alone, plain in twelve together."""
    slices = [rows(blown(Z) + noise(0.06, seed)) for seed in range(12)]
    alone = sum(choose_windows([each])[0].sum() < 8 for each in slices)
    together = sum(kept.sum() < 8 for kept in choose_windows(slices))
    assert alone < 10 and together == 12


def test_window_options():
    loss = 2 + 0.01 * Z**2
    assert optimum(loss, window=0.005)["n"] == 5  # never fewer
    assert optimum(loss, window=0.05)["n"] == int((loss <= 1.05 * loss.min()).sum())
    for bad in ("wide", -1, 0, True):
        with pytest.raises(UserError, match="window"):
            optimum(loss, window=bad)


def test_five_values_are_never_windowed():
    loss = blown(Z)[2:7]
    assert choose_windows([rows(loss, X[2:7])])[0].all()


def test_a_law_says_that_basins_are_bent():
    def law(loss, **options):
        tables = [pd.DataFrame({"params": n, "tokens": 2e7, "lr": X, "loss": loss}) for n in (1e6, 4e6, 16e6)]
        return fit(pd.concat(tables), "lr", options).laws[0]

    bent = 2 + 0.01 * Z**2 + 0.002 * Z**3
    assert any("3 of 3 optima come from a shape" in note for note in law(bent)["notes"])
    for straight in (law(2 + 0.01 * Z**2 + noise(0.001)), law(bent, window="none"), law(bent, estimator="argmin")):
        assert not any("bent" in note or "shape" in note for note in straight["notes"])


# ---- estimators


@pytest.mark.parametrize("estimator", ["argmin", "akima"])
def test_no_curve_is_lost_to_rounding(estimator):
    for shift in (1.0, 1.1, 1.3, 1.7):
        table = pd.DataFrame({"params": 1e6, "tokens": 2e7, "lr": X * shift, "loss": 2 + 0.01 * Z**2})
        curve = fit(table, "lr", {"estimator": estimator}).slices[0]["curve"]
        assert curve is not None and np.isfinite(curve["loss"]).all()


def test_argmin_and_akima():
    loss = 2 + 0.01 * Z**2
    assert optimum(loss, estimator="argmin")["value"] == pytest.approx(X[loss.argmin()])
    assert np.log2(optimum(loss, estimator="akima")["value"]) == pytest.approx(-8.3, abs=0.05)
    with pytest.raises(UserError, match="estimator"):
        optimum(loss, estimator="spline")


# ---- noise


def test_moderated_shares_where_slices_are_alike_and_not_where_they_differ():
    rng = np.random.default_rng(0)
    dof = np.full(40, 3)
    alike, total = moderated(1e-6 * rng.chisquare(3, 40), dof)
    assert np.ptp(np.log(alike)) < 0.7 and (total > 20).all()
    scales = np.exp(rng.normal(0, 2.5, 40))
    differ, total = moderated(1e-6 * scales * rng.chisquare(3, 40), dof)
    assert np.corrcoef(np.log(differ), np.log(scales))[0, 1] > 0.8 and (total < 6).all()


def test_moderated_without_any_degree_of_freedom():
    variance, dof = moderated(np.zeros(3), np.zeros(3, int))
    assert np.isnan(variance).all() and not dof.any()


def test_seed_noise_and_lack_of_fit():
    x = np.repeat(np.log(X), 2)[:, None]
    seed = np.tile([0, 1], 8)
    squares, dof = seed_noise(x, 2 + 0.3 * seed + np.repeat(Z**2, 2), seed)
    assert squares < 1e-20 and dof == 7
    assert seed_noise(np.log(X)[:, None], Z, np.zeros(8, int)) == (0.0, 0)
    assert choose((1.0, 10), (0.01, 5)) == (1.0, 10)  # the quadratic does not fit
    assert choose((0.02, 10), (0.01, 5)) == (0.01, 5)


def test_seed_offsets_are_absorbed_as_if_each_had_a_column():
    """Least squares with a column for each seed, and without them, by whichever way is cheap for a thousand seeds."""
    rng = np.random.default_rng(3)
    for n, seeds in ((30, 3), (24, 2), (40, 5)):
        x, seed = rng.integers(0, 6, (n, 1)).astype(float), rng.integers(0, seeds, n)
        loss = 2 + 0.01 * (x[:, 0] - 2.6) ** 2 + 0.05 * seed + 0.002 * rng.standard_normal(n)
        surface = fit_surface(x, loss, seed, np.ones(n, bool))
        matrix = design((x - surface.center) / surface.scale, seed, 2)
        full = np.linalg.pinv(matrix)
        residual = loss - matrix @ (full @ loss)
        assert matrix.shape[1] == 3 + seeds - 1
        assert surface.beta == pytest.approx((full @ loss)[:3]) and surface.solver == pytest.approx(full[:3], abs=1e-9)
        assert surface.rss == pytest.approx(residual @ residual) and surface.dof == n - matrix.shape[1]


def test_many_seeds_are_no_burden():
    rng = np.random.default_rng(4)
    loss = np.concatenate([2 + 0.01 * Z**2 + offset + noise(0.002, i) for i, offset in enumerate(rng.normal(0, 0.01, 2000))])
    table = pd.DataFrame({"params": 1e6, "tokens": 2e7, "lr": np.tile(X, 2000), "loss": loss, "seed": np.arange(16000) // 8})
    found = fit(table, "lr", {"bootstrap": 0}).optima[0]
    assert found["verdict"] == "interior" and np.log2(found["value"]) == pytest.approx(-8.3, abs=0.01)
