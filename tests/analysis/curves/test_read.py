"""Curves from run directories."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis.curves import read_curves
from analysis.errors import UserError
from analysis.fit import fit


@pytest.fixture
def runs(tmp_path):
    """Four runs as the harness writes them (DESIGN: point.yaml, status.json, result.json, curve.parquet)."""
    for i, floor in enumerate((1.0, 0.5, 0.1, 0.0)):
        name, steps = f"p{i}", 1200
        folder = tmp_path / name
        folder.mkdir()
        step = np.arange(10, steps + 1, 10)
        u = step / steps
        lr = 1e-3 * (floor + (1 - floor) * (1 - u))
        loss = 2 + np.cumsum(10 * lr) ** -0.4 - 0.2 * (1 - lr / 1e-3)
        columns = {"run_id": name, "params": 1e6, "steps": steps, "batch_tokens": 100, "lr": 4e-3, "tau": 0.1,
                   "schedule": f"s{i}"}  # fmt: skip
        (folder / "point.yaml").write_text(yaml.safe_dump({"id": name, "columns": columns}))
        (folder / "status.json").write_text(json.dumps({"status": "done"}))
        (folder / "result.json").write_text(json.dumps({"loss": float(loss[-1])}))
        pd.DataFrame(
            {"step": step, "tokens": 100 * step, "lr": lr, "train_loss": loss + 0.1,
             "validation_loss": np.where(step % 40 == 0, loss, np.nan), "grad_norm": 1.0}
        ).to_parquet(folder / "curve.parquet")  # fmt: skip
    return tmp_path


def test_a_folder_of_runs_is_a_long_table(runs):
    table = read_curves(runs)
    assert len(table) == 480 and table["loss"].notna().sum() == 120
    assert set(table["peak_lr"]) == {4e-3} and table["lr"].max() < 1.01e-3 and (table["total_steps"] == 1200).all()
    result = fit(table, "curves", {"heldout_runs": ["p2"], "bootstrap": 20})
    assert result.laws[0]["heldout"]["n"] == 1 and result.laws[0]["given"]["params"] == 1e6
    training = fit(read_curves(runs, loss="train_loss"), "curves", {"heldout_runs": ["p2"], "bootstrap": 20})
    shift = training.laws[0]["parameters"]["L0"]["value"] - result.laws[0]["parameters"]["L0"]["value"]
    assert training.laws[0]["n"] > 3 * result.laws[0]["n"] and shift == pytest.approx(0.1, abs=0.05)
    assert any("spread" in title for title in fit(table, "curves", {"law": "collapse"}).tables)


def test_a_damaged_curve_is_named(runs):
    (runs / "p0" / "curve.parquet").unlink()
    (runs / "p1" / "curve.parquet").write_bytes(b"PAR1 no more")
    table = read_curves(runs)
    assert set(table["run_id"]) == {"p2", "p3"} and len(table.attrs["damaged"]) == 2
    assert sum(note.startswith("damaged: run p") for note in fit(table, "curves", {"bootstrap": 0}).notes) == 2


def test_no_curve_at_all(runs):
    for i in range(4):
        (runs / f"p{i}" / "curve.parquet").unlink()
    with pytest.raises(UserError, match="holds no curve"):
        read_curves(runs)
