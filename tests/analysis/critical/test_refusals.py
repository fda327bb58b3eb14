"""What a critical batch must not be read from: an optimal batch in the wrong unit, LRs that no one tuned, lost runs."""

import numpy as np
import pandas as pd
import pytest

from analysis.errors import UserError
from analysis.fit import fit
from analysis.table import read_table
from benchmarks.coverage_critical import STEPS, SWEEP
from benchmarks.planted_critical import table


def run(frame, **options):
    return fit(frame, "critical_batch", {"bootstrap": 0, **options})


def planted(plan, seed=0):
    return table(plan, np.random.default_rng(seed))


def in_tokens(frame):
    return frame.assign(batch_tokens=frame["batch_size"] * 1024).drop(columns=["batch_size", "context"])


@pytest.mark.parametrize("mapped, optimal", [(True, 256), (False, 131072)])
def test_optimal_batch_in_tokens(published, mapped, optimal):
    """Zhang's exponent and batches, whichever unit the batch is in."""
    columns = {"params": "N"} | ({"batch_size": "batch_seqs"} if mapped else {})
    options = {"definition": "overhead", "unit": "tokens", "predictors": ["params"], "columns": columns}
    frame = read_table(published("critical_batch_zhang"), columns)
    result = run(frame, **options, optimal_batch=optimal)
    assert result.laws[0]["parameters"]["params"]["value"] == pytest.approx(0.468278, abs=5e-7)
    assert result.laws[0]["given"]["optimal_batch"] == 131072 and result.laws[0]["unit"] == "tokens"
    assert result.optima[0]["value"] == pytest.approx(745.32 * 512, abs=3)
    if mapped:
        with pytest.raises(UserError, match="131072 sequences, 6.71089e\\+07 tokens, lies outside"):
            run(frame, **options, optimal_batch=131072)
    else:
        with pytest.raises(UserError, match="give it in tokens"):
            run(frame, **options)


def test_optimal_batch_of_sweeps_in_tokens():
    frame = planted(SWEEP)
    with pytest.raises(UserError, match="no default"):
        run(in_tokens(frame), definition="overhead")
    sequences = run(frame, definition="overhead", optimal_batch=64)
    tokens = run(in_tokens(frame), definition="overhead", optimal_batch=65536)
    for a, b in zip(sequences.optima, tokens.optima, strict=True):
        assert a["verdict"] == b["verdict"] and a["batch_tokens"] == pytest.approx(b["batch_tokens"], rel=1e-6)
    some = frame.assign(batch_tokens=frame["batch_size"] * 1024).drop(columns="batch_size")
    some.loc[some["params"] > 5e8, "context"] = np.nan
    with pytest.raises(UserError, match="have no context"):
        run(some, definition="overhead", optimal_batch=64, unit="tokens")


def test_an_optimal_batch_outside_those_measured():
    frame = planted(SWEEP)
    for outside in (1, 1e6):
        with pytest.raises(UserError, match="outside the batches measured"):
            run(frame, definition="overhead", optimal_batch=outside)
    part = run(frame[(frame["batch_size"] > 100) | (frame["params"] > 2e8)], definition="overhead", optimal_batch=64)
    small = [o for o in part.optima if o["given"]["params"] < 2e8]
    assert small and all(o["verdict"] in ("edge", "too_few") and o["value"] is None for o in small)
    assert any("at 10 of" in note and note.endswith("points: edge.") for note in part.notes)


def untuned():
    return planted(SWEEP).drop(columns="weight_decay")


@pytest.mark.parametrize("shift", [0.0, 0.05])
def test_an_lr_of_tokens_alone_is_not_tuned(shift):
    """With shift no two batches have equal tokens."""
    frame = untuned()
    frame["tokens"] *= frame["batch_size"] ** shift
    result = run(frame.assign(lr=0.01 * (frame["tokens"] / 1e9) ** -0.1))
    assert not result.laws and any("the same at all batches" in note for note in result.notes)


def test_an_lr_that_moves_at_one_batch_is_not_tuned():
    frame = untuned()
    result = run(frame.assign(lr=np.where(frame["batch_size"] == 64, 0.02, 0.01)))
    assert not result.laws and any("a factor of two apart" in note and note.startswith("120 ") for note in result.notes)
    coarse = run(frame.assign(lr=0.01 * 2 ** np.floor(np.log2(frame["batch_size"]) / 2)))  # neighbours share an LR
    assert coarse.laws and not any("not tuned" in note for note in coarse.notes)


def test_two_lrs_are_a_grid_of_ends():
    frame = planted(SWEEP)
    worse = frame.assign(lr=0.02, loss=frame["loss"] + 0.01)
    for a, b in ((frame, worse), (worse, frame)):
        both = pd.concat([a, b], ignore_index=True).drop(columns=["weight_decay", "run_id"])
        result = run(both)
        assert not result.laws and any("have two LRs" in note and note.startswith("140 ") for note in result.notes)
        assert run(both, tuned="assume").laws
    off = frame.assign(weight_decay=frame["weight_decay"] * 2, loss=frame["loss"] + 0.01)
    assert run(pd.concat([frame, off], ignore_index=True).drop(columns="run_id")).laws  # the better is on tau(tokens)


def test_steps_of_runs_that_were_lost():
    frame = planted(STEPS)
    with pytest.raises(UserError, match="45 failed"):
        run(frame.assign(status="failed"))
    lost = frame["batch_size"] == 1024
    wrong = frame.assign(status=np.where(lost, "diverged", "done"))
    wrong.loc[lost, "steps_to_target"] = 3
    result, without = run(wrong), run(frame[~lost])
    assert any("not used: 5 diverged" in note for note in result.notes)
    assert [o["value"] for o in result.optima] == pytest.approx([o["value"] for o in without.optima])
    mixed = frame.assign(status=np.where(lost, "pending", np.where(frame["batch_size"] == 512, "failed", "done")))
    assert any("5 failed" in note and "5 pending" in note for note in run(mixed).notes)
    assert run(frame.assign(loss=np.nan)).laws  # no status: every run reached its target


def test_a_loss_of_minus_infinity_is_no_divergence():
    frame = planted(SWEEP)
    frame.loc[3, "loss"] = -np.inf
    with pytest.raises(UserError, match="loss is not above 0 in 1 rows"):
        run(frame)
    frame.loc[3, "loss"] = np.inf
    assert run(frame).laws
