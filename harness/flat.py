"""A model's tensors in one: views by name into a single vector, so that an update is one kernel and a compiled step has
a handful of inputs.

Each tensor begins at a multiple of LINE numbers; what lies between two is zero and stays so (its gradient is zero). The
rates of AdamW's groups are looked up once a line.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.llama import Llama, group_of
from models.parameterization import Parameterization, rules, scales
from models.shape import LlamaShape

LINE = 16  # fp32 numbers of a cache line, and of a vector register


class Tensors(dict):
    """Tensors by name, views of `flat`."""

    def __init__(self, layout: Layout, flat: Tensor):
        super().__init__(layout.split(flat))
        self.flat = flat


class Layout:
    """Where each tensor of a shape lies: names in the model's order."""

    def __init__(self, sizes: dict[str, torch.Size]):
        self.names, self.sizes = tuple(sizes), tuple(sizes.values())
        counts = [prod(size) for size in self.sizes]
        self.lines = [-(-count // LINE) for count in counts]
        self.padding = [LINE * lines - count for lines, count in zip(self.lines, counts, strict=True)]
        self.length = LINE * sum(self.lines)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of flat (length,) by name."""
        parts = flat.split([LINE * lines for lines in self.lines])
        return {name: part[: part.numel() - padding].view(size)
                for name, part, padding, size in zip(self.names, parts, self.padding, self.sizes, strict=True)}  # fmt: skip

    def join(self, tensors: dict[str, Tensor]) -> Tensor:
        """fp32 (length,) of tensors by name."""
        parts = []
        for name, padding in zip(self.names, self.padding, strict=True):
            parts.append(tensors[name].reshape(-1).float())
            if padding:
                parts.append(parts[-1].new_zeros(padding))
        return torch.cat(parts)

    def pack(self, tensors: dict[str, Tensor], device: str) -> Tensors:
        """A copy of the tensors on the device."""
        return Tensors(self, self.join(tensors).to(device))

    def zeros(self, device: str) -> Tensors:
        return Tensors(self, torch.zeros(self.length, device=device))

    def groups(self, group: dict[str, int]) -> Tensor:
        """int64 (length / LINE,): the group of each line, `group` by name."""
        return torch.tensor([group[name] for name in self.names]).repeat_interleave(torch.tensor(self.lines))


class _Undrawn(TorchFunctionMode):
    """Matrices are made on the meta device, and not drawn; all else as ever: with `torch.device("meta")` drawing and
    arithmetic there import PyTorch's compiler, more than a second of a worker's start."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (nn.init.normal_, nn.init.kaiming_uniform_):
            return kwargs["tensor"]
        return func(*args, **(kwargs | {"device": "meta"} if func is torch.empty else kwargs))


@lru_cache(maxsize=64)
def layout(shape: LlamaShape) -> Layout:
    """The layout of a Llama's parameters."""
    with _Undrawn():
        model = Llama(shape, scales(shape, Parameterization.build("standard", shape.width, shape.depth)))
    return Layout({name: parameter.shape for name, parameter in model.named_parameters()})


def group_index(shape: LlamaShape, p: Parameterization) -> dict[str, int]:
    """Name of each weight -> index of its group in the table of rules."""
    order = {g: i for i, g in enumerate(rules(shape, p))}
    return {name: order[group_of(name)] for name in layout(shape).names}
