"""Batch-size ramps: whole steps, ids, the same stream of sequences, training as a loop by hand, resuming inside one."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from harness.data import Stream, open_corpus
from harness.errors import UserError
from harness.optimizer import Hyper
from harness.point import Point
from harness.rundir import read_point
from harness.step import Step, initial_weights
from harness.supervisor import check_devices
from harness.train import train_point

from .helpers import point, tiny

RAMP = "schedule.batch_ramp=[[256,1],[768,2]]"  # of 16 tokens a sequence: 16 steps of 1, 16 of 2, then 4
BEFORE = {  # a point as it was written before there were ramps
    "shape": {"width": 64, "depth": 2, "head_dim": 16, "n_heads": 4, "n_kv_heads": 4, "ffn_width": 176, "vocab": 256,
              "context": 64, "tied": True, "qk_norm": False, "rope_theta": 10000.0, "norm_eps": 1e-05, "z_loss": 0.0},
    "parameterization": {"name": "standard", "base_width": 64, "base_depth": 2, "init_std": 0.125,
                         "embedding_lr_multiplier": 1.0, "embedding_multiplier": 1.0, "logits_multiplier": 1.0,
                         "weight_decay_width_exponent": 0.0, "depth_alpha": 0.0, "base_head_dim": None},
    "optimizer": {"name": "adamw", "lr": 0.004, "weight_decay": 0.1, "weight_decay_mode": "coupled", "beta1": 0.9,
                  "beta2": 0.95, "eps": 1e-08, "clip": 1.0},
    "schedule": {"name": "linear", "warmup_steps": 10, "cooldown_steps": 0, "cooldown_shape": "", "final_ratio": 0.0},
    "data": {"name": "sotu", "tokenizer": "bytes", "fingerprint": "content", "seed": 0, "unique_tokens": 1000000000000},
    "validation": {"sequences": 1024, "fractions": [0.25, 0.5, 0.75]},
    "batch_size": 8, "steps": 100, "seed": 0, "precision": "bf16",
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_a_ramp_ends_nearest_its_tokens_and_the_run_nearest_its_budget():
    p = point("tokens=1e6", "schedule.batch_ramp=[[65600,2],[196608,4]]")  # context 64, then 8 sequences
    assert p.stretches == ((512, 2), (512, 4), (1569, 8)) and p.tokens_at(512) == 65536 and p.tokens_at(1024) == 196608
    assert abs(p.tokens - 1e6) <= 8 * 64 / 2 and p.steps == 2593 == len(p.batches())
    assert p.tokens_at(700) == 64 * p.batches()[:700].sum() == 64 * p.sequences_at(700)
    assert p.flops == point("tokens=999936").flops and p.tau == pytest.approx(1 / (p.adjusted[0] * p.adjusted[1] * 2593))
    columns = p.columns()
    assert columns["batch_ramp"] == "2@65536,4@196608" and columns["tokens"] == p.tokens and columns["batch_size"] == 8
    assert point("tokens=1e6").columns()["batch_ramp"] is None


def test_warm_up_and_cooldown_in_tokens_count_the_tokens_of_their_own_steps():
    p = point("tokens=1e6", "schedule=wsd", "schedule.batch_ramp=[[65536,2]]", "schedule.warmup_tokens=70656",
              "schedule.cooldown_tokens=512000")  # fmt: skip
    assert p.schedule.warmup_steps == 512 + 10 and p.schedule.cooldown_steps == 1000
    assert p.columns()["warmup_tokens"] == 70656 and p.columns()["cooldown_tokens"] == 512000


def test_ids_without_a_ramp_are_those_from_before_there_were_any():
    old = Point.from_dict(BEFORE)
    assert old.id == "bce60c637ce0d520" and old.to_dict() == BEFORE
    ramped = dataclasses.replace(old, schedule=dataclasses.replace(old.schedule, ramp=((10, 2),)))
    assert ramped.id != old.id and Point.from_dict(ramped.to_dict()) == ramped


def test_a_ramp_that_changes_nothing_is_none():
    plain = point("tokens=512000")
    assert {point("tokens=512000", f"schedule.batch_ramp={r}").id for r in ("null", "[]", "[[51200,8]]")} == {plain.id}
    assert point("tokens=512000", "schedule.batch_ramp=[[1e9,4]]").id == point("tokens=512000", "batch_size=4").id


@pytest.mark.parametrize("ramp", ["[65536,2]", "[[65536]]", "[[65536,2.5]]", "[[65536,0]]", "[[9e4,2],[8e4,4]]", "[[20,2]]",
                                  "[[x,2]]"])  # fmt: skip
def test_impossible_ramps_are_named(ramp):
    with pytest.raises(UserError, match="schedule.batch_ramp"):
        point("tokens=1e6", f"schedule.batch_ramp={ramp}")


def test_every_batch_is_shared_equally_by_devices():
    check_devices(point("tokens=1e6", "schedule.batch_ramp=[[65536,2]]"), 2, "ddp")
    with pytest.raises(UserError, match="4 must divide each batch"):
        check_devices(point("tokens=1e6", "schedule.batch_ramp=[[65536,2]]"), 4, "ddp")


def test_trains_as_a_loop_by_hand_over_the_same_sequences(cache, tmp_path):
    p, runtime = tiny(cache, "tokens=2048", RAMP)
    assert p.stretches == ((16, 1), (16, 2), (20, 4)) and train_point(p, tmp_path, runtime) == "done"
    curve = pd.read_parquet(tmp_path / "curve.parquet").set_index("step")
    stream, hyper = Stream(open_corpus(Path(runtime.corpus_dir)), 16, p.data.seed), Hyper.of(p, torch.device("cpu"))
    step = Step(p.shape, p.parameterization, p.precision, "cpu", False)
    w, m, v = step.place_weights(initial_weights(p, "cpu")), step.zeros(), step.zeros()
    sequences = torch.from_numpy(stream.batch(0, 16 + 32 + 80))  # what an unramped run reads, in its order
    done, norms = 0, []
    for t, size in enumerate([1] * 16 + [2] * 16 + [4] * 20):
        out = step(w, m, v, hyper.per_step[t], hyper.fixed, sequences[done : done + size], size)
        done, norms = done + size, [*norms, float(out[1])]
    assert curve.grad_norm.tolist() == [norms[s - 1] for s in curve.index]
    assert curve.tokens.tolist() == [p.tokens_at(s) for s in curve.index] and curve.tokens.iloc[-1] == 2048
    held_out = torch.from_numpy(stream.validation(p.validation.sequences))
    assert curve.validation_loss.iloc[-1] == step.evaluate(w, held_out, 512)


@pytest.mark.parametrize("stops", [[7], [16], [20, 13]])
def test_a_run_that_stops_inside_its_ramp_goes_on_bit_for_bit(cache, tmp_path, stops):
    p, runtime = tiny(cache, "tokens=2048", RAMP)
    train_point(p, tmp_path / "whole", runtime)
    for n in stops:
        asked = iter([False] * n)
        stop = partial(next, asked, True)
        assert train_point(p, tmp_path / "parts", runtime, should_stop=stop) == "stopped"
    assert train_point(p, tmp_path / "parts", runtime) == "done"
    whole, parts = (pd.read_parquet(tmp_path / name / "curve.parquet") for name in ("whole", "parts"))
    pd.testing.assert_frame_equal(whole, parts, check_exact=True)
    assert read_point(tmp_path / "parts") == p and np.isfinite(whole.train_loss).all()
