"""The saved curve: `curve_points` rows spread evenly over the run, each the mean since the row before."""

from __future__ import annotations

import math

import numpy as np

from harness.point import Point
from harness.schedule import shares

FINAL_SHARE = 0.02  # of the steps: what `train_loss` of a result is the mean of


def curve_columns(point: Point, log: np.ndarray, validation: list[tuple[int, float]], points: int) -> dict[str, list]:
    """Columns of curve.parquet after len(log) steps. log: float32 (steps done, 2), loss and gradient norm.

    train_loss is the mean over the steps since the row before, lr the adjusted one of the hidden matrices at that step,
    validation_loss null where it was not measured. Rows stand at steps that do not depend on when the run was stopped.
    """
    done, steps = len(log), point.steps
    measured = dict(validation)
    marks = {max(1, round(i * steps / points)) for i in range(1, points + 1)} if points < steps else range(1, steps + 1)
    rows = sorted({s for s in {*marks, *measured} if s <= done} | ({done} if done else set()))
    starts = [0, *rows][: len(rows)]  # a run stopped before its first step has no row
    loss = np.concatenate([[0.0], np.cumsum(log[:, 0], dtype=np.float64)])
    lr = point.adjusted[0] * shares(point.schedule, steps)
    return {
        "step": rows,
        "tokens": [point.tokens_at(s) for s in rows],
        "lr": [float(lr[s - 1]) for s in rows],
        "train_loss": [_finite((loss[b] - loss[a]) / (b - a)) for a, b in zip(starts, rows, strict=True)],
        "validation_loss": [_finite(measured.get(s)) for s in rows],
        "grad_norm": [_finite(float(log[s - 1, 1])) for s in rows],
    }


def final_train_loss(losses: np.ndarray) -> float:
    """Mean training loss over the last 2 % of the steps, nats per token."""
    n = max(1, round(FINAL_SHARE * len(losses)))
    return float(np.mean(losses[-n:], dtype=np.float64))


def _finite(x: float | None) -> float | None:
    return float(x) if x is not None and math.isfinite(x) else None
