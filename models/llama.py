"""A Llama decoder: pre-norm RMSNorm, rotary positions, SwiGLU, grouped queries (Touvron et al., 2302.13971).

Dimensions: B sequences, T tokens, H query heads, K key/value heads, D head size, V vocabulary.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.loss import chunked_token_loss
from models.parameterization import Parameterization, Scales, rules
from models.shape import LlamaShape

WHOLE_LOGITS = 2**28  # most logits that exist at once: 1 GiB in fp32
EXPLICIT_ATTENTION_CONTEXT = 256  # longest at which written-out attention wins on a CPU (2.3x at 64, even at 256)


class RMSNorm(nn.Module):
    """x / rms(x) * gain over the last dimension, in fp32 (Zhang & Sennrich, 1910.07467)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotation_tables(context: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin (context, head_dim / 2) of position * theta^(-2 i / head_dim) (Su et al., 2104.09864, eq. 15)."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of x (B, *, T, D) by their position's angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    """softmax(scale * q k^T + causal) v. q (B, H, T, D), k and v (B, K, T, D) -> (B, H, T, D).

    Written out on a CPU at short contexts, where bf16 GEMMs and one fused softmax beat the flash kernel; else PyTorch's
    fused attention, which never stores the T x T scores.
    """
    length, group = q.shape[-2], q.shape[1] // k.shape[1]
    if q.device.type != "cpu" or length > EXPLICIT_ATTENTION_CONTEXT:
        q = (scale * q).to(v.dtype)  # rotation leaves fp32 under autocast
        return F.scaled_dot_product_attention(q, k.to(v.dtype), v, is_causal=True, scale=1.0, enable_gqa=group > 1)
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    position = torch.arange(length, device=q.device)
    future = position > position[:, None]
    scores = (scale * q @ k.transpose(-2, -1)).float().masked_fill(future, float("-inf"))
    return scores.softmax(dim=-1).to(v.dtype) @ v


def multipliers(scales: Scales) -> Tensor:
    """float32 (4,): of the embedding, the residual branches, the attention scores, the logits."""
    return torch.tensor([scales.embedding, scales.residual, scales.attention, scales.logits])


class Attention(nn.Module):
    def __init__(self, shape: LlamaShape):
        super().__init__()
        self.head_dim = shape.head_dim
        self.widths = (shape.attention_width, shape.kv_width, shape.kv_width)
        self.qkv = nn.Linear(shape.width, sum(self.widths), bias=False)  # rows: queries, keys, values
        self.out = nn.Linear(shape.attention_width, shape.width, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
                   for part in self.qkv(x).split(self.widths, dim=-1))  # fmt: skip
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        return self.out(attend(q, k, v, scale).transpose(1, 2).flatten(-2))


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x) (Shazeer, 2002.05202)."""

    def __init__(self, shape: LlamaShape):
        super().__init__()
        self.gate_up = nn.Linear(shape.width, 2 * shape.ffn_width, bias=False)  # rows: gate, up
        self.down = nn.Linear(shape.ffn_width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, shape: LlamaShape):
        super().__init__()
        self.attention_norm = RMSNorm(shape.width, shape.norm_eps)
        self.attention = Attention(shape)
        self.ffn_norm = RMSNorm(shape.width, shape.norm_eps)
        self.ffn = SwiGLU(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, residual: Tensor, attention: Tensor) -> Tensor:
        x = x + residual * self.attention(self.attention_norm(x), cos, sin, attention)
        return x + residual * self.ffn(self.ffn_norm(x))


class Llama(nn.Module):
    """The decoder. Weights are PyTorch's until `init_weights`.

    `scales`, the parameterization's multipliers, are a buffer and no constants: one compiled graph of this shape serves
    every parameterization (`functional_call` with `multipliers(scales)` among the tensors).
    """

    def __init__(self, shape: LlamaShape, scales: Scales):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = RMSNorm(shape.width, shape.norm_eps)
        if not shape.tied:
            self.head = nn.Linear(shape.width, shape.vocab, bias=False)
        cos, sin = rotation_tables(shape.context, shape.head_dim, shape.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("multipliers", multipliers(scales), persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, T, V) of the next token, from tokens (B, T) int64, T <= context; with targets (B, T) their loss, as of
        `token_loss`, of a large vocabulary without ever having all logits."""
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        embedding, residual, attention, logits = self.multipliers.unbind()
        x = embedding * self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin, residual, attention)
        x = logits * self.norm(x)
        head = self.embedding.weight if self.shape.tied else self.head.weight
        if targets is None:
            return F.linear(x, head)
        if tokens.numel() * self.shape.vocab > WHOLE_LOGITS:
            return chunked_token_loss(x, head, targets, self.shape.z_loss)
        return token_loss(F.linear(x, head), targets, self.shape.z_loss)

    def loss(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(cross-entropy, training loss) of predicting tokens[:, 1:] from tokens[:, :-1]; see `token_loss`."""
        return self(tokens[:, :-1], tokens[:, 1:])


def token_loss(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """(mean cross-entropy in nats, that + z_loss * mean log^2 Z), fp32 scalars; logits (B, T, V), targets (B, T)."""
    logits = logits.float()
    log_z = logits.logsumexp(dim=-1)
    cross_entropy = (log_z - logits.gather(-1, targets[..., None]).squeeze(-1)).mean()
    return cross_entropy, cross_entropy + z_loss * log_z.square().mean() if z_loss else cross_entropy


def group_of(name: str) -> str:
    """Group of `models.parameterization.rules` of the parameter called `name` in `Llama.named_parameters()`."""
    module = name.split(".")[-2]
    if module in ("embedding", "head"):
        return module
    if module.endswith("norm"):
        return "norm" if name.startswith("blocks.") else "final_norm"
    return "hidden"


@torch.no_grad()
def init_weights(model: Llama, shape: LlamaShape, p: Parameterization, seed: int) -> None:
    """Draw every weight as the table of `p` says; norm gains are 1.

    A tensor depends on (seed, its name, its size) only: not on device, order, or what else the model holds.
    """
    table = rules(shape, p)
    for name, weight in model.named_parameters():
        group = group_of(name)
        if group in ("norm", "final_norm"):
            weight.fill_(1)
        else:
            key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
            normal = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
            draw = normal.standard_normal(tuple(weight.shape), dtype=np.float32)
            weight.copy_(torch.from_numpy(draw).mul_(table[group].init_std))
