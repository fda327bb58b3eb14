"""Cross-entropy of a large vocabulary without its logits: a chunk of tokens at a time, gradients in the same pass.

The fp32 logits of 2^16 tokens over 2^15 words are 8 GiB, and autograd keeps several such; here one chunk exists at once.
The gradients of the loss are linear in its own, so they are made forward and only scaled backward, which also saves
computing the logits a second time (Hsu et al., 2410.10989, section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2**26  # elements of the fp32 logits that exist at once: 256 MiB


def chunked_token_loss(x: Tensor, head: Tensor, targets: Tensor, z_loss: float,
                       tokens: int | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `models.llama.token_loss` of F.linear(x, head), for x (B, T, W), head (V, W), targets (B, T).

    (mean cross-entropy in nats, which carries no gradient, that + z_loss * mean log^2 Z, which does), fp32 scalars.
    Matrix products run in x's type, under autocast in its type; sums and softmax in fp32. `tokens`: of a chunk, by default
    as many as CHUNK allows. Under torch.no_grad no gradient is made.
    """
    kind = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    tokens = tokens or max(1, CHUNK // head.shape[0])
    given = x.flatten(0, 1), head, targets.flatten(), z_loss, tokens, kind
    return (_ChunkedLoss.apply(*given) if torch.is_grad_enabled() else _by_chunks(*given, gradients=False))[:2]


def _by_chunks(x: Tensor, head: Tensor, targets: Tensor, z_loss: float, tokens: int, kind: torch.dtype,
               gradients: bool) -> tuple[Tensor, ...]:  # fmt: skip
    """x (N, W), head (V, W), targets (N,) -> cross-entropy, total and, with `gradients`, d total / d x, d total / d head."""
    n, matrix = x.shape[0], head.to(kind)
    losses, squares, grads_x, grad_head = [], [], [], torch.zeros_like(head) if gradients else None
    with torch.autocast(x.device.type, enabled=False):
        for part, target in zip(x.split(tokens), targets.split(tokens), strict=True):
            part = part.to(kind)
            logits = F.linear(part, matrix).float()
            log_z = logits.logsumexp(dim=-1)
            losses.append((log_z - logits.gather(-1, target[:, None]).squeeze(-1)).sum())
            squares.append(log_z.square().sum())
            if gradients:
                # d/dlogits of log Z - logit[target] + z_loss log^2 Z
                grad = (logits - log_z[:, None]).exp() * (1 + 2 * z_loss * log_z)[:, None]
                grad = (grad.scatter_add(-1, target[:, None], torch.full_like(log_z, -1.0)[:, None]) / n).to(kind)
                grads_x.append((grad @ matrix).to(x.dtype))
                grad_head += grad.T @ part
    cross_entropy = torch.stack(losses).sum() / n
    total = cross_entropy + z_loss * torch.stack(squares).sum() / n
    return (cross_entropy, total, torch.cat(grads_x), grad_head) if gradients else (cross_entropy, total)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(x, head, targets, z_loss, tokens, kind):
        return _by_chunks(x, head, targets, z_loss, tokens, kind, gradients=True)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.save_for_backward(*outputs[2:])
        ctx.mark_non_differentiable(outputs[0], *outputs[2:])

    @staticmethod
    def backward(ctx, _, grad_total, *__):
        grad_x, grad_head = ctx.saved_tensors
        return grad_total * grad_x, grad_total * grad_head, None, None, None, None
