"""A slice differs in the tuned hyper-parameter, what follows from it and seed; nothing is mixed or silently dropped."""

import itertools

import numpy as np
import pandas as pd
import pytest

from analysis.canonical import canonical
from analysis.errors import UserError
from analysis.fit import fit
from analysis.slices import cluster, partition


def grid(**axes):
    """Full cross of the axes with derived columns; standard parameterization."""
    base = {"params": [1e6], "tokens": [2e7], "batch_size": [8], "context": [64], "lr": [0.01], "seed": [0]}
    axes = {**base, **axes}
    df = pd.DataFrame(list(itertools.product(*axes.values())), columns=list(axes))
    if "weight_decay" not in df and "tau" in df:
        df["weight_decay"] = df["batch_size"] * df["context"] / (df["lr"] * df["tau"] * df["tokens"])
    df["loss"] = 2 + 0.01 * np.log2(df["lr"] / 0.01) ** 2 + 1e-6 * np.arange(len(df)) % 7 * 1e-3
    return canonical(df, parameterization="standard")


LADDER = [0.01 * 2.0**i for i in range(-3, 4)]


def test_lr_slices_hold_what_the_table_holds():
    constant = partition(grid(lr=LADDER, weight_decay=[0.1]), "lr").slices
    assert len(constant) == 1 and list(constant[0].held) == ["batch_size", "weight_decay"]
    timescale = partition(grid(lr=LADDER, tau=[0.3]), "lr").slices
    assert len(timescale) == 1 and list(timescale[0].held) == ["batch_size", "tau"]
    both = partition(grid(lr=LADDER, tau=[0.1, 0.2, 0.4]), "lr").slices  # weight decay would cut this cross in diagonals
    assert [len(s.rows) for s in both] == [7, 7, 7] and [s.held["tau"] for s in both] == pytest.approx([0.1, 0.2, 0.4])


def test_hold_by_option():
    table = grid(lr=LADDER, tau=[0.1, 0.2, 0.4])
    diagonal = partition(table, "lr", hold="weight_decay").slices
    assert max(len(s.rows) for s in diagonal) == 3
    with pytest.raises(UserError, match="hold=tau"):
        partition(grid(lr=LADDER).drop(columns="lr_adjusted"), "lr", hold="tau")
    with pytest.raises(UserError, match="hold=lr"):
        partition(table, "lr", hold="lr")


def test_tokens_within_two_percent_are_one_slice():
    table = grid(lr=LADDER, weight_decay=[0.1])
    table["tokens"] *= np.linspace(1, 1.019, len(table))
    assert len(partition(table, "lr").slices) == 1
    table["tokens"] *= np.where(np.arange(len(table)) > 3, 1.05, 1)
    assert len(partition(table, "lr").slices) == 2


def test_tau_and_weight_decay_slices_hold_lr_and_batch():
    table = grid(tau=[0.1, 0.2, 0.4, 0.8], lr=[0.01, 0.02], batch_size=[8, 16])
    for analysis in ("tau", "weight_decay"):
        slices = partition(table, analysis).slices
        assert len(slices) == 4 and all(len(s.rows) == 4 for s in slices)
        assert all(list(s.held) == ["lr", "batch_size"] for s in slices)


def test_a_second_sweep_in_the_table_does_not_mix():
    """LR at one tau, and tau at one LR: each analysis takes its own rows and says what it leaves."""
    table = canonical(pd.concat([grid(lr=LADDER, tau=[0.2]), grid(tau=[0.05, 0.1, 0.2, 0.4, 0.8])]))
    lr = partition(table, "lr")
    assert [len(s.rows) for s in lr.slices if len(s.rows) > 1] == [8]  # one point is in both
    assert any("stand alone" in note for note in lr.notes)
    tau = partition(table, "tau")
    assert [sorted(np.exp(s.x[:, 0]).round(3)) for s in tau.slices] == [[0.05, 0.1, 0.2, 0.2, 0.4, 0.8]]


def test_settings_part_laws_and_unknown_columns_part_slices():
    table = grid(lr=LADDER, weight_decay=[0.1], optimizer=["adamw", "muon"], curriculum=["a", "b"])
    found = partition(table, "lr")
    assert len(found.slices) == 4 and {s.settings["optimizer"] for s in found.slices} == {"adamw", "muon"}
    assert any("curriculum" in note and "by=[curriculum]" in note for note in found.notes)
    assert len(partition(table, "lr", by=["curriculum"]).slices) == 4
    assert not any("curriculum" in note for note in partition(table, "lr", by=["curriculum"]).notes)


def test_batch_slices_hold_lr_and_tau_or_profile_what_was_retuned():
    batches = [4, 8, 16, 32, 64]
    held = partition(grid(batch_size=batches, tau=[0.2]), "batch").slices
    assert len(held) == 1 and list(held[0].held) == ["lr", "tau"]
    table = grid(batch_size=batches, lr=LADDER, weight_decay=[0.1])
    best_lr = 0.005 * (table["batch_size"] / 4) ** 0.5
    table["loss"] = 2 + 0.02 * np.log2(table["batch_size"] / 16) ** 2 + 0.01 * np.log2(table["lr"] / best_lr) ** 2
    result = fit(table, "batch")
    assert any("lr profiled out" in note for note in result.notes)
    (optimum,) = result.optima
    assert optimum["value"] == pytest.approx(16, rel=1e-3) and optimum["n"] == 5
    held = fit(table, "batch", {"profile": "none", "hold": "weight_decay"}).optima
    assert len(held) == len(LADDER)  # one slice each


def test_cluster():
    assert cluster([1.0, 1.019, 1.03, 2.0, 1.0]).tolist() == [0, 0, 1, 2, 0]
    assert cluster([1.0, 1.0, 1.0], np.array([0, 1, 0])).tolist() == [0, 1, 0]
    codes = cluster([np.nan, 1.0, np.nan])
    assert codes[0] == codes[2] != codes[1]


def test_zero_weight_decay_is_named_and_left_out():
    table = grid(weight_decay=[0.0, 0.05, 0.1, 0.2, 0.4])
    found = partition(table, "weight_decay")
    assert any("1 rows have no weight_decay above 0" in note for note in found.notes) and len(found.slices[0].rows) == 4


def test_missing_columns_say_how_to_mend():
    table = grid(lr=LADDER, weight_decay=[0.1])
    with pytest.raises(UserError, match="parameterization=standard"):
        partition(table.drop(columns=["tau", "lr_adjusted"]), "tau")
    with pytest.raises(UserError, match="columns.lr"):
        partition(table.drop(columns="lr"), "lr")
    with pytest.raises(UserError, match="columns.loss"):
        partition(table.drop(columns="loss"), "lr")


def named(found, column):
    return any(column in note for note in found.notes)


@pytest.mark.parametrize("values", [[0.0, 0.1], [1, 2, 3], ["cosine", "none"], [True, False]])
def test_an_unknown_swept_setting_is_held(values):
    table = grid(lr=LADDER, weight_decay=[0.1], dropout=values)
    table["min_lr"] = table["lr"] / 10  # follows
    found = partition(table, "lr")
    assert [len(s.rows) for s in found.slices] == [7] * len(values)
    assert [s.given["dropout"] for s in found.slices] == values and named(found, "dropout") and not named(found, "min_lr")
    ragged = pd.concat([table[table["dropout"] == values[0]], table[table["lr"] == 0.01]])
    assert [len(s.rows) for s in partition(ragged, "lr").slices] == [7]  # the others stand alone


def test_what_cannot_be_a_setting_does_not_part():
    table = grid(lr=LADDER, weight_decay=[0.1], seed=[0, 1, 2])
    n = len(table)
    table = table.assign(label=[f"run {i}" for i in range(n)], score=np.random.default_rng(0).random(n).round(3))
    table = table.assign(
        order=table["seed"] * 7, when=pd.date_range("2026-01-01", periods=n), host=["a", "b", "c"] * (n // 3)
    )
    found = partition(table, "lr")
    assert [len(s.rows) for s in found.slices] == [n] and not named(found, "host")
    assert named(found, "order") and not named(found, "label")
    few = table.assign(score=table["score"].round(1))  # of few digits: still no setting
    assert named(partition(few, "lr"), "score")


@pytest.mark.parametrize("name", ["warmup_tokens", "cooldown_tokens"])
def test_swept_warmup_and_cooldown_are_held(name):
    shares = [0.1, 0.2, 0.5]
    table = grid(lr=LADDER, weight_decay=[0.1], share=shares)
    table[name] = table.pop("share") * table["tokens"]
    assert [len(s.rows) for s in partition(table, "lr").slices] == [7, 7, 7]
    batches = [4, 8, 16, 32, 64]
    for unit in ("tokens", "batch_tokens"):  # a share of training, or so many steps
        table = grid(batch_size=batches, tau=[0.2], share=shares)
        table[name] = table.pop("share") * table[unit]
        assert [len(s.rows) for s in partition(table, "batch").slices] == [5, 5, 5]
    table = grid(batch_size=batches, tau=[0.2])
    table[name] = 100 * table["batch_tokens"]  # follows from the batch
    assert [len(s.rows) for s in partition(table, "batch").slices] == [5]


def test_settings_part_by_more_than_rounding():
    table = grid(lr=LADDER, weight_decay=[0.1], beta2=[0.99, 0.999])
    assert len(partition(table, "lr").slices) == 2
    noise = 1 + 1e-9 * np.arange(len(table))
    noisy = table.assign(beta2=table["beta2"] * noise, context=table["context"] * (1 + 0.008 * (np.arange(len(table)) % 2)))
    assert len(partition(noisy, "lr").slices) == 2


def test_tau_says_which_column_it_lacks():
    table = pd.DataFrame({"lr": LADDER, "weight_decay": 0.1, "batch_size": 8, "tokens": 2e7, "params": 1e6, "loss": 2.0})
    with pytest.raises(UserError, match="no context"):
        partition(canonical(table, "standard"), "tau")


def test_one_run_under_two_names_is_said():
    table = grid(lr=LADDER, weight_decay=[0.1], params=[1e6, 4e6])
    table["loss"] += np.random.default_rng(0).normal(0, 1e-3, len(table))
    table["run_id"] = [f"a{i}" for i in range(len(table))]
    again = table.iloc[:3].assign(run_id=["b0", "b1", "b2"])
    found = partition(pd.concat([table, again], ignore_index=True), "lr")
    assert sum(note.startswith("3 rows have the loss of another run_id") for note in found.notes) == 1
    assert sum(len(s.rows) for s in found.slices) == len(table) + 3
    rounded = pd.concat([table, again], ignore_index=True)
    rounded["loss"] = rounded["loss"].round(3)  # of three digits runs agree by chance
    other_seed = pd.concat([table, again.assign(seed=1)], ignore_index=True)
    for plain in (table, rounded, other_seed):
        assert not any("another run_id" in note for note in partition(plain, "lr").notes)


def test_a_setting_that_parts_some_slices_and_moves_in_others_is_said_once():
    swept = grid(lr=LADDER, weight_decay=[0.1], params=[1e6, 4e6], changed=[0.1, 0.2]).assign(optimizer="adamw")
    moved = grid(lr=LADDER, weight_decay=[0.1], params=[1e6, 4e6], seed=[0, 1, 2]).assign(optimizer="muon")
    moved["changed"] = np.where(moved["seed"] > 0, 0.2, 0.1)  # goes with seed: no setting there
    notes = partition(pd.concat([swept, moved], ignore_index=True), "lr").notes
    told = [note for note in notes if "changed" in note]
    assert len(told) == 1 and "not in slices where it hardly repeats" in told[0]
