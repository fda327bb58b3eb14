"""Seconds of CPU that each analysis takes for a table of a million rows.

    python -m benchmarks.big_tables [--rows 1000000] [--only lr,loss] [--profile]

The rows are those of the tests' small tables (tests/analysis/minimal.py), each many times with noise and a seed of its
own; curves get as many runs more. Of one core, unprofiled, peak memory below 1 GB each: lr 3.2 s, tau 4.1, batch 4.3;
under the profiler, so at most: critical_batch 5.1 s, lr_batch 7.3, transfer 7.9, curves 8.3. Earlier, on a loaded machine:
isoflop 2.4 s, loss 15, envelope 17. Large slices are averaged in groups (analysis/thin.py).
"""

import argparse
import cProfile
import importlib.util
import pstats
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.fit import MODULES, fit

ROOT = Path(__file__).resolve().parents[1]


def minimal() -> dict:
    """MINIMAL of tests/analysis/minimal.py; tests is no package."""
    spec = importlib.util.spec_from_file_location("minimal", ROOT / "tests" / "analysis" / "minimal.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["minimal"] = module
    spec.loader.exec_module(module)
    return module.MINIMAL


def grown(table: pd.DataFrame, analysis: str, rows: int) -> pd.DataFrame:
    """About `rows` rows: further seeds of every run, or finer steps and further runs of curves."""
    times = max(rows // len(table), 1)
    if analysis == "curves":
        copies = [table.assign(run_id=table["run_id"] + f"-{i}") for i in range(times)]
        return pd.concat(copies, ignore_index=True)
    many = table.loc[table.index.repeat(times)].reset_index(drop=True)
    seed = np.tile(np.arange(times), len(table))
    rng = np.random.default_rng(0)
    many["loss"] *= np.exp(1e-3 * rng.standard_normal(len(many)))
    many["run_id"] = many["run_id"].astype(str) + "-" + seed.astype(str)
    return many.assign(seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", default=",".join(MODULES))
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    tables = minimal()
    for analysis in given.only.split(","):
        table = grown(tables[analysis].make(), analysis, given.rows)
        profile = cProfile.Profile()
        began = time.process_time()
        if given.profile:
            profile.enable()
        laws = len(fit(table, analysis, tables[analysis].options).laws)
        profile.disable()
        print(f"{analysis:15} {len(table):8} rows  {time.process_time() - began:6.1f} s  {laws} laws", flush=True)
        if given.profile:
            pstats.Stats(profile).sort_stats("cumtime").print_stats(25)


if __name__ == "__main__":
    main()
