"""Refine against a full grid: the interval on the extrapolated optimum, at what share of the grid's FLOPs?

    python -m benchmarks.refine [--quick] [--json FILE]

50 planted sweeps (benchmarks/planted_sweeps.py; --quick: 20), none of which had a part in choosing the strategy's constants:
the full grid, and sweep.strategy=refine with its default budget, both through the analysis of `hyperlaw fit`. Of each the
width of the 80 % prediction interval at four times the largest model, natural log; whether it holds the truth, and the error
of its middle. Then one real sweep: small models on markov data, fp32; the grid is trained, and refine takes the runs that
both have from it.

Ratios: refine_flops and refine_interval, refine / grid; the same of the real sweep as real_flops and real_interval.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import pandas as pd

from analysis.fit import fit
from analysis.predict import predict
from analysis.table import read_runs
from benchmarks.planted_sweeps import FACTS, draw, table
from benchmarks.report import command_line, finish
from harness.compose import compose
from sweeps.expand import expand_members
from sweeps.launch import prepare_plan, run_plan
from sweeps.refine import begin, choose_round

WORKERS = 2
FIRST = 4000  # of the planted sweeps here: earlier ones are for choosing constants, and for tests
OPTIONS = {"stage": "two", "bootstrap": 0, "compare": False}  # the law itself; what stands beside it takes its time


def extrapolated(runs: pd.DataFrame, analysis: str, target: dict) -> tuple[float, float]:
    """(log of the law at the target, width of its interval in natural log); infinite where there is no law."""
    laws = fit(runs, analysis, OPTIONS).laws
    if not laws:
        return math.nan, math.inf
    p = predict(laws[-1], target)
    return math.log(p.value), math.log(p.high / p.low) if p.low > 0 and math.isfinite(p.high) else math.inf


def planted(i: int) -> dict:
    """The i-th planted sweep both ways."""
    request, truth = draw(i)
    grid = expand_members(request, FACTS)
    state = begin(request, grid, FACTS, Path("never written"))
    while entries := choose_round(state, truth.loss, WORKERS)[0]:
        for entry in entries:
            state.add(entry)
        state.rounds.append(entries)
    expected = truth.log_at(state.target)
    found = {"sweep": i, "law": truth.name, "basin": truth.basin, "flops": state.spent / state.whole,
             "points": [len(grid), len(state.members)], "rounds": 1 + len(state.rounds)}  # fmt: skip
    for way, members in (("grid", grid), ("refine", state.members.values())):
        value, width = extrapolated(table(members, truth), truth.analysis, state.target)
        found[way] = {"error": value - expected, "width": width}
    return found


def planted_many(count: int) -> list[dict]:
    """`count` of them from FIRST on, over the cores; each line as it comes."""
    results = []
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        for r in pool.map(planted, range(FIRST, FIRST + count)):
            results.append(r)
            print(f"{r['sweep']:5} {r['law']:13}{r['basin']:9} {r['flops']:.0%} of the FLOPs, interval "
                  f"{r['grid']['width']:.3f} -> {r['refine']['width']:.3f}", flush=True)  # fmt: skip
    return results


def ratio_of(r: dict) -> float:
    """Widths, refine / grid: 1 where neither has an interval."""
    a, b = r["refine"]["width"], r["grid"]["width"]
    return 1.0 if math.isinf(a) and math.isinf(b) else a / b


def words(results: list[dict]) -> list[str]:
    """Quartiles, how often narrower, coverage and errors of both."""
    ratios = [ratio_of(r) for r in results]
    low, middle, high = quantiles(ratios, n=4)
    lines = [f"{len(results)} planted sweeps: interval refine / grid {middle:.2f} (quartiles {low:.2f} to {high:.2f}), "
             f"no wider in {np.mean(np.array(ratios) <= 1):.0%}; "
             f"FLOPs at most {max(r['flops'] for r in results):.1%}"]  # fmt: skip
    for way in ("grid", "refine"):
        known = [r[way] for r in results if math.isfinite(r[way]["width"])]
        held = np.mean([abs(w["error"]) <= w["width"] / 2 for w in known])
        errors = np.abs([w["error"] for w in known])
        lines.append(f"  {way:7} the truth is in {held:.0%} of {len(known)} intervals (80 % is due); error of the optimum "
                     f"{median(errors):.3f} in the median, {np.quantile(errors, 0.9):.3f} in 9 of 10")  # fmt: skip
    return lines


def real(quick: bool) -> dict:
    """One sweep of small models, trained in full, then refined."""
    widths, tokens = ("16,24,32,48", 65536) if not quick else ("16,24,32", 32768)
    words = ["data=markov", "data.states=32", "data.tokens=400000", "data.epochs=100", "model.depth=1", "model.head_dim=8",
             "model.context=32", "batch_size=4", "parameterization=standard", "optimizer.weight_decay=0.1", "precision=fp32",
             f"model.width={widths}", f"tokens={tokens}", "optimizer.lr=log2(-10,-2,9)", "validation.tokens=16384",
             "validation.fractions=[]", "launcher.compile=never", "sweep.name=refine_benchmark", "device=cpu"]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        tables, seconds, flops, target = {}, {}, {}, {}
        for way, more in (("grid", []), ("refine", ["sweep.strategy=refine"])):
            # One folder of runs: those of the grid are not trained again, though they count.
            request = compose([*words, *more, f"out={folder}/{way}", f"runs={folder}/runs"], "sweep")
            start = time.perf_counter()
            planned = prepare_plan(request, report=lambda _: None)
            run_plan(planned, stream=io.StringIO())
            again = prepare_plan(request, report=lambda _: None)
            seconds[way] = time.perf_counter() - start
            tables[way] = _only(read_runs(planned.plan.runs_dir), (m.point.id for m in again.members))
            flops[way] = sum(m.point.flops for m in again.members)
            if way == "refine":
                target = begin(request, expand_members(request, again.book), again.book, Path("never written")).target
    found = {way: extrapolated(runs, "lr", target) for way, runs in tables.items()}
    return {"widths": widths, "target": target, "flops": flops["refine"] / flops["grid"], "seconds": seconds,
            "points": [len(tables["grid"]), len(tables["refine"])],
            "grid": {"log_lr": found["grid"][0], "width": found["grid"][1]},
            "refine": {"log_lr": found["refine"][0], "width": found["refine"][1]}}  # fmt: skip


def _only(runs: pd.DataFrame, ids: Iterable[str]) -> pd.DataFrame:
    return runs[runs["run_id"].isin(set(ids))].reset_index(drop=True)


def main() -> None:
    given = command_line(__doc__).parse_args()
    start = time.perf_counter()
    results = planted_many(20 if given.quick else 50)
    print("\n".join(words(results)))
    trained = real(given.quick)
    print(f"real sweep, widths {trained['widths']}: {trained['points'][0]} points, {trained['points'][1]} refined; "
          f"best LR at the target 2^{trained['grid']['log_lr'] / math.log(2):.2f} by the grid, "
          f"2^{trained['refine']['log_lr'] / math.log(2):.2f} refined; widths {trained['grid']['width']:.3f}, "
          f"{trained['refine']['width']:.3f}")  # fmt: skip
    ratios = {"refine_flops": [r["flops"] for r in results], "refine_interval": [ratio_of(r) for r in results],
              "real_flops": [trained["flops"]], "real_interval": [ratio_of(trained)]}  # fmt: skip
    finish(given, ratios, planted=results, real=trained, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
