"""Zhang et al. (arXiv 2410.21676): the critical batches and laws of their notebook, from its 45 published steps."""

import numpy as np
import pytest
from scipy import optimize

from analysis.fit import fit
from analysis.table import read_table

COLUMNS = {"params": "N", "batch_size": "batch_seqs", "tokens": "D_chinchilla"}
REPORTED = [745.32, 955.16, 1393.73, 1888.52, 2533.41]


def law_of(published, **options):
    table = read_table(published("critical_batch_zhang"), COLUMNS)
    result = fit(table, "critical_batch", {"columns": COLUMNS, "bootstrap": 0, **options})
    return result, result.laws[0]["parameters"]


def show(what, ours, reported, tolerance):
    print(f"zhang, {what}: ours {ours:.6f}, reported {reported}, tolerance {tolerance}")
    assert ours == pytest.approx(reported, abs=tolerance), what


def test_overhead_recovers_their_list_and_law(published):
    result, parameters = law_of(published, definition="overhead", predictors=["params"])
    for optimum, reported in zip(result.optima, REPORTED, strict=True):
        show(f"critical batch at N = {optimum['given']['params']:.3g}", optimum["value"], reported, 0.005)
    show("exponent of params", parameters["params"]["value"], 0.468278, 5e-7)
    at_a_million = parameters["coefficient"]["value"] * 1e6 ** parameters["params"]["value"]
    show("coefficient, N in millions", at_a_million, 93.1968, 5e-5)


def test_plain_fit_of_their_law(published):
    result, _ = law_of(published, definition="overhead")
    n = np.array([o["given"]["params"] for o in result.optima]) / 1e6
    batches = [o["value"] for o in result.optima]
    (coefficient, exponent), _ = optimize.curve_fit(lambda x, k, e: k * x**e, n, batches, p0=(90, 0.5))
    show("plain fit, coefficient", coefficient, 99.51, 0.005)
    show("plain fit, exponent", exponent, 0.4576, 5e-5)


def test_overhead_against_tokens(published):
    _, parameters = law_of(published, definition="overhead")
    show("exponent of Chinchilla's D", parameters["tokens"]["value"], 0.4682, 5e-5)


def test_mccandlish_scales_otherwise(published):
    """B_crit = b/a of the same fits: N^(0.619 +- 0.030), so the definition matters."""
    result, parameters = law_of(published, predictors=["params"])
    show("McCandlish exponent of params", parameters["params"]["value"], 0.619, 0.030)
    spread = np.std([np.log(o["given"]["params"]) for o in result.optima]) * np.sqrt(len(result.optima))
    show("its standard error by ordinary least squares", result.laws[0]["scatter"] / spread, 0.030, 0.0005)
    overhead, _ = law_of(published, definition="overhead")
    for a, b in zip(result.optima, overhead.optima, strict=True):
        assert b["value"] == pytest.approx(1.2 * 256 + 0.2 * a["value"], rel=1e-9)


def test_what_moves_together_is_said(published):
    result, _ = law_of(published, definition="overhead")
    assert any("move together" in note for note in result.notes)
    law = result.laws[0]
    assert law["unit"] == "sequences of 512 tokens" and law["given"]["definition"] == "overhead" and law["n"] == 5
    assert law["heldout"]["n"] == 1 and 0 < law["heldout"]["mean_abs_log_error"] < 0.1
    assert law["coefficient_in_tokens"] == pytest.approx(512 * law["parameters"]["coefficient"]["value"])


def test_a_linear_fit_of_steps_is_no_recovery(published):
    """Negative control: least squares of S itself sees small batches alone, and gives N^0.24."""
    frame = read_table(published("critical_batch_zhang"))
    batches = []
    for _, rows in frame.groupby("N"):
        design = np.stack([np.ones(len(rows)), 1 / rows["batch_seqs"]], axis=1)
        a, b = np.linalg.lstsq(design, rows["steps_to_target"], rcond=None)[0]
        batches.append(b / (5 * a) + 307.2)
    slope = np.polyfit(np.log(sorted(frame["N"].unique())), np.log(batches), 1)[0]
    print(f"zhang, control without logs: exponent {slope:.3f}, not 0.468")
    assert abs(slope - 0.468278) > 0.1
