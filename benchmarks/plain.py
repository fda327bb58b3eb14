"""A plain Llama and its training step in the style of nanoGPT (github.com/karpathy/nanoGPT), which we are measured against.

Of the same shape, initialisation, loss and optimizer as ours under the standard parameterization with tied embeddings
(models/llama.py, harness/optimizer.py), and with the same names of weights; written without them, on torch alone.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """fused: F.scaled_dot_product_attention; else attention is written out, which eager fp32 likes better where short."""

    width: int
    depth: int
    heads: int
    ffn_width: int
    vocab: int
    context: int
    fused: bool
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5


class Attention(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.heads, self.fused = s.heads, s.fused
        self.qkv = nn.Linear(s.width, 3 * s.width, bias=False)
        self.out = nn.Linear(s.width, s.width, bias=False)

    def forward(self, x, cos, sin, future):
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            y = scores.masked_fill_(future, float("-inf")).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(B, T, C))


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class SwiGLU(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.gate_up = nn.Linear(s.width, 2 * s.ffn_width, bias=False)
        self.down = nn.Linear(s.ffn_width, s.width, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.attention_norm = nn.RMSNorm(s.width, eps=s.norm_eps)
        self.attention = Attention(s)
        self.ffn_norm = nn.RMSNorm(s.width, eps=s.norm_eps)
        self.ffn = SwiGLU(s)

    def forward(self, x, cos, sin, future):
        x = x + self.attention(self.attention_norm(x), cos, sin, future)
        return x + self.ffn(self.ffn_norm(x))


class Llama(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.embedding = nn.Embedding(s.vocab, s.width)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.depth))
        self.norm = nn.RMSNorm(s.width, eps=s.norm_eps)
        d = s.width // s.heads
        angle = torch.outer(torch.arange(s.context).double(), s.rope_theta ** (-torch.arange(0, d, 2).double() / d))
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)
        self.register_buffer("future", torch.ones(s.context, s.context).triu(1).bool(), persistent=False)
        for w in self.parameters():
            if w.dim() == 2:
                nn.init.normal_(w, std=s.width**-0.5)

    def forward(self, x, y):
        """Mean cross-entropy of the tokens y (B, T) that follow each of x (B, T = context)."""
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x, self.cos, self.sin, self.future)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), y.reshape(-1))


def adamw(model, lr, weight_decay, betas, eps):
    """Matrices decay, gains do not."""
    groups = [{"params": [w for w in model.parameters() if w.dim() == 2], "weight_decay": weight_decay},
              {"params": [w for w in model.parameters() if w.dim() < 2], "weight_decay": 0.0}]  # fmt: skip
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def train_step(model, optimizer, tokens, clip, cast=nullcontext()):  # noqa: B008  it holds nothing
    """One step on tokens (B, context + 1), forward under `cast` (autocast); returns the loss, a tensor."""
    with cast:
        loss = model(tokens[:, :-1], tokens[:, 1:])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([w for g in optimizer.param_groups for w in g["params"]], clip, foreach=True)
    optimizer.step()
    return loss
