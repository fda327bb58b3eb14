"""Words of a command line that concern long tables, and what is printed and drawn of their fits."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from analysis.command import as_text
from analysis.command import fit as command_fit
from analysis.curves.options import Options
from analysis.errors import UserError
from analysis.request import parse
from tests.analysis.curves.test_collapse import planted


def run(*words):
    return command_fit(parse(["analysis=curves", *words]))


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        ("[4e10,7]", ["4e10", "7"]),
        ("[1e3]", ["1e3"]),
        ("[1_000]", ["1_000"]),
        ("[true, 007 ,12.0]", ["true", "007", "12.0"]),
        ("['a b',\"c,d\"]", ["a b", "c,d"]),
        ("2e5", ["2e5"]),
        ("[]", []),
        ("null", None),
    ],
)
def test_run_ids_are_text(value, ids):
    got = parse([f"fit_runs={value}", f"analysis.heldout_runs={value}"])
    assert got == {"fit_runs": ids, "heldout_runs": ids}
    assert Options.from_dict(got).fit_runs == (ids or [])


@pytest.mark.parametrize("value", ["a,b", "[a,b", "[[a],b]", "[a,,b]", "['a,b]"])
def test_what_is_no_list_of_run_ids(value):
    with pytest.raises(UserError, match="brackets|no list of run ids|empty run id"):
        parse([f"fit_runs={value}"])


def test_run_ids_of_python():
    assert Options.from_dict({"fit_runs": [127, 12.0, "1e3"]}).fit_runs == ["127", "12", "1e3"]
    with pytest.raises(UserError, match="list of run ids"):
        Options.from_dict({"fit_runs": [True]})


def test_hashes_with_one_e_are_found_in_a_table(tmp_path):
    table = planted(sizes=4, tpp=(20.0,)).replace({"run_id": {"20/0": "4e10", "20/1": "7", "20/2": "x", "20/3": "1_000"}})
    table.to_csv(tmp_path / "t.csv", index=False)
    result = run(f"table={tmp_path / 't.csv'}", "fit_runs=[x,7]", "heldout_runs=[4e10,1_000]", "bootstrap=0")
    assert set(next(iter(result.tables.values()))["run"].astype(str)) == {"4e10", "1_000"}


def test_step_and_total_steps_may_have_other_names(tmp_path):
    table = planted(sizes=4, tpp=(20.0,))
    table["planned"] = table.groupby("run_id")["step"].transform("max")
    table.rename(columns={"step": "iteration"}).to_csv(tmp_path / "t.csv", index=False)
    words = (f"table={tmp_path / 't.csv'}", "columns.step=iteration", "columns.total_steps=planned", "law=collapse")
    result = run(*words)
    text = as_text(result)
    assert len(result.tables) == 2 and "no law" not in text and "total_steps" not in text
    table.rename(columns={"step": "iteration"}).assign(planned=0).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(UserError, match="total_steps is not above 0"):
        run(*words)


def test_the_loss_law_takes_unique_tokens_by_another_name(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for params in np.geomspace(1e7, 1e9, 6):
        for unique in (1e8, 1e9, 1e10):
            for epochs in (1, 2, 4, 16, 40):
                seen = unique + unique * 15 * (1 - np.exp(-(epochs - 1) / 15))
                loss = 1.7 + 400 / params**0.34 + 900 / seen**0.31
                rows.append((params, unique * epochs, unique, loss * np.exp(rng.normal(0, 1e-3))))
    pd.DataFrame(rows, columns=["params", "tokens", "corpus", "loss"]).to_csv(tmp_path / "t.csv", index=False)
    words = ["analysis=loss", f"table={tmp_path / 't.csv'}", "form=data_constrained", "bootstrap=20"]
    with pytest.raises(UserError, match="unique_tokens"):
        command_fit(parse(words))
    result = command_fit(parse([*words, "columns.unique_tokens=corpus"]))
    values = {k: p["value"] for k, p in result.laws[0]["parameters"].items()}
    assert values["E"] == pytest.approx(1.7, rel=0.1) and values["beta"] == pytest.approx(0.31, rel=0.1)


def test_step_labels_of_small_panels_do_not_touch(tmp_path):
    """Five-digit steps, two panels side by side."""
    table = planted(sizes=4, tpp=(20.0,))
    table["step"] *= 25
    table["run_id"] = table["run_id"].str.replace("20/", "a", regex=False)
    result = command_fit_of(table, tmp_path, "heldout_runs=[a0]")
    fig = result.figures["curves_annealing"](tmp_path / "f.png")
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw(renderer)
    panels = [ax for ax in fig.axes if ax.get_xlabel() == "step"]
    assert len(panels) == 2
    for ax in panels:
        boxes = [t.get_window_extent(renderer) for t in ax.get_xticklabels() if t.get_text() and t.get_visible()]
        assert 2 <= len(boxes) <= 6 and any("k" in t.get_text() for t in ax.get_xticklabels())
        assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))


def command_fit_of(table, folder, *words):
    table.to_csv(folder / "t.csv", index=False)
    return run(f"table={folder / 't.csv'}", "bootstrap=20", *words)


def test_a_step_below_0_is_refused_where_it_is_read():
    from analysis.canonical import canonical

    with pytest.raises(UserError, match="step is below 0"):
        canonical(pd.DataFrame({"step": [-1, 2], "loss": [3.0, 2.0]}))
