"""A Point: one training run fully specified, nothing about where or how fast it runs. `point.id` hashes that content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache

import numpy as np

from models.count import ParamCount, count_params, flops_per_token
from models.parameterization import Parameterization, Rule, hidden, rules, scales
from models.shape import LlamaShape

PARTS = ("shape", "parameterization", "optimizer", "schedule", "data", "validation")
NUMBERS = ("batch_size", "steps", "seed", "precision")
# Part of every id: raise it when a change of the code changes what a Point with equal fields means.
SCHEMA = 1
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def _rounded(value):
    """Floats to 12 digits: one multiplier reached by two ways is one multiplier."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return float(f"{value:.12g}")


@lru_cache(maxsize=4096)
def acting_multipliers(shape: LlamaShape, parameterization: Parameterization) -> str:
    """The parameterization as it acts on this shape, for ids: JSON, and the same for all points of this shape."""
    table = {group: asdict(rule) for group, rule in rules(shape, parameterization).items()}
    numbers = {"rules": table, "scales": asdict(scales(shape, parameterization))}
    return _CANONICAL.encode({"name": parameterization.name, **_rounded(numbers)})


@dataclass(frozen=True)
class OptimizerSpec:
    """AdamW; `lr` and `weight_decay` are base values, before the parameterization's multipliers. clip 0: none."""

    name: str
    lr: float
    weight_decay: float
    weight_decay_mode: str
    beta1: float
    beta2: float
    eps: float
    clip: float


@dataclass(frozen=True)
class ScheduleSpec:
    """Learning rate as a share of its peak, in whole steps (harness/schedule.py), and the batches before the nominal one.

    ramp: (steps, sequences) of each batch that comes first; what is left of the run has the point's `batch_size`.
    """

    name: str
    warmup_steps: int
    cooldown_steps: int
    cooldown_shape: str
    final_ratio: float
    ramp: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class DataSpec:
    """`fingerprint` is the content of the tokenized data; `seed` alone gives the order of its tokens."""

    name: str
    tokenizer: str
    fingerprint: str
    seed: int
    unique_tokens: int | None  # training tokens in the corpus; None while it is not prepared


@dataclass(frozen=True)
class ValidationSpec:
    sequences: int
    fractions: tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """One training run. All numbers are resolved (DESIGN, decisions 1 and 2)."""

    shape: LlamaShape
    parameterization: Parameterization
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    data: DataSpec
    validation: ValidationSpec
    batch_size: int  # sequences; under a ramp those of the last steps
    steps: int
    seed: int
    precision: str

    @cached_property
    def id(self) -> str:
        """16 hex digits of the SHA-256 of what decides the result, and the schema version.

        Names of data do not count beside the fingerprint, nor a base shape beside the table it leads to.
        """
        content = self.to_dict()
        content["data"] = {"fingerprint": self.data.fingerprint, "seed": self.data.seed}
        content["parameterization"] = None  # put in below, as text
        if self.optimizer.weight_decay == 0:
            del content["optimizer"]["weight_decay_mode"]
        text = _CANONICAL.encode({"schema": SCHEMA, **content})
        key, multipliers = '"parameterization":', acting_multipliers(self.shape, self.parameterization)
        text = text.replace(f"{key}null", f"{key}{multipliers}")
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def batch_tokens(self) -> int:
        return self.batch_size * self.shape.context

    @property
    def stretches(self) -> tuple[tuple[int, int], ...]:
        """(steps, sequences per step) of each batch size, in their order."""
        ramp = self.schedule.ramp
        return (*ramp, (self.steps - sum(steps for steps, _ in ramp), self.batch_size))

    @property
    def largest_batch(self) -> int:
        """Sequences of the largest step."""
        return max(size for _, size in self.stretches)

    def batches(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Sequences of each of the steps start ... stop-1 (default: all), int64."""
        steps, sizes = zip(*self.stretches, strict=True)
        t = np.arange(start, self.steps if stop is None else stop)
        return np.array(sizes, np.int64)[np.searchsorted(np.cumsum(steps), t, side="right")]

    def sequences_at(self, step: int) -> int:
        """Sequences that the first `step` steps read: step `step` (from 0) reads on from there."""
        done = 0
        for steps, size in self.stretches:
            done += min(steps, step) * size
            step -= min(steps, step)
        return done

    def tokens_at(self, step: int) -> int:
        """Tokens trained on in the first `step` steps."""
        return self.sequences_at(step) * self.shape.context

    def flops_at(self, step: int) -> int:
        """Training FLOPs of the first `step` steps, attention included (models/count.py)."""
        return flops_per_token(self.shape) * self.tokens_at(step)

    @property
    def batch_ramp(self) -> str | None:
        """The ramp as it was rounded to steps: "2@65536,4@196608", sequences until so many tokens. None: there is none."""
        stages, end = [], 0
        for steps, size in self.schedule.ramp:
            end += steps
            stages.append(f"{size}@{self.tokens_at(end)}")
        return ",".join(stages) or None

    @property
    def tokens(self) -> int:
        """Tokens trained on: whole steps."""
        return self.tokens_at(self.steps)

    @property
    def validation_steps(self) -> list[int]:
        """Steps after which it validates, its last one aside unless a fraction rounds to it."""
        return sorted({min(max(round(f * self.steps), 1), self.steps) for f in self.validation.fractions})

    @property
    def counts(self) -> ParamCount:
        """Parameters, by the three conventions."""
        return count_params(self.shape)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The parameterization's rule for each group of weights, in the order of its table."""
        return tuple(rules(self.shape, self.parameterization).values())

    @property
    def step_flops(self) -> int:
        """Training FLOPs of one step, the mean of the run."""
        return self.flops // self.steps

    @property
    def flops(self) -> int:
        """Training FLOPs of the run."""
        return self.flops_at(self.steps)

    @property
    def tau(self) -> float | None:
        """AdamW timescale in units of the run, tau = B/(eta*lambda*D) = 1/(eta*lambda*steps), with eta and lambda the
        adjusted peak values of the hidden matrices; independent weight decay: B/(lambda*D). None at lambda = 0.
        Under a ramp too it counts steps, 1/(eta*lambda*steps), though they are of unequal batches.
        Power Lines (arXiv 2505.13738); DESIGN, decision 1."""
        lr, wd = self.adjusted
        shrink = wd if self.optimizer.weight_decay_mode == "independent" else lr * wd
        return 1.0 / (shrink * self.steps) if shrink > 0 else None

    @property
    def adjusted(self) -> tuple[float, float]:
        """Peak (learning rate, weight decay) of the hidden matrices under the parameterization."""
        lr_multiplier, wd_multiplier = hidden(self.shape, self.parameterization)
        return self.optimizer.lr * lr_multiplier, self.optimizer.weight_decay * wd_multiplier

    def columns(self) -> dict:
        """The table's canonical columns that are known before training (DESIGN, contracts), then every other setting
        that a sweep may move, so that slices can hold it."""
        n = self.counts
        lr, wd = self.adjusted
        s, o, d = self.shape, self.optimizer, self.data
        repeats = d.unique_tokens and self.tokens > d.unique_tokens
        return {
            "run_id": self.id,
            "params": n.params,
            "params_total": n.params_total,
            "params_non_embedding": n.params_non_embedding,
            "width": s.width,
            "depth": s.depth,
            "base_width": self.parameterization.base_width,
            "base_depth": self.parameterization.base_depth,
            "context": s.context,
            "tokens": self.tokens,
            "tpp": self.tokens / n.params,
            "epochs": self.tokens / d.unique_tokens if repeats else 1.0,
            "batch_size": self.batch_size,
            "batch_tokens": self.batch_tokens,
            "steps": self.steps,
            "lr": o.lr,
            "lr_adjusted": lr,
            "weight_decay": o.weight_decay,
            "weight_decay_adjusted": wd,
            "weight_decay_mode": o.weight_decay_mode,
            "tau": self.tau,
            "schedule": self.schedule.name,
            "warmup_tokens": self.tokens_at(self.schedule.warmup_steps),
            "optimizer": o.name,
            "parameterization": self.parameterization.name,
            "seed": self.seed,
            "trunk": None,
            "flops": self.flops,
            # beyond the canonical columns
            "head_dim": s.head_dim,
            "n_heads": s.n_heads,
            "n_kv_heads": s.n_kv_heads,
            "ffn_width": s.ffn_width,
            "vocab": s.vocab,
            "tied": s.tied,
            "qk_norm": s.qk_norm,
            "z_loss": s.z_loss,
            "init_std": self.parameterization.init_std,
            "embedding_lr_multiplier": self.parameterization.embedding_lr_multiplier,
            "beta1": o.beta1,
            "beta2": o.beta2,
            "eps": o.eps,
            "clip": o.clip,
            "cooldown_tokens": self.tokens - self.tokens_at(self.steps - self.schedule.cooldown_steps),
            "cooldown_shape": self.schedule.cooldown_shape,
            "final_ratio": self.schedule.final_ratio,
            "batch_ramp": self.batch_ramp,
            "precision": self.precision,
            "data": d.name,
            "tokenizer": d.tokenizer,
            "data_fingerprint": d.fingerprint,
            "data_seed": d.seed,
        }

    def to_dict(self) -> dict:
        """Nested plain values; `Point.from_dict` is its inverse."""
        parts = {name: dict(vars(getattr(self, name))) for name in PARTS}  # flat, so that no deep copy is needed
        parts["validation"]["fractions"] = list(self.validation.fractions)
        ramp = parts["schedule"].pop("ramp")  # absent where there is none: ids are those from before there were ramps
        if ramp:
            parts["schedule"]["ramp"] = [list(stretch) for stretch in ramp]
        return {**parts, **{name: getattr(self, name) for name in NUMBERS}}

    @classmethod
    def from_dict(cls, d: dict) -> Point:
        validation = ValidationSpec(d["validation"]["sequences"], tuple(d["validation"]["fractions"]))
        ramp = tuple((steps, size) for steps, size in d["schedule"].get("ramp", ()))
        return cls(
            shape=LlamaShape(**d["shape"]),
            parameterization=Parameterization(**d["parameterization"]),
            optimizer=OptimizerSpec(**d["optimizer"]),
            schedule=ScheduleSpec(**{**d["schedule"], "ramp": ramp}),
            data=DataSpec(**d["data"]),
            validation=validation,
            **{k: d[k] for k in NUMBERS},
        )
