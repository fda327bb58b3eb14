"""Points that truly give NaN at their first and at their last step: diverged there, a row of the table, never retried."""

import pandas as pd
import pytest

from analysis.table import read_runs
from harness.rundir import read_status

from .running import train

HOT = ("seed=0", "schedule=constant", "schedule.warmup=0", "optimizer.clip=null")


def steps(n):
    return n * 4 * 32


@pytest.mark.parametrize(
    ("words", "n", "at", "kind"),
    [
        ((*HOT, "parameterization.init_std=1e30"), 40, 1, "non_finite"),
        ((*HOT, "optimizer.lr=1e30"), 2, 2, "non_finite"),
    ],
    ids=["first step", "last step"],
)
def test_nan(tiny, corpus, tmp_path, words, n, at, kind):
    (point,), _ = tiny(*words, tokens=steps(n))
    assert point.steps == n
    ended = train(point, tmp_path, corpus)
    run_dir = tmp_path / "runs" / point.id
    reason = read_status(run_dir)["reason"]
    assert ended["status"] == "diverged" and (reason["type"], reason["step"]) == (kind, at), reason
    curve = pd.read_parquet(run_dir / "curve.parquet")
    assert curve.step.iloc[-1] == at and len(curve) == at
    frame = read_runs(tmp_path / "runs")
    assert frame.status.tolist() == ["diverged"] and frame.loss.isna().all() and not frame.attrs["damaged"]
    assert frame.tokens[0] == steps(at)
    assert train(point, tmp_path, corpus) == {"status": "diverged", "trained": False, "said": ""}


def test_a_long_run_that_ends_with_its_first_nan(tiny, corpus, tmp_path):
    """A run of as many steps as it takes to diverge: its last step is the one that does."""
    words = (*HOT, "optimizer.lr=300", "model.depth=2")
    (long,), _ = tiny(*words, tokens=steps(400))
    assert train(long, tmp_path, corpus)["status"] == "diverged"
    at = read_status(tmp_path / "runs" / long.id)["reason"]["step"]
    assert at > 1
    (short,), _ = tiny(*words, tokens=steps(at))
    assert train(short, tmp_path, corpus)["status"] == "diverged"
    said, expected = (read_status(tmp_path / "runs" / p.id) for p in (short, long))
    assert said["reason"] == expected["reason"] and short.steps == at == said["step"]
