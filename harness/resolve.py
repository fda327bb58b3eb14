"""One pure function from ratios to numbers: `resolve(config, data) -> Point` (DESIGN, decision 1).

    tokens D = tpp * N            batch B = batch_size * context (tokens)          steps = round(D / B)
    (of several batches: harness/ramp.py)
    tau = B/(eta*lambda*D) = 1/(eta*lambda*steps)   =>   lambda = 1/(tau*eta*steps)

eta and lambda are the adjusted peak values of the hidden matrices; what a Point stores is their base values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from harness.config import Config
from harness.errors import UserError
from harness.point import DataSpec, OptimizerSpec, Point, ScheduleSpec, ValidationSpec
from harness.ramp import Stretches, steps_after, stretches
from models.count import count_params
from models.parameterization import Parameterization, hidden
from models.shape import LARGEST, LlamaShape

# (one side, other side): two ways to say one thing. Giving both is an error; a default yields to a given side.
RELATIONS = (
    ("tpp", "tokens"),
    ("batch_size", "batch_tokens"),
    ("tau", "optimizer.weight_decay"),
    ("schedule.warmup", "schedule.warmup_tokens"),
    ("schedule.cooldown", "schedule.cooldown_tokens"),
    ("model.ffn_width", "model.ffn_ratio"),
)
SCHEDULES = ("linear", "cosine", "wsd", "constant")
COOLDOWNS = ("linear", "1-sqrt")
MODES = ("coupled", "independent")
PRECISIONS = ("bf16", "fp32")
OPTIMIZERS = ("adamw",)


@dataclass(frozen=True)
class DataFacts:
    """What resolving needs to know of the data: its content's hash, the vocabulary, and how many tokens there are
    (None where the corpus is not prepared yet and the plan is provisional)."""

    fingerprint: str
    vocab: int
    train_tokens: int | None


def resolve(config: Config, data: DataFacts) -> Point:
    """The Point that `config` describes. Pure.

    Raises UserError where a side of a relation is missing or both are there, a value is impossible, or the corpus has
    fewer tokens than asked for.
    """
    try:
        return _resolve(config, data)
    except (OverflowError, ZeroDivisionError):
        raise UserError(
            "A value of this request is too large or too small to compute with; look at model.*, parameterization.*, "
            "tpp or tokens, the batch, optimizer.lr and tau."
        ) from None


def _resolve(config: Config, data: DataFacts) -> Point:
    _choice("model", config.model.name, ("llama",))
    _choice("schedule", config.schedule.name, SCHEDULES)
    _choice("optimizer", config.optimizer.name, OPTIMIZERS)
    _choice("optimizer.weight_decay_mode", config.optimizer.weight_decay_mode, MODES)
    _choice("precision", config.precision, PRECISIONS)
    for key, seed in (("seed", config.seed), ("data.seed", config.data.seed)):
        if seed is not None and abs(seed) >= 2**63:
            raise UserError(f"{key} must lie between -2^63 and 2^63.")
    shape = resolve_shape(config, data.vocab)
    parameterization = resolve_parameterization(config)
    batch_size = _batch_size(config, shape.context)
    run = _stretches(config, count_params(shape).params, batch_size, shape.context)
    steps = sum(n for n, _ in run)
    _enough(config, data, sum(n * size for n, size in run) * shape.context)
    return Point(
        shape=shape,
        parameterization=parameterization,
        optimizer=_optimizer(config, shape, parameterization, steps),
        schedule=_schedule(config, run, shape.context),
        data=DataSpec(
            name=config.data.name,
            tokenizer=_tokenizer_name(config.data.tokenizer),
            fingerprint=data.fingerprint,
            seed=config.seed if config.data.seed is None else config.data.seed,
            unique_tokens=data.train_tokens,
        ),
        validation=_validation(config, shape.context),
        batch_size=run[-1][1],
        steps=steps,
        seed=config.seed,
        precision=config.precision,
    )


def resolve_shape(config: Config, vocab: int) -> LlamaShape:
    """The model's shape; `vocab` comes from the tokenizer."""
    m = {name: value for name, value in vars(config.model).items() if name != "name"}
    return _built(LlamaShape.build, vocab=vocab, **m)


def resolve_parameterization(config: Config) -> Parameterization:
    """The parameterization with its base shape."""
    return _built(Parameterization.build, **vars(config.parameterization))


@lru_cache(maxsize=4096, typed=True)  # typed: 1 and 1.0 are written differently in an id
def _built(build: Callable, **values):
    """`build(**values)`, once: the points of a sweep have few shapes."""
    return build(**values)


def _batch_size(config: Config, context: int) -> int:
    given = _one_of("batch_size", config.batch_size, "batch_tokens", config.batch_tokens)
    if given == "batch_size":
        if config.batch_size > LARGEST:
            raise UserError(f"batch_size is too large: {LARGEST} sequences at most.")
        return int(_positive("batch_size", config.batch_size))
    tokens = _positive("batch_tokens", config.batch_tokens)
    if tokens % context:
        raise UserError(
            f"batch_tokens={tokens:g} is no whole number of sequences of model.context={context} tokens.\n"
            f"Use a multiple of {context}, or batch_size=SEQUENCES."
        )
    return int(tokens // context)


def _stretches(config: Config, params: int, batch_size: int, context: int) -> Stretches:
    """The run's (steps, sequences per step), so that its tokens are nearest to those asked."""
    given = _one_of("tpp", config.tpp, "tokens", config.tokens)
    tokens = _positive("tpp", config.tpp) * params if given == "tpp" else _positive("tokens", config.tokens)
    run = stretches(config.schedule.batch_ramp, batch_size, tokens, context)
    if not run:
        raise UserError(
            f"{tokens:.4g} tokens are less than one batch of {batch_size * context:.12g} tokens.\n"
            f"Raise {given} or lower batch_size."
        )
    return run


def _enough(config: Config, data: DataFacts, tokens: int) -> None:
    if data.train_tokens is None:
        return
    epochs = _positive("data.epochs", config.data.epochs)
    # Windows are model.context tokens and one more, so the last partial window of each pass is not trained on.
    context = config.model.context
    available = (data.train_tokens - 1) // context * context
    if available < 1:
        raise UserError(
            f"data={config.data.name} has {data.train_tokens} training tokens, less than one sequence of "
            f"model.context={context}.\nUse more text or a shorter context."
        )
    if tokens > available * epochs:
        passes = math.ceil(tokens / available * 100) / 100
        raise UserError(
            f"{tokens} tokens asked, but data={config.data.name} has {available} unique training tokens "
            f"(data.epochs={epochs:g}).\nLower tpp or tokens, use more data, or allow repeats with data.epochs={passes:g}."
        )


def _optimizer(config: Config, shape: LlamaShape, p: Parameterization, steps: int) -> OptimizerSpec:
    o = config.optimizer
    lr = _positive("optimizer.lr", o.lr)
    for name, value in (("optimizer.beta1", o.beta1), ("optimizer.beta2", o.beta2)):
        if not 0 <= value < 1:
            raise UserError(f"{name}={value:g} is impossible: 0 <= beta < 1.")
    if _one_of("tau", config.tau, "optimizer.weight_decay", o.weight_decay) == "tau":
        lr_multiplier, wd_multiplier = _built(hidden, shape=shape, p=p)
        tau = _positive("tau", config.tau)
        rate = 1.0 if o.weight_decay_mode == "independent" else lr * lr_multiplier
        weight_decay = 1.0 / (tau * rate * wd_multiplier * steps)
    else:
        weight_decay = _positive("optimizer.weight_decay", o.weight_decay, zero=True)
    return OptimizerSpec(
        name=o.name,
        lr=lr,
        weight_decay=_positive("optimizer.weight_decay", float(weight_decay), zero=True),
        weight_decay_mode=o.weight_decay_mode,
        beta1=o.beta1,
        beta2=o.beta2,
        eps=_positive("optimizer.eps", o.eps),
        clip=0.0 if o.clip is None else _positive("optimizer.clip", o.clip, zero=True),
    )


def _schedule(config: Config, run: Stretches, context: int) -> ScheduleSpec:
    s, steps = config.schedule, sum(n for n, _ in run)
    if not 0 <= s.final_ratio <= 1:
        raise UserError(f"schedule.final_ratio={s.final_ratio:g} is impossible: 0 <= final_ratio <= 1.")
    _one_of("schedule.warmup", s.warmup, "schedule.warmup_tokens", s.warmup_tokens)
    warmup = _part("schedule.warmup", s.warmup, s.warmup_tokens, run, context)
    cooldown, shape = 0, ""
    if s.name == "wsd":
        _one_of("schedule.cooldown", s.cooldown, "schedule.cooldown_tokens", s.cooldown_tokens)
        cooldown = _part("schedule.cooldown", s.cooldown, s.cooldown_tokens, run[::-1], context)
        shape = _choice("schedule.cooldown_shape", s.cooldown_shape or "linear", COOLDOWNS)
    elif s.cooldown is not None or s.cooldown_tokens is not None or s.cooldown_shape is not None:
        raise UserError(f"schedule={s.name} has no cooldown; drop schedule.cooldown*, or use schedule=wsd.")
    if warmup + cooldown > steps or (warmup >= steps and steps > 1):
        raise UserError(
            f"warm-up ({warmup} steps) and cooldown ({cooldown} steps) do not fit in {steps} steps.\n"
            f"Shorten schedule.warmup or schedule.cooldown, or train on more tokens."
        )
    # A constant schedule has no end to decay to, so two constant points differ by nothing but what is written here.
    final_ratio = 1.0 if s.name == "constant" else s.final_ratio
    return ScheduleSpec(s.name, warmup, cooldown, shape, final_ratio, run[:-1])


def _part(name: str, fraction: float | None, tokens: float | None, run: Stretches, context: int) -> int:
    """Steps of the beginning of `run` that is given as a fraction of its steps or in tokens."""
    if tokens is not None:
        return steps_after(run, _positive(f"{name}_tokens", tokens, zero=True), context)
    if not 0 <= fraction <= 1:
        raise UserError(f"{name}={fraction:g} is a fraction of the run: 0 <= {name} <= 1 (or {name}_tokens=TOKENS).")
    return round(fraction * sum(n for n, _ in run))


def _validation(config: Config, context: int) -> ValidationSpec:
    sequences = config.validation.tokens // context
    if sequences < 1:
        raise UserError(f"validation.tokens={config.validation.tokens} is less than one sequence of {context} tokens.")
    fractions = tuple(sorted({float(f) for f in config.validation.fractions if f != 1}))
    if any(not 0 < f < 1 for f in fractions):
        raise UserError(f"validation.fractions={list(fractions)}: each lies between 0 and 1 (the end is always done).")
    return ValidationSpec(sequences, fractions)


def _one_of(a: str, x: object, b: str, y: object) -> str:
    if x is not None and y is not None:
        raise UserError(f"{a}={x} and {b}={y} say the same thing twice; give one and set the other to null.")
    if x is None and y is None:
        raise UserError(f"Neither {a} nor {b} is given; give one.")
    return a if x is not None else b


def _positive(name: str, value: float, zero: bool = False) -> float:
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise UserError(f"{name}={value:g} is impossible: it must be {'at least' if zero else 'above'} 0 and finite.")
    return value


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UserError(f"{name}={value} is not one of {', '.join(choices)}.")
    return value


def _tokenizer_name(tokenizer: str) -> str:
    """A path names the file, not the folder: the fingerprint, not the path, is what counts."""
    return tokenizer.replace("\\", "/").rsplit("/", 1)[-1]
