"""A training step as one CUDA graph: recorded once, replayed with one launch, so that a small model waits for no host.

A step of a model under 10M parameters is hundreds of kernels of a few microseconds each, less than launching them takes.
Written to be right by reading: it has not run on a GPU yet, and no test covers it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # steps on a side stream before recording, as torch.cuda.graph asks: libraries allocate, kernels are tuned


class GraphedStep:
    """Takes the place of `step`, harness/step.py's whole step, eager or compiled, and has its arguments.

    Holds one graph, of the weights, m and v of its last call, which it updates in place: other dictionaries, or another
    shape of batch, are recorded anew. row, fixed and tokens are copied into buffers of the graph, so they may be any.
    Where recording fails (a kernel that waits for the host, no memory for it) a line says so, and steps are taken as they
    are.
    """

    def __init__(self, step: Callable[..., Tensor]):
        self.step = step
        self.graph: torch.cuda.CUDAGraph | None = None
        self.recorded: tuple | None = None  # weights, m, v, shape of the batch

    def __call__(self, model, scale, device, precision, weights, m, v, group, row, fixed, tokens) -> Tensor:
        def step(weights, m, v, *inputs):
            return self.step(model, scale, device, precision, weights, m, v, group, *inputs)

        known = self.recorded and tokens.shape == self.recorded[3]
        if not known or any(a is not b for a, b in zip((weights, m, v), self.recorded, strict=False)):
            self.graph, self.recorded = None, (weights, m, v, tokens.shape)  # the old graph's memory goes first
            self._record(step, row, fixed, tokens)
        if self.graph is None:
            return step(weights, m, v, row, fixed, tokens)
        for buffer, value in zip(self.inputs, (row, fixed, tokens), strict=True):
            buffer.copy_(value)
        self.graph.replay()
        return self.output.clone()  # the next replay overwrites it

    def _record(self, step: Callable[..., Tensor], *inputs: Tensor) -> None:
        *state, _ = self.recorded
        graph = torch.cuda.CUDAGraph()
        try:
            self.inputs = tuple(t.clone() for t in inputs)
            # Steps that warm up train, so they are taken on copies.
            copies = [{name: t.clone() for name, t in part.items()} for part in state]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    step(*copies, *self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()  # the copies are in use until then
            del copies
            with torch.cuda.graph(graph):  # records, computes nothing
                self.output = step(*state, *self.inputs)
        except RuntimeError as e:
            why = (str(e).strip().splitlines() or [type(e).__name__])[0]
            print(f"no CUDA graph of this step, its kernels are launched one by one: {why}", file=sys.stderr)
            return
        self.graph = graph
