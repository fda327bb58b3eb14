"""The soak's short form: a minute of random faults on a Slurm of its own, and nothing is lost (benchmarks/soak.py)."""

import shutil
import tempfile
from pathlib import Path

from benchmarks.soak import soak


def test_a_sweep_survives_a_fault_every_few_seconds(slurm):
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir="/var/tmp"))  # sockets need a short path
    try:
        report = soak(folder, points=12, seconds=45, every=3, tokens=65_536, seed=1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert report["points"] == 12 and sum(report["faults"].values()) >= 3, report
    assert not report["lost"] and not report["changed"], report
