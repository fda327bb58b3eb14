"""The command line as a user meets it: help at once, the contracts' commands end to end, exit statuses."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

HYPERLAW = [sys.executable, "-m", "harness.cli"]
TINY = ["model.width=16", "model.depth=1", "model.head_dim=8", "model.context=16", "batch_size=4", "precision=fp32",
        "validation.tokens=512", "data=markov", "data.tokens=60000", "data.states=16", "launcher.compile=never"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


def hyperlaw(folder, *words, status=0):
    env = {**os.environ, "HYPERLAW_CACHE": str(folder / "cache")}
    done = subprocess.run([*HYPERLAW, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


def test_help_answers_at_once():
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        out = subprocess.run([*HYPERLAW, "--help"], capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - began)
    assert "hyperlaw sweep" in out and "Exit" not in out[:20]
    assert min(seconds) < 0.3


def test_train_then_nothing_left_to_do(folder):
    first = hyperlaw(folder, "train", *TINY, "tokens=3200", "out=one", "--json")
    result = json.loads(first.stdout)
    run = folder / "one" / "runs" / result["run_id"]
    assert result["status"] == "done" and Path(result["run_dir"]) == run and (run / "curve.parquet").is_file()
    before = (run / "result.json").stat().st_mtime_ns
    again = hyperlaw(folder, "train", *TINY, "tokens=3200", "out=one")
    assert "validation loss" in again.stdout and (run / "result.json").stat().st_mtime_ns == before


def test_sweep_table_fit_recommend(folder):
    mine = folder / "mine" / "sweep"
    mine.mkdir(parents=True)
    (mine / "mine.yaml").write_text(
        "# @package _global_\nsweep:\n  name: mine\n  axes:\n    tokens: [3200, 6400]\n"
        "    optimizer.lr: log2(-8, -3, 6)\n"
    )
    here = ["--config-dir", str(folder / "mine"), "sweep=mine", *TINY, "tau=0.5"]
    plan = json.loads(hyperlaw(folder, "sweep", *here, "--dry-run", "--json").stdout)
    assert (plan["points"], plan["left"]) == (12, 12) and not (folder / "out" / "mine").exists()
    hyperlaw(folder, "sweep", *here)
    status = json.loads(hyperlaw(folder, "status", *here, "--json").stdout)
    assert status["counts"]["done"] == 12 and status["progress"] == 1
    hyperlaw(folder, "table", "runs=out/mine/runs", "--out", "t.csv")
    table = pd.read_csv(folder / "t.csv")
    assert len(table) == 12 and {"run_id", "loss", "tau", "lr_adjusted", "flops"} <= set(table)
    fit = json.loads(hyperlaw(folder, "fit", "analysis=lr", "runs=out/mine/runs", "out=laws", "--json").stdout)
    assert {o["target"] for o in fit["optima"]} == {"lr"} and len(fit["optima"]) == 2
    assert (folder / "laws" / "laws.json").is_file() and list((folder / "laws").glob("*.png"))


def test_recipe_is_a_command_line_again(folder):
    law = {"analysis": "lr", "name": "lr", "given": {"parameterization": "mup", "batch_size": 4}, "form": "",
           "unit": "", "parameters": {"coefficient": {"value": 1.0, "low": 0.9, "high": 1.1},
                                      "tokens": {"value": -0.3, "low": -0.35, "high": -0.25}},
           "r2": 0.9, "n": 5, "objective": 0.1, "heldout": {}, "method": "quadratic"}  # fmt: skip
    tau = {**law, "analysis": "tau", "name": "tau",
           "parameters": {"coefficient": {"value": 1.0, "low": 0.9, "high": 1.1},
                          "tpp": {"value": -0.5, "low": -0.6, "high": -0.4}}}  # fmt: skip
    (folder / "hand").mkdir()
    (folder / "hand" / "laws.json").write_text(json.dumps({"laws": [law, tau], "optima": []}))
    words = ["recommend", "laws=hand", "model.width=16", "model.depth=1", "params=4000", "tokens=6400"]
    recipe = json.loads(hyperlaw(folder, *words, "--json").stdout)
    assert recipe["recipe"]["lr"]["value"] == pytest.approx(6400**-0.3)
    overrides = [w for w in TINY if not w.startswith(("model.width", "model.depth", "batch_size"))]
    done = hyperlaw(folder, "train", *overrides, *recipe["overrides"], "out=recipe", "--json")
    run = json.loads(done.stdout)
    columns = yaml.safe_load((Path(run["run_dir"]) / "point.yaml").read_text())["columns"]
    assert columns["tokens"] == 6400 and columns["batch_size"] == 4 and columns["parameterization"] == "mup"
    assert columns["lr"] == pytest.approx(6400**-0.3) and columns["tau"] == pytest.approx(recipe["recipe"]["tau"]["value"])


def test_a_diverged_point_is_a_result(folder):
    done = hyperlaw(folder, "train", *TINY, "tokens=6400", "optimizer.lr=100", "optimizer.clip=null",
                    "schedule.warmup=0", "out=high")  # fmt: skip
    assert "diverged" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["swep"],
        ["sweep"],
        ["fit"],
        ["fit", "analysis=lr"],
        ["fit", "analysis=nope", "table=x.csv"],
        ["fit", "analysis=lr", "table=missing.csv"],
        ["recommend", "laws=missing", "params=1e9", "tokens=1e10"],
        ["table", "runs=missing"],
        ["check"],
        ["train", "--wrong"],
        ["train", "model.width=32", "device=tpu"],
        ["train", "launcher=slurmm"],
        ["status", "sweep=nope"],
    ],
)
def test_wrong_requests_exit_with_two_and_a_line_or_two(folder, words):
    err = hyperlaw(folder, *words, status=2).stderr
    assert 1 <= len(err.strip().splitlines()) <= 2


def test_choices_are_listed(folder):
    assert "lr_width" in hyperlaw(folder, "sweep", status=2).stderr
    assert "lr_batch" in hyperlaw(folder, "fit", "table=x.csv", status=2).stderr


def test_coordinate_check(folder):
    done = hyperlaw(folder, "check", "coordinates", "parameterization=mup", "model.width=64,128,256", "out=check")
    assert "passed" in done.stdout and (folder / "check" / "coordinates_mup.png").stat().st_size > 10_000
