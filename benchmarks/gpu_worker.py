"""One process of benchmarks/gpu.py: `python -m benchmarks.gpu_worker SHAPE BATCH eager|compiled|graph cpu|cuda`.

For each line on stdin, a number of seconds, it trains so long and prints tokens per second. Only the device is waited for
at the end, so launching runs ahead of it, as in training.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from harness.cuda_graph import GraphedStep
from harness.flat import group_index, layout
from harness.gemm import wait
from harness.step import _compiled, _whole_step, skeleton
from models.llama import multipliers
from models.parameterization import Parameterization, scales
from models.shape import LlamaShape

BATCHES = 8  # on the device, taken in turn
LEAST_STEPS = 3


def stepper(shape: LlamaShape, way: str, device: str):
    """harness/step.py's whole step of this shape in bf16, taken in this way."""
    how = skeleton(shape, device), layout(shape), device, "bf16"
    step = _compiled(_whole_step, *how) if way != "eager" else lambda *tensors: _whole_step(*how, *tensors)
    return GraphedStep(step) if way == "graph" else step


def main() -> None:
    shape, batch, way, device = LlamaShape(**json.loads(sys.argv[1])), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    if device == "cpu":
        torch.set_num_threads(1)
    parameterization = Parameterization.build("standard", shape.width, shape.depth)
    lay, groups = layout(shape), group_index(shape, parameterization)
    w = 0.02 * torch.randn(lay.length, device=device)  # norm gains too: it is for speed alone
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    n = max(groups.values()) + 1
    row = torch.tensor([1e-4] * n + [1e-5] * n + [1.0, 1.0], device=device)
    fixed = torch.tensor([1e-8] * n + [0.9, 0.95, 1.0], device=device)
    group, multiply = lay.groups(groups).to(device), multipliers(scales(shape, parameterization)).to(device)
    tokens = torch.randint(shape.vocab, (BATCHES, batch, shape.context + 1), device=device)
    step, log = stepper(shape, way, device), torch.zeros(2, device=device)
    for line in sys.stdin:
        wait(device)
        begun, steps, seconds = time.perf_counter(), 0, float(line)
        while steps < LEAST_STEPS or time.perf_counter() - begun < seconds:
            log.copy_(step(w, m, v, group, row, fixed, multiply, tokens[steps % BATCHES]))
            steps += 1
            if steps % 64 == 0:
                wait(device)  # the loop of training reads its log as often
        wait(device)
        print(steps * batch * shape.context / (time.perf_counter() - begun), flush=True)


if __name__ == "__main__":
    main()
