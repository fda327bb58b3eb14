"""Words of a command line: what stands as it is, what follows Hydra's grammar; and the names a notebook imports."""

import inspect

import pytest

from analysis.errors import UserError
from analysis.request import options, parse


def test_words():
    got = parse(["analysis=lr", "analysis.window=none", "columns.params=N", "predictors=[params,tokens]",
                 'where=params < 1.6e9 and optimizer == "adamw"', "bootstrap=50", "out='my laws'"])  # fmt: skip
    assert got == {"analysis": "lr", "window": "none", "columns": {"params": "N"}, "predictors": ["params", "tokens"],
                   "where": 'params < 1.6e9 and optimizer == "adamw"', "bootstrap": 50, "out": "my laws"}  # fmt: skip


@pytest.mark.parametrize(("word", "value"), [("0.3", 0.3), ("params > 1e9", "params > 1e9"), ("none", "none")])
def test_heldout_is_a_share_or_a_condition(word, value):
    assert parse([f"heldout={word}"]) == {"heldout": value}


@pytest.mark.parametrize("words", [["nonsense"], ["a=1", "a=2"], ["predictors=a,b"], ["predictors=[a"]])
def test_what_is_no_key_and_value_is_named(words):
    with pytest.raises(UserError):
        parse(words)


def test_given_keys_lie_over_the_defaults_of_the_analysis():
    assert options("tau", {"level": 0.9})["level"] == 0.9 and "estimator" in options("tau", {})


def test_a_notebook_finds_the_functions_whatever_was_imported_before():
    import analysis
    import analysis.fit
    import analysis.recommend  # noqa: F401

    assert inspect.isfunction(analysis.fit) and inspect.isfunction(analysis.recommend)
