"""A directory that is read-only, before the start or from the middle of training on: said in a line; later all goes on."""

from harness import cli
from harness.rundir import read_status
from sweeps.plan import make_plan
from sweeps.status import read_states, render_status, status

from ..launches import assert_same_runs, table
from .running import assert_whole, train
from .test_full_disk_commands import POINT


def test_before_the_start(disk, tmp_path, capsys):
    words = ["train", *POINT, "device=cpu", f"out={disk.path}"]
    disk.read_only(True)
    for cache in (disk.path / "cache", tmp_path / "cache"):
        assert cli.main([*words, f"cache={cache}"]) == 2
        said = capsys.readouterr()
        assert "Read-only file system" in said.err or "is read-only" in said.err
        assert "Traceback" not in said.err
    disk.read_only(False)
    assert cli.main([*words, f"cache={tmp_path / 'cache'}"]) == 0


def test_in_the_middle_of_training(tiny, corpus, disk, background, launch, tmp_path):
    points, config = tiny("seed=0", tokens=100_000)
    runs = disk.path / "runs"
    launcher = background(points, workers=1, checkpoint_seconds=0.05, runs_dir=runs)
    background.wait_for(lambda: list(runs.glob("*/checkpoints/step-*")) or launcher.poll() is not None)
    disk.read_only(True)
    out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 1 and "the file system is read-only: " in err and "Traceback" not in err
    assert_whole(runs / points[0].id)
    assert read_status(runs / points[0].id)["status"] == "running"  # the last that could be written,
    assert read_states(points, runs)[points[0].id].status == "interrupted"  # and what is made of it
    render_status(status(points, runs))
    assert make_plan(points, runs, config.launcher, tmp_path / "cache", "cpu", probe=False).left
    disk.read_only(False)
    assert launch(points, config, runs_dir=runs, workers=1).done == 1
    assert train(points[0], tmp_path / "calm", corpus, checkpoint_seconds=30.0)["status"] == "done"
    assert_same_runs(tmp_path / "calm/runs", runs)
    assert table(runs).status.tolist() == ["done"]
