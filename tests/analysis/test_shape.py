"""Shapes that the slices of a law share, and optima that hang on one run."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import bend, degrees, leverage, shape
from analysis.fit import fit
from analysis.optimum import find_optima
from analysis.spread import own_covariance
from benchmarks.coverage import BOTH, LR, TAU
from benchmarks.planted import Plan, cut, sweep

BENT = Plan(basin="plateau", noise=0.001)


def truths(table, optima):
    return np.log([table.attrs["optima"][o.slice.given["params"], o.slice.given["tokens"]] for o in optima])


@pytest.mark.parametrize("k, degree", [(1, 5), (2, 4), (3, 3)])
def test_slopes_are_those_of_the_surface(k, degree):
    rng = np.random.default_rng(0)
    u, theta = rng.normal(size=(20, k)), rng.normal(size=len(shape.exponents(k, 3, degree)))
    h = rng.normal(size=(20, len(shape.exponents(k, 2, 2))))
    values, slopes, to_h, mean, cubic = shape.surface(u, h, theta, degree)
    for j in range(k):
        step = 1e-6 * np.eye(k)[j]
        ends = [shape.surface(u + s * step, h, theta, degree)[0] for s in (1, -1)]
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slopes[:, j], rel=1e-5, abs=1e-6)
    assert (to_h * h).sum(axis=1) == pytest.approx(values) and mean.shape == (20,) and cubic.shape == (20, len(theta))


def test_degree_two_is_the_quadratic_of_each_slice():
    table = sweep(LR, np.random.default_rng(1))
    optima = find_optima(cut(table, LR), window=0.10, bootstrap=0)  # the rows of analysis/bend.py
    rows = [bend.window_rows(o.slice) for o in optima]
    b = bend.gather([o.slice for o in optima], rows)
    start = np.array([o.surface.vertex for o in optima]) + 0.1
    fitted = shape.fit_degree(b, 2, bend.curvatures(b, [o.surface for o in optima]), start, np.zeros(0))
    assert fitted.best == pytest.approx(np.array([o.surface.vertex for o in optima]), abs=1e-6)
    assert fitted.dof == sum(o.surface.dof for o in optima)


@pytest.mark.parametrize("k", [1, 2])
def test_a_polynomial_shape_is_recovered(k):
    """Curvatures of their own, one bend; grids off the optimum: exact without noise."""
    rng = np.random.default_rng(2)
    grid = np.stack([g.ravel() for g in np.meshgrid(*[np.arange(-3.0, 4)] * k, indexing="ij")], axis=1)
    x, loss, best = [], [], rng.normal(size=(5, k))
    for each in best:
        u = grid + rng.uniform(-1, 1, k) - each
        h = 0.01 * rng.uniform(0.5, 2)
        bent = u[:, 0] ** 3 / 20 + (u[:, 0] * u[:, -1] ** 2 / 30 if k > 1 else 0) + (u**4).sum(axis=1) / 200
        x.append(u + each)
        loss.append(2 + rng.normal() + h * ((u**2).sum(axis=1) + bent))
    owner = np.repeat(np.arange(5), len(grid))
    b = shape.Basins(np.concatenate(x), np.concatenate(loss), owner, owner)
    h = 0.01 * np.outer(np.ones(5), shape.squares(k) * k) * b.scale[0] ** 2
    fits = degrees.fit_degrees(b, h, best + 0.3)
    exact = next(f for f in fits if f.degree == 4)
    assert exact.best == pytest.approx(best, abs=1e-3) and exact.rss < 1e-6 * fits[0].rss


def test_the_bias_of_a_parabola_is_gone():
    """Plateau at high tau: a parabola's vertices are off by a tenth of an octave and more, all on one side."""
    errors = {"auto": [], "none": [], 0.005: []}
    for seed in range(8):
        table = sweep(BENT, np.random.default_rng(seed))
        for window, rows in errors.items():
            optima = [o for o in find_optima(cut(table, BENT), window=window, bootstrap=0) if o.verdict == "interior"]
            rows.append((np.array([o.value for o in optima]) - truths(table, optima)).mean() / np.log(2))
    bias = {window: float(np.mean(rows)) for window, rows in errors.items()}
    print(bias)
    assert abs(bias["auto"]) < 0.03 and abs(bias["none"]) > 0.3 and abs(bias[0.005]) > 0.08


def test_parabolas_keep_their_quadratic():
    same, width = [], []
    for seed in range(20):
        plan = Plan(params=(1e6, 4e6), tpp=(5.0, 20.0))
        slices = cut(sweep(plan, np.random.default_rng(seed)), plan)
        auto, none = (find_optima(slices, window=window, bootstrap=0) for window in ("auto", "none"))
        same.append(all(o.shape is None for o in auto))
        width.append(np.mean([o.se[0] for o in auto]) / np.mean([o.se[0] for o in none]))
    assert np.mean(same) > 0.6 and np.median(width) < 1.01


def test_slices_of_few_values_tell_no_shape():
    plan = Plan(values=5, basin="plateau", noise=0.0005)
    slices = cut(sweep(plan, np.random.default_rng(3)), plan)
    for estimator in ("quadratic", "shape"):
        assert all(o.shape is None for o in find_optima(slices, estimator, bootstrap=0))


def test_an_error_in_the_shape_moves_all_optima_together():
    table = sweep(TAU, np.random.default_rng(4))
    optima = [o for o in find_optima(cut(table, TAU), bootstrap=0) if o.verdict == "interior"]
    own, dof = own_covariance(optima, 0)
    d = np.sqrt(np.diag(own))
    off = (own / np.outer(d, d))[~np.eye(len(d), dtype=bool)]
    assert optima[0].shape is not None and off.min() > 0.1 and dof > 10
    assert d == pytest.approx([o.se[0] for o in optima], rel=1e-6)


def test_estimator_shape_takes_several_hyper_parameters():
    plan = BOTH.__class__(target="lr_batch", basin="valley", values=6, diverge_above=3.2, noise=0.001)
    errors = {"shape": [], "quadratic": []}
    for seed in range(4):
        table = sweep(plan, np.random.default_rng(seed))
        for estimator, rows in errors.items():
            optima = [o for o in find_optima(cut(table, plan), estimator, bootstrap=0) if o.verdict == "interior"]
            rows.append((np.array([o.value for o in optima]) - truths(table, optima)).mean(axis=0))
    off = {estimator: np.abs(np.mean(rows, axis=0)).max() for estimator, rows in errors.items()}
    print(off)
    assert off["shape"] < 0.4 * off["quadratic"]
    result = fit(table, "lr_batch", {"estimator": "shape"})
    assert result.laws[0]["method"] == "shape" and any("shape that the slices share" in note for note in result.notes)
    curve = result.slices[0]["curve"]
    assert min(curve["loss"]) == pytest.approx(result.optima[0]["loss"], abs=1e-3)


@settings(max_examples=8, deadline=None)
@given(shift=st.floats(-20, 20), scale=st.floats(0.1, 10), level=st.floats(0.0, 5.0))
def test_optima_move_with_the_units(shift, scale, level):
    """Another unit of x, another of the loss and another floor move the optima by what the unit says."""
    slices = cut(sweep(BENT, np.random.default_rng(5)), BENT)
    moved = [
        s.__class__(**{**s.__dict__, "x": s.x + shift, "loss": scale * (s.loss + level)}) for s in slices
    ]
    one, two = (np.array([o.fitted[0] for o in find_optima(each, window="auto", bootstrap=0)]) for each in (slices, moved))
    if np.isfinite(one).all() and all((s.loss[~s.diverged] < 1.05 * s.loss[~s.diverged].min()).all() for s in slices):
        assert two - shift == pytest.approx(one, abs=2e-3)


# ---- leverage


def hanging(loss, x):
    frame = pd.DataFrame({"params": 1e6, "tokens": 2e7, "lr": x, "loss": loss})
    return fit(pd.concat([frame, frame.assign(params=4e6)]), "lr", {"window": "none"}).notes


def test_a_run_that_decides_alone_is_named():
    x = 2.0 ** np.arange(-12, -4)
    z = np.log2(x) + 8.3
    noise = 0.001 * np.random.default_rng(0).standard_normal(len(x))
    assert not any("hang on one run" in note for note in hanging(2 + 0.01 * z**2 + noise, x))
    far = np.append(x[2:7], 2.0**3)  # one run far out makes the curvature
    loss = 2 + 0.0002 * (np.log2(far) + 9.5) ** 2 + 1e-3 * np.random.default_rng(1).standard_normal(6)
    frame = pd.DataFrame({"params": 1e6, "tokens": 2e7, "lr": far, "loss": loss})
    optimum = fit(frame, "lr", {"window": "none"}).optima[0]
    notes = fit(pd.concat([frame, frame.assign(params=4e6)]), "lr", {"window": "none"}).notes
    assert optimum["verdict"] == "interior"
    assert any("hang on one run (the run at lr=8 of the slice at params=1e+06" in note for note in notes), notes


def test_few_parabolas_hang_on_one_run():
    plan = Plan()
    found = []
    for seed in range(12):
        optima = find_optima(cut(sweep(plan, np.random.default_rng(seed)), plan), bootstrap=0, window="none")
        found += [leverage.decisive(o) is not None for o in optima]
    assert np.mean(found) < 0.05
