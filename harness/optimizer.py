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
    norm = gradient_norm(grads) if norm is None else norm
    rates, betas, clipping = _numbers(row, fixed, norm)
    for name, w in weights.items():
        _update(w, grads[name], m[name], v[name], *(rate[group[name]] for rate in rates), *betas, clipping)
    return norm


def adamw_flat_(w: Tensor, grad: Tensor, m: Tensor, v: Tensor, group: Tensor, row: Tensor, fixed: Tensor) -> Tensor:
    """The same for all tensors in one, fp32 (lines * line,); group (lines,): index of each line's group."""
    norm = grad.square().sum().sqrt()
    rates, betas, clipping = _numbers(row, fixed, norm)
    by_line = (t.view(group.numel(), -1) for t in (w, grad, m, v))
    _update(*by_line, *(rate[group][:, None] for rate in rates), *betas, clipping)
    return norm


def _numbers(row: Tensor, fixed: Tensor, norm: Tensor):
    """(rate, shrink, eps of each group), (1 - beta1, 1 - beta2, corrections), what clipping multiplies the gradient by."""
    n = fixed.numel() - 3
    eps, (beta1, beta2, clip) = fixed[:n], fixed[n:].unbind()
    betas = 1 - beta1, 1 - beta2, row[2 * n], row[2 * n + 1]
    return (row[:n], row[n : 2 * n], eps), betas, (clip / (norm + 1e-6)).clamp(max=1.0)


def _update(w, grad, m, v, rate, shrink, eps, keep1, keep2, correction1, correction2, clipping) -> None:
    """AdamW in place on tensors of one shape, or of one that the rates broadcast to."""
    grad = grad * clipping
    m.lerp_(grad, keep1)
    v.lerp_(grad * grad, keep2)
    update = m * correction1 / ((v * correction2).sqrt() + eps)
    w.sub_(shrink * w + rate * update)
