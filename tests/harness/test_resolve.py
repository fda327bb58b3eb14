"""Ratios to numbers: tau, tokens, batch, warm-up; what contradicts or is missing is named."""

import dataclasses
import functools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config import Config
from harness.errors import UserError
from harness.point import Point
from harness.resolve import DataFacts, resolve
from models.shape import LlamaShape

from .helpers import FACTS, config, point


def power_lines_point(**changes) -> Point:
    """610M at 80 TPP as in DESIGN, decision 1: B = 504 sequences of 2048, base LR 1.62e-2 at width 256, lambda 0.1."""
    p = point("model=powerlines", "model.width=2048", "model.depth=10", "parameterization=mup",
              "parameterization.base_width=256", "parameterization.base_depth=10", "batch_size=504", "tokens=48.5e9",
              "optimizer.lr=1.62e-2", "optimizer.weight_decay=0.1", facts=DataFacts("x", 50257, None))  # fmt: skip
    return dataclasses.replace(p, **changes)


def test_tau_of_power_lines_to_three_digits():
    p = power_lines_point()
    assert p.columns()["lr_adjusted"] == pytest.approx(2.025e-3)
    assert p.tau == pytest.approx(504 * 2048 / (2.025e-3 * 0.1 * 48.5e9), rel=1e-4)
    assert f"{p.tau:.3f}" == "0.105"


def test_tau_uses_adjusted_weight_decay_of_completep():
    keys = ("model.width=256", "parameterization.base_width=64", "tokens=1e6", "optimizer.weight_decay=0.1")
    mup, completep = (point(f"parameterization={name}", *keys) for name in ("mup", "completep"))
    assert completep.columns()["weight_decay_adjusted"] == pytest.approx(0.4)
    assert mup.tau / completep.tau == pytest.approx(4)


def test_independent_weight_decay_leaves_learning_rate_out_of_tau():
    p = point("optimizer.weight_decay_mode=independent", "optimizer.weight_decay=1e-3", "tokens=1e6")
    assert p.tau == pytest.approx(1 / (1e-3 * p.steps))


def test_no_weight_decay_has_no_tau():
    assert point("optimizer.weight_decay=0").columns()["tau"] is None


@functools.cache
def asked(horizon: str, name: str) -> Config:
    """A config that gives tau and this horizon; composing one takes longer than all else here."""
    return config("tau=0.1", f"{horizon}=100000", f"parameterization={name}")


def resolved(tau, lr, width, name, mode, **horizon) -> Point:
    c = asked(*horizon, name)
    model, optimizer = replace(c.model, width=width), replace(c.optimizer, lr=lr, weight_decay_mode=mode)
    return resolve(replace(c, tau=tau, model=model, optimizer=optimizer, **horizon), FACTS)


RATIOS = {"tau": st.floats(1e-3, 1e2), "lr": st.floats(1e-5, 1.0), "width": st.sampled_from([32, 64, 256]),
          "tpp": st.floats(1, 200), "name": st.sampled_from(["standard", "mup", "completep", "standard_embedding"]),
          "mode": st.sampled_from(["coupled", "independent"])}  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(**RATIOS)
def test_tau_asked_is_tau_had(tau, lr, width, tpp, name, mode):
    p = resolved(tau, lr, width, name, mode, tpp=tpp)
    assert p.tau == pytest.approx(tau, rel=1e-9)
    # a recipe in ratios means the same as the numbers it resolved to
    again = resolved(p.tau, p.optimizer.lr, width, name, mode, tokens=p.tokens)
    assert again.steps == p.steps and again.tau == pytest.approx(p.tau)


@settings(max_examples=5, deadline=None)
@given(**RATIOS)
def test_a_recipe_typed_means_the_same(tau, lr, width, tpp, name, mode):
    words = f"model.width={width}", f"parameterization={name}", f"optimizer.weight_decay_mode={mode}"
    p = point(f"tau={tau}", f"optimizer.lr={lr}", f"tpp={tpp}", *words)
    assert p == resolved(tau, lr, width, name, mode, tpp=tpp)
    again = point(f"tau={p.tau!r}", f"optimizer.lr={p.optimizer.lr!r}", f"tokens={p.tokens}", *words)
    assert again.steps == p.steps and again.tau == pytest.approx(p.tau)


def test_steps_are_whole_and_tokens_follow():
    p = point("tpp=20", "batch_size=7")
    assert p.tokens == p.steps * 7 * 64
    assert abs(p.columns()["tpp"] / 20 - 1) < 0.02


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["tpp=null"], ["tpp", "tokens"]),
        (["tpp=20", "tokens=1e6"], ["tpp", "tokens"]),
        (["batch_tokens=100"], ["batch_tokens", "64"]),
        (["tokens=10"], ["batch"]),
        (["optimizer.lr=0"], ["optimizer.lr"]),
        (["tau=-1"], ["tau"]),
        (["optimizer.beta2=1"], ["beta2"]),
        (["schedule.warmup=1.5"], ["warmup"]),
        (["schedule.warmup_tokens=1e12"], ["warm-up"]),
        (["schedule=linear", "schedule.cooldown=0.2"], ["cooldown"]),
        (["schedule=wsd", "schedule.cooldown_shape=cubic"], ["cooldown_shape", "1-sqrt"]),
        (["precision=fp8"], ["precision", "bf16"]),
        (["validation.fractions=[2]"], ["fractions"]),
        (["model.width=10"], ["width"]),
    ],
)
def test_impossible_requests_are_named_in_two_lines(overrides, words):
    with pytest.raises(UserError) as e:
        point(*overrides)
    assert all(word in str(e.value) for word in words)
    assert len(str(e.value).splitlines()) <= 2


def test_more_tokens_than_there_are_is_an_error_that_says_how_many():
    facts = DataFacts("x", 256, 64_001)
    with pytest.raises(UserError, match="64000 unique"):
        point("tokens=128000", facts=facts)
    repeated = point("tokens=128000", "data.epochs=2", facts=facts)
    assert repeated.columns()["epochs"] == pytest.approx(2, rel=1e-3)
    assert point("tokens=64000", facts=facts).columns()["epochs"] == 1


def test_warmup_as_fraction_or_tokens():
    assert point("tokens=512000", "schedule.warmup=0.1").schedule.warmup_steps == 100
    assert point("tokens=512000", "schedule.warmup_tokens=51200").schedule.warmup_steps == 100


def test_id_is_content():
    base = point()
    assert Point.from_dict(base.to_dict()) == base and Point.from_dict(base.to_dict()).id == base.id
    changed = ["seed=1", "precision=fp32", "optimizer.lr=5e-3", "model.width=128", "tpp=21", "schedule=cosine",
               "optimizer.beta2=0.99", "parameterization=mup", "data.seed=3", "model.z_loss=1e-4"]  # fmt: skip
    ids = {point(word).id for word in changed}
    assert len(ids) == len(changed) and base.id not in ids
    assert point(facts=dataclasses.replace(FACTS, fingerprint="other")).id != base.id
    same = ["device=cpu", "micro_batch=2", "checkpoint_seconds=1", "launcher.workers=3", "curve_points=7", "out=x",
            "tracking=wandb", "launcher.compile=never", "data.epochs=3"]  # fmt: skip
    assert {point(word).id for word in same} == {base.id}


def test_data_seed_is_the_seed_unless_given():
    assert point("seed=3").data.seed == 3
    assert point("seed=3", "data.seed=5").data.seed == 5


def test_resolving_needs_no_hydra():
    config = Config()
    config.tau, config.optimizer.weight_decay = 0.3, None
    assert isinstance(resolve(config, FACTS).shape, LlamaShape)


def test_what_cannot_change_the_result_is_not_in_the_id():
    """A standard model has no base shape, a run without decay no mode of it, and a file's name is not its content."""
    keys = ("model.width=128", "parameterization.init_std=0.02")
    assert point("parameterization.base_depth=2").id == point("parameterization.base_depth=4").id
    wide = [point("model.width=128", f"parameterization.base_width={w}") for w in (32, 64)]
    assert wide[0].id == wide[1].id and wide[0].parameterization != wide[1].parameterization
    assert point(*keys, "parameterization.base_width=32").id != point(*keys, "parameterization.base_width=64").id
    modes = [point("optimizer.weight_decay=0", f"optimizer.weight_decay_mode={m}") for m in ("coupled", "independent")]
    assert modes[0].id == modes[1].id
    p = point()
    renamed = dataclasses.replace(p, data=dataclasses.replace(p.data, name="files", tokenizer="mine.json"))
    assert renamed.id == p.id
