"""TERM and Ctrl-C where nothing can be checkpointed yet: while data is prepared, while the first step compiles. The
command leaves within seconds, tells the truth, and goes on later."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.data import prepare
from harness.rundir import read_status
from sweeps.lease import newest_attempt
from sweeps.plan import missing_for_compile
from sweeps.status import read_states

from ..launches import assert_same_runs
from ..points import request_of
from ..support import unavailable
from .running import train

SECONDS = 30.0  # to leave, on a machine that has other things to do; alone it takes less than one


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_while_data_is_prepared(background, tmp_path, number):
    words = ["data=markov", "data.states=64", "data.tokens=3e7"]
    command = [sys.executable, "-m", "harness.cli", "train", *words, "tokens=1e5", f"out={tmp_path / 'out'}"]
    # Ctrl-C is heard, whoever runs the tests: a shell's background job would pass on that it is ignored.
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen([*command, f"cache={tmp_path / 'cache'}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, preexec_fn=heard)  # fmt: skip
    background.started.append(process)
    background.wait_for(lambda: list(tmp_path.glob("cache/data/*/train-*.bin")) or process.poll() is not None)
    begun = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < SECONDS
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode  # as a shell tells it
    assert code == 128 + number and "Traceback" not in err, err
    assert not list(tmp_path.glob("cache/data/*/manifest.json")) and not (tmp_path / "out/runs").exists()
    data = request_of(*words).config.data
    assert prepare(data, tmp_path / "cache", report=lambda _: None).verify(again=True).train_tokens == 28_500_000


def test_while_the_first_step_compiles(tiny, corpus, background, launch, tmp_path):
    if missing := missing_for_compile("cpu"):
        unavailable(f"nothing can be compiled here: {missing} is missing")
    points, config = tiny("seed=0")
    launcher = background(points, workers=1, compile="always")
    runs = tmp_path / "out/runs"
    run_dir = runs / points[0].id
    background.wait_for(lambda: read_status(run_dir)["status"] == "running" or launcher.poll() is not None)
    worker = newest_attempt(run_dir).pid
    background.wait_for(lambda: background.children(worker) or launcher.poll() is not None)  # the C++ compiler
    begun = time.monotonic()
    launcher.send_signal(signal.SIGTERM)
    out, err = launcher.communicate(timeout=60)
    assert time.monotonic() - begun < SECONDS and launcher.returncode == 143, err
    assert json.loads(out)["left"] == 1 and "Traceback" not in err
    assert not Path(f"/proc/{worker}").exists()
    state = read_states(points, runs)[points[0].id]
    assert state.status in ("interrupted", "pending") and state.left
    assert state.step == 0 and not list(run_dir.glob("checkpoints/*"))
    assert launch(points, config, workers=1).done == 1
    assert train(points[0], tmp_path / "calm", corpus)["status"] == "done"
    assert_same_runs(tmp_path / "calm/runs", runs)
