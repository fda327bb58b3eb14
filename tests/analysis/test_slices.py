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


def test_settings_part_laws_and_unknown_columns_are_named():
    table = grid(lr=LADDER, weight_decay=[0.1], optimizer=["adamw", "muon"], curriculum=["a", "b"])
    found = partition(table, "lr")
    assert len(found.slices) == 2 and {s.settings["optimizer"] for s in found.slices} == {"adamw", "muon"}
    assert any("curriculum" in note for note in found.notes)
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
