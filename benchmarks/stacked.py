"""K points of one shape as one step: a leading axis of K on every weight, for benchmarks/gpu.py to weigh against graphs on
streams and processes.

The model of models/llama.py under the standard parameterization, tied, with bmm for linear and attention over K B
sequences; weights as there by name, but (K, ...), in the layout of harness/flat.py.
"""

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.nn import functional as F

from harness.flat import Layout
from harness.optimizer import _update
from models.llama import rotate, rotation_tables
from models.shape import LlamaShape


def split(layout: Layout, flat: Tensor) -> dict[str, Tensor]:
    """Views (K, ...) of flat (K, length) by name."""
    sizes = _sizes(layout)
    parts = [part[:, :size] for part, (size, _) in zip(flat.split([sum(s) for s in sizes], dim=1), sizes, strict=True)]
    return {name: part.unflatten(1, shape) for name, part, shape in zip(layout.names, parts, layout.sizes, strict=True)}


def join(layout: Layout, tensors: dict[str, Tensor]) -> Tensor:
    """`split` undone, in fp32; zeros in the gaps."""
    return torch.cat([F.pad(tensors[name].flatten(1).float(), (0, gap))
                      for name, (_, gap) in zip(layout.names, _sizes(layout), strict=True)], dim=1)  # fmt: skip


def _sizes(layout: Layout) -> list[tuple[int, int]]:
    return [(size.numel(), gap) for size, gap in zip(layout.sizes, layout.padding, strict=True)]


def losses(shape: LlamaShape, w: dict[str, Tensor], cos: Tensor, sin: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of each point, (K,), in nats per token; tokens (K, B, T + 1), cos and sin (T, D / 2)."""
    points, batch, length = *tokens.shape[:2], tokens.shape[2] - 1
    inputs, targets = tokens[:, :, :-1].flatten(1), tokens[:, :, 1:].flatten()
    offset = shape.vocab * torch.arange(points, device=tokens.device)[:, None]
    x = F.embedding(inputs + offset, w["embedding.weight"].flatten(0, 1))
    for i in range(shape.depth):
        h = _linear(_norm(x, w[f"blocks.{i}.attention_norm.weight"], shape), w[f"blocks.{i}.attention.qkv.weight"])
        q, k, v = h.view(points * batch, length, 3, shape.n_heads, shape.head_dim).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(points, batch * length, -1)
        x = x + _linear(h, w[f"blocks.{i}.attention.out.weight"])
        h = _linear(_norm(x, w[f"blocks.{i}.ffn_norm.weight"], shape), w[f"blocks.{i}.ffn.gate_up.weight"])
        gate, up = h.chunk(2, dim=-1)
        x = x + _linear(F.silu(gate) * up, w[f"blocks.{i}.ffn.down.weight"])
    logits = _linear(_norm(x, w["norm.weight"], shape), w["embedding.weight"])
    return F.cross_entropy(logits.float().flatten(0, 1), targets, reduction="none").view(points, -1).mean(1)


def _norm(x: Tensor, gain: Tensor, shape: LlamaShape) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + shape.norm_eps) * gain[:, None]


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.bmm(x, weight.transpose(1, 2))


def stacked_step(shape: LlamaShape, layout: Layout, device: str, precision: str):
    """step(w, m, v, group, rows, fixed, scales, tokens) -> (K, 2), as harness/step.py's whole step of K points at once:
    w, m, v (K, length), rows (K, 2 G + 2); `scales` has no part in it."""
    cos, sin = (t.to(device) for t in rotation_tables(shape.context, shape.head_dim, shape.rope_theta))

    def step(w, m, v, group, rows, fixed, scales, tokens):
        def objective(weights):
            with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
                each = losses(shape, weights, cos, sin, tokens)
            return each.sum(), each

        grads, (_, each) = grad_and_value(objective, has_aux=True)(split(layout, w))
        gradient = join(layout, grads)
        norms = gradient.square().sum(1).sqrt()
        n = fixed.numel() - 3  # as in harness/optimizer.py, but for rows and norms (K, ...)
        eps, (beta1, beta2, clip) = fixed[:n], fixed[n:].unbind()
        by_point = rows[:, 2 * n], rows[:, 2 * n + 1], (clip / (norms + 1e-6)).clamp(max=1.0)
        rates = rows[:, :n][:, group, None], rows[:, n : 2 * n][:, group, None], eps[group][:, None]
        by_line = (t.view(len(t), group.numel(), -1) for t in (w, gradient, m, v))
        _update(*by_line, *rates, 1 - beta1, 1 - beta2, *(t[:, None, None] for t in by_point))
        return torch.stack([each, norms], dim=1)

    return step
