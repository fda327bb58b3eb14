"""What `fit` prints: every verdict and number in lines that a terminal holds."""

import json
import math

import numpy as np

from analysis import report


def optimum(params, verdict="interior", value=0.004, **extra):
    return {
        "analysis": "lr",
        "target": "lr",
        "given": {"params": params, "tokens": 1.3e6, "parameterization": "standard"},
        "held": {"batch_size": 8, "tau": 0.3},
        "value": value,
        "low": 0.003,
        "high": 0.005,
        "verdict": verdict,
        "loss": 2.34567,
        "n": 7,
        **extra,
    }


def law(**extra):
    return {
        "analysis": "lr",
        "name": "lr",
        "given": {"parameterization": "standard", "tokens": 1.3e6},
        "form": "coefficient * params^params",
        "parameters": {
            "coefficient": {"value": 2.5, "low": 1.0, "high": 6.0},
            "params": {"value": -0.55, "low": -0.71, "high": -0.39},
        },
        "r2": 0.97,
        "n": 4,
        "heldout": {"n": 1, "mean_abs_log_error": math.log(1.2), "mean_excess_loss": 0.0021},
        "behind": {"params": ["flops"]},
        **extra,
    }


def test_optima_show_what_differs_and_mark_what_enters_no_law():
    rows = [optimum(29400), optimum(63000, "edge", 1e-5), optimum(108000, heldout=True), optimum(5e5, "too_few", None)]
    text = report.as_text([law()], rows, ["one line", "one line"])
    lines = text.splitlines()
    assert lines[0] == "optima at tokens 1.3M, parameterization standard, batch_size 8, tau 0.3"
    assert lines[1].split()[:3] == ["params", "best", "lr"]
    assert lines[2].split() == ["29.4k", "0.004", "0.003", "..", "0.005", "interior", "2.3457", "7"]
    assert "(1e-05)" in lines[3] and "edge" in lines[3] and ".." not in lines[3]
    assert "held out" in lines[4] and "too_few" in lines[5]
    assert "2 of 4 are interior" in text and text.count("one line") == 1


def test_a_law_shows_intervals_quality_and_what_stands_behind():
    text = report.law_lines(law())
    for words in (
        "2.5 * params^-0.550",
        "[-0.71 .. -0.39]",
        "R2 0.970",
        "4 optima",
        "20 % off",
        "0.0021 nats",
        "flops",
    ):
        assert words in text
    other = {"name": "loss", "form": "E + A / N^alpha", "parameters": {"E": {"value": 1.8, "low": 1.7, "high": 1.9}}}
    assert "E 1.8 [1.7 .. 1.9]" in report.law_lines(other)
    none = law(parameters={"coefficient": {"value": None}}, notes=["two optima are no law."])
    assert report.law_lines(none) == "lr: no law. two optima are no law."


def test_lines_fit_a_terminal():
    wide = [optimum(10.0**i, given={f"column_{k}": 10.0**i * k for k in range(1, 14)}) for i in range(4, 8)]
    text = report.as_text([law(given={f"setting_{k}": "value" * 3 for k in range(20)})], wide, ["word " * 60])
    assert max(map(len, text.splitlines())) < 120
    assert "and 40 more" in report.as_text([], [optimum(1e5 * i) for i in range(1, 101)])


def test_json_holds_finite_numbers_only():
    content = report.as_json([law(r2=math.nan, covariance=np.eye(2))], [optimum(1e5, value=np.float64("inf"))], ["n"])
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["laws"][0]["r2"] is None and content["optima"][0]["value"] is None and content["notes"] == ["n"]
