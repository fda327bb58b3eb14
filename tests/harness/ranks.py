"""Points on several processes, those processes, and what becomes of a run."""

import contextlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from harness.checkpoint import checkpoints

from .helpers import tiny

SHORT = ["tokens=1280", "optimizer.lr=1e-3", "validation.fractions=[]"]
LONG = ["tokens=960000", "data.epochs=100", "validation.fractions=[]", "optimizer.lr=1e-3"]  # nobody waits for their end
NEAR, BF16 = (1e-5, 1e-5), (4e-3, 1e-3)  # nats, weights: as harness/parallel.py promises
linux = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def setting(cache, *overrides, devices=2, parallel="ddp", **rest):
    p, runtime = tiny(cache, *overrides)
    for key, value in {"devices": devices, "parallel": parallel, "keep_weights": True, **rest}.items():
        setattr(runtime, key, value)
    return p, runtime


def run_of(cache, run_dir, *overrides, **rest):
    p, runtime = setting(cache, *overrides, **rest)
    return p, run_dir, runtime


def curve(run_dir):
    return pd.read_parquet(run_dir / "curve.parquet")


def result(run_dir):
    return json.loads((run_dir / "result.json").read_text())


def weights(run_dir):
    return load_file(run_dir / "weights.safetensors")


def assert_near(a, b, near=NEAR):
    """Loss curves, final losses and weights within the tolerance (nats, weights); everything else equal."""
    nats, weight = near
    # The norm of bf16 gradients is that of rounded products; it has no tolerance of its own in bf16.
    columns = list(curve(a)) if near is NEAR else ["step", "tokens", "lr", "train_loss", "validation_loss"]
    pd.testing.assert_frame_equal(curve(a)[columns], curve(b)[columns], rtol=0, atol=nats, check_exact=False)
    assert result(a)["loss"] == pytest.approx(result(b)["loss"], abs=nats)
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for k, w in ours.items():
        np.testing.assert_allclose(w, theirs[k], rtol=0, atol=weight, err_msg=k)


def processes(module, environment=""):
    """(pid, command, parent) of those that run `module` with something in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().decode().split("\0")
            if module in words and environment in (path / "environ").read_bytes().decode():
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    found.append((int(path.name), words, int(fields[1])))
    return found


def ranks(parent=None):
    """rank -> pid of the rank processes of a supervisor."""
    found = [(pid, words) for pid, words, of in processes("harness.rank") if of == (parent or os.getpid())]
    return {int(words[words.index("harness.rank") + 1]): pid for pid, words in found}


class Midway:
    """still_mine, which is asked before each file, that acts once there is a checkpoint after `step` steps or more."""

    def __init__(self, run_dir, act, step=20):
        self.run_dir, self.act, self.step, self.reached = run_dir, act, step, False

    def __call__(self):
        newest = checkpoints(self.run_dir)[-1:]
        if not self.reached and newest and int(newest[0].stem.split("-")[1]) >= self.step:
            self.reached = True
            self.act()
        return True


class Once:
    """on_progress that does something at the first progress after `step`."""

    def __init__(self, step, act):
        self.step, self.act, self.done = step, act, False

    def __call__(self, step, steps, loss):
        if step >= self.step and not self.done:
            self.done = True
            self.act()
