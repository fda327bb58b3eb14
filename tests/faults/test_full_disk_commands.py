"""Commands on a disk that is full: exit status 2 or 1 and a line, never a traceback; later they do all that they should."""

import json

import numpy as np
import pandas as pd
import pytest

from harness import cli

from ..launches import assert_same_runs
from .running import train

POINT = ["data=markov", "data.states=16", "data.tokens=40000", "model.width=16", "model.depth=1", "model.context=16",
         "batch_size=4", "precision=fp32", "validation.tokens=512", "tokens=4096", "launcher.compile=never"]  # fmt: skip
SWEEP = [*POINT, "sweep=lr_width", "parameterization=standard", "parameterization.base_width=16", "model.width=16",
         "optimizer.lr=1e-5,2e-5,4e-5", "sweep.extend_rounds=1", "device=cpu", "launcher.workers=1"]  # fmt: skip


def command(capsys, *words):
    """(exit status, what it said on stderr); asserts that it says something short where it fails."""
    status = cli.main(list(words))
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    if status == 2:
        assert any(line.startswith("hyperlaw: ") for line in said.err.strip().splitlines()[-2:]), said.err
    return status, said.out + said.err


def full(text):
    return "disk is full" in text or "No space left" in text


def sweep(out, tmp_path, runs=None):
    return ["sweep", *SWEEP, f"out={out}", f"cache={tmp_path / 'cache'}", f"runs={runs or out / 'runs'}"]


def test_a_sweep_that_cannot_note_its_extension_goes_on_later(disk, tmp_path, capsys):
    calm = tmp_path / "calm"
    assert command(capsys, *sweep(calm, tmp_path))[0] == 0
    assert len(json.loads((calm / "extension.json").read_text())["rounds"]) == 1
    runs = tmp_path / "runs"
    for pages, name in ((0, "data.json"), (1, "extension.json")):
        disk.fill(pages)
        status, said = command(capsys, *sweep(disk.path, tmp_path, runs))
        assert status == 2 and full(said) and name in said
    assert len(list(runs.iterdir())) == 3 and not (disk.path / "extension.json").exists()
    disk.free()
    assert command(capsys, *sweep(disk.path, tmp_path, runs))[0] == 0
    assert_same_runs(calm / "runs", runs)
    noted = (calm / "extension.json").read_bytes()
    assert (disk.path / "extension.json").read_bytes() == noted
    (calm / "extension.json").write_bytes(noted.replace(b"8", b"9"))  # damaged: the same rounds follow from the results
    status, said = command(capsys, *sweep(calm, tmp_path))
    assert status == 0 and "is damaged" in said and (calm / "extension.json").read_bytes() == noted
    assert_same_runs(runs, calm / "runs")


def test_a_sweep_on_a_full_disk_fails_in_words(disk, tmp_path, capsys):
    words = ["train", *POINT, "device=cpu", f"cache={tmp_path / 'cache'}"]
    assert command(capsys, *words, f"out={tmp_path / 'calm'}")[0] == 0
    disk.fill(3)
    status, said = command(capsys, *words, f"out={disk.path}")
    assert status == 1 and full(said) and said.count("disk is full") <= 6
    disk.free()
    assert command(capsys, *words, f"out={disk.path}")[0] == 0
    assert_same_runs(tmp_path / "calm" / "runs", disk.path / "runs")


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_table_is_written_whole_or_not_at_all(tiny, corpus, disk, tmp_path, capsys, name):
    points, _ = tiny("seed=0,1", tokens=2048)
    for point in points:
        train(point, tmp_path, corpus)
    words = ["table", f"runs={tmp_path / 'runs'}", "--out", str(disk.path / name)]
    disk.fill(0)
    status, said = command(capsys, *words)
    assert status == 2 and full(said) and name in said and not (disk.path / name).exists()
    disk.free()
    assert command(capsys, *words)[0] == 0
    before = (disk.path / name).read_bytes()
    disk.fill(0)
    assert command(capsys, *words)[0] == 2
    assert (disk.path / name).read_bytes() == before and len(list(disk.path.iterdir())) == 2


def test_laws_and_figures(disk, tmp_path, capsys):
    rng, rows = np.random.default_rng(0), []
    for n in (1e6, 4e6, 16e6):
        for k in range(-3, 4):
            rows.append((n, 20 * n, 3 * n**-0.4 * 2.0**k, 2 + 10 / n**0.2 + 0.01 * k**2 + 1e-4 * rng.standard_normal()))
    table = tmp_path / "t.csv"
    pd.DataFrame(rows, columns=["params", "tokens", "lr", "loss"]).to_csv(table, index=False)
    words = ["fit", "analysis=lr", f"table={table}"]
    assert command(capsys, *words, f"out={tmp_path / 'calm'}")[0] == 0
    names = sorted(p.name for p in (tmp_path / "calm").iterdir())
    sizes = [-(-(tmp_path / "calm" / name).stat().st_size // 4096) for name in names]
    for pages in sorted({0, 1, *(sum(sizes[:i]) + 1 for i in range(len(names)))}):
        if pages < sum(sizes):
            disk.fill(pages)
            status, said = command(capsys, *words, f"out={disk.path / 'laws'}")
            assert status == 2 and full(said)
            if (disk.path / "laws/laws.json").exists():  # whole, if it is there
                json.loads((disk.path / "laws/laws.json").read_text())
            disk.free()
    assert command(capsys, *words, f"out={disk.path / 'laws'}")[0] == 0
    assert sorted(p.name for p in (disk.path / "laws").iterdir()) == names
    assert (disk.path / "laws/laws.json").read_bytes() == (tmp_path / "calm/laws.json").read_bytes()
