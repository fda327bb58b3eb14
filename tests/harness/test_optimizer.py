"""The update against torch.optim.AdamW, per group."""

import math

import pytest
import torch

from harness.flat import group_index
from harness.optimizer import Hyper, adamw_
from harness.schedule import shares
from models.parameterization import rules

from .helpers import point

STEPS = 12


def run_ours(p, weights, grads):
    hyper = Hyper.of(p, torch.device("cpu"))
    group = group_index(p.shape, p.parameterization)
    w = {k: t.clone() for k, t in weights.items()}
    m, v = ({k: torch.zeros_like(t) for k, t in w.items()} for _ in range(2))
    norms = [adamw_(w, g, m, v, group, hyper.per_step[i], hyper.fixed) for i, g in enumerate(grads)]
    return w, norms


def run_torch(p, weights, grads):
    """torch.optim.AdamW with one param group per group of the table; its weight decay is coupled."""
    table, o = rules(p.shape, p.parameterization), p.optimizer
    names = list(table)
    group = group_index(p.shape, p.parameterization)
    w = {k: torch.nn.Parameter(t.clone()) for k, t in weights.items()}
    share = shares(p.schedule, p.steps)
    groups = [
        {"params": [w[k] for k in w if group[k] == i], "weight_decay": o.weight_decay * table[n].weight_decay,
         "eps": o.eps * table[n].eps, "lr": 0.0}
        for i, n in enumerate(names)
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, betas=(o.beta1, o.beta2), foreach=False)
    for step, g in enumerate(grads):
        for i, n in enumerate(names):
            optimizer.param_groups[i]["lr"] = o.lr * table[n].lr * share[step]
            if o.weight_decay_mode == "independent" and optimizer.param_groups[i]["lr"] > 0:
                # torch shrinks by lr * wd; ours by share * wd
                optimizer.param_groups[i]["weight_decay"] = o.weight_decay * table[n].weight_decay / (o.lr * table[n].lr)
        for k, parameter in w.items():
            parameter.grad = g[k].clone()
        if o.clip:
            torch.nn.utils.clip_grad_norm_(w.values(), o.clip)
        optimizer.step()
    return w


@pytest.mark.parametrize("name", ["standard", "mup", "completep", "standard_embedding"])
@pytest.mark.parametrize("mode", ["coupled", "independent"])
@pytest.mark.parametrize("clip", ["0.5", "null"])
def test_equals_torch_adamw(name, mode, clip):
    p = point(f"parameterization={name}", "parameterization.base_width=16", "parameterization.base_depth=1",
              "model.width=32", "model.tied=false", f"optimizer.weight_decay_mode={mode}",
              "optimizer.weight_decay=0.05", "optimizer.lr=0.01", "optimizer.eps=1e-4", f"optimizer.clip={clip}",
              f"tokens={STEPS * 512}", "schedule.warmup=0.25")  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    group = group_index(p.shape, p.parameterization)
    weights = {k: torch.randn(5, 3, generator=generator) for k in group}
    grads = [{k: 0.3 * torch.randn(5, 3, generator=generator) for k in group} for _ in range(STEPS)]
    ours, norms = run_ours(p, weights, grads)
    theirs = run_torch(p, weights, grads)
    for k in ours:
        torch.testing.assert_close(ours[k], theirs[k].detach(), rtol=2e-5, atol=2e-6)
    expected = math.sqrt(sum(float(g.square().sum()) for g in grads[0].values()))
    assert float(norms[0]) == pytest.approx(expected, rel=1e-5)


def test_norm_gains_do_not_decay():
    p = point("optimizer.weight_decay=1", "optimizer.lr=0.1", "tokens=51200")
    group = group_index(p.shape, p.parameterization)
    weights = {k: torch.ones(2, 2) for k in group}
    ours, _ = run_ours(p, weights, [{k: torch.zeros(2, 2) for k in group}] * 5)
    for k, w in ours.items():
        assert (w == 1).all() == ("norm" in k), k
