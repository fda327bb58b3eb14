"""Planted sweeps as a user declares them: one grid for all scales, real models with their FLOPs, losses by a known law.

`draw(i)` gives the i-th: a Request and the truth. Unlike benchmarks/planted.py, whose tables lie round each slice's own
optimum, the grid is the same at every scale, so the optimum moves through it, and now and then out of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd

from benchmarks.planted import BASINS, center
from harness.compose import Request, compose
from harness.resolve import DataFacts
from sweeps.expand import Member

FACTS = DataFacts("0123456789abcdef", 256, None)  # of bytes that nobody prepared
KEYS = {"lr": "optimizer.lr", "tau": "tau", "weight_decay": "optimizer.weight_decay", "batch_size": "batch_size"}
ANALYSES = {"batch_size": "batch"}
WIDTHS = ((32, 48, 64, 96), (32, 64, 128), (32, 48, 64, 96, 128), (64, 96, 128, 192), (32, 64, 128, 256))
FIXED = ("data=markov", "model.depth=2", "model.context=64", "parameterization=mup", "precision=fp32")


@dataclass(frozen=True)
class Truth:
    """log optimum = constant + exponents . log(place); octaves and nats."""

    name: str  # of the law
    constant: float
    exponents: dict[str, float]
    basin: str
    sharpness: float  # times the basin's depth
    noise: float
    growth: float  # exponent of noise in parameters
    scatter: float
    seed_effect: float
    diverge_above: float
    salt: int

    @property
    def analysis(self) -> str:
        return ANALYSES.get(self.name, self.name)

    def log_at(self, at) -> float:
        """Natural log of the law at {params, tokens, tpp}."""
        return self.constant + sum(e * math.log(at[p]) for p, e in self.exponents.items())

    def loss(self, member: Member) -> float:
        """Of a run: the same whoever trains it; infinite where it diverges."""
        at = member.point.columns()
        shape = [self.salt, round(at["params"]), round(at["tokens"])]
        best = self.log_at(at) / math.log(2) + self.scatter * np.random.default_rng(shape).standard_normal()
        z = math.log2(at[self.name]) - best
        if z > self.diverge_above:
            return math.inf
        basin, bottom = BASINS[self.basin], center(BASINS[self.basin])
        rise = self.sharpness * float(basin(np.array(z + bottom)) - basin(np.array(bottom)))
        luck = np.random.default_rng([self.salt, int(member.point.id, 16)]).standard_normal()
        effect = self.seed_effect * np.random.default_rng([self.salt, member.point.seed]).standard_normal()
        sd = self.noise * (at["params"] / 1e5) ** self.growth
        return 1.5 + 60.0 / at["params"] ** 0.35 + 60.0 / at["tokens"] ** 0.3 + rise + effect + sd * luck


def draw(i: int) -> tuple[Request, Truth]:
    """The i-th sweep and its truth."""
    rng = np.random.default_rng([i, 20261122])
    name = str(rng.choice(["lr", "lr", "tau", "weight_decay", "batch_size"]))
    widths = list(WIDTHS[rng.integers(len(WIDTHS))])
    tpps = [[20], [10, 40], [5, 20, 80]][rng.integers(3)]
    if name == "tau":  # its law is one of tokens per parameter
        widths, tpps = widths[:2], [[5, 20, 80], [10, 20, 40, 80]][rng.integers(2)]
    exponents = {"lr": {"params": -0.35, "tokens": -0.12}, "tau": {"tpp": -0.5}, "batch_size": {"tokens": 0.5},
                 "weight_decay": {"params": 0.2, "tokens": -0.3}}[name]  # fmt: skip
    basin = {"lr": "blow_up", "tau": "plateau", "weight_decay": "shelf", "batch_size": "stairs"}[name]
    truth = Truth(
        name, 0.0, exponents, str(rng.choice([basin, "bowl"])), float(rng.uniform(0.7, 2)),
        float(np.exp(rng.uniform(np.log(0.002), np.log(0.01)))), float(rng.choice([0.0, -0.1])),
        float(rng.choice([0.0, 0.1, 0.15])), float(rng.choice([0.0, 0.005])), 3.2 if name == "lr" else math.inf, i,
    )  # fmt: skip
    axes = {"model.width": widths, "tpp": tpps}
    request = _request({**axes, KEYS[name]: [1]}, name)
    from sweeps.expand import expand_members

    middles = [truth.log_at(m.point.columns()) / math.log(2) for m in expand_members(request, FACTS)]
    count = int(rng.choice([7, 8, 9]))
    wanted = {"lr": -8.0, "tau": -2.0, "weight_decay": -4.0, "batch_size": 5.0}[name]
    off = rng.uniform(-1, 1)
    truth = replace(truth, constant=(wanted + off - float(np.median(middles))) * math.log(2))
    values = [2.0 ** (wanted - (count - 1) / 2 + k) for k in range(count)]
    if name == "batch_size":
        values = sorted({max(round(v), 1) for v in values})
    axes[KEYS[name]] = values
    if rng.random() < 0.3:
        axes["seed"] = [0, 1]
    return _request(axes, name), truth


def _request(axes: dict, name: str) -> Request:
    request = _base(name)
    return replace(request, config=replace(request.config, sweep=replace(
        request.config.sweep, axes=axes, strategy="refine", extend_target=name)))  # fmt: skip


def table(members: Iterable[Member], truth: Truth) -> pd.DataFrame:
    """What `hyperlaw table` would show of these runs."""
    rows = []
    for member in members:
        loss = truth.loss(member)
        lost = not math.isfinite(loss)
        rows.append({**member.point.columns(), "status": "diverged" if lost else "done", "loss": math.nan if lost else loss})
    return pd.DataFrame(rows)


@cache
def _base(name: str) -> Request:
    """What the sweeps of one law have in common: composing takes longer than all else of a draw."""
    held = {"lr": ["optimizer.weight_decay=0.1"], "batch_size": ["tau=0.5"]}.get(name, [])
    held = held if name == "batch_size" else [*held, "batch_size=8"]
    return compose([*FIXED, *held], "sweep")
