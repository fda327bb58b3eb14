"""Hydra's own multirun ends in the run directories of `hyperlaw sweep`, and bad requests in a line.

Beside Hydra's basic launcher, which is always there, this tests every launcher plugin that is installed (a parameter each):
`pip install hydra-joblib-launcher hydra-submitit-launcher` adds two.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "data=markov data.states=16 data.tokens=200000 data.epochs=100 model.depth=1 model.context=32 "
    "batch_size=4 tokens=4096 validation.tokens=512 precision=fp32 launcher.compile=never device=cpu"
).split()
PLUGINS = {"joblib": ("hydra_joblib_launcher", "hydra.launcher.n_jobs=2"),
           "submitit_local": ("hydra_submitit_launcher", "hydra.launcher.timeout_min=5")}  # fmt: skip


def installed(package):
    try:
        return importlib.util.find_spec(f"hydra_plugins.{package}") is not None
    except ModuleNotFoundError:
        return False


LAUNCHERS = ["basic", *(name for name, (package, _) in PLUGINS.items() if installed(package))]


def command(folder, module, *words, **more):
    env = {**os.environ, "HYPERLAW_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", **more}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run([sys.executable, "-m", module, *words], cwd=folder, env=env, capture_output=True, text=True,
                          timeout=300)  # fmt: skip


def results(folder, name):
    """{run id: result} of the runs of an output folder, with their attempts."""
    runs = folder / "out" / name / "runs"
    return {run.name: (json.loads((run / "result.json").read_text())["loss"], len(list(run.glob("attempts/*.json"))))
            for run in runs.iterdir()}  # fmt: skip


def swept(folder, out):
    """`hyperlaw sweep` of two points into an output folder of `folder`."""
    (folder / "mine" / "sweep").mkdir(parents=True)
    (folder / "mine" / "sweep" / "mine.yaml").write_text("# @package _global_\nsweep: {name: mine}\n")
    axes = ["model.width=16", "optimizer.lr=1e-3,2e-3"]
    done = command(folder, "harness.cli", "sweep", "sweep=mine", "--config-dir", "mine", *TINY, *axes, f"out=out/{out}")
    assert done.returncode == 0, done.stdout + done.stderr
    return results(folder, out)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What such a sweep trains where nothing is there."""
    return swept(tmp_path_factory.mktemp("alone"), "mine")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_same_runs_as_the_sweep(tmp_path, alone, launcher):
    chosen = [f"hydra/launcher={launcher}", PLUGINS[launcher][1]] if launcher != "basic" else []
    done = command(tmp_path, "harness.train", "-m", *chosen, *TINY, "model.width=16", "optimizer.lr=geom(1e-3,2e-3,2)")
    assert done.returncode == 0, done.stdout + done.stderr
    first = results(tmp_path, "train")
    assert len(first) == 2 and first == alone  # the same ids and losses
    assert swept(tmp_path, "train") == first  # found done
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "mine", "out"]  # nothing of Hydra's own
    (place,) = (tmp_path / "cache").glob("hydra-*")
    assert place.stat().st_mode & 0o077 == 0


def test_without_m_one_point_is_trained_and_a_diverged_one_is_a_loss_for_sweepers(tmp_path):
    done = command(tmp_path, "harness.train", *TINY, "model.width=16", "seed=1")
    assert done.returncode == 0 and "validation loss" in done.stdout, done.stderr
    far = ["model.width=16", "optimizer.lr=1e9", "optimizer.clip=null", "out=out/far"]
    diverged = command(tmp_path, "harness.train", "-m", *TINY, *far)
    assert diverged.returncode == 0 and "diverged, run in" in diverged.stdout, diverged.stdout + diverged.stderr


@pytest.mark.parametrize("words, said", [
    (["model.widht=16,32"], "Did you mean model.width?"),
    (["model.width=16,abc"], "model.width"),
    (["model.width=16,24"], "model.head_dim=16 must divide model.width=24"),
    (["optimizer.lr="], "optimizer.lr"),
    (["sweep=lr_width"], "hyperlaw sweep sweep=lr_width"),
    (["launcher=slurm"], "hydra/launcher="),
    (["--experimental-rerun", "x.pickle"], "no such flag"),
    (["cache=/dev/null/x"], "cache="),
])  # fmt: skip
def test_a_wrong_request_is_a_line(tmp_path, monkeypatch, capsys, words, said):
    from harness.multirun import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYPERLAW_CACHE", str(tmp_path / "cache"))
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))  # which main() wraps
    before = sys.argv
    words = words if "model.width" in words[0] else ["model.width=16", *words]
    assert main(["-m", *TINY, *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and len(error.splitlines()) <= 2 and "Traceback" not in error
    assert sys.argv is before and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words, said", [
    (["out=/proc/x", "optimizer.lr=1e-3,2e-3"], "cannot write /proc/x"),
    (["hydra.sweep.nosuch=3"], "Could not override 'hydra.sweep.nosuch'."),
    (["hydra/launcher=nosuch"], "Could not find 'hydra/launcher/nosuch'"),
    (["hydra.sweeper.params={optimizer.lr: '1e-3,2e-3'}"], "hydra.sweeper.params"),
    (["hydra.sweep.dir=/dev/null/x"], "/dev/null"),
])  # fmt: skip
def test_what_hydra_or_the_disk_refuses_is_a_line(tmp_path, monkeypatch, capsys, words, said):
    from harness.multirun import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYPERLAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    for name in ("stdout", "stderr", "argv"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    assert main(["-m", *TINY, "model.width=16", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert said in error[-1] and error[-1].startswith("hyperlaw: ")
    assert [line for line in error[:-1] if not line.startswith("data=markov: ")] == []  # data is prepared first
    assert "HYDRA_FULL_ERROR" not in os.environ


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_failed_point_is_a_line_and_nobody_reads_its_secrets(tmp_path, launcher):
    chosen = [f"hydra/launcher={launcher}", PLUGINS[launcher][1]] if launcher != "basic" else []
    secret = "hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ012345"
    words = ["model.width=16", "launcher.point_seconds=0.001", f"tracking.project={secret}"]
    done = command(tmp_path, "harness.train", "-m", *chosen, *TINY, *words, HF_TOKEN=secret)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said, said
    assert done.stderr.splitlines()[-1].startswith("hyperlaw: ") and "is used up" in done.stderr.splitlines()[-1]
    assert "tracking.project=***" in done.stdout and secret not in said
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".pkl", ".pickle")]
    assert any(path.name == "multirun.yaml" for path in files)
    assert [path for path in files if secret in path.read_text("utf-8", "replace")] == []


def test_help_is_help(capsys, monkeypatch):
    from harness.multirun import main

    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))
    assert main(["-m", "--help"]) == 0 and "python -m harness.train -m" in capsys.readouterr().out
