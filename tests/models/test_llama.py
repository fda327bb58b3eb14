"""The decoder against a reference written out from the papers: one head at a time, complex rotations, float64.

Written here and not taken from `transformers`, which would add 130 MB to the development install; the two were compared
once and agree.
"""

import math

import numpy as np
import pytest
import torch

import models.llama as llama
from models.llama import Llama, group_of, init_weights, rotate, rotation_tables
from models.parameterization import Parameterization, rules, scales
from models.shape import LlamaShape

VARIANTS = {
    "multi-head, untied": dict(tied=False),
    "multi-head, tied": dict(tied=True),
    "grouped queries": dict(n_kv_heads=2, tied=False),
    "one key/value head, QK-norm, z-loss": dict(n_kv_heads=1, qk_norm=True, z_loss=0.01, tied=True),
    "attention wider than the model": dict(head_dim=16, n_heads=4, n_kv_heads=2, ffn_width=20, tied=False),
}


def make(seed=0, name="completep", **given):
    """A model of 3 blocks whose forward multipliers all differ from 1, with random gains, and its shape."""
    shape = LlamaShape.build(32, 3, **{"head_dim": 8, "vocab": 50, "context": 12, "rope_theta": 100.0} | given)
    p = Parameterization.build(name, 16, 2, base_head_dim=4 if name == "completep" else None, embedding_multiplier=3.0)
    model = Llama(shape, scales(shape, p))
    init_weights(model, shape, p, seed)
    with torch.no_grad():
        for n, w in model.named_parameters():
            if w.ndim == 1:
                w.copy_(1 + 0.3 * torch.sin(torch.arange(w.numel()) + len(n)))
    return model, shape, scales(shape, p)


def tokens_of(shape, batch=2, seed=1):
    return torch.randint(shape.vocab, (batch, shape.context + 1), generator=torch.Generator().manual_seed(seed))


def reference_loss(w, shape, s, tokens):
    """(cross-entropy, with z-loss) of one sequence (T+1,), from weights by name in float64."""

    def norm(x, gain):
        return x / (x.pow(2).mean(-1, keepdim=True) + shape.norm_eps).sqrt() * gain

    def turn(x):  # (T, D): coordinate i and i + D/2 are one complex number, turned by t * theta^(-2i/D)
        half = shape.head_dim // 2
        angle = torch.tensor([[t * shape.rope_theta ** (-i / half) for i in range(half)] for t in range(len(x))])
        z = torch.complex(x[:, :half], x[:, half:]) * torch.exp(1j * angle.double())
        return torch.cat((z.real, z.imag), dim=1)

    def attention(x, at):
        rows, per_kv = w[at + "qkv.weight"].split(shape.head_dim), shape.n_heads // shape.n_kv_heads
        q_rows, k_rows = rows[: shape.n_heads], rows[shape.n_heads : shape.n_heads + shape.n_kv_heads]
        heads = []
        for h in range(shape.n_heads):
            q, k = x @ q_rows[h].T, x @ k_rows[h // per_kv].T
            v = x @ rows[shape.n_heads + shape.n_kv_heads + h // per_kv].T
            if shape.qk_norm:
                q, k = norm(q, w[at + "q_norm.weight"]), norm(k, w[at + "k_norm.weight"])
            q, k = turn(q), turn(k)
            out = []
            for t in range(len(x)):  # a token sees itself and what came before
                score = torch.exp(s.attention * (k[: t + 1] @ q[t]))
                out.append((score / score.sum()) @ v[: t + 1])
            heads.append(torch.stack(out))
        return torch.cat(heads, dim=1) @ w[at + "out.weight"].T

    x = s.embedding * w["embedding.weight"][tokens[:-1]]
    for i in range(shape.depth):
        at = f"blocks.{i}."
        x = x + s.residual * attention(norm(x, w[at + "attention_norm.weight"]), at + "attention.")
        h = norm(x, w[at + "ffn_norm.weight"])
        gate, up = (h @ part.T for part in w[at + "ffn.gate_up.weight"].split(shape.ffn_width))
        x = x + s.residual * (gate / (1 + torch.exp(-gate)) * up) @ w[at + "ffn.down.weight"].T
    head = w["embedding.weight" if shape.tied else "head.weight"]
    logits = s.logits * norm(x, w["norm.weight"]) @ head.T
    log_z = torch.exp(logits).sum(-1).log()
    cross_entropy = (log_z - logits[torch.arange(len(x)), tokens[1:]]).mean()
    return cross_entropy, cross_entropy + shape.z_loss * (log_z**2).mean()


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "fused"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_equal_the_reference(variant, explicit, monkeypatch):
    if not explicit:
        monkeypatch.setattr(llama, "EXPLICIT_ATTENTION_CONTEXT", 0)
    model, shape, s = make(**VARIANTS[variant])
    tokens = tokens_of(shape)
    losses = model.loss(tokens)
    losses[1].backward()

    weights = {n: w.detach().double().requires_grad_() for n, w in model.named_parameters()}
    expected = torch.stack([torch.stack(reference_loss(weights, shape, s, row)) for row in tokens]).mean(0)
    expected[1].backward()

    torch.testing.assert_close(torch.stack(losses).double(), expected, rtol=2e-6, atol=0)
    for name, w in model.named_parameters():
        error = (w.grad - weights[name].grad).norm() / weights[name].grad.norm()
        assert error < 2e-5, f"gradient of {name} is off by {error:.1e}"


def test_z_loss_is_the_mean_square_of_log_z():
    model, shape, _ = make(z_loss=0.01)
    tokens = tokens_of(shape)
    log_z = model(tokens[:, :-1]).logsumexp(-1)
    cross_entropy, total = model.loss(tokens)
    torch.testing.assert_close(total - cross_entropy, 0.01 * log_z.square().mean())


def test_a_score_depends_on_the_distance_of_two_tokens_only():
    cos, sin = rotation_tables(32, 16, 100.0)
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    scores = rotate(q.expand(32, 16), cos, sin) @ rotate(k.expand(32, 16), cos, sin).T
    for distance in range(-31, 32):
        along = scores.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-4)
    assert scores[0].std() > 0.1  # and does depend on it


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "fused"])
def test_no_token_sees_a_later_one(explicit, monkeypatch):
    if not explicit:
        monkeypatch.setattr(llama, "EXPLICIT_ATTENTION_CONTEXT", 0)
    model, shape, _ = make(n_kv_heads=2)
    tokens = tokens_of(shape)[:, :-1]
    before = model(tokens)
    for t in (0, 5, shape.context - 1):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % shape.vocab
        difference = (model(changed) - before).abs().amax(dim=(0, 2))
        assert (difference[:t] == 0).all()
        assert (difference[t:] > 0).all()
    torch.testing.assert_close(model(tokens[:, :5]), before[:, :5])  # a shorter sequence is a prefix


def test_bf16_autocast_stays_near_fp32_and_its_loss_is_fp32():
    model, shape, _ = make()
    tokens = tokens_of(shape)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model.loss(tokens)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, model.loss(tokens)[0], rtol=0.01, atol=0)


def test_weights_follow_the_table():
    shape = LlamaShape.build(256, 2, head_dim=32, vocab=512, context=8, tied=False)
    for name in ("standard", "mup"):
        p = Parameterization.build(name, 64, 2, init_std=0.1)
        model = Llama(shape, scales(shape, p))
        init_weights(model, shape, p, 3)
        for n, w in model.named_parameters():
            if w.ndim == 1:
                assert (w == 1).all()
            else:
                assert w.std().item() == pytest.approx(rules(shape, p)[group_of(n)].init_std, rel=0.02)
                assert abs(w.mean().item()) < 5 * w.std().item() / math.sqrt(w.numel())


def test_a_tensor_depends_on_seed_name_and_size_only():
    def drawn(seed, depth, tied, scramble=0):
        shape = LlamaShape.build(32, depth, head_dim=8, vocab=50, context=12, tied=tied)
        p = Parameterization.build("mup", 16, 2)
        torch.manual_seed(scramble)
        model = Llama(shape, scales(shape, p))
        init_weights(model, shape, p, seed)
        return {n: w.detach().clone() for n, w in model.named_parameters()}

    shallow, deep = drawn(7, 1, True), drawn(7, 3, False, scramble=5)
    assert all(torch.equal(w, deep[n]) for n, w in shallow.items())
    assert not torch.equal(deep["embedding.weight"], deep["head.weight"])
    assert not torch.equal(deep["blocks.0.attention.out.weight"], deep["blocks.1.attention.out.weight"])
    assert not torch.equal(drawn(8, 1, True)["embedding.weight"], shallow["embedding.weight"])
    # the same on every machine: the first numbers of one tensor, written down
    first = shallow["embedding.weight"].flatten()[:3].numpy()
    np.testing.assert_allclose(first, (-0.3682068884, -0.4843883514, -0.0236345045), rtol=1e-6)
