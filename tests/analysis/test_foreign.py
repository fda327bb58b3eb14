"""wandb's files as wandb and our tracker write them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import UserError
from analysis.foreign import read_wandb, read_wandb_curves
from analysis.foreign.wandb_file import BLOCK, HEADER, records
from benchmarks.planted import Plan, sweep

ROOT = Path(__file__).resolve().parents[2]
TABLE = sweep(Plan(noise=0.001), np.random.default_rng(0))


def test_offline_runs(offline):
    table = read_wandb(offline)
    assert list(table["run_id"]) == ["id0", "id1", "id2", "id3"]
    assert list(table["status"]) == ["done", "diverged", "failed", "done"]
    assert table["lr"].tolist() == [1e-3, 2e-3, 4e-3, 8e-3]  # what was asked for, not the annealed one that was logged last
    assert table["loss"][[0, 3]].tolist() == [2.5, 2.4] and table["tokens"].eq(64 * 8 * 100).all()
    assert table["optimizer"].eq("adamw").all() and table["train_loss"][3] == pytest.approx(4 - 98 / 100)
    assert table["note"].str.len().max() == 100_000 and table["dropout"].tolist()[3] == 0.1
    listed = "\n".join(table.attrs["listed"])
    for said in ("lr from optimizer.learning_rate", "loss from eval.loss", "dropout", "their_lr", "run id3 goes on in",
                 "run id1", "run id2", "logged last, not the peak"):  # fmt: skip
        assert said in listed, said


def test_curves_of_offline_runs(offline):
    curves = read_wandb_curves(offline)
    run = curves[curves["run_id"] == "id0"]
    assert run["step"].tolist() == list(range(100)) and run["lr"].dropna().tolist() == [
        1e-3 * (1 - s / 100) for s in range(99)
    ]


def test_a_file_a_folder_or_the_wandb_folder(offline):
    (file,) = offline.glob("wandb/offline-run-*-id0/*.wandb")
    for path in (file, file.parent, offline / "wandb"):
        assert read_wandb(path)["loss"][0] == 2.5
    with pytest.raises(UserError, match="no run file"):
        read_wandb(file.parent / "files")
    with pytest.raises(UserError, match="no such file"):
        read_wandb(offline / "none")


def test_our_tracker_writes_what_the_table_reads(tmp_path):
    """Through harness.tracking's own process, as training feeds it."""
    rows = TABLE[TABLE["tpp"] == 20].head(8)
    lines = []
    for i, row in enumerate(rows.to_dict("records")):
        row = {**row, "run_id": f"r{i}"}
        config = {k: v for k, v in row.items() if k not in ("loss", "status")}
        begin = {"project": "p", "entity": None, "mode": "offline", "dir": str(tmp_path), "id": f"r{i}", "config": config}
        lines += [{"begin": begin}, {"log": {"train_loss": 5.0, "tokens": 3}, "step": 1},
                  {"log": {"validation_loss": row["loss"]}, "step": 2}, {"finish": True}]  # fmt: skip
    text = "\n".join(json.dumps(line) for line in lines)
    subprocess.run([sys.executable, "-m", "harness.tracking"], input=text, text=True, check=True, cwd=ROOT, timeout=120)
    table = read_wandb(tmp_path)
    assert len(table) == 8 and table["status"].eq("done").all()
    for name in ("params", "tokens", "lr", "loss"):
        np.testing.assert_allclose(np.sort(table[name]), np.sort(rows[name]))


def test_a_run_without_its_end_is_running_and_enters_no_fit(offline, tmp_path):
    (file,) = offline.glob("wandb/offline-run-*-id0/*.wandb")
    (tmp_path / "cut.wandb").write_bytes(file.read_bytes()[:-40])
    table = read_wandb(tmp_path)
    assert list(table["status"]) == ["running"] and table["loss"][0] == 2.5
    assert any("no end on file" in line for line in table.attrs["listed"])
    assert any("no fit uses" in line for line in table.attrs["listed"])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_file_gives_whole_records_or_a_line(offline, tmp_path_factory, data):
    (file,) = offline.glob("wandb/offline-run-*-id1/*.wandb")
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path_factory.mktemp("d") / "run.wandb"
    damaged.write_bytes(content)
    whole = [r for r in records(file) if isinstance(r, bytes)]
    assert all(r in whole for r in records(damaged) if isinstance(r, bytes))  # the checksum lets nothing false through
    assert (
        content == file.read_bytes()
        or any(isinstance(r, str) for r in records(damaged))
        or len(content) < file.stat().st_size
    )
    try:
        table = read_wandb(damaged)
    except UserError as error:
        assert len(str(error).splitlines()) <= 2
        return
    assert list(table["run_id"]) == ["id1"] and table.attrs["listed"]


def test_after_damage_the_next_block_is_read(offline, tmp_path):
    (file,) = offline.glob("wandb/offline-run-*-id1/*.wandb")
    content = bytearray(file.read_bytes())
    assert len(content) > 3 * BLOCK and content.startswith(HEADER)
    content[BLOCK + 100] ^= 1
    (tmp_path / "x.wandb").write_bytes(content)
    faults = [r for r in records(tmp_path / "x.wandb") if isinstance(r, str)]
    assert faults == [f"is damaged at byte {BLOCK}"]
    assert sum(isinstance(r, bytes) for r in records(tmp_path / "x.wandb")) > 100


def test_without_wandb_a_line_says_what_to_install(offline, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "wandb.proto", None)
    with pytest.raises(UserError, match=r"hyperlaw\[wandb\]"):
        read_wandb(offline)
