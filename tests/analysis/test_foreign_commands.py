"""Foreign runs from the command line to a law."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis.command import fit as fit_words
from analysis.fit import fit
from benchmarks.planted import Plan, sweep
from harness import cli

TABLE = sweep(Plan(noise=0.001), np.random.default_rng(0))


def hyperlaw(capsys, *argv):
    status = cli.main(list(argv))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_table_command(offline, tmp_path, capsys):
    status, out, err = hyperlaw(capsys, "table", f"wandb={offline}", "--out", str(tmp_path / "t.csv"))
    assert status == 0 and "4 runs" in out and "lr from optimizer.learning_rate" in err
    status, out, err = hyperlaw(capsys, "table", f"csv={tmp_path / 't.csv'}", "columns.loss=train_loss")
    assert status == 0 and out.startswith("run_id,status,") and "loss from train_loss" in err
    for words in (["csv=a", "wandb=b"], [], ["runs=x", "columns.lr=y"], ["csvv=a"], ["csv=nothing.csv"], ["wandb=nothing"]):
        status, out, err = hyperlaw(capsys, "table", *words)
        assert status == 2 and out == "" and 1 <= len(err.strip().splitlines()) <= 2


def test_round_trip_of_own_runs(tmp_path, capsys):
    """Own runs, as a CSV, give the same law as the runs themselves, under either reader."""
    for i, row in enumerate(TABLE.to_dict("records")):
        run = tmp_path / "runs" / f"{i:016x}"
        run.mkdir(parents=True)
        columns = {k: v for k, v in row.items() if k not in ("loss", "status") and v == v} | {"run_id": run.name}
        (run / "point.yaml").write_text(yaml.safe_dump({"schema": 1, "id": run.name, "columns": columns, "spec": {}}))
        (run / "status.json").write_text(json.dumps({"status": row["status"]}))
        (run / "result.json").write_text(json.dumps({"loss": row["loss"]}))
    file = tmp_path / "t.csv"
    assert hyperlaw(capsys, "table", f"runs={tmp_path / 'runs'}", "--out", str(file))[0] == 0
    laws = [fit_words({"analysis": "lr", name: path}).laws
            for name, path in (("runs", tmp_path / "runs"), ("table", file), ("csv", file))]  # fmt: skip
    for other in laws[1:]:
        for name, entry in laws[0][0]["parameters"].items():
            assert other[0]["parameters"][name]["value"] == pytest.approx(entry["value"], rel=1e-9)
        assert other[0]["n"] == laws[0][0]["n"]


def test_a_foreign_table_is_fitted_under_its_own_names(tmp_path):
    names = {"params": "n_params", "lr": "config.optimizer.lr", "loss": "eval/loss", "run_id": "ID", "status": "State"}
    foreign = TABLE.rename(columns=names).assign(Created="2025-01-01", State="finished")
    foreign.to_csv(tmp_path / "t.csv", index=False)
    theirs = fit_words({"analysis": "lr", "csv": str(tmp_path / "t.csv")}).laws[0]["parameters"]
    ours = fit_words({"analysis": "lr", "csv": str(tmp_path / "t.csv"), "columns": {"lr": "config.optimizer.lr"}}).laws
    assert theirs == ours[0]["parameters"] == fit(TABLE, "lr").laws[0]["parameters"]


def test_a_foreign_export_goes_through_the_table_command_to_the_same_law(tmp_path, capsys):
    """csv= straight to fit, and `table csv= --out t.csv` to `fit table=t.csv`: numbers in words, divergences and all."""
    names = {"params": "Model Size", "lr": "config.optimizer.lr", "loss": "eval/loss", "tokens": "Tokens"}
    foreign = TABLE[["params", "lr", "loss", "tokens", "seed"]].rename(columns=names)
    foreign = foreign.assign(State="finished", ID=[f"0{i}" for i in range(len(foreign))])
    foreign["Model Size"] = foreign["Model Size"].map("{:,.0f}".format)
    high = foreign.groupby("Model Size")["config.optimizer.lr"].transform("max") == foreign["config.optimizer.lr"]
    foreign["eval/loss"] = foreign["eval/loss"].astype(object).mask(high, "NaN")
    foreign["State"] = foreign["State"].mask(high, "crashed")
    theirs, ours = tmp_path / "theirs.csv", tmp_path / "t.csv"
    foreign.to_csv(theirs, index=False)
    assert hyperlaw(capsys, "table", f"csv={theirs}", "--out", str(ours))[0] == 0
    assert high.sum() > 2 and (pd.read_csv(ours)["status"] == "diverged").sum() == high.sum()
    answers = []
    for source in (f"csv={theirs}", f"table={ours}"):
        words = ("analysis=lr", source, f"out={tmp_path / 'laws'}", "bootstrap=20", "--json")
        status, out, err = hyperlaw(capsys, "fit", *words)
        assert status == 0, err
        answers.append(json.loads(out))
    assert answers[0]["laws"] and answers[0]["laws"] == answers[1]["laws"] and answers[0]["optima"] == answers[1]["optima"]
