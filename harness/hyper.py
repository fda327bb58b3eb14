"""The numbers that each step of a point takes, without torch, so that plans can compare points step by step.

For group g with multipliers (lr_g, wd_g, eps_g) of the parameterization, share s_t of the schedule, 1-based step t:

    rate_g = lr lr_g s_t
    shrink_g = rate_g wd wd_g  (coupled, as in PyTorch)  or  s_t wd wd_g  (independent)

(Loshchilov & Hutter, 1711.05101; tau = 1/(shrink at the peak * steps), DESIGN decision 1.)
"""

from __future__ import annotations

import numpy as np

from harness.point import OptimizerSpec, Point
from harness.schedule import shares
from models.parameterization import Rule, rules


def rates(o: OptimizerSpec, table: tuple[Rule, ...], share: np.ndarray) -> np.ndarray:
    """At these shares (n,) of the peak, float32 (n, 2 G): rate of each group, then shrink of each group."""
    rates = [o.lr * rule.lr * share for rule in table]
    coupled = o.weight_decay_mode == "coupled"
    shrinks = [
        (rate if coupled else share) * o.weight_decay * rule.weight_decay
        for rate, rule in zip(rates, table, strict=True)
    ]
    with np.errstate(over="ignore"):  # a rate beyond float32 is infinite, and the run says that it diverged
        return np.stack([*rates, *shrinks], axis=1).astype(np.float32)


def per_step(point: Point) -> np.ndarray:
    """A row for each step, float32 (steps, 2 G + 2): rates and shrinks, then 1/(1-b1^t), 1/(1-b2^t).

    Computed in float64, rounded once.
    """
    o, t = point.optimizer, np.arange(1, point.steps + 1)
    table = tuple(rules(point.shape, point.parameterization).values())
    corrections = np.stack([1 / (1 - beta**t) for beta in (o.beta1, o.beta2)], axis=1).astype(np.float32)
    return np.concatenate([rates(o, table, shares(point.schedule, point.steps)), corrections], axis=1)


def fixed(point: Point) -> np.ndarray:
    """What is the same at every step, float32 (G + 3,): eps of each group, then b1, b2, clip (infinity: none)."""
    o, table = point.optimizer, rules(point.shape, point.parameterization)
    numbers = [*(o.eps * rule.eps for rule in table.values()), o.beta1, o.beta2, o.clip or np.inf]
    with np.errstate(over="ignore"):
        return np.array(numbers).astype(np.float32)
