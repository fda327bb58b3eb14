"""What the benchmarks of throughput have in common: their command line, targets, and the report of what they measured.

    given = command_line(__doc__).parse_args()
    ratios = {"train_64": [5.1, 5.3, 4.9]}  # one of each interleaved repeat
    finish(given, ratios, seconds={"start_up": 3.1})

prints name, ratio, target and whether it is met, and writes JSON to `--json`:
{"ratios": {NAME: {"median", "min", "max", "n"}}, "device", "versions", "date", "load"} and whatever else is given;
a number that is infinite or none at all is null.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tomllib
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from sweeps.rate import cores, device_name, gpu_names
from sweeps.text import table

# Issue 5, "Baselines and targets": at least so much, of times and shares; at most, of FLOPs and intervals.
AT_LEAST = {"sweep_cold_vs_user": 4.0, "sweep_warm_vs_user": 6.0, "sweep_warm_vs_hand": 1.3,
            "train_64": 5.0, "train_128": 3.5, "train_256": 3.5,
            "peak_share_64": 0.35, "peak_share_128": 0.40, "peak_share_256": 0.60,
            "gpu_1M_vs_eager": 8.0, "gpu_5M_vs_eager": 8.0,
            "gpu_100M_share": 0.40, "gpu_350M_share": 0.50, "gpu_1B_share": 0.50}  # fmt: skip
# A share of the FLOPs counts only where the interval is no wider for it.
AT_MOST = {"prefix_flops": 0.45, "refine_flops": 0.40, "refine_interval": 1.0, "real_interval": 1.0}


def command_line(doc: str) -> argparse.ArgumentParser:
    """`[--quick] [--json FILE]`; the caller may add to it."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter repeats")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


def ratio(values: list[float]) -> dict:
    """{"median", "min", "max", "n"} of one ratio's interleaved repeats. Raises ValueError where there are none."""
    if not values:
        raise ValueError("a ratio without repeats")
    return {"median": median(values), "min": min(values), "max": max(values), "n": len(values)}


def device(kind: str = "cpu") -> str:
    """The CPU's model and how many of its cores this process may use; `kind` cuda: the GPUs' names."""
    if kind == "cuda":
        return f"{len(gpu_names())} x {device_name('cuda')}"
    return f"{device_name('cpu')}, {len(cores())} cores"


def versions() -> dict[str, str]:
    """Of Python, PyTorch and hyperlaw: the one whose code this is, installed or not."""
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
    return {"python": platform.python_version(), "torch": version("torch"), "hyperlaw": project["version"]}


def met(name: str, value: float) -> bool | None:
    """Whether `value` is what the issue asks of the ratio called `name`; None where it asks nothing."""
    if name in AT_LEAST:
        return value >= AT_LEAST[name]
    return value <= AT_MOST[name] if name in AT_MOST else None


def render(ratios: dict[str, dict]) -> str:
    """The table of name, ratio, target, met or not."""
    rows = []
    for name, r in ratios.items():
        target = (f"at least {AT_LEAST[name]:g}" if name in AT_LEAST
                  else f"at most {AT_MOST[name]:g}" if name in AT_MOST else "")  # fmt: skip
        verdict = {True: "met", False: "not met", None: ""}[met(name, r["median"])]
        rows.append([name, f"{r['median']:.3g}", f"{r['min']:.3g} to {r['max']:.3g}", str(r["n"]), target, verdict])
    return "\n".join(table(["name", "ratio", "range", "n", "target", ""], rows))


def finish(given: argparse.Namespace, ratios: dict[str, list[float]], kind: str = "cpu", **more) -> dict:
    """Prints the ratios, writes them and `more` to `given.json`, and returns what was written."""
    summary = {name: ratio(values) for name, values in ratios.items()}
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    report = {"ratios": summary, "device": device(kind), "versions": versions(), "date": day,
              "load": os.getloadavg()[0], "quick": given.quick, **more}  # fmt: skip
    print(render(summary))
    print(f"{report['device']}; {', '.join(f'{k} {v}' for k, v in report['versions'].items())}; load {report['load']:.1f}")
    if given.json:
        given.json.write_text(json.dumps(_finite(report), indent=1, allow_nan=False) + "\n")
    return report


def _finite(value: object) -> object:
    """As JSON has it, None for numbers that it has not."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
