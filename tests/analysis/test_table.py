"""Tables from run directories and from files; derived columns; the timescale; every fault a line, never a crash."""

import json
import random
import time

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.canonical import canonical, rename
from analysis.errors import UserError
from analysis.table import read_runs, read_table, write_table

POWER_LINES = {
    **{"params": 606e6, "tokens": 48.5e9, "batch_size": 504, "context": 2048},
    **{"lr": 1.62e-2, "lr_adjusted": 1.62e-2 * 256 / 2048, "weight_decay": 0.1},
}


def one(**columns):
    return canonical(pd.DataFrame([columns])).iloc[0]


def test_tau_of_power_lines():
    """DESIGN, decision 1: 610M at 80 tokens per parameter, muP-adjusted LR; to three digits."""
    assert round(one(**POWER_LINES)["tau"], 3) == 0.105


def test_tau_of_independent_weight_decay_and_of_none():
    plain = one(**POWER_LINES)
    independent = one(**POWER_LINES, weight_decay_mode="independent")
    assert independent["tau"] == pytest.approx(plain["tau"] * POWER_LINES["lr_adjusted"])
    assert np.isnan(canonical(pd.DataFrame([POWER_LINES, {**POWER_LINES, "weight_decay": 0}]))["tau"][1])


def test_tau_counts_the_adjusted_weight_decay():
    doubled = one(**POWER_LINES, weight_decay_adjusted=0.2)
    assert doubled["tau"] == pytest.approx(one(**POWER_LINES)["tau"] / 2)


@pytest.mark.parametrize(
    "extra, options, known",
    [
        ({}, {}, False),
        ({"parameterization": "mup"}, {}, False),
        ({"parameterization": "standard"}, {}, True),
        ({}, {"parameterization": "standard"}, True),
        ({}, {"lr_adjusted": "lr"}, True),
        ({"parameterization": "completep"}, {"lr_adjusted": "lr"}, False),  # it changes weight decay too
    ],
)
def test_foreign_tau_only_where_the_rule_is_said(extra, options, known):
    foreign = {k: v for k, v in POWER_LINES.items() if k != "lr_adjusted"}
    frame = canonical(pd.DataFrame([{**foreign, **extra}]), **options)
    assert ("tau" in frame and frame["tau"].notna().all()) == known


def test_derived_columns_and_idempotence():
    frame = canonical(pd.DataFrame({"params": [1e6], "tpp": [20], "batch_size": [8], "context": [64], "loss": [2.0]}))
    row = frame.iloc[0]
    assert (row["tokens"], row["batch_tokens"], row["flops"], row["status"]) == (2e7, 512, 6 * 1e6 * 2e7, "done")
    assert row["steps"] == 2e7 / 512
    pd.testing.assert_frame_equal(canonical(frame), frame)


@pytest.mark.parametrize("flags", [[True, False], ["true", "False"], [1, 0], ["1.0", "0.0"]])
def test_flags_of_divergence(flags):
    frame = canonical(pd.DataFrame({"status": flags, "loss": [7.0, 2.0]}))
    assert list(frame["status"]) == ["diverged", "done"] and any("true and false" in n for n in frame.attrs["notes"])
    frame = canonical(pd.DataFrame({"diverged": flags, "loss": [7.0, 2.0], "status": ["finished", None]}))
    assert list(frame["status"]) == ["diverged", "done"] and any("1 rows are diverged" in n for n in frame.attrs["notes"])
    assert canonical(frame).attrs["notes"] == frame.attrs["notes"]


def test_a_column_diverged_that_is_no_flag_is_passed_over():
    frame = canonical(pd.DataFrame({"diverged": ["at step 3", "no"], "loss": [7.0, 2.0]}))
    assert list(frame["status"]) == ["done", "done"] and frame.attrs["notes"] == []


def test_a_quotient_of_float_batches_is_one_context():
    batch = np.array([3, 7, 11, 48])
    frame = canonical(pd.DataFrame({"batch_size": batch, "batch_tokens": batch * 2048 * (1 + 1e-12), "loss": 2.0}))
    assert (frame["context"] == 2048).all()


def test_run_ids_stay_text(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("name,loss\n0012,2\n1e5,2\n12345678901234567890,2\n")
    assert list(canonical(read_table(file, {"run_id": "name"}))["run_id"]) == ["0012", "1e5", "12345678901234567890"]
    assert list(canonical(pd.DataFrame({"run_id": [1.0, 2.0, None], "loss": 2.0}))["run_id"])[:2] == ["1", "2"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_write_and_read(tmp_path, suffix):
    frame = canonical(pd.DataFrame({"run_id": ["a", "b"], "lr": [1e-3, 2e-3], "loss": [2.0, np.nan]}))
    back = canonical(read_table(write_table(frame, tmp_path / f"t{suffix}")))
    pd.testing.assert_frame_equal(back, frame, check_dtype=False)
    with pytest.raises(UserError, match="csv"):
        write_table(frame, tmp_path / "t.xlsx")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"t{suffix}"]


def test_errors_are_one_or_two_lines_and_name_the_nearest(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "rows.csv").write_text("lr,loss\n")
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n1,2,3\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "twice.csv").write_text("lr,loss,loss \n1,2,3\n")
    for name in ("none.csv", "empty.csv", "rows.csv", "ragged.csv", "bad.parquet", "twice.csv", ""):
        with pytest.raises(UserError) as error:
            read_table(tmp_path / name)
        assert len(str(error.value).splitlines()) <= 2 and "table=" in str(error.value)
    frame = pd.DataFrame({"learning_rate": [1], "val_loss": [2]})
    with pytest.raises(UserError, match="did you mean learning_rate"):
        rename(frame, {"lr": "learningrate"})
    with pytest.raises(UserError, match="did you mean params"):
        rename(frame, {"param": "learning_rate"})
    with pytest.raises(UserError, match="'fast'"):
        canonical(pd.DataFrame({"lr": ["1e-3", "fast"]}))
    with pytest.raises(UserError, match="params is not above 0 and finite in 1 of 2"):
        canonical(pd.DataFrame({"params": [1e6, -1], "loss": 2.0}))
    with pytest.raises(UserError, match="running"):
        canonical(pd.DataFrame({"status": ["sleeping"], "loss": 2.0}))


# ---- run directories


def write_run(folder, i, loss=2.0, status="done"):
    run = folder / f"{i:016x}"
    run.mkdir(parents=True)
    columns = {**POWER_LINES, "run_id": run.name, "seed": i, "schedule": "linear", "tau": 0.1, "trunk": None}
    (run / "point.yaml").write_text(yaml.safe_dump({"schema": 1, "id": run.name, "columns": columns, "spec": {"a": [1]}}))
    (run / "status.json").write_text(json.dumps({"status": status}))
    if status in ("done", "diverged"):
        (run / "result.json").write_text(json.dumps({"loss": loss, "train_loss": 2.1, "flops": 5, "numerics": {}}))
    return run


def test_read_runs(tmp_path):
    write_run(tmp_path, 1)
    write_run(tmp_path, 2, None, "diverged")
    write_run(tmp_path, 3, status="failed")
    (write_run(tmp_path, 4, status="pending") / "status.json").unlink()
    (tmp_path / "notes.txt").write_text("no run")
    frame = read_runs(tmp_path)
    assert list(frame["status"]) == ["done", "diverged", "failed", "pending"]
    assert frame["loss"].tolist()[0] == 2.0 and frame["loss"][1:].isna().all()
    assert frame.columns[0] == "run_id" and frame.attrs["damaged"] == []
    assert frame["run_id"][0] == "0000000000000001"


@pytest.mark.parametrize("file", ["point.yaml", "status.json", "result.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"a: [", b'{"status": 7, "columns": 3}', b"null"]
)
def test_a_damaged_run_is_named_and_the_others_are_read(tmp_path, file, content):
    write_run(tmp_path, 1)
    (write_run(tmp_path, 2) / file).write_bytes(content)
    frame = read_runs(tmp_path)
    assert frame["loss"].notna().sum() == 1 and frame["status"][0] == "done"
    (line,) = frame.attrs["damaged"]
    assert file in line and "0000000000000002" in line


def test_no_runs_at_all(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="runs="):
            read_runs(path)


def test_two_thousand_runs_are_read_in_seconds(tmp_path):
    for i in range(2000):
        write_run(tmp_path, i)
    start = time.process_time()
    assert len(read_runs(tmp_path)) == 2000
    assert time.process_time() - start < 6


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([".csv", ".parquet", ".tsv"]), st.integers(0, 2**31))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, suffix, seed):
    file = tmp_path_factory.mktemp("t") / f"t{suffix}"
    file.write_bytes(content if seed % 2 else b"lr,loss\n" + bytes(random.Random(seed).choices(b"0123456789.,\ne-x", k=60)))
    try:
        canonical(read_table(file))
    except UserError as error:
        assert len(str(error).splitlines()) <= 2
