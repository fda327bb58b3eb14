"""AdamW with per-group hyper-parameters as tensors, so that no new value recompiles the step.

For group g with multipliers (lr_g, wd_g, eps_g) of the parameterization, share s_t of the schedule, 1-based step t:

    m = b1 m + (1 - b1) grad        v = b2 v + (1 - b2) grad^2
    W <- W - shrink_g W - rate_g (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps eps_g)
    rate_g, shrink_g as in harness/hyper.py

(Loshchilov & Hutter, 1711.05101.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.hyper import fixed, per_step
from harness.point import Point
from models.parameterization import rules


@dataclass
class Hyper:
    """A point's hyper-parameters as tensors on its device.

    per_step: float32 (steps, 2 G + 2): rate of each group, shrink of each group, then 1/(1-b1^t), 1/(1-b2^t).
    fixed: float32 (G + 3,): eps of each group, then b1, b2, clip (infinity where there is none).
    """

    per_step: Tensor
    fixed: Tensor
    groups: tuple[str, ...]

    @classmethod
    def of(cls, point: Point, device: torch.device) -> Hyper:
        """The numbers of harness/hyper.py, as they are."""
        rows, constants = torch.from_numpy(per_step(point)), torch.from_numpy(fixed(point))
        return cls(rows.to(device), constants.to(device), tuple(rules(point.shape, point.parameterization)))


def squared_norm(grads: dict[str, Tensor]) -> Tensor:
    """Sum of squares over all tensors."""
    return torch.stack([g.square().sum() for g in grads.values()]).sum()


def gradient_norm(grads: dict[str, Tensor]) -> Tensor:
    """L2 norm over all tensors."""
    return squared_norm(grads).sqrt()


def adamw_(
    weights: dict[str, Tensor],
    grads: dict[str, Tensor],
    m: dict[str, Tensor],
    v: dict[str, Tensor],
    group: dict[str, int],
    row: Tensor,
    fixed: Tensor,
    norm: Tensor | None = None,
) -> Tensor:
    """One AdamW step in place, after clipping the global gradient norm. Returns that norm before clipping.

    weights, grads, m, v: fp32 tensors by name. group: index of each name's group. row: one row of `Hyper.per_step`.
    norm: of the whole gradient, where `grads` are only a part of it.
    """
    n = fixed.numel() - 3
    eps, (beta1, beta2, clip) = fixed[:n], fixed[n:].unbind()
    correction1, correction2 = row[2 * n], row[2 * n + 1]
    norm = gradient_norm(grads) if norm is None else norm
    shrink_gradient = (clip / (norm + 1e-6)).clamp(max=1.0)
    for name, w in weights.items():
        i = group[name]
        g = grads[name] * shrink_gradient
        m[name].lerp_(g, 1 - beta1)
        v[name].lerp_(g * g, 1 - beta2)
        update = m[name] * correction1 / ((v[name] * correction2).sqrt() + eps[i])
        w.sub_(row[n + i] * w + row[i] * update)
    return norm
