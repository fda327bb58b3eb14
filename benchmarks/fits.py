"""Speed of the fits, as ratios measured in one run. `python -m benchmarks.fits [--quick] [--json FILE]`

approach3_vs_scipy        the global fit of chinchilla_epoch (240 rows) here, against scipy's L-BFGS-B with its gradient
                          given, from the grid of 4,500 starts of the replication (arXiv 2404.10102): alpha, beta in
                          {0, .5, .., 2}, e in {-1, -.5, .., 1}, a, b in {0, 5, .., 25}. --quick: every 45th start,
                          scaled to all.
approach3_bootstrap_4000  seconds of analysis=loss on it with 4,000 resamples, everything that `hyperlaw fit` computes
steplaw_bootstrap_1000    seconds of analysis=lr_batch on steplaw_dense with 1,000 resamples (benchmarks/fits_steplaw.py)

Both sides in one process on one thread, in turn. Needs the published tables: HYPERLAW_PUBLISHED, by default
../shared/published.
"""

# ruff: noqa: E402
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before numpy: threads slow small arrays, scipy's side most
    os.environ.setdefault(_name, "1")

import argparse
import importlib
import itertools
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
from scipy.optimize import minimize

from analysis.fit import fit
from analysis.loss.huber import Rows
from analysis.loss.point import fit_point

EXPONENTS, FLOORS, COEFFICIENTS = np.arange(0, 2.01, 0.5), np.arange(-1, 1.01, 0.5), np.arange(0, 25.1, 5)
GRID = list(itertools.product(EXPONENTS, EXPONENTS, FLOORS, COEFFICIENTS, COEFFICIENTS))
QUICK = 45  # every so manieth start
SCALE = 1e4  # of the objective: at its own size L-BFGS-B takes 1e-3 for converged
DELTA = 1e-3


def published(name: str) -> Path:
    folder = Path(os.environ.get("HYPERLAW_PUBLISHED", Path(__file__).resolve().parents[2] / "shared" / "published"))
    file = folder / name / "runs.csv"
    if not file.is_file():
        sys.exit(f"{file} is not there: set HYPERLAW_PUBLISHED to the folder of the published tables.")
    return file


def chinchilla() -> pd.DataFrame:
    table = pd.read_csv(published("chinchilla_epoch"))
    return table[~table["epoch_outlier"]].rename(columns={"N": "params", "D": "tokens"})


def scipy_fit(table: pd.DataFrame, starts: list[tuple], gradient_given: bool = True) -> tuple[float, float]:
    """(lowest objective, seconds); without its gradient scipy takes differences, six evaluations a step. Written for
    itself: shares nothing with the fit that it is compared to."""
    n, d, y = (np.log(table[name].to_numpy()) for name in ("params", "tokens", "loss"))

    def value_and_gradient(theta: np.ndarray) -> tuple[float, np.ndarray]:
        alpha, beta, e, a, b = theta
        terms = np.stack([np.full_like(n, e), a - alpha * n, b - beta * d])
        top = terms.max(axis=0)
        powers = np.exp(terms - top)
        total = powers.sum(axis=0)
        residual = top + np.log(total) - y
        slope = np.clip(residual, -DELTA, DELTA)
        _, pa, pb = shares = powers / total * slope
        gradient = [-(pa @ n), -(pb @ d), *shares.sum(axis=1)]
        return SCALE * float((slope * (residual - 0.5 * slope)).sum()), SCALE * np.array(gradient)

    lowest = np.inf
    begin = time.perf_counter()
    for start in starts:
        if gradient_given:
            found = minimize(value_and_gradient, np.array(start), jac=True, method="L-BFGS-B")
        else:
            found = minimize(lambda theta: value_and_gradient(theta)[0], np.array(start), method="L-BFGS-B")
        lowest = min(lowest, found.fun)
    return lowest / SCALE, time.perf_counter() - begin


def ours(table: pd.DataFrame) -> tuple[float, float]:
    begin = time.perf_counter()
    point = fit_point(Rows.of(table["params"], table["tokens"], table["loss"], DELTA))
    return point.value, time.perf_counter() - begin


def approach3(quick: bool) -> dict:
    table = chinchilla()
    starts = GRID[::QUICK] if quick else GRID
    ours(table)  # the first call loads libraries
    times, value = [], np.inf
    for _ in range(7):
        value, seconds = ours(table)
        times.append(seconds)
    lowest, seconds = scipy_fit(table, starts)
    times += [ours(table)[1] for _ in range(4)]  # before and after: another load of the machine shows
    whole = seconds * len(GRID) / len(starts)
    ratios = sorted(whole / each for each in times)
    without = scipy_fit(table, GRID[:: 2 * QUICK], gradient_given=False)[1] * 2 * QUICK
    begin = time.perf_counter()
    fit(table, "loss", {"bootstrap": 4000})
    bootstrap = time.perf_counter() - begin
    scaled = f"scipy on {len(starts)} of {len(GRID)} starts, scaled" if quick else f"scipy on all {len(GRID)} starts"
    return {
        "ratio": {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1], "n": len(ratios)},
        "seconds": bootstrap,
        "detail": {
            "baseline": scaled, "scipy_seconds": whole, "ours_seconds": statistics.median(times),
            "scipy_objective": lowest, "ours_objective": value, "no_worse": bool(value <= lowest * (1 + 1e-9)),
            "scipy_seconds_without_gradient": without,  # every 90th start, scaled
        },
    }  # fmt: skip


def steplaw() -> float | None:
    """Seconds, or None where that benchmark is not there."""
    try:
        module = importlib.import_module("benchmarks.fits_steplaw")
    except ModuleNotFoundError as error:
        if error.name != "benchmarks.fits_steplaw":
            raise
        return None
    return float(module.seconds()["steplaw_bootstrap_1000"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the baseline on every 45th start, scaled")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    third = approach3(arguments.quick)
    report = {
        "ratios": {"approach3_vs_scipy": third["ratio"]},
        "seconds": {"approach3_bootstrap_4000": third["seconds"], "steplaw_bootstrap_1000": steplaw()},
        "approach3": third["detail"],
        "device": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__,
                     "pandas": pd.__version__},
        "quick": arguments.quick,
    }  # fmt: skip
    detail, ratio = report["approach3"], third["ratio"]
    print(f"approach 3, chinchilla_epoch: ours {detail['ours_seconds']:.3f} s; {detail['baseline']}: "
          f"{detail['scipy_seconds']:.0f} s (without its gradient {detail['scipy_seconds_without_gradient']:.0f} s)")
    print(f"  {ratio['median']:.0f} times faster ({ratio['min']:.0f} to {ratio['max']:.0f} in {ratio['n']} runs); objective "
          f"{detail['ours_objective']:.9e} against {detail['scipy_objective']:.9e}")  # fmt: skip
    print(f"analysis=loss with 4,000 resamples: {third['seconds']:.2f} s")
    step = report["seconds"]["steplaw_bootstrap_1000"]
    print("steplaw_dense with 1,000 resamples: " + ("not measured" if step is None else f"{step:.2f} s"))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
