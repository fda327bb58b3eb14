"""A disk that fills up, before or while any file is written: one line says so, nothing is half written, and the same
command then finishes to the same numbers."""

import os
import subprocess
import time

import pytest

from harness.data import prepare
from harness.errors import UserError
from harness.rundir import read_status
from sweeps.lease import claim, newest_attempt
from sweeps.rate import CompiledShapes, measured_rates, record

from ..launches import assert_same_runs
from ..points import CORPUS, request_of
from .running import At, assert_whole, train

RUN = ("seed=0", "validation.fractions=[0.25,0.5,0.75]")  # checkpoints at each of them


def kind(message):
    """Which file could not be written."""
    name = os.path.basename(message.partition(": ")[2])
    return "checkpoint" if name.endswith(".safetensors") else "attempt" if "/attempts/" in message else name


@pytest.mark.parametrize("step", [0, 60])
def test_a_disk_full_at_any_file_of_a_run(tiny, corpus, disk, tmp_path, step):
    """Filled before the start, or before the last steps: with room for one page, for two, ... until the run has enough."""
    (point,), _ = tiny(*RUN)
    assert train(point, tmp_path, corpus)["status"] == "done"
    met, pages = [], 0
    while True:
        folder = disk.path / str(pages)
        folder.mkdir()
        run_dir = folder / "runs" / point.id
        if step == 0:
            disk.fill(pages)
            ended = train(point, folder, corpus)
        else:
            ended = train(point, folder, corpus, At(step, lambda pages=pages: disk.fill(pages)), checkpoint_seconds=1000)
        assert_whole(run_dir)
        if ended["status"] == "done":
            assert_same_runs(tmp_path / "runs", folder / "runs")
            break
        reason = ended["reason"]
        assert ended["status"] == "failed" and reason["type"] == "OSError"
        assert reason["message"].startswith("the disk is full: ") and "\n" not in reason["message"]
        met.append(kind(reason["message"]))
        assert read_status(run_dir)["status"] != "done"
        disk.free()
        assert train(point, folder, corpus)["status"] == "done"  # at once: no lease is waited for
        assert_same_runs(tmp_path / "runs", folder / "runs")
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        pages += 1 if pages < 8 else 5
        assert pages < 100
    early, late = {"attempt", "point.yaml", "status.json", "checkpoint"}, {"curve.parquet", "result.json", "status.json"}
    files = late if step else early
    assert set(met) >= files, met


def test_a_full_disk_keeps_no_lease(disk):
    """Hearts beat on a full disk; a released attempt is free although its end cannot be written."""
    run_dir = disk.path / "run"
    lease = claim(run_dir, 1.0)
    disk.fill(0)
    time.sleep(1.5)
    assert newest_attempt(run_dir).live(1.0)
    lease.release()
    disk.free()
    assert claim(run_dir, 60.0).number == 2


def test_a_log_that_is_full_stops_no_training(tiny, launch, disk, tmp_path):
    points, config = tiny("seed=0,1")
    disk.fill(0)
    summary = launch(points, config, logs=disk.path / "logs", workers=1)
    assert (summary.done, summary.attempts, summary.exit_status) == (2, 0, 0)


def test_records_of_speed_are_done_without(tiny, disk):
    (point,), _ = tiny("seed=0")
    disk.fill(0)
    record(disk.path, "cpu", point, False, 0.01)
    CompiledShapes(disk.path).add("key")  # takes no room: an empty file
    assert measured_rates(disk.path, "cpu", "fp32", probe=False).eager.source == "assumed"
    disk.fill(1)
    for _ in range(40):  # until the page is full: the last line is cut
        record(disk.path, "cpu", point, False, 0.01)
    disk.free()
    record(disk.path, "cpu", point, False, 0.01)
    rates = measured_rates(disk.path, "cpu", "fp32", probe=False)
    assert rates.eager.step_seconds(1e6) > 0 and "runs here" in rates.eager.source


@pytest.mark.parametrize("text", [False, True])
def test_data_that_does_not_fit_is_prepared_once_there_is_room(disk, tmp_path, text):
    source = tmp_path / "text"
    source.mkdir()
    (source / "a.txt").write_text("\n\n".join(f"the {n}th document of a small text " * 20 for n in range(200)))
    (source / "b.txt").write_text("another file " * 2000)
    words = ["data=files", f"data.path={source}", "data.tokenizer=bpe", "data.vocab=300"] if text else CORPUS
    data = request_of(*words).config.data
    undisturbed = prepare(data, tmp_path / "cache", report=lambda _: None)
    refused, pages = 0, 0
    while True:
        disk.fill(pages)
        try:
            corpus = prepare(data, disk.path, report=lambda _: None)
            break
        except UserError as error:
            refused += 1
            assert "full" in str(error) or "No space" in str(error) or "are free" in str(error)
            assert str(error).count("\n") <= 1
        pages += 1 if pages < 6 else 7
        assert pages < 500
    assert refused >= 5 and corpus.fingerprint == undisturbed.fingerprint
    for split in ("train", "validation"):
        for a, b in zip(undisturbed.shards[split], corpus.shards[split], strict=True):
            assert (undisturbed.dir / a.file).read_bytes() == (corpus.dir / b.file).read_bytes()
