"""A training step as one CUDA graph: recorded once, replayed with one launch, so that a small model waits for no host.

A step of a model under 10M parameters is hundreds of kernels of a few microseconds each, less than launching them takes.
Written to be right by reading: it has not run on a GPU yet; tests cover only its way back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # steps on a side stream before recording, as torch.cuda.graph asks: libraries allocate, kernels are tuned


class GraphedStep:
    """Takes the place of `step(w, m, v, group, row, fixed, scales, tokens) -> (2,)`, harness/step.py's whole step, eager or
    compiled, which updates w, m and v in place and makes no tensor that outlives it but its result.

    Holds one graph, of the last call's tensors but row and tokens, of which it has copies: other tensors, or another shape
    of batch, are recorded anew. Where recording fails (a kernel that waits for the host, no memory for it) a line says so,
    and steps are taken as they are.
    """

    def __init__(self, step: Callable[..., Tensor]):
        self.step = step
        self.graph: torch.cuda.CUDAGraph | None = None
        self.held: tuple[Tensor, ...] = ()

    def __call__(self, w, m, v, group, row, fixed, scales, tokens) -> Tensor:
        held = (w, m, v, group, fixed, scales)
        same = self.held and all(a is b for a, b in zip(held, self.held, strict=True)) and tokens.shape == self.tokens.shape
        if not same:
            self.graph, self.held, self.tokens = None, held, tokens  # the old graph's memory goes first
            self._record(w, m, v, group, row, fixed, scales, tokens)
        if self.graph is None:
            return self.step(w, m, v, group, row, fixed, scales, tokens)
        self.row.copy_(row)
        self.tokens.copy_(tokens)
        self.graph.replay()
        return self.output.clone()  # the next replay overwrites it

    def _record(self, w, m, v, group, row, fixed, scales, tokens) -> None:
        try:
            graph = torch.cuda.CUDAGraph()
            self.row, self.tokens = row.clone(), tokens.clone()
            rest = (group, self.row, fixed, scales, self.tokens)
            copies = [t.clone() for t in (w, m, v)]  # steps that warm up train
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self.step(*copies, *rest)
            torch.cuda.synchronize()
            del copies
            with torch.cuda.graph(graph):  # records, computes nothing
                self.output = self.step(w, m, v, *rest)
        except RuntimeError as e:
            why = (str(e).strip().splitlines() or [type(e).__name__])[0]
            print(f"no CUDA graph of this step, its kernels are launched one by one: {why}", file=sys.stderr)
            return
        self.graph = graph
