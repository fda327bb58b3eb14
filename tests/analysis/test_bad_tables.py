"""Bad tables, under every analysis: a clear line or a verdict; never a silent number, a NaN in the JSON, or a traceback."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from analysis import command
from analysis.canonical import derive
from analysis.errors import UserError
from analysis.fit import MODULES, fit

from .minimal import MINIMAL

ANALYSES = tuple(MODULES)
TABLES = {name: minimal.make() for name, minimal in MINIMAL.items()}
every = pytest.mark.parametrize("analysis", ANALYSES)
rows_are_runs = pytest.mark.parametrize("analysis", [a for a in ANALYSES if a != "curves"])


def test_every_analysis_has_a_table():
    assert set(MODULES) <= set(MINIMAL)


# ---- what every answer must be


def sane(result):
    """JSON without NaN, ordered intervals, words beside whatever is missing, and text that can be printed."""
    json.dumps([result.laws, result.optima], allow_nan=False)
    json.dumps(command.as_json(result), allow_nan=False)
    assert command.as_text(result).strip()
    for law in result.laws:
        for name, entry in law["parameters"].items():
            ends = [entry[k] for k in ("low", "value", "high") if entry.get(k) is not None]
            assert ends == sorted(ends), (law["name"], name, entry)
            assert entry["value"] is not None or law.get("notes") or result.notes
    for optimum in result.optima:
        assert (optimum["value"] is None) == (optimum["verdict"] != "interior")
    assert result.laws or result.notes
    return result


def values(result):
    """{(law, given, parameter): value} of laws that say something."""
    return {(i, law["name"], parameter): entry["value"]
            for i, law in enumerate(result.laws) for parameter, entry in law["parameters"].items()
            if entry["value"] is not None}  # fmt: skip


def run(table, analysis, **options):
    return sane(fit(table, analysis, {**MINIMAL[analysis].options, **options}))


def outcome(table, analysis, **options):
    """(result or None, the lines that a reader gets)."""
    try:
        result = run(table, analysis, **options)
    except UserError as error:
        assert 1 <= len(str(error).splitlines()) <= 2 and len(str(error)) > 15, error
        return None, str(error)
    return result, " ".join([*result.notes, *(n for law in result.laws for n in law.get("notes") or [])])


def same(a, b, rel=1e-6):
    assert a.keys() == b.keys() and a
    assert all(math.isclose(a[key], b[key], rel_tol=rel, abs_tol=1e-9) for key in a), (a, b)


@every
def test_the_table_itself_is_good(analysis, tmp_path):
    result = run(TABLES[analysis], analysis)
    assert values(result) and all(np.isfinite(list(values(result).values())))
    assert any(law["heldout"].get("n") for law in result.laws)
    assert len(command.save(result, tmp_path)) > 1  # laws.json and figures


# ---- columns


@every
def test_a_missing_column_is_named(analysis):
    for name in MINIMAL[analysis].needs:
        result, words = outcome(TABLES[analysis].drop(columns=name), analysis)
        assert name in words, (name, words)
        assert name not in [p for law in (result.laws if result else []) for p in law["parameters"]]


@every
def test_words_where_numbers_belong(analysis):
    for name in [n for n in MINIMAL[analysis].needs if n != "run_id"]:
        with pytest.raises(UserError, match=name) as error:
            run(TABLES[analysis].assign(**{name: "fast"}), analysis)
        assert "fast" in str(error.value)


@every
def test_numbers_in_words_are_numbers(analysis):
    texts = TABLES[analysis].assign(**{n: TABLES[analysis][n].map(lambda x: f"{x!r}", na_action="ignore")
                                       for n in MINIMAL[analysis].needs if n != "run_id"})  # fmt: skip
    same(values(run(texts, analysis)), values(run(TABLES[analysis], analysis)))


@every
@pytest.mark.parametrize("bad", [-1.0, 0.0, np.inf])
def test_sizes_that_cannot_be(analysis, bad):
    for name in [n for n in MINIMAL[analysis].needs if n not in ("run_id", "loss", "step")]:
        table = TABLES[analysis].copy()
        table[name] = table[name].where(table.index != table.index[5], bad)
        result, words = outcome(table, analysis)
        assert name in words or (analysis == "curves" and bad == 0), (name, words)


# ---- rows


@every
def test_no_rows(analysis):
    with pytest.raises(UserError):
        run(TABLES[analysis][:0], analysis)


@every
def test_one_row(analysis):
    result, words = outcome(TABLES[analysis][:1], analysis)
    assert words and (result is None or not values(result))


@every
def test_one_scale_gives_no_law(analysis, tmp_path):
    table = TABLES[analysis]
    result, words = outcome(table[MINIMAL[analysis].scale(table)], analysis)
    assert words and (result is None or not values(result)), result and result.laws
    if result is not None:
        assert command.save(result, tmp_path)


@every
def test_a_predictor_that_does_not_vary_is_said(analysis):
    result, words = outcome(MINIMAL[analysis].constant(TABLES[analysis]), analysis)
    assert words
    assert result is None or not any(math.isclose(abs(v), 0, abs_tol=1e-12) for v in values(result).values())


@every
def test_repeated_rows_are_used_once_or_named(analysis):
    table = TABLES[analysis]
    twice = pd.concat([table, table.iloc[:: max(len(table) // 10, 1)]], ignore_index=True)
    result, words = outcome(twice, analysis)
    assert "repeat" in words
    same(values(result), values(run(table, analysis)))


@rows_are_runs
def test_all_diverged_gives_no_law(analysis, tmp_path):
    for table in (TABLES[analysis].assign(status="diverged", loss=np.nan), TABLES[analysis].assign(loss=np.inf)):
        result, words = outcome(table, analysis)
        assert words and (result is None or not values(result))
        if result is not None:
            assert command.save(result, tmp_path)


def test_curves_that_all_diverged():
    result, words = outcome(TABLES["curves"].assign(loss=np.inf), "curves")
    assert "diverged" in words and not values(result)


@every
def test_missing_losses_are_counted_and_change_nothing_else(analysis):
    table = TABLES[analysis]
    some = table["loss"].notna() & (np.arange(len(table)) % 17 == 9)
    result, words = outcome(table.assign(loss=table["loss"].mask(some)), analysis)
    if analysis == "curves":  # rows without a loss are the rule there
        return
    assert f"{int(some.sum())} rows" in words and "loss" in words, words
    same(values(result), values(run(table[~some], analysis)))


@every
def test_no_loss_at_all(analysis):
    result, words = outcome(TABLES[analysis].assign(loss=np.nan), analysis)
    assert "loss" in words and (result is None or not values(result))


@every
@pytest.mark.parametrize("bad", [-1.0, 0.0, -np.inf])
@pytest.mark.parametrize("status", ["done", None])
def test_losses_that_cannot_be(analysis, status, bad):
    table = TABLES[analysis].drop(columns="status", errors="ignore")
    table = table if status is None else table.assign(status=status)
    table["loss"] = table["loss"].where(table.index != table["loss"].first_valid_index(), bad)
    with pytest.raises(UserError, match="loss"):
        run(table, analysis)


@every
def test_infinite_losses_are_diverged(analysis):
    table = TABLES[analysis].copy()
    table["loss"] = table["loss"].where(table.index != table["loss"].first_valid_index(), np.inf)
    result, words = outcome(table.drop(columns="status", errors="ignore"), analysis)
    assert result is not None and values(result)
    marked = table.assign(status=np.where(np.isinf(table["loss"]), "diverged", "done"))
    if analysis != "curves":
        same(values(result), values(run(marked, analysis)))


@rows_are_runs
def test_done_with_an_infinite_loss_is_counted(analysis):
    table = TABLES[analysis].assign(status="done")
    table["loss"] = table["loss"].where(table.index != table["loss"].first_valid_index(), np.inf)
    result, words = outcome(table, analysis)
    assert "1 rows are done with an infinite loss: taken as diverged" in words


# ---- where=


@rows_are_runs
@pytest.mark.parametrize("bad, keeps", [(np.inf, "< 1e300"), (0.0, "> 0"), (-1.0, "> 0"), ("oops", None)])
def test_where_mends_a_table(analysis, bad, keeps):
    """The advice of the refusal works: by the bad number itself, or by anything else of its row."""
    good = TABLES[analysis]
    row = len(good) // 2 + 1
    without = values(run(good.drop(index=good.index[row]), analysis, bootstrap=0))
    zero = ("weight_decay",) if bad == 0 else ()  # may be 0
    for name in [n for n in MINIMAL[analysis].needs if n not in ("run_id", "loss", *zero)] + ["loss"] * (bad == "oops"):
        table = good.astype({name: object}) if bad == "oops" else good.astype({name: float})
        table.loc[table.index[row], name] = bad
        with pytest.raises(UserError, match=rf"{name} is .* in 1 of {len(table)} rows"):
            run(table, analysis)
        with pytest.raises(UserError, match=rf"{name} is .* in 1 of {len(table) - 1} rows"):
            run(table, analysis, where="index != 0")
        for where in [f"index != {row}"] + [f"{name} {keeps}"] * (keeps is not None):
            same(values(run(table, analysis, where=where, bootstrap=0)), without)


def test_where_mends_a_status_and_weight_decay():
    table = TABLES["lr"].assign(weight_decay=0.1)
    table.loc[3, "weight_decay"], table.loc[4, "status"] = -0.5, "asleep"
    for where, words in (("index != 4", "weight_decay is below 0"), ("weight_decay >= 0", "status holds 'asleep'")):
        with pytest.raises(UserError, match=words):
            run(table, "lr", where=where)
    assert values(run(table, "lr", where="weight_decay >= 0 and status != 'asleep'"))


def test_a_number_out_of_range_is_kept_for_the_filter_and_derives_nothing():
    table = pd.DataFrame({"params": [1e6, np.inf], "tpp": [20.0, 20.0], "tokens": [0.0, 2e7], "loss": 2.0})
    df = derive(table)[0]
    assert df["tokens"].tolist() == [0, 2e7] and df["params"].tolist() == [1e6, np.inf]
    assert "flops" not in df or not np.isinf(df["flops"]).any()


def test_numbers_in_peoples_words_are_sent_to_the_reader_that_knows_them():
    table = TABLES["lr"]
    with pytest.raises(UserError, match=r"tokens is not a number in \d+ of \d+ rows, for instance '2.5B'.\n.*csv=FILE"):
        run(table.assign(tokens="2.5B"), "lr")
    with pytest.raises(UserError) as error:
        run(table.assign(tokens="many"), "lr")
    assert "csv=" not in str(error.value)


def test_a_mark_of_duplicates_parts_no_slice_and_is_named():
    table = TABLES["lr"]
    twice = table.iloc[::9].assign(loss=lambda t: t["loss"] + 1e-5)
    both = pd.concat([table, twice], ignore_index=True)
    both["duplicate_run"] = np.arange(len(both)) >= len(table)
    result, words = outcome(both, "lr")
    assert len(result.optima) == len(run(table, "lr").optima)
    assert f"duplicate_run: {len(twice)} of {len(both)} rows are likely marked as listed twice" in words
    alone, words = outcome(both, "lr", where="not duplicate_run")
    assert "duplicate" not in words
    same(values(alone), values(run(table, "lr")))


# ---- what must not matter


@every
@pytest.mark.parametrize("seed", [1])
def test_the_order_of_rows_does_not_matter(analysis, seed):
    table = TABLES[analysis]
    shuffled = table.sample(frac=1, random_state=seed)
    if analysis == "curves":  # the order of the runs says which is held out, where all are of one length
        shuffled = pd.concat([run.sample(frac=1, random_state=seed) for _, run in table.groupby("run_id", sort=False)])
    a, b = run(table, analysis), run(shuffled, analysis)
    same(values(a), values(b))
    for one, other in zip(a.laws, b.laws, strict=True):
        for name, entry in one["parameters"].items():
            if entry.get("low") is not None and entry["high"] > entry["low"]:
                width = other["parameters"][name]["high"] - other["parameters"][name]["low"]
                assert 0.4 < width / (entry["high"] - entry["low"]) < 2.5
        if one["heldout"].get("mean_abs_log_error") is not None:
            error = other["heldout"]["mean_abs_log_error"]
            assert error == pytest.approx(one["heldout"]["mean_abs_log_error"], rel=1e-4, abs=1e-9)


@every
def test_names_of_columns_do_not_matter(analysis):
    table = TABLES[analysis]
    needs = MINIMAL[analysis].needs
    theirs = table.rename(columns={name: f"their {name}" for name in needs})
    a = run(theirs, analysis, columns={name: f"their {name}" for name in needs})
    same(values(a), values(run(table, analysis)))


@every
def test_units_scale_and_exponents_stay(analysis):
    minimal = MINIMAL[analysis]
    table = TABLES[analysis]
    scaled = table.assign(**{name: table[name] * factor for name, factor in minimal.units.items()})
    a, b = values(run(table, analysis)), values(run(scaled, analysis))
    kept = {key for key in a if key[2] in minimal.same}
    assert kept or not minimal.same
    same({key: a[key] for key in kept}, {key: b[key] for key in kept}, rel=1e-3)
    assert a.keys() == b.keys()


# ---- anything at all

cell = st.one_of(
    st.none(), st.sampled_from([0.0, -1.0, 1e-3, 2e-3, 1.0, 2.0, 3.0, 1e6, 1e300, 1e-300, np.inf]), st.floats(1e-6, 1e9)
)
NAMES = "params tokens lr batch_size context weight_decay tau loss seed steps lr_adjusted flops step run_id tpp".split()


@every
@settings(max_examples=8, deadline=None, derandomize=True, database=None,
          phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_table_is_fitted_or_refused_in_words(analysis, data):
    """The good table with random cells spoilt, or columns of random cells alone."""
    table = TABLES[analysis].copy()
    numeric = [name for name in table if pd.api.types.is_numeric_dtype(table[name])]
    table = table.astype(dict.fromkeys(numeric, float))
    if data.draw(st.booleans()):
        names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=8, unique=True))
        names = list(dict.fromkeys([*names, *data.draw(st.sampled_from([(), MINIMAL[analysis].needs]))]))
        rows = data.draw(st.integers(1, 12))
        table = pd.DataFrame({name: data.draw(st.lists(cell, min_size=rows, max_size=rows)) for name in names})
    else:
        for _ in range(data.draw(st.integers(1, 6))):
            row, name = data.draw(st.sampled_from(list(table.index[:40]))), data.draw(st.sampled_from(numeric))
            table.loc[row, name] = data.draw(cell)
    options = [{}, {"bootstrap": 0}, {"heldout": None}]
    if analysis in ("lr", "tau", "weight_decay", "batch", "lr_batch"):
        options += [{"estimator": "argmin"}, {"lr_adjusted": "lr"}, {"window": 0.1, "bootstrap": 0}]
    outcome(table, analysis, **data.draw(st.sampled_from(options)))


# ---- many rows (every analysis: benchmarks/big_tables.py)


def test_a_million_rows():
    """IsoFLOP curves of 28,000 seeds each."""
    table = TABLES["isoflop"]
    many = table.loc[table.index.repeat(1_000_000 // len(table))].reset_index(drop=True)
    many["loss"] *= np.exp(1e-3 * np.random.default_rng(0).standard_normal(len(many)))
    many["run_id"] = np.arange(len(many)).astype(str)
    few, lots = values(run(table, "isoflop")), values(run(many, "isoflop"))
    same(few, {key: lots[key] for key in few}, rel=0.05)


def test_two_hundred_thousand_rows():
    """Forty scales, each with 5,000 runs: grouped and fitted in seconds."""
    rng = np.random.default_rng(0)
    n = np.repeat(np.geomspace(1e6, 1e9, 40), 5_000)
    lr = 2.0 ** rng.integers(-14, -4, len(n)).astype(float)
    loss = 2 + 0.01 * np.log2(lr / (3 * n**-0.35)) ** 2 + 0.01 * rng.standard_normal(len(n))
    result = run(pd.DataFrame({"params": n, "tokens": 20 * n, "lr": lr, "loss": loss}), "lr", stage="two", compare=False)
    assert result.laws[0]["parameters"]["params"]["value"] == pytest.approx(-0.35, abs=0.005)
