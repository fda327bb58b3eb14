"""The numbers that each step of a point takes, without torch, so that plans can compare points step by step.

For group g with multipliers (lr_g, wd_g, eps_g) of the parameterization, share s_t of the schedule, 1-based step t:

    rate_g = lr lr_g s_t
    shrink_g = rate_g wd wd_g  (coupled, as in PyTorch)  or  s_t wd wd_g  (independent)

(Loshchilov & Hutter, 1711.05101; tau = 1/(shrink at the peak * steps), DESIGN decision 1.)
"""

from __future__ import annotations

import numpy as np

from harness.point import Point
from harness.schedule import shares
from models.parameterization import rules


def per_step(point: Point, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows of steps start+1 ... stop (default: the last), float32 (stop - start, 2 G + 2): rate of each group, shrink of
    each group, then 1/(1-b1^t), 1/(1-b2^t). Computed in float64, rounded once; a row does not depend on start and stop."""
    o, table = point.optimizer, rules(point.shape, point.parameterization)
    stop = point.steps if stop is None else stop
    share, t = shares(point.schedule, point.steps, start, stop), np.arange(start + 1, stop + 1)
    rates = [o.lr * rule.lr * share for rule in table.values()]
    coupled = o.weight_decay_mode == "coupled"
    shrinks = [
        (rate if coupled else share) * o.weight_decay * rule.weight_decay
        for rate, rule in zip(rates, table.values(), strict=True)
    ]
    corrections = [1 / (1 - beta**t) for beta in (o.beta1, o.beta2)]
    with np.errstate(over="ignore"):  # a rate beyond float32 is infinite, and the run says that it diverged
        return np.stack([*rates, *shrinks, *corrections], axis=1).astype(np.float32)


def fixed(point: Point) -> np.ndarray:
    """What is the same at every step, float32 (G + 3,): eps of each group, then b1, b2, clip (infinity: none)."""
    o, table = point.optimizer, rules(point.shape, point.parameterization)
    numbers = [*(o.eps * rule.eps for rule in table.values()), o.beta1, o.beta2, o.clip or np.inf]
    with np.errstate(over="ignore"):
        return np.array(numbers).astype(np.float32)
