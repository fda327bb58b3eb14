"""What sharing beginnings saves: a WSD sweep of 6 equally spaced horizons x 5 learning rates, shared against separately.

    python -m benchmarks.prefix [--quick] [--json FILE]

The points of configs/sweep/horizons.yaml, shorter: warm-up in tokens, fixed weight decay, cooldowns of 20 %. Both sides are
whole sweeps by the local launcher, each with empty folders, one after the other in turns; the runs of both must be equal
bit by bit (curves, losses, statuses).

prefix_flops    training FLOPs really spent, trunks included: shared / separate (43 % where every equal step is shared)
prefix_seconds  wall time of the launches, start of the workers included: shared / separate
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.report import command_line, finish
from harness.compose import compose
from harness.rundir import read_status
from sweeps.jobs import Summary
from sweeps.launch import prepare_plan, run_plan

SIDES = {"shared": True, "separate": False}
ALIKE = ("loss", "train_loss", "tokens", "flops", "validation", "numerics")  # of the results


def words(unit: int) -> list[str]:
    """Of the sweep whose shortest horizon is `unit` tokens."""
    return ["sweep=horizons", f"tokens=linear({unit},{6 * unit},6)", f"schedule.warmup_tokens={unit // 8}",
            "validation.tokens=8192", "launcher.compile=never", "device=cpu"]  # fmt: skip


def launch(unit: int, out: Path, share: bool) -> Summary:
    """Train the sweep into `out`. Raises SystemExit where a point fails."""
    request = compose([*words(unit), f"out={out}", f"sweep.share={str(share).lower()}"], "sweep")
    planned = prepare_plan(request, report=lambda _: None)
    for line in planned.plan.render().splitlines():
        if "saved" in line or "in all" in line:
            print(f"{out.name}: {line}", file=sys.stderr)
    summary = run_plan(planned, quiet=True)
    if summary.exit_status:
        sys.exit(f"points failed: {summary.failures}")
    return summary


def difference(a: Path, b: Path) -> str | None:
    """What two runs differ in, or None."""
    if (a / "curve.parquet").read_bytes() != (b / "curve.parquet").read_bytes():
        return "curve.parquet"
    first, second = (json.loads((run / "result.json").read_text()) for run in (a, b))
    if odd := [key for key in ALIKE if first[key] != second[key]]:
        return f"result.json: {', '.join(odd)}"
    return "status" if read_status(a)["status"] != read_status(b)["status"] else None


def main() -> None:
    given = command_line(__doc__).parse_args()
    unit, repeats = (65536, 1) if given.quick else (131072, 3)
    ratios: dict[str, list[float]] = {"prefix_flops": [], "prefix_seconds": []}
    points = seconds = None
    with tempfile.TemporaryDirectory(prefix="hyperlaw-") as folder:
        for repeat in range(repeats):
            found = {}
            for name in list(SIDES)[:: 1 if repeat % 2 else -1]:
                found[name] = launch(unit, Path(folder) / name, SIDES[name])
            shared, separate = (Path(folder) / name / "runs" for name in SIDES)
            names = sorted(run.name for run in separate.iterdir())
            odd = {run: what for run in names if (what := difference(shared / run, separate / run))}
            if odd or names != sorted(run.name for run in shared.iterdir()):
                sys.exit(f"shared and separate runs differ: {odd or names}")
            ratios["prefix_flops"].append(found["shared"].flops_spent / found["separate"].flops_spent)
            ratios["prefix_seconds"].append(found["shared"].seconds / found["separate"].seconds)
            points, seconds = len(names), {name: summary.seconds for name, summary in found.items()}
            for name in SIDES:
                shutil.rmtree(Path(folder) / name)
    print(f"{points} points equal bit by bit")
    finish(given, ratios, points=points, seconds=seconds)


if __name__ == "__main__":
    main()
