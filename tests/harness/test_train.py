"""Training of one point: resuming bit for bit, divergence at its step, what the run directory then holds."""

import json
import math
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.table import read_runs
from harness import train as train_module
from harness.checkpoint import checkpoints, read_checkpoint
from harness.errors import UserError
from harness.rundir import LostRun, read_point, read_status
from harness.state import State
from harness.step import Step
from harness.train import train_point

from .helpers import tiny

STEPS = 60
RUN = [f"tokens={STEPS * 64}", "validation.fractions=[0.25,0.5]"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def files(run_dir):
    result = json.loads((run_dir / "result.json").read_text())
    timeless = {k: v for k, v in result.items() if "seconds" not in k and k != "runtime"}
    return pd.read_parquet(run_dir / "curve.parquet"), timeless


class StopAfter:
    """should_stop that turns true after n more steps."""

    def __init__(self, n):
        self.left = n

    def __call__(self):
        self.left -= 1
        return self.left < 0


def test_a_run_directory_says_it_all(cache, tmp_path):
    p, runtime = tiny(cache, *RUN)
    told = []
    assert train_point(p, tmp_path, runtime, lambda *a: told.append(a)) == "done"
    curve, result = files(tmp_path)
    assert read_point(tmp_path) == p and read_status(tmp_path)["status"] == "done"
    assert list(curve.columns) == ["step", "tokens", "lr", "train_loss", "validation_loss", "grad_norm"]
    assert curve.step.is_monotonic_increasing and curve.step.iloc[-1] == STEPS
    assert (curve.tokens == curve.step * p.batch_tokens).all() and (curve.grad_norm > 0).all()
    assert curve.lr.max() == pytest.approx(p.adjusted[0])
    assert curve.set_index("step").validation_loss.dropna().index.tolist() == [15, 30, 60]
    assert curve.validation_loss.iloc[-1] == result["loss"]
    # the chain's next state is worth learning, and cannot be predicted better than its entropy rate
    assert 1.9 < result["loss"] < math.log(16)
    assert result["tokens"] == p.tokens and result["flops"] == p.flops
    assert not checkpoints(tmp_path) and told[-1][:2] == (STEPS, STEPS)


@pytest.mark.parametrize("stops", [[0], [1], [17], [15], [30, 12, 5], [59]])
def test_a_stopped_run_goes_on_bit_for_bit(cache, tmp_path, stops):
    p, runtime = tiny(cache, *RUN, "precision=bf16")
    train_point(p, tmp_path / "whole", runtime)
    for n in stops:
        assert train_point(p, tmp_path / "parts", runtime, should_stop=StopAfter(n)) == "stopped"
        assert read_status(tmp_path / "parts")["status"] == "pending"
    assert train_point(p, tmp_path / "parts", runtime) == "done"
    whole, parts = files(tmp_path / "whole"), files(tmp_path / "parts")
    pd.testing.assert_frame_equal(whole[0], parts[0], check_exact=True)
    assert whole[1] == parts[1]


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_used(cache, tmp_path):
    p, runtime = tiny(cache, *RUN)
    train_point(p, tmp_path / "whole", runtime)
    run = tmp_path / "run"
    for n in (20, 20):
        train_point(p, run, runtime, should_stop=StopAfter(n))
    older, newer = checkpoints(run)
    content = bytearray(newer.read_bytes())
    content[len(content) // 2] ^= 1
    newer.write_bytes(content)
    _, facts, damaged = read_checkpoint(run)
    assert facts["step"] == 20 and damaged == [newer.name]
    newer.write_bytes(bytes(content[: len(content) // 2]))
    assert read_checkpoint(run)[1]["step"] == 20
    assert train_point(p, run, runtime) == "done"
    pd.testing.assert_frame_equal(files(tmp_path / "whole")[0], files(run)[0], check_exact=True)
    older.write_bytes(b"")
    assert read_checkpoint(tmp_path / "nothing") is None


def test_every_byte_of_a_checkpoint_is_sealed(cache, tmp_path):
    p, runtime = tiny(cache, *RUN)
    train_point(p, tmp_path, runtime, should_stop=StopAfter(5))
    (path,) = checkpoints(tmp_path)
    whole = path.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(whole), 60):
        broken = bytearray(whole)
        broken[at] ^= 1 << int(at) % 8
        path.write_bytes(broken)
        assert read_checkpoint(tmp_path) is None, at


def test_a_resumed_run_keeps_its_numerics(cache, tmp_path):
    p, runtime = tiny(cache, *RUN)
    train_point(p, tmp_path, runtime, should_stop=StopAfter(5))
    runtime.compile = True  # this launch would compile; the run began eager
    assert train_point(p, tmp_path, runtime) == "done"
    assert files(tmp_path)[1]["numerics"]["compiled"] is False


@pytest.mark.parametrize("at", [1, 7, STEPS])
def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(cache, tmp_path, monkeypatch, at):
    p, runtime = tiny(cache, *RUN)
    original = Step.__call__
    taken = []

    def poisoned(self, *args):
        taken.append(1)
        return original(self, *args) * (math.nan if len(taken) == at else 1)

    monkeypatch.setattr(Step, "__call__", poisoned)
    assert train_point(p, tmp_path, runtime) == "diverged"
    status = read_status(tmp_path)
    assert status["reason"]["type"] == "non_finite" and status["reason"]["step"] == at
    curve, result = files(tmp_path)
    assert curve.step.iloc[-1] == at and result["loss"] is None and result["tokens"] == at * p.batch_tokens


def test_a_learning_rate_far_too_high_diverges(cache, tmp_path):
    p, runtime = tiny(cache, *RUN, "optimizer.lr=30", "optimizer.clip=null", "schedule.warmup=0")
    assert train_point(p, tmp_path, runtime) == "diverged"
    assert read_status(tmp_path)["reason"]["type"] in ("exploded", "non_finite")


def test_an_overtaken_attempt_writes_nothing(cache, tmp_path):
    p, runtime = tiny(cache, *RUN)
    mine = [True]

    train_point(p, tmp_path, runtime, should_stop=StopAfter(5))
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    mine[0] = False
    with pytest.raises(LostRun):
        train_point(p, tmp_path, runtime, still_mine=lambda: mine[0])
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


def test_micro_batches_are_recorded(cache, tmp_path):
    p, runtime = tiny(cache, *RUN)
    runtime.micro_batch = 3
    train_point(p, tmp_path, runtime)
    assert files(tmp_path)[1]["micro_batch"] == 3


def test_a_resumed_run_keeps_its_shared_pass(cache, tmp_path):
    """Whatever the sweep's other batch sizes make this launch choose, bit for bit."""
    p, runtime = tiny(cache, *RUN)
    assert train_point(p, tmp_path / "whole", runtime) == "done"
    runtime.shared_pass = 2
    assert train_point(p, tmp_path / "shared", runtime) == "done"
    for shared in (2, None, 1):
        runtime.shared_pass = shared
        assert train_point(p, tmp_path / "resumed", runtime, should_stop=StopAfter(20 if shared != 1 else 99)) != "failed"
    whole, shared, resumed = (tmp_path / name for name in ("whole", "shared", "resumed"))
    assert (shared / "curve.parquet").read_bytes() == (resumed / "curve.parquet").read_bytes()
    assert (shared / "curve.parquet").read_bytes() != (whole / "curve.parquet").read_bytes()
    assert files(shared)[1] == files(resumed)[1] and files(shared)[1]["micro_batch"] == 2
    assert files(whole)[1]["micro_batch"] == 4
    assert files(whole)[1]["loss"] == pytest.approx(files(shared)[1]["loss"], abs=1e-4)


def test_without_memory_for_the_shared_pass_it_is_halved(cache, tmp_path, monkeypatch):
    import torch

    from harness import step as step_module

    p, runtime = tiny(cache, *RUN)
    runtime.shared_pass, seen = 2, []
    original = step_module._accumulate

    def small_device(*args):
        seen.append(len(args[-1]))
        if len(args[-1]) > 1:
            raise torch.OutOfMemoryError("no room")
        return original(*args)

    monkeypatch.setattr(step_module, "_accumulate", small_device)
    assert train_point(p, tmp_path, runtime) == "done"
    assert seen.count(2) == 1 and files(tmp_path)[1]["micro_batch"] == 1


def test_out_of_memory_halves_the_micro_batch(cache, tmp_path, monkeypatch):
    import torch

    p, runtime = tiny(cache, *RUN)
    original = Step.__call__

    def small_device(self, *args):
        if args[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *args)

    monkeypatch.setattr(Step, "__call__", small_device)
    assert train_point(p, tmp_path, runtime) == "done"
    assert files(tmp_path)[1]["micro_batch"] == 1
    monkeypatch.setattr(Step, "__call__", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    assert train_point(tiny(cache, *RUN, "seed=5")[0], tmp_path / "b", runtime) == "out_of_memory"
    assert read_status(tmp_path / "b")["status"] == "out_of_memory"


def test_points_with_other_batch_sizes_see_the_same_tokens(cache):
    from pathlib import Path

    from harness.data import Stream, open_corpus

    _, runtime = tiny(cache, *RUN)
    stream = Stream(open_corpus(Path(runtime.corpus_dir)), 16, 0)
    whole = stream.batch(0, 24)
    parts = np.concatenate([stream.batch(i, 4) for i in range(0, 24, 4)])
    assert (whole == parts).all() and (whole != Stream(stream.corpus, 16, 1).batch(0, 24)).any()


@pytest.mark.parametrize("n", [8, 30, 50])
def test_a_stop_hides_no_divergence(cache, tmp_path, n):
    hot = [*RUN, "optimizer.lr=30", "optimizer.clip=null", "schedule.warmup=0"]
    p, runtime = tiny(cache, *hot)
    train_point(p, tmp_path / "whole", runtime)
    while (status := train_point(p, tmp_path / "parts", runtime, should_stop=StopAfter(n))) == "stopped":
        pass
    assert status == "diverged"
    assert read_status(tmp_path / "whole")["reason"] == read_status(tmp_path / "parts")["reason"]
    pd.testing.assert_frame_equal(files(tmp_path / "whole")[0], files(tmp_path / "parts")[0], check_exact=True)


def test_slow_steps_are_looked_at_every_second_or_so(cache, tmp_path, monkeypatch):
    p, runtime = tiny(cache, *RUN)
    original, told = Step.__call__, []
    monkeypatch.setattr(train_module, "STRETCH_SECONDS", 0.05)

    def slow(self, *args):
        time.sleep(0.02)
        return original(self, *args)

    monkeypatch.setattr(Step, "__call__", slow)
    runtime.checkpoint_seconds = 0.1
    steps = []
    monkeypatch.setattr(State, "checkpoint", lambda self: steps.append(self.step))
    train_point(p, tmp_path, runtime, on_progress=lambda *a: told.append(a))
    assert len(steps) >= 4 and max(np.diff([0, *steps])) < STEPS / 3


def test_a_run_begun_on_another_device_is_not_gone_on_with(cache, tmp_path):
    p, runtime = tiny(cache, *RUN)
    train_point(p, tmp_path, runtime, should_stop=StopAfter(5))
    runtime.device = "cuda"
    with pytest.raises(UserError, match="began on cpu"):
        train_point(p, tmp_path, runtime)


def test_the_entropy_rate_of_the_source_stands_beside_the_loss(cache, tmp_path):
    p, runtime = tiny(cache, *RUN)
    train_point(p, tmp_path, runtime)
    result = files(tmp_path)[1]
    assert result["entropy_rate"] == pytest.approx(2.0, abs=0.1) and result["loss"] > result["entropy_rate"]


def test_a_run_says_how_fast_its_device_was_and_which_share_of_its_peak_that_is(cache, tmp_path):
    p, runtime = tiny(cache, *RUN)
    runtime.peak_flops = 1e12
    assert train_point(p, tmp_path / "whole", runtime) == "done"
    assert train_point(p, tmp_path / "trunk", replace(runtime, until=40)) == "paused"
    assert train_point(p, tmp_path / "branch", replace(runtime, start=str(tmp_path / "trunk"))) == "done"
    assert train_point(replace(p, seed=5), tmp_path / "unknown", replace(runtime, peak_flops=None)) == "done"
    table = read_runs(tmp_path).assign(folder=["branch", "trunk", "unknown", "whole"]).set_index("folder")
    trained = {"whole": p.flops, "branch": p.flops / 3, "unknown": p.flops}  # the trunk's 40 of 60 steps are not its own
    for name, flops in trained.items():
        row = table.loc[name]
        assert row.model_flops_per_second * row.device_seconds == pytest.approx(flops, rel=1e-6)
    assert table.utilisation["whole"] == pytest.approx(table.model_flops_per_second["whole"] / 1e12)
    assert math.isnan(table.utilisation["unknown"]) and math.isnan(table.model_flops_per_second["trunk"])
