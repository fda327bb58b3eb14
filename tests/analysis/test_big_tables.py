"""Tables of very many rows: fitted in seconds, to the laws of the small tables they repeat, or refused in a line."""

import numpy as np
import pandas as pd
import pytest

from analysis.errors import UserError
from analysis.fit import fit
from analysis.slices import partition
from analysis.thin import SLICE, thin
from benchmarks.big_tables import grown, minimal

ROWS = 200_000
TABLES = minimal()


@pytest.mark.parametrize("analysis", [name for name in TABLES if name != "curves"])
def test_two_hundred_thousand_rows_give_the_law_of_few(analysis):
    small, options = TABLES[analysis].make(), TABLES[analysis].options
    large = grown(small, analysis, ROWS)
    few, many = (fit(table, analysis, options) for table in (small, large))
    assert len(large) > 0.99 * ROWS and [law["name"] for law in many.laws] == [law["name"] for law in few.laws]
    for a, b in zip(few.laws, many.laws, strict=True):
        for name in set(TABLES[analysis].same) & set(a["parameters"]):
            assert b["parameters"][name]["value"] == pytest.approx(a["parameters"][name]["value"], rel=0.1, abs=0.05), name


def test_many_runs_of_curves():
    options = TABLES["curves"].options
    table = grown(TABLES["curves"].make(), "curves", ROWS)
    result = fit(table[table["step"] % 10 == 0], "curves", options)
    assert result.laws[0]["parameters"]["L0"]["value"] == pytest.approx(2, abs=0.02)
    assert any("runs are many" in note for note in result.notes)


def short_runs(runs: int) -> pd.DataFrame:
    step, run = np.tile(np.arange(1, 11) * 100.0, runs), np.repeat(np.arange(runs), 10)
    lr = 1e-3 * np.where(run % 2, 1 - 0.9 * step / 1000, 1.0)
    noise = 1e-3 * np.random.default_rng(0).standard_normal((runs, 10))
    loss = 2 + 0.5 * (np.cumsum(np.ones(10)) * 0.1) ** -0.4 + noise
    return pd.DataFrame({"run_id": run, "step": step, "lr": lr, "loss": loss.ravel()})


def test_many_short_runs():
    result = fit(short_runs(20_000), "curves", {"bootstrap": 20})
    assert len(result.laws) == 1 and any("of 20000 runs to fit are taken" in note for note in result.notes)


def sweep(seeds: int, noise: float = 0.01, search: bool = False) -> pd.DataFrame:
    """Eight values of LR, each seed with an offset; or a random search of as many rows, without offsets; two scales."""
    rng = np.random.default_rng(0)
    n, k, seed = (a.ravel() for a in np.meshgrid([1e6, 1e8], np.arange(-4.0, 4.0), np.arange(seeds)))
    k = rng.uniform(-4, 4, len(k)) if search else k
    offset = (not search) * 0.1 * rng.standard_normal(seeds)[seed.astype(int)]
    loss = 3 + offset + 0.01 * (k - 0.3) ** 2 + noise * rng.standard_normal(len(k))
    df = pd.DataFrame({"params": n, "tokens": 20 * n, "lr": 1e-3 * 2.0**k, "loss": loss, "seed": seed.astype(int)})
    return df.assign(run_id=[f"r{i}" for i in range(len(df))], status="done")


def test_few_rows_stay_as_they_are():
    found = partition(sweep(SLICE // 8), "lr")
    assert thin(found) is found


def test_groups_keep_what_the_runs_say():
    found = partition(sweep(4000), "lr")
    for before, after in zip(found.slices, thin(found).slices, strict=True):
        assert len(after.rows) <= SLICE < len(before.rows)
        assert np.unique(after.x.round(9)).tolist() == np.unique(before.x.round(9)).tolist()
        counts = np.unique(after.x.round(9), return_counts=True)[1]
        assert counts.min() == counts.max() and after.loss.mean() == pytest.approx(before.loss.mean(), abs=1e-3)
        assert (after.seed >= 0).all() and len(np.unique(after.block)) == len(after.block)


@pytest.mark.parametrize("search", [False, True])
def test_the_interval_is_that_of_all_runs(search):
    """Its width falls with the root of the runs, also beyond those that are fitted."""
    widths = []
    for seeds in (250, 4000):
        optima = fit(sweep(seeds, search=search), "lr", {"bootstrap": 0}).optima
        assert [o["verdict"] for o in optima] == ["interior"] * 2
        widths.append(np.mean([np.log(o["high"] / o["low"]) for o in optima]))
        assert all(abs(np.log2(o["value"] / 1e-3) - 0.3) < 5 * widths[-1] for o in optima)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)


def test_diverged_runs_stay_in_groups_of_their_own():
    df = sweep(2000)
    lost = df["lr"] > 6e-3
    df.loc[lost, ["loss", "status"]] = [np.nan, "diverged"]
    for s in thin(partition(df, "lr")).slices:
        assert (s.diverged == (np.exp(s.x[:, 0]) > 6e-3)).all() and s.diverged.any()


def test_too_many_slices_are_refused():
    n = np.repeat(np.geomspace(1e6, 1e9, 7), 5000)
    df = pd.DataFrame({"params": n, "tokens": 20 * n, "lr": 1e-3, "batch_size": np.tile(np.geomspace(1, 1e90, 5000), 7)})
    with pytest.raises(UserError, match="more than"):
        fit(df.assign(loss=3.0, context=1024.0), "lr", {"bootstrap": 20})
