"""What the benchmarks of coverage have in common: their command line, and the JSON of what they measured."""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import Any


def shares(measured: Mapping[str, Any], digits: int = 0) -> str:
    """`tokens 82 %, coefficient 81 %`: how often the intervals held the truth."""
    return ", ".join(f"{name} {100 * share:.{digits}f} %" for name, share in measured["coverage"].items())


def run(
    doc: str, cases: Mapping[str, Any], measure: Callable[[Any, int], dict], words: Callable[[dict], str] = shares
) -> None:
    """`[--draws 500] [--only TEXT] [--json FILE]`: measure(case, draws) of each of `cases` whose name holds TEXT, printed
    as words(measured); all measured so far are in FILE."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--json")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    arguments = parser.parse_args()
    results = {}
    for name, case in cases.items():
        if arguments.only not in name:
            continue
        start = time.perf_counter()
        results[name] = measure(case, arguments.draws)
        seconds = time.perf_counter() - start
        print(f"{name}: {words(results[name])} ({arguments.draws} draws, {seconds:.0f} s)", flush=True)
        if arguments.json:
            with open(arguments.json, "w", encoding="utf-8") as file:
                json.dump(results, file, indent=1)
