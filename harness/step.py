"""The training step as a pure function of (weights, optimizer state, hyper-parameters as tensors, batch).

Forward, backward, clipping and update are one graph, compiled once per shape: a new learning rate, weight decay,
schedule, parameterization, seed or point reuses it (DESIGN, decision 7): on a CPU as a library on disk (harness/aot.py),
on a GPU by torch.compile and as a CUDA graph. Weights and moments are one vector each (harness/flat.py).
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value

from harness.aot import load
from harness.cuda_graph import GraphedStep
from harness.flat import Layout, Tensors, group_index, layout
from harness.optimizer import adamw_flat_
from harness.passes import cut
from harness.point import Point
from harness.private import keep_compiled_code
from models.llama import Llama, init_weights, multipliers
from models.parameterization import Parameterization, scales
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


_FUNCTIONS: dict = {}  # compiled functions of this process


class Step:
    """`step(weights, m, v, row, fixed, tokens, micro_batch) -> (loss, gradient norm)`, updating weights, m, v in place.

    weights, m, v from `place` or `zeros`; tokens (B, T+1) int64; row and fixed as in `optimizer.Hyper`. With
    micro_batch < B gradients are accumulated over slices of the batch in fp32, weighted by their size; over slices of
    `shared_pass` sequences, so that one compiled step serves all batches that it divides (harness/passes.py). `compiled`,
    `precision` and `shared_pass` are fixed for the life of a run.
    """

    def __init__(self, shape: LlamaShape, p: Parameterization, precision: str, device: str, compiled: bool,
                 shared_pass: int | None = None):  # fmt: skip
        self.shape, self.device, self.precision, self.compiled = shape, device, precision, compiled
        self.model, self.layout = skeleton(shape, device), layout(shape)
        self.group = self.layout.groups(group_index(shape, p)).to(device)
        self.scales = multipliers(scales(shape, p)).to(device)
        self.shared_pass = shared_pass
        self._functions: dict = {}
        self._first = False

    def place(self, whole: dict[str, Tensor]) -> Tensors:
        """A copy of the tensors on this device."""
        return self.layout.pack(whole, self.device)

    place_weights = place

    def zeros(self) -> Tensors:
        """Zeros for each weight: moments before the first step."""
        return self.layout.zeros(self.device)

    def gather(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors: what one process has."""
        return parts

    def __call__(self, weights: Tensors, m: Tensors, v: Tensors, row: Tensor, fixed: Tensor, tokens: Tensor,
                 micro_batch: int) -> Tensor:  # fmt: skip
        """One step. Returns float32 (2,): training loss (cross-entropy, nats per token) and gradient norm."""
        state = weights.flat, m.flat, v.flat
        size = cut(tokens.shape[0], micro_batch, self.shared_pass)
        if size is None:
            return self._call(_whole_step, *state, self.group, row, fixed, self.scales, tokens)
        gradient, loss = torch.zeros_like(weights.flat), torch.zeros(2, device=self.device)
        for part in tokens.split(size):
            share = torch.full((), part.shape[0] / tokens.shape[0], device=self.device)
            loss = self._call(_accumulate, gradient, loss, share, weights.flat, self.scales, part)
        return self._call(_update, *state, gradient, loss, self.group, row, fixed)

    def _call(self, function: Callable, *tensors: Tensor) -> Tensor:
        """`function` of this shape and precision, compiled for the shape of the last tensor."""
        key = function, self.shape, self.precision, self.device, self.compiled, tensors[-1].shape, torch.get_num_threads()
        if key not in self._functions:
            self._first |= key not in _FUNCTIONS
            made = _FUNCTIONS[key] = _FUNCTIONS.get(key) or self._made(function, tensors)
            # A graph holds the tensors of one point.
            self._functions[key] = GraphedStep(made) if self.device == "cuda" and function is _whole_step else made
        return self._functions[key](*tensors)

    def _made(self, function: Callable, tensors: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        made = partial(function, self.model, self.layout, self.device, self.precision)
        if not self.compiled:
            return made
        if self.device == "cpu":
            return load(made, f"{function.__name__} {self.shape} {self.precision}", tensors)
        return _compiled(function, *made.args)

    def was_first(self) -> bool:
        """Whether, since this was last asked, it took a first step of this process in a shape and batch, which compiles."""
        first, self._first = self._first, False
        return first

    @torch.no_grad()
    def evaluate(self, weights, tokens: Tensor, chunk: int) -> float:
        """Mean cross-entropy in nats per token over tokens (n, T+1), `chunk` sequences at a time; the last, smaller chunk
        is not worth compiling for."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in tokens.split(chunk):
            part = part.to(self.device)
            if self.compiled and len(part) == chunk:
                loss = self._call(_cross_entropy, weights.flat, self.scales, part)
            else:
                loss = _cross_entropy(self.model, self.layout, self.device, self.precision, weights.flat, self.scales, part)
            total += loss.double() * len(part)
        return float(total / len(tokens))


def _loss(model, weights, scales, tokens, device, precision):
    """(cross-entropy, training loss); weights stay fp32, matrix products run in `precision`."""
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
        return functional_call(model, {**weights, "multipliers": scales}, (tokens[:, :-1], tokens[:, 1:]))


def _cross_entropy(model, layout, device, precision, w, scales, tokens):
    return _loss(model, layout.split(w), scales, tokens, device, precision)[0]


def _gradient(model, layout: Layout, device, precision, w, scales, tokens):
    """(gradient, cross-entropy) of the training loss: fp32 as w."""

    def objective(weights):
        cross_entropy, total = _loss(model, weights, scales, tokens, device, precision)
        return total, cross_entropy

    grads, (_, cross_entropy) = grad_and_value(objective, has_aux=True)(layout.split(w))
    return layout.join(grads), cross_entropy


def _whole_step(model, layout, device, precision, w, m, v, group, row, fixed, scales, tokens):
    gradient, loss = _gradient(model, layout, device, precision, w, scales, tokens)
    norm = adamw_flat_(w, gradient, m, v, group, row, fixed)
    return torch.stack([loss, norm])


def _accumulate(model, layout, device, precision, gradient, loss, share, w, scales, tokens):
    """Adds the share of a part of the batch to the gradient, in place. Returns (loss so far, 0)."""
    part, part_loss = _gradient(model, layout, device, precision, w, scales, tokens)
    gradient.add_(share * part)
    return loss + torch.stack([share * part_loss, torch.zeros_like(part_loss)])


def _update(model, layout, device, precision, w, m, v, gradient, loss, group, row, fixed):
    return loss + torch.stack([torch.zeros_like(loss[0]), adamw_flat_(w, gradient, m, v, group, row, fixed)])


def _compiled(function, model, layout, device, precision):
    """`function(model, layout, device, precision, ...)` compiled for tensors of one shape."""

    def step(*tensors):
        return function(model, layout, device, precision, *tensors)

    # The compiler keeps its graphs by code object: with one of its own there is one graph and nothing to look up, so that
    # no guard needs checking before each step (5 % of a small one).
    own = types.FunctionType(step.__code__.replace(), globals(), function.__name__, None, step.__closure__)
    keep_compiled_code()
    options = {"guard_filter_fn": lambda guards: [False] * len(guards)}
    return torch.compile(own, fullgraph=True, dynamic=False, options=options)
