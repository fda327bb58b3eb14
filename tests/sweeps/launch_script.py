"""`python launch_script.py SPEC.json`: a launch in a process of its own, to be killed. SPEC: points, settings,
compile."""

import json
import sys
from pathlib import Path

from harness.config import LauncherConfig
from harness.point import Point
from sweeps import sharing
from sweeps.jobs import Settings
from sweeps.local import run
from sweeps.plan import make_plan

if __name__ == "__main__":
    sharing.JOB_SECONDS, sharing.BYTES_PER_SECOND = 1e-6, 1e15  # trunks, however little they save
    spec = json.loads(Path(sys.argv[1]).read_text())
    paths = {k: Path(spec["settings"].pop(k)) for k in ("runs_dir", "cache", "logs")}
    settings = Settings(**paths, **spec["settings"])
    points = [Point.from_dict(p) for p in spec["points"]]
    launcher = LauncherConfig(compile=spec["compile"], workers=settings.workers, lease_seconds=settings.lease_seconds)
    plan = make_plan(points, settings.runs_dir, launcher, settings.cache, "cpu", probe=False)
    summary = run(plan, settings)
    print(json.dumps(vars(summary)))
    sys.exit(summary.exit_status)
