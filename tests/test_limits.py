"""Memory: a worker at the demo's sizes is small enough for one per core of a laptop (470 MB eager, 640 compiled)."""

import os
import subprocess
import sys

import pytest

DEMO = ["data=sotu", "data.max_bytes=4e6", "model.width=48", "model.depth=2", "model.head_dim=8", "model.context=64",
        "batch_size=8", "tokens=20480", "validation.tokens=131072", "device=cpu", "launcher.workers=1"]  # fmt: skip
# In a process of its own, so that the children of other tests do not count. The worker is the largest of the descendants.
MEASURE = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "harness.cli", *sys.argv[1:]], stdout=sys.stderr)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize("mode", ["never", "always"])
def test_a_worker_at_the_demos_sizes_stays_under_1200_mb(tmp_path, mode):
    words = ["train", *DEMO, f"launcher.compile={mode}", f"out={tmp_path}/out", f"cache={tmp_path}/cache"]
    done = subprocess.run([sys.executable, "-c", MEASURE, *words], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=600, check=True)  # fmt: skip
    status, kib = map(int, done.stdout.split())
    assert status == 0, done.stderr
    assert 100e6 < kib * 1024 < 1.2e9, f"{kib * 1024 / 1e6:.0f} MB"
