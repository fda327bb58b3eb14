"""Planted collapses: spread, early prediction, intervals; requests that cannot be met."""

import numpy as np
import pandas as pd
import pytest

from analysis.curves.normalised import collapse, finished, predict_final
from analysis.curves.read import curves
from analysis.errors import UserError
from analysis.fit import fit


def planted(sizes=6, noise=0.0, bent=0.0, seed=0, tpp=(20.0, 80.0)):
    """Curves l(u; tpp) L(T): equal tpp collapse; bent: a random change of shape of each run."""
    rng, frames = np.random.default_rng(seed), []
    for group, d in enumerate(tpp):
        for i in range(sizes):
            steps = 500 * (i + 2) * (group + 1)
            step = np.arange(10, steps + 1, 10)
            u = step / steps
            shape = (u**-0.15 - 1) * (1 + bent * rng.standard_normal()) / (1 + group) + 1 + 0.05 * (1 - u)
            loss = (4.0 - 0.3 * i) * shape * np.exp(noise * rng.standard_normal(len(u)))
            frames.append(pd.DataFrame({"run_id": f"{d:g}/{i}", "step": step, "lr": 1e-3 * (1 - u), "loss": loss, "tpp": d}))
    return pd.concat(frames, ignore_index=True)


def test_equal_shapes_collapse_and_predict_exactly():
    found, _ = curves(planted())
    spreads = collapse(found, ["tpp", "tau"])
    assert len(spreads) == 2 and (spreads["spread"] < 1e-3).all() and (spreads["spread_all"] > 0.02).all()
    same = [c for c in found if c.given["tpp"] == 20]
    guess = predict_final(same[0], same[1:], fraction=0.2)
    assert guess["value"] == pytest.approx(4.0, rel=1e-3) and guess["references"] == 5 and guess["seen"] == 0.2
    assert predict_final(same[0], [c for c in found if c.given["tpp"] == 80], fraction=0.2)["value"] > 4.1


def test_only_what_was_seen_counts():
    """What comes after the fraction changes nothing."""
    table = planted()
    late = (table["run_id"] == "20/0") & (table["step"] > 300)
    other = table.assign(loss=table["loss"].where(~late, 9.0))
    (a, _), (b, _) = curves(table), curves(other)
    ours, theirs = (predict_final(c[0], c[1:6], fraction=0.3)["value"] for c in (a, b))
    assert ours == theirs


def test_intervals_hold_the_truth():
    """80 % of runs whose shapes differ at random, 200 of them."""
    held = []
    for seed in range(20):
        found, _ = curves(planted(sizes=10, noise=0.002, bent=0.05, seed=seed, tpp=(20.0,)))
        for curve in found:
            guess = predict_final(curve, [c for c in found if c is not curve], fraction=0.3)
            held.append(guess["low"] <= curve.losses[-1] <= guess["high"])
    print(f"\ncollapse: intervals of {len(held)} runs hold {100 * np.mean(held):.0f} %")
    assert 0.72 <= np.mean(held) <= 0.9


def test_unfinished_runs_are_predicted_from_the_command():
    table = planted()
    table = table.assign(total_steps=table.groupby("run_id")["step"].transform("max"))
    cut = (table["run_id"] == "80/5") & (table["step"] > 0.3 * table["total_steps"])
    result = fit(table[~cut], "curves", {"law": "collapse", "heldout_runs": ["80/5"]})
    row = list(result.tables.values())[1].iloc[0]
    assert row["predicted"] == pytest.approx(2.5, rel=1e-3) and pd.isna(row["error"]) and row["low"] < 2.5 < row["high"]
    assert result.laws == [] and any("tau, schedule" in note for note in result.notes)
    found, _ = curves(table[~cut])
    assert [finished(c) for c in found].count(False) == 1


def test_smoothing_takes_noise_away():
    found, _ = curves(planted(noise=0.02, tpp=(20.0,)))
    assert collapse(found, ["tpp"], 0.05)["spread"][0] < collapse(found, ["tpp"])["spread"][0] / 2


def test_what_cannot_be_aligned():
    found, _ = curves(planted(sizes=1))
    with pytest.raises(UserError, match="no finished run"):
        predict_final(found[0], [])
    late, _ = curves(planted().query("step > 900"))
    with pytest.raises(UserError, match="no loss in its first 10 %"):
        predict_final(late[3], late[4:6], fraction=0.1)
    assert predict_final(found[0], found[1:], fraction=0.3)["low"] is None  # one reference: no interval
    lonely = fit(planted(sizes=1), "curves", {"law": "collapse"})
    assert any("not predicted" in note for note in lonely.notes)


def test_a_run_stopped_early_is_no_reference_where_lengths_are_unknown():
    """No total_steps: its LR still stands high, or it has fewer steps than its size and batch imply."""
    table = planted(tpp=(20.0,))
    cut = (table["run_id"] == "20/3") & (table["step"] > 700)
    result = fit(table[~cut], "curves", {"law": "collapse"})
    spreads, finals = result.tables.values()
    assert spreads["runs"].tolist() == [5] and (spreads["spread"] < 1e-3).all()
    assert "20/3" not in set(finals["run"]) and (finals["error"].abs() < 5e-3).all()
    assert any("left out: run 20/3" in note for note in result.notes)
    constant = table.assign(lr=1e-3)
    seen = fit(constant[~cut], "curves", {"law": "collapse"})
    assert any("a run that was stopped early would count" in note for note in seen.notes)
    sized = constant.assign(params=constant["run_id"].str[-1].astype(int) + 2.0, batch_tokens=1000)
    assert not any("left out" in note for note in fit(sized, "curves", {"law": "collapse"}).notes)
    assert any("left out: run 20/3" in note for note in fit(sized[~cut], "curves", {"law": "collapse"}).notes)
