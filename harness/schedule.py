"""Learning-rate schedules as shares of the peak, one number per step.

With t = 0 ... steps-1, w warm-up steps, r the final ratio and x = (t - w) / (steps - w) in [0, 1) after warm-up:

    warm-up   (t + 1) / w                                linear from 0 to the peak, the first step not wasted at 0
    linear    1 - (1 - r) x                              to r; r = 0 is D2Z (Bergsma et al., 2502.15938)
    cosine    r + (1 - r) (1 + cos(pi x)) / 2
    constant  1
    wsd       1, then over the last c steps, u = (t - (steps - c)) / c:
              linear 1 - (1 - r) u,  1-sqrt: 1 - (1 - r) sqrt(u)   (Haegele et al., 2405.18392)
"""

from __future__ import annotations

import numpy as np

from harness.point import ScheduleSpec


def shares(schedule: ScheduleSpec, steps: int, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Share of the peak learning rate at each step t = start ... stop-1 of `steps` (default: all), float64."""
    t = np.arange(start, steps if stop is None else stop, dtype=np.float64)
    w, r = schedule.warmup_steps, schedule.final_ratio
    x = (t - w) / max(steps - w, 1)
    if schedule.name == "linear":
        share = 1 - (1 - r) * x
    elif schedule.name == "cosine":
        share = r + (1 - r) * (1 + np.cos(np.pi * x)) / 2
    elif schedule.name == "constant":
        share = np.ones(len(t))
    elif schedule.name == "wsd":
        c = schedule.cooldown_steps
        u = np.clip((t - (steps - c)) / max(c, 1), 0, 1)
        share = 1 - (1 - r) * (np.sqrt(u) if schedule.cooldown_shape == "1-sqrt" else u)
    else:
        raise ValueError(f"unknown schedule {schedule.name}")
    return np.where(t < w, (t + 1) / max(w, 1), share)
