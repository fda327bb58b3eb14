"""`python -m sweeps.probe cpu|cuda bf16|fp32`: time eager steps of two small shapes, and matrix products, in a process of
its own.

Prints JSON: {"steps": [{"work": FLOPs per step, "step_seconds"}, ...], "peak": FLOP/s}. One thread, as a worker has.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import median

WIDTHS = {"cpu": (64, 192), "cuda": (128, 512)}
SECONDS = 0.8  # for each shape
WARM_UP = 3
PEAK_SECONDS = 1.0


def main(device: str, precision: str) -> dict:
    """Median step seconds of both shapes, and the best rate of a matrix product."""
    import torch

    from harness.gemm import peak

    torch.set_num_threads(1)
    steps = [_time(device, precision, width) for width in WIDTHS[device]]
    return {"steps": steps, "peak": peak(precision, device, PEAK_SECONDS)}


def _time(device: str, precision: str, width: int) -> dict:
    import torch

    from harness.config import Config, ModelConfig
    from harness.optimizer import Hyper
    from harness.resolve import DataFacts, resolve
    from harness.step import Step, initial_weights

    point = resolve(Config(model=ModelConfig(width=width), precision=precision), DataFacts("probe", 256, None))
    tokens = torch.randint(256, (point.batch_size, point.shape.context + 1), device=device)
    step = Step(point.shape, point.parameterization, precision, device, compiled=False)
    weights, m, v = step.place(initial_weights(point, device)), step.zeros(), step.zeros()
    hyper = Hyper.of(point, device)
    times, begun = [], time.perf_counter()
    while time.perf_counter() - begun < SECONDS or len(times) <= WARM_UP:
        start = time.perf_counter()
        float(step(weights, m, v, hyper.per_step[len(times)], hyper.fixed, tokens, point.batch_size)[0])
        times.append(time.perf_counter() - start)
    return {"work": point.step_flops, "step_seconds": median(times[WARM_UP:])}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:3])))
