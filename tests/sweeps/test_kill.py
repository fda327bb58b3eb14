"""kill -9 at 20 random moments of a small sweep; finished after the last, it equals an undisturbed one bit for bit."""

import contextlib
import os
import random
import signal
import time

from harness.rundir import read_status
from sweeps.lease import newest_attempt

from ..launches import assert_same_runs

KILLS, SEED = 20, 8


def test_twenty_kills_change_nothing(tiny, launch, background, tmp_path):
    # Checkpoints are written where the loop looks up: at validations too.
    fractions = ",".join(f"{i / 16}" for i in range(1, 16))
    points, config = tiny("seed=0,1", "optimizer.lr=2e-3,1e-2,30", f"validation.fractions=[{fractions}]", tokens=327_680)
    undisturbed = launch(points, config, "undisturbed")
    assert undisturbed.exit_status == 0 and undisturbed.done >= 4
    kinds, resumed = kill_and_finish(points, background)
    assert sum(kinds.values()) == KILLS and min(kinds.values()) >= 2, kinds
    assert resumed >= 8  # kills after which a point goes on from a checkpoint
    calm, killed = tmp_path / "undisturbed/runs", tmp_path / "killed/runs"
    assert len(list(killed.glob("*/attempts/*.json"))) >= len(points) + 10  # kills that met a point in training
    assert_same_runs(calm, killed)


def kill_and_finish(points, background):
    """Launch, kill a worker, the launcher, or all of them, 20 times, at random moments; then let it finish."""

    def holders(launcher):
        """Workers whose training has begun."""
        runs = [background.folder / "killed/runs" / p.id for p in points]
        attempts = [(newest_attempt(run), read_status(run).get("attempt")) for run in runs]
        training = {a.pid for a, begun in attempts if a and a.live(60) and a.number == begun}
        return training & set(background.children(launcher))

    def saved():
        return list((background.folder / "killed/runs").glob("*/checkpoints/step-*"))

    rng = random.Random(SEED)
    kinds, resumed = {"worker": 0, "launcher": 0, "all": 0}, 0
    # Of 20 kills a few: each of the others starts everything anew.
    plan = rng.sample(["worker"] * 14 + ["launcher"] * 3 + ["all"] * 3, KILLS)
    launcher = None
    for kind in plan:
        if launcher is None or launcher.poll() is not None:
            launcher = background(points, "killed", checkpoint_seconds=0.02, max_attempts=1000)
        background.wait_for(lambda launcher=launcher: holders(launcher.pid) or launcher.poll() is not None)
        if rng.random() < 0.7:  # most kills after a first checkpoint, the others at any moment
            background.wait_for(lambda launcher=launcher: saved() or launcher.poll() is not None)
        time.sleep(rng.uniform(0.0, 0.6))
        workers = background.children(launcher.pid)
        training = [pid for pid in holders(launcher.pid) if pid in workers] or workers
        victims = {"worker": rng.sample(training, min(1, len(training))), "launcher": [launcher.pid],
                   "all": [launcher.pid, *workers]}[kind]  # fmt: skip
        killed = False
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):  # it has just left by itself
                os.kill(pid, signal.SIGKILL)
                killed = True
        if not killed:
            plan.append(kind)
            continue
        kinds[kind] += 1
        resumed += bool(saved())
        if launcher.pid in victims:
            launcher.wait()
    if launcher.poll() is not None:
        launcher = background(points, "killed", max_attempts=1000)
    out, err = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, err
    return kinds, resumed
