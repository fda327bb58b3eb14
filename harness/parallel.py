"""The training step of one point on several devices: data parallel (DDP) or fully sharded (FSDP2).

Each rank takes its share of every batch, and gradients are averaged over the ranks before clipping and AdamW: the same
numbers as on one device but for the order of sums. In fp32 losses of any step agree within 1e-5 nats and weights within 1e-5
(tests/harness/test_parallel.py; measured over 500 steps on 2 and 4 ranks: 2e-6 and 4e-6 at a learning rate of 1e-2, 5e-7 and
3e-7 at 1e-3). bf16 rounds products of another shape otherwise: 4e-3 and 1e-3 over 200 steps. Where training is close to
diverging any rounding is amplified step by step, and only the first steps agree so closely.

FSDP2 as documented (pytorch.org/docs/stable/distributed.fsdp.fully_shard.html): parameters become DTensors, each cut along
its first dimension as `torch.chunk` does; inside forward and backward they are whole; a forward pass without backward
leaves those of the root whole until `reshard()`.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from harness.flat import group_index
from harness.group import Group
from harness.optimizer import adamw_, gradient_norm, squared_norm
from harness.point import Point
from harness.private import keep_compiled_code
from models.llama import Llama
from models.parameterization import scales

Tensors = dict[str, Tensor]


class ParallelStep:
    """As `step.Step`, for one rank of a group. Blocks are compiled one by one, so that hooks stay outside of the graphs.

    weights, m and v are this rank's part: all of it under DDP, a slice of each tensor's first dimension under FSDP.
    """

    def __init__(self, point: Point, device: str, compiled: bool, group: Group, parallel: str):
        self.shape, self.precision, self.device = point.shape, point.precision, device
        self.group_of = group_index(point.shape, point.parameterization)
        self.ranks, self.compiled, self._seen, self._first = group, compiled, set(), False
        with torch.device("meta"):
            model = Llama(point.shape, scales(point.shape, point.parameterization))
        if compiled:
            torch._dynamo.config.recompile_limit = 4096
            keep_compiled_code()
            for block in model.blocks:
                block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False)
        wrap = _Sharded if parallel == "fsdp" else _Replicated
        self.model = wrap(model, device, group, lambda m: _fill_buffers(m, point))

    def place(self, whole: Tensors) -> Tensors:
        """This rank's part of whole tensors, copied to its device."""
        return {k: self.model.part(t).to(self.device, copy=True) for k, t in whole.items()}

    def place_weights(self, whole: Tensors) -> Tensors:
        """The same for the weights, which become the module's parameters: what is returned shares their memory."""
        own = self.model.weights()
        for k, t in whole.items():
            own[k].copy_(self.model.part(t))
        return {k: own[k] for k in whole}

    def zeros(self) -> Tensors:
        """Zeros for this rank's part of each weight."""
        return {k: torch.zeros_like(w) for k, w in self.model.weights().items()}

    def gather(self, parts: Tensors) -> Tensors:
        """Whole tensors on the CPU of rank 0, {} at others. Every rank must call it."""
        whole = ((k, self.model.whole(k, t)) for k, t in parts.items())
        return {k: t.cpu() for k, t in whole if self.ranks.leads}

    def __call__(self, weights, m, v, row: Tensor, fixed: Tensor, tokens: Tensor, micro_batch: int) -> Tensor:
        """One step on this rank's tokens (b, T+1). Returns float32 (2,): the loss over this rank's tokens, to be averaged
        over the ranks by who reads it, and the gradient norm over all."""
        loss = torch.zeros((), device=self.device)
        parts = tokens.split(micro_batch)
        batch = tokens.shape[0] if self.compiled else None
        self._first |= batch not in self._seen
        self._seen.add(batch)
        for i, part in enumerate(parts):
            share = part.shape[0] / tokens.shape[0]
            with self.model.accumulating(last=i == len(parts) - 1):
                cross_entropy, objective = self._loss(part)
                (share * objective).backward()
            loss += share * cross_entropy.detach()
        with torch.no_grad():
            grads = self.model.take_gradients(weights)
            norm = self.model.norm(grads)
            adamw_(weights, grads, m, v, self.group_of, row, fixed, norm)
        return torch.stack([loss, norm])

    def was_first(self) -> bool:
        """As of `step.Step`, of this run."""
        first, self._first = self._first, False
        return first

    @torch.no_grad()
    def evaluate(self, weights, tokens: Tensor, chunk: int) -> float:
        """Mean cross-entropy in nats per token over tokens (n, T+1): each rank passes at most `chunk` sequences at a
        time of its share. All make equally many passes, since those of FSDP are joint; one without a share repeats the
        first sequence, at weight 0."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for window in tokens.split(chunk * self.ranks.world):
            share = window.tensor_split(self.ranks.world)[self.ranks.rank]
            loss, _ = self._loss((share if len(share) else tokens[:1]).to(self.device), training=False)
            total += loss.double() * len(share)
        self.model.rest()
        return float(self.ranks.sum(total) / tokens.shape[0])

    def _loss(self, tokens: Tensor, training: bool = True) -> tuple[Tensor, Tensor]:
        """(cross-entropy, training loss); weights stay fp32, matrix products run in `precision`."""
        module = self.model.wrapped if training else self.model.module
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            return module(tokens[:, :-1], tokens[:, 1:])


class _Replicated:
    """DDP: every rank holds the whole model; gradients are averaged while backward runs."""

    def __init__(self, model: Llama, device: str, group: Group, fill):
        self.module = model.to_empty(device=device)
        fill(self.module)
        self.group = group
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has a successor that older PyTorch lacks
            self.wrapped = nn.parallel.DistributedDataParallel(
                self.module, broadcast_buffers=False, gradient_as_bucket_view=True, init_sync=False
            )

    def weights(self) -> Tensors:
        return {k: p.detach() for k, p in self.module.named_parameters()}

    def part(self, whole: Tensor) -> Tensor:
        return whole

    def whole(self, name: str, part: Tensor) -> Tensor:
        return part

    def accumulating(self, last: bool):
        return nullcontext() if last else self.wrapped.no_sync()

    def take_gradients(self, names) -> Tensors:
        """The averaged gradients, in the order of `names`; the module has none afterwards."""
        parameters = dict(self.module.named_parameters())
        grads = {k: parameters[k].grad for k in names}
        self.wrapped.zero_grad(set_to_none=True)
        return grads

    def norm(self, grads: Tensors) -> Tensor:
        return gradient_norm(grads)

    def rest(self) -> None:
        """After a forward pass without backward."""


class _Sharded:
    """FSDP2: every rank holds its slices of weights, gradients and moments; a block is whole only while it runs.

    Gradients of a micro-batch are reduced at once, and not kept whole until the last one: micro-batches are there to save
    memory.
    """

    def __init__(self, model: Llama, device: str, group: Group, fill):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.mesh, self.group = init_device_mesh(device, (group.world,)), group
        self.shapes = {k: (p.shape, p.stride()) for k, p in model.named_parameters()}
        for block in model.blocks:
            fully_shard(block, mesh=self.mesh)
        fully_shard(model, mesh=self.mesh)
        self.module = self.wrapped = model.to_empty(device=device)
        fill(self.module)
        self.parameters = dict(self.module.named_parameters())

    @torch.no_grad()
    def weights(self) -> Tensors:
        return {k: p.to_local() for k, p in self.parameters.items()}

    def part(self, whole: Tensor) -> Tensor:
        parts = whole.chunk(self.group.world)
        return parts[self.group.rank] if self.group.rank < len(parts) else whole[:0]

    def whole(self, name: str, part: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, Shard

        shape, stride = self.shapes[name]
        return DTensor.from_local(part, self.mesh, [Shard(0)], shape=shape, stride=stride).full_tensor()

    def accumulating(self, last: bool):
        return nullcontext()

    def take_gradients(self, names) -> Tensors:
        grads = {k: self.parameters[k].grad.to_local() for k in names}
        self.module.zero_grad(set_to_none=True)
        return grads

    def norm(self, grads: Tensors) -> Tensor:
        return self.group.sum(squared_norm(grads)).sqrt()

    def rest(self) -> None:
        self.module.reshard()  # else the root's parameters stay whole, and in memory, until the next backward


def _fill_buffers(model: Llama, point: Point) -> None:
    """What a module that was made without memory lacks beside its weights."""
    made = Llama(point.shape, scales(point.shape, point.parameterization))
    for (_, own), (_, value) in zip(model.named_buffers(), made.named_buffers(), strict=True):
        own.copy_(value)
