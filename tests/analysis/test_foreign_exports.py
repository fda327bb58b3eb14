"""Exports in many spellings, and what a failed run says of divergence."""

import json
import shlex

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import UserError
from analysis.foreign import read_export
from analysis.foreign.cells import as_dict, numbers
from analysis.foreign.names import read
from analysis.request import parse
from analysis.table import read_table


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
