"""`profile=true` of `hyperlaw train`: where a step's time goes, measured in a process of its own before the point trains.

Written to profile.json in the run directory and printed; measured anew each time, also of a point that is done.
"""

from __future__ import annotations

import json
import subprocess
import sys

from harness.errors import UserError
from harness.files import read_json
from harness.private import compiled_folder
from harness.rundir import RunDirectory
from sweeps.launch import Planned, make_folders, settings_of
from sweeps.peaks import record_peak
from sweeps.rate import device_name
from sweeps.text import count_noun, quantity, table

SECONDS = 8.0  # of measuring, beside compilation and warm-up; and a third of it for the peak
MEANING = {
    "data": "fetching a batch",
    "forward": "the loss",
    "backward": "its gradients",
    "update": "clipping and AdamW",
    "fusion": "the step as one, less those three apart",
    "host": "the loop around it",
}


def refuse_profile(config, command: str) -> None:
    """Raises UserError where a request for many points asks for a profile."""
    if config.profile:
        raise UserError(f"profile=true times one point while nothing else runs, so `{command}` does not take it; "
                        "say it to\n`hyperlaw train` with one of the points.")  # fmt: skip


def check_profile(config) -> None:
    """Raises UserError where what would train the point cannot be timed here."""
    if config.profile and config.launcher.name != "local":
        raise UserError(f"profile=true times this machine, and launcher={config.launcher.name} trains elsewhere: "
                        "run it there with launcher=local.")  # fmt: skip
    if config.profile and config.launcher.devices_per_point > 1:
        raise UserError("profile=true times one device; leave launcher.devices_per_point at 1.")


def profile(planned: Planned, seconds: float | None = None) -> dict:
    """The profile of the one point of `planned` (harness/profile.py), also written to its run directory. Raises UserError
    where it cannot be taken."""
    plan, point, settings = planned.plan, planned.members[0].point, settings_of(planned)
    make_folders(planned)
    run_dir = plan.runs_dir / point.id
    known = (read_json(run_dir / "result.json") or {}).get("numerics") or {}
    group = next((g for g in plan.groups if point in g.points), None)
    compiled, shared = (group.compile, group.shared_pass) if group else map(known.get, ("compiled", "shared_pass"))
    runtime = {"corpus_dir": settings.corpora[point.data.fingerprint], "device": settings.device,
               "threads": settings.threads, "compile": bool(compiled), "micro_batch": settings.micro_batch,
               "shared_pass": shared,
               "compiled_cache": str(compiled_folder(settings.cache))}  # fmt: skip
    order = json.dumps({"point": point.to_dict(), "runtime": runtime, "seconds": seconds or SECONDS})
    done = subprocess.run([sys.executable, "-m", "harness.profile"], input=order, capture_output=True, text=True)
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"the point could not be profiled: {words[-1]}")
    found = json.loads(done.stdout)
    cores = settings.threads if settings.device == "cpu" else 1
    record_peak(settings.cache, device_name(settings.device), point.precision, found["peak_flops"] / cores)
    run = RunDirectory(run_dir, point)
    run.begin()
    run.write_json("profile.json", found)
    return found


def render_profile(found: dict) -> str:
    """The profile for people: a table and two lines."""
    seconds, numerics = found["seconds"], found["numerics"]
    rows = [[name, f"{seconds[name] * 1e3:.3g} ms", f"{seconds[name] / seconds['whole']:.0%}", what]
            for name, what in MEANING.items()]  # fmt: skip
    rows.append(["whole", f"{seconds['whole'] * 1e3:.3g} ms", "100%", f"give or take {found['error']:.1%}"])
    where = count_noun(numerics["threads"], "CPU thread") if numerics["device"] == "cpu" else "GPU"
    how = f"{numerics['precision']}, {'compiled' if numerics['compiled'] else 'eager'}, {where}"
    return "\n".join([
        f"a step of {count_noun(found['batch'], 'sequence')} ({how}; medians of {found['rounds']} rounds)",
        *table(["", "time", "share", ""], rows),
        f"{found['tokens_per_second']:,.0f} tokens/s, {quantity(found['model_flops_per_second'], 'FLOP/s')}: "
        f"{found['utilisation']:.0%} of the {quantity(found['peak_flops'], 'FLOP/s')} of matrix products",
    ])  # fmt: skip
