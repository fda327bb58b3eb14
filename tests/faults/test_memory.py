"""Memory that runs out, by a real limit: the micro-batch halves, the point goes on, and the table says with which."""

import json
import os
import resource
import subprocess
import sys

from analysis.table import read_runs
from harness.rundir import read_status
from sweeps.lease import newest_attempt

from .running import train

# Every buffer is asked of the system anew, so that the limit is met by what a step needs, whatever came before.
ALLOCATE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
MEGABYTE = 1 << 20
SIZES = ("batch_size=64", "model.context=64", "model.width=32")

# Trains a point in a process whose address space may grow by so many bytes beyond what it has once all is loaded.
SCRIPT = """
import json, os, resource, sys
from pathlib import Path
from harness.point import Point
from sweeps.execute import execute
spec = json.loads(sys.stdin.read())
for point, settings, room in spec:
    if room:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))
    message = {"job": "job", "point": point, "compile": False}
    print(json.dumps(execute(message, settings, lambda **_: None, lambda: False)), flush=True)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


def size_of(pid):
    """Bytes of address space."""
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def in_limits(corpus, jobs):
    """What `execute` says of [(point, folder, bytes it may grow by or 0)], one after the other in one process."""
    from sweeps.jobs import Settings

    spec = []
    for point, folder, room in jobs:
        settings = Settings(runs_dir=folder / "runs", cache=folder / "cache", logs=folder / "logs",
                            corpora={corpus.fingerprint: str(corpus.dir)})  # fmt: skip
        spec.append((point.to_dict(), settings.to_dict(), room))
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=json.dumps(spec), capture_output=True, text=True,
                          env={**os.environ, **ALLOCATE, "OMP_NUM_THREADS": "1"}, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_from_the_first_step_on_it_is_the_run_with_that_micro_batch(tiny, corpus, tmp_path):
    (point,), _ = tiny("seed=0", *SIZES, tokens=64 * 64 * 6)
    (hopeless,), _ = tiny("seed=0", *SIZES[:2], "model.width=768", tokens=64 * 64 * 6)  # its weights alone take more
    # The first run has no limit: by then everything is loaded.
    folders = [tmp_path / name for name in ("free", "tight", "none")]
    jobs = zip((point, point, hopeless), folders, (0, 6 * MEGABYTE, 6 * MEGABYTE), strict=True)
    (free, tight, none), said = in_limits(corpus, jobs)
    assert (free["status"], tight["status"], none["status"]) == ("done", "done", "out_of_memory"), said
    frame = read_runs(tmp_path / "tight/runs")
    micro_batch = int(frame.micro_batch[0])
    assert micro_batch in (1, 2, 4, 8, 16, 32) and read_runs(tmp_path / "free/runs").micro_batch[0] == 64
    assert "out of memory at step 0, the micro-batch is now 32" in said
    same = train(point, tmp_path / "same", corpus, micro_batch=micro_batch)
    assert same["status"] == "done"
    curves = [(tmp_path / name / "runs" / point.id / "curve.parquet").read_bytes() for name in ("tight", "same")]
    assert curves[0] == curves[1]
    assert read_runs(tmp_path / "same/runs").loss[0] == frame.loss[0]
    assert abs(read_runs(tmp_path / "free/runs").loss[0] - frame.loss[0]) < 1e-4
    reason = read_status(tmp_path / "none/runs" / hopeless.id)["reason"]
    assert reason["type"] == "out_of_memory" and reason["message"]


def limited(background, launcher, run_dir, room):
    """Once a curve is written (all that is loaded late is loaded), the worker may grow by `room` bytes, and no more."""
    background.wait_for(lambda: (run_dir / "curve.parquet").exists() or launcher.poll() is not None)
    worker = newest_attempt(run_dir).pid
    steady = min(size_of(worker) for _ in range(200))  # between two steps
    resource.prlimit(worker, resource.RLIMIT_AS, (steady + room, resource.RLIM_INFINITY))


def test_in_the_middle_of_a_launch(tiny, corpus, background, tmp_path):
    points, _ = tiny("seed=0", "batch_size=128", *SIZES[1:], tokens=128 * 64 * 40)
    launcher = background(points, workers=1, checkpoint_seconds=0.1, environment=ALLOCATE)
    limited(background, launcher, tmp_path / "out/runs" / points[0].id, 12 * MEGABYTE)
    out, err = launcher.communicate(timeout=120)
    summary = json.loads(out)
    assert summary["done"] == 1 and summary["attempts"] == 0, err
    assert read_runs(tmp_path / "out/runs").micro_batch[0] < 128
    assert train(points[0], tmp_path / "calm", corpus)["status"] == "done"
    frames = [read_runs(tmp_path / name / "runs") for name in ("out", "calm")]
    assert abs(frames[0].loss[0] - frames[1].loss[0]) < 1e-4  # rounding of sums in another order, in fp32


def test_what_fits_with_no_micro_batch_is_not_tried_again(tiny, background, tmp_path):
    (small,), _ = tiny("seed=0", tokens=120_000)
    (hopeless,), _ = tiny("seed=0", "model.width=768", tokens=512)  # its weights alone take more
    launcher = background([small, hopeless], workers=1, checkpoint_seconds=0.1, environment=ALLOCATE)
    limited(background, launcher, tmp_path / "out/runs" / small.id, 12 * MEGABYTE)
    out, err = launcher.communicate(timeout=120)
    summary = json.loads(out)
    assert launcher.returncode == 1 and "Traceback" not in err and "tried again" not in err
    assert (summary["done"], summary["failed"], summary["attempts"]) == (1, 1, 1), err
    found = read_status(tmp_path / "out/runs" / hopeless.id)
    assert found["status"] == found["reason"]["type"] == "out_of_memory" and "out_of_memory: " in err
