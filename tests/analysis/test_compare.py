"""Sets of predictors on the same optima: the planted one wins, N is needed where it is and not where it is not."""

import numpy as np
import pandas as pd
import pytest

from analysis.compare import compare, needed, predictor_sets, verdict
from analysis.errors import UserError
from analysis.fit import fit
from analysis.report import as_json, as_text
from analysis.table import read_table

NS, TPPS = (1e6, 4e6, 16e6, 64e6), (5.0, 20.0, 80.0)


def slices(ns=NS, tpps=TPPS):
    """Scales with a loss that is no power law of N and D."""
    values = []
    for n in ns:
        for tpp in tpps:
            loss = 1.5 + 300 / n**0.4 + 400 / (n * tpp) ** 0.35
            values.append({"params": n, "tokens": n * tpp, "tpp": tpp, "flops": 6 * n * n * tpp, "loss": loss})
    return values


def planted(values, rng, sd=0.05, **exponents):
    return sum(e * np.log([at[name] for at in values]) for name, e in exponents.items()) + sd * rng.standard_normal(
        len(values)
    )


def share(truth, needle, beside="tokens", draws=200):
    """Shares of draws in which the best set is that of the truth, and in which `needed` says `needle`."""
    rng, values, best, said = np.random.default_rng(0), slices(), 0, 0
    none = np.zeros(len(values), bool)
    for _ in range(draws):
        y = planted(values, rng, **truth)
        best += compare(values, y, none, list(truth))["predictors"].iloc[0] == " + ".join(truth)
        said += needle in needed(values, y, none, [beside], 0.8)
    return best / draws, said / draws


def test_a_batch_of_tokens_alone_needs_no_n():
    best, said = share({"tokens": 0.4}, "N is needed")
    print(f"tokens alone preferred in {best:.0%}, N falsely needed in {said:.0%} of 200 draws")
    assert best > 0.7 and said < 0.06


def test_a_batch_that_depends_on_n_too_says_so():
    best, said = share({"params": -0.15, "tokens": 0.4}, "N is needed")
    print(f"both preferred in {best:.0%}, N needed in {said:.0%} of 200 draws")
    assert best > 0.9 and said > 0.95


def test_a_batch_of_the_loss_is_told_from_powers_of_scale():
    best, _ = share({"loss": -4.0}, "N is needed")
    print(f"loss preferred in {best:.0%} of 200 draws")
    assert best > 0.8


def test_tau_needs_no_n_beside_tpp():
    _, said = share({"tpp": -0.5}, "N is not needed", beside="tpp")
    assert said > 0.7
    rng, values = np.random.default_rng(1), slices()
    y = planted(values, rng, tpp=-0.5)
    table = compare(values, y, np.zeros(len(values), bool), ["tpp"])
    assert table["predictors"].iloc[0] == "tpp" and "prefer tpp" in verdict(table)


def test_numbers_of_a_row_by_hand():
    values, rng = slices(), np.random.default_rng(2)
    y = planted(values, rng, tokens=0.4)
    held = np.array([at["params"] == 64e6 for at in values])
    row = compare(values, y, held, ["tokens"]).set_index("predictors").loc["tokens"]
    x = np.stack([np.ones(12), np.log([at["tokens"] for at in values])], axis=1)
    beta, rss = np.linalg.lstsq(x, y, rcond=None)[:2]
    assert row["AICc"] == pytest.approx(12 * np.log(rss[0] / 12) + 6 + 24 / 8)  # k = 3 counts the variance
    assert row["exponents"] == f"{beta[1]:.3g}" and row["residual"] == pytest.approx(np.sqrt(rss[0] / 10))
    errors = []
    for i in range(12):
        rest = np.arange(12) != i
        errors.append(abs(y[i] - x[i] @ np.linalg.lstsq(x[rest], y[rest], rcond=None)[0]))
    assert row["leave_one_out"] == pytest.approx(np.mean(errors))
    refit = np.linalg.lstsq(x[~held], y[~held], rcond=None)[0]
    assert row["held_out"] == pytest.approx(np.abs(y[held] - x[held] @ refit).mean())


def test_along_one_ray_the_scales_are_one_set_under_several_names():
    values = slices(tpps=(20.0,))
    for at in values:
        at["loss"] = 30 * at["params"] ** -0.1  # collinear too
    sets = predictor_sets(values, ["tokens"])
    assert set(sets) == {(), ("tokens",)} and sets[("tokens",)] == [("params",), ("flops",), ("loss",)]
    table = compare(values, planted(values, np.random.default_rng(3), tokens=0.4), np.zeros(4, bool), ["tokens"])
    assert "tokens (= params, flops, loss)" in set(table["predictors"])
    line = needed(values, planted(values, np.random.default_rng(3), tokens=0.4), np.zeros(4, bool), ["tokens"], 0.8)
    assert "move together" in line


def test_few_slices_leave_aicc_blank_and_prefer_nothing():
    values = slices(ns=(1e6, 4e6, 16e6), tpps=(20.0,))
    table = compare(values, np.array([1.0, 1.4, 2.1]), np.array([False, False, True]), ["tokens"])
    assert table["AICc"].isna().all() and table["leave_one_out"].notna().all()
    assert "too few optima for AICc" in verdict(table) and "prefer" not in verdict(table)
    assert compare(values[:1], np.array([1.0]), np.zeros(1, bool), []).empty
    assert needed(values, np.array([1.0, 1.4, 2.1]), np.zeros(3, bool), ["tokens"], 0.8) == ""


@pytest.mark.parametrize(
    "ns, tpps, truth, kept, best",
    [
        (NS, (20.0,), {"tokens": -0.4}, ["tokens"], "tokens (= params, flops, loss)"),  # k = 3 of 4 optima
        ((1e6, 16e6, 64e6), (5.0, 80.0), {"params": -0.5, "tokens": 0.2}, ["params", "tokens"], "params + tokens"),
    ],
)
def test_a_set_without_aicc_does_not_leave_the_field_to_the_smallest(ns, tpps, truth, kept, best):
    values = slices(ns, tpps)[:5]
    if len(tpps) == 1:
        for at in values:
            at["loss"] = 30 * at["params"] ** -0.1
    y = planted(values, np.random.default_rng(0), sd=0.001, **truth)
    table = compare(values, y, np.arange(len(values)) == len(values) - 1, kept)
    assert table["AICc"].isna().any() and table["AICc"].notna().any()
    assert table["delta"].isna().all() and table["weight"].isna().all()
    assert table["predictors"].iloc[0].startswith(best) and table["leave_one_out"].is_monotonic_increasing
    line = verdict(table)
    assert line.startswith("too few optima for AICc") and "prefer" not in line and line.index(kept[-1]) < line.index("none")


def test_a_law_of_four_scales_is_not_beaten_by_none():
    rows = [
        (n, 20 * n, 30 * n**-0.4 * 2.0**z, 3 + 0.005 * z**2 + 1e-6 * ((z + i) % 3))
        for i, n in enumerate((1e8, 2e8, 4e8, 8e8))
        for z in np.arange(-3, 4) + 0.3
    ]
    result = fit(pd.DataFrame(rows, columns=["params", "tokens", "lr", "loss"]), "lr")
    assert result.laws[0]["r2"] > 0.999 and not any("prefer" in note for note in result.notes)
    table = next(t for k, t in result.tables.items() if "predictors" in k)
    assert "params" in table["predictors"].iloc[0] and table["weight"].isna().all()


def bent_sweep(ns=(1e6, 4e6, 16e6, 64e6), tpps=(5.0, 20.0, 80.0)):
    rng, rows = np.random.default_rng(7), []
    for n in ns:
        for tpp in tpps:
            for z in np.arange(-4, 4) + rng.uniform(-0.5, 0.5):
                loss = 2 + 100 / n**0.4 + 0.03 * (np.exp(0.6 * z) - 1 - 0.6 * z) + 0.0003 * rng.standard_normal()
                rows.append((n, n * tpp, n**-0.4 * 2.0**z, loss))
    return pd.DataFrame(rows, columns=["params", "tokens", "lr", "loss"])


def test_a_law_says_what_found_its_optima_and_why_runs_are_not_resampled():
    table = bent_sweep()
    bent, plain = fit(table, "lr"), fit(table, "lr", {"window": 0.02})
    for result, origin in ((bent, "shape"), (plain, "quadratic")):
        assert result.laws[0]["method"] == "quadratic" and result.laws[0]["optima_from"] == origin
        rows = next(t for k, t in result.tables.items() if "resampled" in k)
        assert ("runs resampled" in set(rows["stage"])) is (origin == "quadratic")
        assert any("runs are not resampled" in note for note in result.notes) is (origin == "shape")
    assert any("12 of 12 optima come from a shape that the slices share (cubic" in note for note in bent.notes)
    assert fit(table, "lr", {"estimator": "argmin"}).laws[0]["optima_from"] == "argmin"
    assert not any("not resampled" in note for note in fit(table, "lr", {"bootstrap": 0}).notes)


def test_slices_of_diverged_runs_alone_are_said_to_be():
    table = bent_sweep()
    table["status"] = np.where(table["params"] < 5e6, "diverged", "done")
    assert "6 of 12 slices have diverged runs only." in fit(table, "lr").notes
    assert "6 of 12 slices have diverged runs only." in fit(table, "transfer").notes
    assert not any("diverged runs only" in note for note in fit(bent_sweep(), "lr").notes)


def test_a_predictor_named_twice_is_refused():
    for predictors in (["params", "params"], {"lr": ["tokens", "params", "tokens"]}):
        with pytest.raises(UserError, match="twice"):
            fit(bent_sweep(), "lr", {"predictors": predictors})


def test_a_held_hyper_parameter_stays_in_the_sets():
    values = [at | {"batch_size": b} for at in slices(tpps=(20.0, 80.0)) for b in (32.0, 128.0)]
    y = planted(values, np.random.default_rng(4), params=-0.4, batch_size=0.5)
    table = compare(values, y, np.zeros(len(values), bool), ["params", "tokens", "batch_size"])
    assert "params + batch_size" in table["predictors"].tolist()[:2] and "params" in set(table["predictors"])
    assert table["predictors"].iloc[:2].str.contains("batch_size").all()


def weight_decay_sweep(rng):
    """lambda* = 3e-9 B^1 N^0.5 / lr, a foreign table."""
    rows = []
    for n in (1e6, 4e6, 16e6):
        for d in (2e7, 8e7):
            for b in (16.0, 64.0):
                best = 3e-6 * b * n**0.5
                for z in np.arange(-3, 4) + rng.uniform(-0.5, 0.5):
                    loss = 2 + 100 / n**0.4 + 400 / d**0.35 + 0.01 * z**2 + 0.0005 * rng.standard_normal()
                    rows.append((n, d, b, 0.002, best * 2**z, loss))
    return pd.DataFrame(rows, columns=["N", "D", "B", "eta", "wd", "val"])


def test_weight_decay_from_a_foreign_table_by_the_command_line(tmp_path):
    from analysis.command import as_text as printed
    from analysis.command import fit as by_words
    from analysis.command import save
    from analysis.request import parse

    file = tmp_path / "runs.csv"
    weight_decay_sweep(np.random.default_rng(5)).to_csv(file, index=False)
    words = ["analysis=weight_decay", f"table={file}", "columns.params=N", "columns.tokens=D", "columns.batch_size=B"]
    words += ["columns.lr=eta", "columns.weight_decay=wd", "columns.loss=val"]
    result = by_words(parse(words))
    law = result.laws[0]
    assert law["predictors"] == ["params", "tokens", "batch_size"] and law["n"] == 12
    for name, expected in (("params", 0.5), ("tokens", 0.0), ("batch_size", 1.0)):
        assert law["parameters"][name]["value"] == pytest.approx(expected, abs=0.05)
    assert any("N is needed beside tokens and batch size" in line for line in result.notes)
    assert "params + batch_size" in printed(result) and save(result, tmp_path / "laws")
    assert by_words(parse([*words, "compare=false", "stage=two"])).tables == {}


@pytest.mark.parametrize("predictors", [["flops"], ["loss"], ["tpp"], ["params", "tokens"], ["tokens", "loss"]])
@pytest.mark.parametrize("analysis", ["lr", "batch"])
def test_every_predictor_works(analysis, predictors):
    rng, rows = np.random.default_rng(6), []
    tuned = {"lr": "lr", "batch": "batch_size"}[analysis]
    for n in NS:
        for tpp in TPPS:
            for z in np.arange(-3, 4):
                loss = 1.5 + 300 / n**0.4 + 400 / (n * tpp) ** 0.35 + 0.01 * z**2 + 0.0005 * rng.standard_normal()
                rows.append((n, n * tpp, 0.1 * n**-0.2 * tpp**0.1 * 2.0**z, loss))
    table = pd.DataFrame(rows, columns=["params", "tokens", tuned, "loss"])
    result = fit(table, analysis, {"predictors": predictors})
    law = result.laws[0]
    assert law["predictors"] == predictors and law["heldout"]["mean_abs_log_error"] is not None
    assert all(law["parameters"][name]["low"] is not None for name in predictors)
    assert len(as_json(result.laws, result.optima, result.notes, result.tables)["tables"]) == 2
    assert all(len(line) <= 120 for line in as_text(result.laws, result.optima, result.notes, result.tables).splitlines())


@pytest.mark.parametrize("window", ["auto", 0.02, 0.03, 0.1])
def test_steplaw_lr_needs_n_and_tokens(published, window):
    """Step Law writes LR in N and D: so do the data. It writes the batch in D alone; at the same optima N^-0.1 to
    N^-0.2 stands out of the noise, and halves the error on the held-out scales."""
    columns = {"params": "N", "tokens": "D", "batch_size": "batch_seqs", "loss": "smooth_loss"}
    result = fit(read_table(published("steplaw_dense"), columns), "lr_batch", {"columns": columns, "window": window})
    lr, batch = (table.set_index("predictors") for title, table in result.tables.items() if "predictors" in title)
    print(window, *(line for line in result.notes if "beside" in line or "prefer" in line), sep="\n  ")
    assert lr.index[0] == "params + tokens" and lr.loc["params", "delta"] > 20 and lr.loc["tokens", "delta"] > 20
    single = batch.loc[["tokens", "params", "tpp", "flops", "loss"]]
    assert single["delta"].idxmin() == "tokens"
    assert single["held_out"].idxmin() == single["leave_one_out"].idxmin() == "tokens"


def test_two_stages_joint_and_resampled_side_by_side():
    from benchmarks.planted import Plan, sweep

    table = sweep(Plan(), np.random.default_rng(0))
    both, two, joint = (fit(table, "lr", {"stage": stage}) for stage in ("both", "two", "joint"))
    title = "lr: two-stage (the law), joint and resampled"
    rows = both.tables[title].set_index(["stage", "parameter"])
    assert both.laws == two.laws and title not in two.tables and title not in joint.tables
    assert joint.laws[-1]["method"] == "joint" and two.laws[-1]["method"] == "quadratic"
    for name, truth in (("params", -0.4), ("tokens", -0.15)):
        for stage, law in (("two-stage", two), ("joint", joint)):
            p = law.laws[-1]["parameters"][name]
            assert rows.loc[(stage, name), ["value", "low", "high"]].tolist() == [p["value"], p["low"], p["high"]]
            assert p["value"] == pytest.approx(truth, abs=0.02)
        width = rows["width"].xs(name, level="parameter")
        assert 0.5 < width["runs resampled"] / width["two-stage"] < 1.5  # all scatter is noise here
    assert {"range", "sampled", "given", "unit", "curvature"} <= set(joint.laws[-1])
    argmin = fit(table, "lr", {"stage": "joint", "estimator": "argmin"})
    assert argmin.laws[-1]["method"] == "argmin" and any("no joint fit" in note for note in argmin.notes)


def test_resampled_runs_know_noise_but_not_scatter():
    from benchmarks.planted import Plan, sweep

    table = sweep(Plan(noise=0.0005, scatter=0.3, tpp=(5.0, 20.0, 80.0)), np.random.default_rng(1))
    rows = next(t for k, t in fit(table, "lr", {"window": "none"}).tables.items() if "resampled" in k)
    width = rows[rows["parameter"] == "params"].set_index("stage")["width"]
    assert width["runs resampled"] < 0.25 * width["two-stage"]


def test_resampled_optima_spread_as_their_noise_says():
    from analysis.optimum import find_optima
    from analysis.options import Options
    from analysis.prepare import prepare
    from analysis.resample import resample_law, resample_optima
    from analysis.slices import partition
    from benchmarks.planted import Plan, sweep

    rng = np.random.default_rng(2)
    table = sweep(Plan(values=8, seeds=3, noise=0.001, params=(1e6, 4e6)), rng)
    optima = [o for o in find_optima(partition(prepare(table, Options()), "lr").slices) if o.verdict == "interior"]
    spread = resample_optima(optima, 2000, seed=1)[..., 0].std(axis=0)
    assert spread / [o.se[0] for o in optima] == pytest.approx(1, abs=0.45) and spread.mean() / np.mean(
        [o.se[0] for o in optima]
    ) == pytest.approx(1, abs=0.2)
    points = resample_optima(optima, 50, seed=3)
    drawn, share = resample_law(points[..., 0], [{"params": 1e6 * 2**i} for i in range(len(optima))], ["params"])
    assert drawn.shape == (50, 2) and share == 1
    assert (resample_optima(optima, 50, seed=3) == points).all()


@pytest.mark.parametrize("trunks, together", [(True, 1.0), (False, 0.0)])
def test_branches_of_a_trunk_are_resampled_as_one(trunks, together):
    from analysis.optimum import find_optima
    from analysis.options import Options
    from analysis.prepare import prepare
    from analysis.resample import resample_optima
    from analysis.slices import partition

    rng, rows = np.random.default_rng(3), []
    for i, z in enumerate(range(-3, 4)):
        luck = 0.004 * rng.standard_normal()
        rows += [(1e6, d, 0.01 * 2.0**z, 2 + 0.01 * z**2 + luck, f"trunk{i}") for d in (1e7, 2e7, 4e7)]
    table = pd.DataFrame(rows, columns=["params", "tokens", "lr", "loss", "trunk"])
    table = prepare(table if trunks else table.drop(columns="trunk"), Options())
    points = resample_optima(find_optima(partition(table, "lr").slices, window="none"), 400)[..., 0]
    assert np.corrcoef(points.T)[0, 1] == pytest.approx(together, abs=0.15)
