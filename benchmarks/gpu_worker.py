"""One process of benchmarks/gpu.py: `python -m benchmarks.gpu_worker SHAPE BATCH POINTS cpu|cuda`.

Each line on stdin, a way and a number of seconds, is answered with the tokens per second of so long a training that way,
or with `null`, and why on stderr, where it cannot be trained so. Only the device is waited for at the end: launching runs
ahead of it, as in training.

eager      the plain model and loop of benchmarks/plain.py, flash attention and fused AdamW: what a user would write
compiled   our step, harness/step.py
graph      the same as a CUDA graph
streams    POINTS such graphs, each on a stream of its own
axis       POINTS points as one step with a leading axis on every weight (benchmarks/stacked.py), compiled, as one graph

Without CUDA nothing is compiled or recorded: that is for trying this file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property

import torch

from benchmarks.plain import Llama, Shape, adamw, train_step
from benchmarks.stacked import stacked_step
from harness.cuda_graph import GraphedStep
from harness.flat import group_index, layout
from harness.gemm import wait
from harness.private import keep_compiled_code
from harness.step import _compiled, _whole_step, skeleton
from models.llama import multipliers
from models.parameterization import Parameterization, scales
from models.shape import LlamaShape

BATCHES = 8  # on the device, taken in turn
LEAST_STEPS = 3


class Trainer:
    """Steps of a shape: each way above is a method, which gives a function of a step's number that trains."""

    def __init__(self, shape: LlamaShape, batch: int, points: int, device: str):
        self.shape, self.batch, self.points, self.device = shape, batch, points, device
        self.tokens = torch.randint(shape.vocab, (BATCHES, points, batch, shape.context + 1), device=device)
        self.p = Parameterization.build("standard", shape.width, shape.depth)
        self.layout = layout(shape)
        how = skeleton(shape, device), self.layout, device, "bf16"
        self.step = _compiled(_whole_step, *how) if device == "cuda" else lambda *tensors: _whole_step(*how, *tensors)

    def points_of(self, way: str) -> int:
        """How many train at once."""
        return self.points if way in ("streams", "axis") else 1

    def eager(self) -> Callable[[int], object]:
        s = self.shape
        model = Llama(Shape(s.width, s.depth, s.n_heads, s.ffn_width, s.vocab, s.context, True)).to(self.device)
        optimizer = adamw(model, 1e-4, 0.1, (0.9, 0.95), 1e-8)
        cast = torch.autocast(self.device, torch.bfloat16)
        return lambda i: train_step(model, optimizer, self.tokens[i % BATCHES, 0], 1.0, cast)

    def _state(self, *many: int):
        """Weights (norm gains too: it is for speed alone), moments and rates; `many`: a leading axis."""
        groups = group_index(self.shape, self.p)
        n = max(groups.values()) + 1
        w = 0.02 * torch.randn(*many, self.layout.length, device=self.device)
        row = torch.tensor([1e-4] * n + [1e-5] * n + [1.0, 1.0], device=self.device).expand(*many, -1).contiguous()
        fixed = torch.tensor([1e-8] * n + [0.9, 0.95, 1.0], device=self.device)
        group, scaling = self.layout.groups(groups).to(self.device), multipliers(scales(self.shape, self.p)).to(self.device)
        return w, torch.zeros_like(w), torch.zeros_like(w), group, row, fixed, scaling

    def _recorded(self, step, state, tokens):
        """`step` as a graph. Raises RuntimeError where it could not be recorded, which is no measurement of one."""
        if self.device != "cuda":
            return step
        graph = GraphedStep(step)
        graph(*state, tokens)
        if graph.graph is None:
            raise RuntimeError("no graph of it")
        return graph

    @cached_property
    def _alone(self):
        """The state of one point, for the ways of our step by itself: two of a large size would leave no room."""
        return self._state()

    def compiled(self) -> Callable[[int], object]:
        return lambda i: self.step(*self._alone, self.tokens[i % BATCHES, 0])

    def graph(self) -> Callable[[int], object]:
        step = self._recorded(self.step, self._alone, self.tokens[0, 0])
        return lambda i: step(*self._alone, self.tokens[i % BATCHES, 0])

    def streams(self) -> Callable[[int], object]:
        states = [self._state() for _ in range(self.points)]
        steps = [self._recorded(self.step, state, self.tokens[0, 0]) for state in states]
        on = [torch.cuda.stream(torch.cuda.Stream()) if self.device == "cuda" else nullcontext() for _ in states]
        wait(self.device)

        def step(i):
            for k, stream in enumerate(on):
                with stream:
                    steps[k](*states[k], self.tokens[i % BATCHES, k])

        return step

    def axis(self) -> Callable[[int], object]:
        step = stacked_step(self.shape, self.layout, self.device, "bf16")
        if self.device == "cuda":
            keep_compiled_code()
            step = torch.compile(step, fullgraph=True, dynamic=False)
        state = self._state(self.points)
        step = self._recorded(step, state, self.tokens[0])
        return lambda i: step(*state, self.tokens[i % BATCHES])


def tokens_per_second(trainer: Trainer, step: Callable[[int], object], way: str, seconds: float) -> float:
    """Of all points, over LEAST_STEPS and more steps of each."""
    wait(trainer.device)
    begun, steps = time.perf_counter(), 0
    while steps < LEAST_STEPS or time.perf_counter() - begun < seconds:
        step(steps)
        steps += 1
        if steps % 64 == 0:
            wait(trainer.device)  # the loop of training reads its log as often
    wait(trainer.device)
    done = steps * trainer.points_of(way) * trainer.batch * trainer.shape.context
    return done / (time.perf_counter() - begun)


def main() -> None:
    shape, batch, points, device = LlamaShape(**json.loads(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    if device == "cpu":
        torch.set_num_threads(1)
    trainer, steps = Trainer(shape, batch, points, device), {}
    for line in sys.stdin:
        way, seconds = line.split()
        try:
            if way not in steps:
                steps[way] = getattr(trainer, way)()
            answer = tokens_per_second(trainer, steps[way], way, float(seconds))
        except RuntimeError as e:  # out of memory, a kernel that there is not: the other ways may still be gone
            steps.pop(way, None)
            answer = None
            print(f"{way}: {(str(e).strip().splitlines() or [type(e).__name__])[0]}", file=sys.stderr, flush=True)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
