"""Real offline runs of wandb."""

import subprocess
import sys

import pytest

WRITE = """
import sys, wandb
quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True)
def begin(k, **more):
    config = {"optimizer": {"learning_rate": 1e-3 * 2**k, "name": "adamw"}, "n_params": 10**6, "seed": k, "seq_len": 64}
    return wandb.init(project="p", mode="offline", dir=sys.argv[1], id=f"id{k}", name=f"run-{k}", settings=quiet,
                      resume="allow", config={**config, "global_batch_size": 8, "max_steps": 100, **more})
def log(run, steps, final):
    for s in steps:
        run.log({"train/loss": 4 - s / 100, "lr": 1e-3 * (1 - s / 100)}, step=s)
    run.log({"eval": {"loss": final}}, step=99)
run = begin(0); log(run, range(99), 2.5); run.finish()
run = begin(1, note="x" * 100_000); log(run, range(99), float("nan")); run.finish()  # several blocks of the file
run = begin(2); log(run, range(50), 2.9); run.finish(exit_code=1)
run = begin(3); log(run, range(40), 3.0); run.finish()
run = begin(3, dropout=0.1); log(run, range(40, 99), 2.4); run.finish()              # the same run, resumed
"""


@pytest.fixture(scope="session")
def offline(tmp_path_factory):
    """A folder of real offline runs, written by wandb in a process without a network."""
    folder = tmp_path_factory.mktemp("wandb")
    subprocess.run([sys.executable, "-c", WRITE, str(folder)], check=True, capture_output=True, timeout=120)
    return folder
