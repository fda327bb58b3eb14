"""Foreign runs in: wandb's files as wandb and our tracker write them, exports in many spellings."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.command import fit as fit_words
from analysis.errors import UserError
from analysis.fit import fit
from analysis.foreign import read_export, read_wandb, read_wandb_curves
from analysis.foreign.cells import as_dict, numbers
from analysis.foreign.names import read
from analysis.foreign.wandb_file import BLOCK, HEADER, records
from analysis.request import parse
from analysis.table import read_table
from benchmarks.planted import Plan, sweep
from harness import cli

ROOT = Path(__file__).resolve().parents[2]
TABLE = sweep(Plan(noise=0.001), np.random.default_rng(0))

WRITE = """
import sys, wandb
quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True)
def begin(k, **more):
    config = {"optimizer": {"learning_rate": 1e-3 * 2**k, "name": "adamw"}, "n_params": 10**6, "seed": k, "seq_len": 64}
    return wandb.init(project="p", mode="offline", dir=sys.argv[1], id=f"id{k}", name=f"run-{k}", settings=quiet,
                      resume="allow", config={**config, "global_batch_size": 8, "max_steps": 100, **more})
def log(run, steps, final):
    for s in steps:
        run.log({"train/loss": 4 - s / 100, "lr": 1e-3 * (1 - s / 100)}, step=s)
    run.log({"eval": {"loss": final}}, step=99)
run = begin(0); log(run, range(99), 2.5); run.finish()
run = begin(1, note="x" * 100_000); log(run, range(99), float("nan")); run.finish()  # several blocks of the file
run = begin(2); log(run, range(50), 2.9); run.finish(exit_code=1)
run = begin(3); log(run, range(40), 3.0); run.finish()
run = begin(3, dropout=0.1); log(run, range(40, 99), 2.4); run.finish()              # the same run, resumed
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A folder of real offline runs, written by wandb in a process without a network."""
    folder = tmp_path_factory.mktemp("wandb")
    subprocess.run([sys.executable, "-c", WRITE, str(folder)], check=True, capture_output=True, timeout=120)
    return folder


# ---- wandb's files


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


# ---- what a failed run says of divergence


def test_a_failed_run_whose_last_loss_is_lost_diverged(tmp_path):
    """Of failures only those whose last loss, of validation or of training, is written as NaN or infinite."""
    (tmp_path / "e.csv").write_text(
        "Name,State,lr,val_loss,train/loss\na,finished,1,3.1,3\nb,crashed,2,NaN,9\nc,failed,4,Infinity,9\nd,crashed,8,3.9,nan\n"
        "e,crashed,16,,\nf,killed,32,4.0,4\ng,running,64,NaN,NaN\nh,finished,64,-inf,3\n"
    )
    table = read_export(tmp_path / "e.csv")
    assert list(table["status"]) == ["done", *["diverged"] * 3, "failed", "failed", "running", "done"]
    assert table["loss"].iloc[-1] == -np.inf  # no divergence: a fit refuses it
    (line,) = [line for line in table.attrs["notes"] if "last loss not finite" in line]
    assert line.startswith("status: 3 of 8 values are failed") and "(run b, c, d)" in line
    assert "mend its column status" in line


def test_nan_in_a_dict_of_json_is_no_missing_loss(tmp_path):
    rows = [{"name": "a", "state": "failed", "summary": json.dumps({"val_loss": loss})} for loss in (3.0, float("nan"))]
    pd.DataFrame(rows).to_csv(tmp_path / "e.csv", index=False)
    assert list(read_export(tmp_path / "e.csv")["status"]) == ["failed", "diverged"]


# ---- exports


def export(folder, text, columns=None, name="e.csv"):
    (folder / name).write_text(text)
    return read_export(folder / name, columns)


HEAD = '"Name","State","Notes","User","Tags","Created","Runtime","Sweep",'


def test_an_export_of_wandbs_pages(tmp_path):
    table = export(tmp_path, HEAD + '"ID","config.lr","n_params","eval/loss","train/loss","train/lr","data.mix","extra"\n'
        '"a","finished","-","me","","2025-01-01","9","","007","1e-3","125M","3.1","3.0","0","web",""\n'
        '"b","crashed","-","me","","2025-01-01","9","","008","2e-3","125M","","3.9","1e-5","web",""\n'
        '"c","finished","-","me","","2025-01-01","9","","1e5","big","1.3B","NaN","NaN","0","code",""\n'
        '"d","running","-","me","","2025-01-01","9","","b1","8e-3","1_300_000_000","3.3","3.2","1e-3","code",""\n'
    )  # fmt: skip
    assert list(table["run_id"]) == ["007", "008", "1e5", "b1"]
    assert list(table["status"]) == ["done", "failed", "diverged", "running"]
    assert table["params"].tolist() == [125e6, 125e6, 1.3e9, 1.3e9]
    assert table["lr"].tolist()[:2] == [1e-3, 2e-3] and np.isnan(table["lr"][2])
    assert table["data.mix"].tolist() == ["web", "web", "code", "code"] and table["train/lr"].tolist() == [0, 1e-5, 0, 1e-3]
    listed = "\n".join(table.attrs["listed"])
    for said in ("lr: 1 of 4 values is no number, such as 'big' (run 1e5): left empty", "(run 008)", "Sweep, extra",
                 "data.mix", "params from n_params", "done with a loss not finite (run 1e5)"):  # fmt: skip
        assert said in listed, said


@pytest.mark.parametrize("form", [json.dumps, str])
def test_an_export_of_wandbs_api_holds_dicts(tmp_path, form):
    """As wandb's documentation writes it: columns summary, config and name, the dicts in Python's words, or in JSON."""
    rows = [{"summary": form({"_wandb": {"runtime": 3}, "val_loss": 3.0 + k, "acc": float("nan")}), "name": f"run{k}",
             "config": form({"lr": {"value": 2.0**-k, "desc": None}, "model": {"n_layer": 2, "n_embd": 64}})}
            for k in range(3)]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "e.csv")
    table = read_export(tmp_path / "e.csv")
    assert table["loss"].tolist() == [3, 4, 5] and table["lr"].tolist() == [1, 0.5, 0.25]
    assert table["width"].eq(64).all() and table["depth"].eq(2).all() and list(table["run_id"]) == ["run0", "run1", "run2"]
    assert any("counts the rows" in line for line in table.attrs["listed"])


def test_two_columns_that_could_be_the_loss_are_asked_back(tmp_path):
    text = "lr,loss,val_loss\n1e-3,3.0,3.2\n2e-3,3.1,3.3\n"
    with pytest.raises(UserError, match=r"loss could be loss or val_loss: they differ in 2 rows.*columns\.loss=val_loss"):
        export(tmp_path, text)
    table = export(tmp_path, text, {"loss": "val_loss"})
    assert table["loss"].tolist() == [3.2, 3.3] and table["their_loss"].tolist() == [3.0, 3.1]
    assert export(tmp_path, text.replace("3.2", "3.0").replace("3.3", "")).loc[:, "loss"].tolist() == [3.0, 3.1]


def test_candidates_for_the_loss_are_all_named_and_quoted_for_the_shell(tmp_path):
    text = "lr,Loss (val),Eval Loss\n1e-3,3.0,3.2\n2e-3,3.1,3.3\n"
    with pytest.raises(UserError) as error:
        export(tmp_path, text)
    words = shlex.split(str(error.value).split("say ")[1].rstrip("."))
    assert words == ["columns.loss=Eval Loss", "or", "columns.loss=Loss (val)"]
    for word, first in ((words[0], 3.2), (words[2], 3.0)):
        assert export(tmp_path, text, parse([word])["columns"])["loss"][0] == first


def test_what_cannot_be_told_is_named_and_not_guessed(tmp_path):
    table = export(tmp_path, "lr,learning_rate,batch_size,gradient_accumulation_steps,total_batch_size,ppl,eval_loss\n"
                             "1e-3,2e-3,12,40,524288,20,3\n2e-3,2e-3,12,40,524288,21,3.1\n")  # fmt: skip
    assert not {"lr", "batch_size", "batch_tokens"} & set(table)  # not even under the name that they have
    assert table["their_lr"].tolist() == [1e-3, 2e-3] and table["their_batch_size"].eq(12).all()
    listed = "\n".join(table.attrs["listed"])
    assert (
        "lr could be lr or learning_rate: they differ in 1 rows" in listed and "of one micro-batch or of the step?" in listed
    )
    assert "total_batch_size: sequences" in listed
    assert table.attrs["listed"][0] == "taken: loss from eval_loss."


def test_no_loss_is_said(tmp_path):
    table = export(tmp_path, "lr,eval/c4/loss,eval/wiki/loss\n1e-3,3,4\n")
    assert "loss" not in table
    assert any("columns.loss=THEIRS" in line and "eval/c4/loss" in line for line in table.attrs["listed"])
    assert export(tmp_path, "lr,eval/c4/loss,eval/wiki/loss\n1e-3,3,4\n", {"loss": "eval/c4/loss"})["loss"][0] == 3


def test_a_column_twice_and_a_table_of_other_people(tmp_path):
    table = export(tmp_path, "lr,lr,loss\n1e-3,0,3\n2e-3,0,3.1\n")  # config and what was logged last
    assert any("lr could be lr or lr (2)" in line for line in table.attrs["listed"])
    with pytest.raises(UserError, match="has the column lr twice"):
        read_table(tmp_path / "e.csv")
    with pytest.raises(UserError, match="no column lrr; did you mean lr"):
        export(tmp_path, "lr,loss\n1e-3,3\n", {"lr": "lrr"})
    with pytest.raises(UserError, match="more cells"):
        export(tmp_path, "lr,loss\n1e-3,3,4\n1e-3,3,4\n")
    with pytest.raises(UserError, match="none of the columns is known"):
        export(tmp_path, "lr;loss\n1e-3;3\n")


@pytest.mark.parametrize("name, canonical", [
    ("config.optimizer.lr", "lr"), ("optim.peak_lr", "lr"), ("LearningRate", "lr"), ("max_lr", "lr"), ("train/lr", None),
    ("summary.lr", None), ("optimizer.weight_decay", "weight_decay"), ("wd", "weight_decay"),
    ("lr_scheduler_type", "schedule"),
    ("model.d_model", "width"), ("model.n_layer", "depth"), ("hidden_size", "width"), ("trainer.max_steps", "steps"),
    ("block_size", "context"), ("data.seq_len", "context"), ("global_batch_size", "batch_size"), ("eval/loss", "loss"),
    ("validation/loss", "loss"), ("final_val_loss", "loss"), ("Validation Loss", "loss"), ("train/loss", "train_loss"),
    ("config.loss", None), ("num_params", "params"), ("State", "status"), ("teacher.lr", None), ("model.name", None),
    ("optimizer.name", "optimizer"), ("eval/accuracy", None), ("hparams/seed", "seed"), ("model.seed", "seed"),
])  # fmt: skip
def test_names(name, canonical):
    assert read(name).canonical == canonical


def test_cells():
    values, bad = numbers(
        pd.Series(["1e-3", "125M", "2.6 b", "1,000,000", "1_000", "nan", "", None, "-inf", "fast", "1,5", "M"])
    )
    np.testing.assert_array_equal(values, [1e-3, 125e6, 2.6e9, 1e6, 1e3, np.nan, np.nan, np.nan, -np.inf, *[np.nan] * 3])
    assert list(bad[bad].index) == [9, 10, 11]
    assert as_dict("{'a': nan, 'b': [1, inf], 'c': 'nan'}") == {"a": "nan", "b": [1, "inf"], "c": "nan"}
    assert as_dict("__import__('os')") is None and as_dict("{1: open('x')}") is None and as_dict("[1]") is None


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=6)
cell = st.one_of(
    st.none(), words, st.floats(1e-3, 10).map(str),
    st.sampled_from(["", "nan", "1e-3", "125M", "{'a': 1}", "[1]", "finished", "NaN", "inf", "-1", "0"]),
)  # fmt: skip
column = st.one_of(
    st.sampled_from("Name State config.lr lr n_params val_loss tokens seed optimizer summary batch_size run_id".split()),
    st.text("abc._/ ", min_size=1, max_size=8),
)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_export_is_read_in_full_or_refused_in_words(tmp_path_factory, data):
    """Every row is there, and every column is taken, kept, or named."""
    names = data.draw(st.lists(column, min_size=1, max_size=6, unique_by=str.strip))
    rows = data.draw(st.integers(1, 5))
    frame = pd.DataFrame({name: data.draw(st.lists(cell, min_size=rows, max_size=rows)) for name in names})
    file = tmp_path_factory.mktemp("x") / "t.csv"
    frame.to_csv(file, index=False)
    try:
        table = read_export(file)
    except UserError as error:
        assert 1 <= len(str(error).splitlines()) <= 2
        return
    assert len(table) == rows or len(names) == 1  # a blank cell of one column is a blank line
    listed = "\n".join(table.attrs["listed"])
    said = {str(c).strip() for c in names if f"their_{c}".strip() not in table} - set(table)
    assert all(name in listed or any(c.startswith(f"{name}.") for c in table) for name in said if name), (said, listed)
    assert np.isfinite(table.select_dtypes("number").get("lr", pd.Series([1.0])).dropna()).all()


# ---- from the command line


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
