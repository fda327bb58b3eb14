"""The training step as a pure function of (weights, optimizer state, hyper-parameters as tensors, batch).

Forward, backward, clipping and update are one graph, compiled once per shape: a new learning rate, weight decay,
schedule, parameterization, seed or point reuses it (DESIGN, decision 7).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value

from harness.optimizer import adamw_
from harness.point import Point
from harness.private import keep_compiled_code
from models.llama import Llama, group_of, init_weights, multipliers, token_loss
from models.parameterization import Parameterization, rules, scales
from models.shape import LlamaShape


@lru_cache(maxsize=8)
def skeleton(shape: LlamaShape, device: str) -> Llama:
    """The module that `functional_call` fills with weights; one per shape, so that one compiled graph serves it."""
    with torch.device(device):
        return Llama(shape, scales(shape, Parameterization.build("standard", shape.width, shape.depth)))


def initial_weights(point: Point, device: str) -> dict[str, Tensor]:
    """fp32 weights of `point` before its first step, by name, in the model's order."""
    model = Llama(point.shape, scales(point.shape, point.parameterization))
    init_weights(model, point.shape, point.parameterization, point.seed)
    return {name: w.detach().clone().to(device) for name, w in model.named_parameters()}


def group_index(shape: LlamaShape, p: Parameterization) -> dict[str, int]:
    """Name of each weight -> index of its group in the table of rules."""
    order = {g: i for i, g in enumerate(rules(shape, p))}
    return {name: order[group_of(name)] for name, _ in skeleton(shape, "cpu").named_parameters()}


_USED: set = set()  # what this process has stepped (and so compiled) before


class Step:
    """`step(weights, m, v, row, fixed, tokens) -> (loss, gradient norm)`, updating weights, m and v in place.

    tokens (B, T+1) int64; row and fixed as in `optimizer.Hyper`. With micro_batch < B gradients are accumulated over
    slices of the batch in fp32, weighted by their size. `compiled` and `precision` are fixed for the life of a run.
    `used`: whether this process has taken such a step before; the first one compiles.
    """

    def __init__(self, shape: LlamaShape, p: Parameterization, precision: str, device: str, compiled: bool):
        self.shape, self.device, self.precision = shape, device, precision
        self.model = skeleton(shape, device)
        self.group = group_index(shape, p)
        self.scales = {"multipliers": multipliers(scales(shape, p)).to(device)}
        self.used = (shape, precision, device, compiled) in _USED
        _USED.add((shape, precision, device, compiled))
        wrap = _compiled if compiled else lambda f: f
        self._whole = wrap(_whole_step)
        self._gradients, self._update = wrap(_gradients), wrap(adamw_)

    def place(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """A copy of the tensors on this device."""
        return {k: t.to(self.device, copy=True) for k, t in whole.items()}

    place_weights = place

    def gather(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors: what one process has."""
        return parts

    def __call__(self, weights, m, v, row: Tensor, fixed: Tensor, tokens: Tensor, micro_batch: int) -> Tensor:
        """One step. Returns float32 (2,): training loss (cross-entropy, nats per token) and gradient norm."""
        self.used = True
        how = (self.model, self.scales, self.device, self.precision)
        if micro_batch >= tokens.shape[0]:
            return self._whole(*how, weights, m, v, self.group, row, fixed, tokens)
        total, loss = None, 0.0
        for part in tokens.split(micro_batch):
            share = part.shape[0] / tokens.shape[0]
            grads, part_loss = self._gradients(*how, weights, part)
            loss = loss + share * part_loss
            if total is None:
                total = {k: share * g for k, g in grads.items()}
            else:
                for k, g in grads.items():
                    total[k].add_(g, alpha=share)
        norm = self._update(weights, total, m, v, self.group, row, fixed)
        return torch.stack([loss, norm])

    @torch.no_grad()
    def evaluate(self, weights, tokens: Tensor, chunk: int) -> float:
        """Mean cross-entropy in nats per token over tokens (n, T+1), `chunk` sequences at a time."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in tokens.split(chunk):
            loss, _ = _loss(self.model, {**weights, **self.scales}, part.to(self.device), self.device, self.precision)
            total += loss.double() * part.shape[0]
        return float(total / tokens.shape[0])


def _loss(model, tensors, tokens, device, precision):
    """(cross-entropy, training loss); weights stay fp32, matrix products run in `precision`."""
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits = functional_call(model, tensors, (tokens[:, :-1],))
    return token_loss(logits, tokens[:, 1:], model.shape.z_loss)


def _gradients(model, scale, device, precision, weights, tokens):
    """(gradients by name, cross-entropy) of the training loss."""

    def objective(weights):
        cross_entropy, total = _loss(model, {**weights, **scale}, tokens, device, precision)
        return total, cross_entropy

    grads, (_, cross_entropy) = grad_and_value(objective, has_aux=True)(weights)
    return grads, cross_entropy


def _whole_step(model, scale, device, precision, weights, m, v, group, row, fixed, tokens):
    grads, loss = _gradients(model, scale, device, precision, weights, tokens)
    norm = adamw_(weights, grads, m, v, group, row, fixed)
    return torch.stack([loss, norm])


@lru_cache
def _compiled(function):
    # One code object serves every shape; PyTorch's limit of recompilations is meant for one model, not for a sweep.
    # Set here: importing the compiler takes seconds, which eager runs need not wait for.
    torch._dynamo.config.recompile_limit = 4096
    torch._dynamo.config.accumulated_recompile_limit = 65536
    keep_compiled_code()
    return torch.compile(function, fullgraph=True, dynamic=False)
