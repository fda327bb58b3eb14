"""`python -m sweeps.probe cpu|cuda bf16|fp32`: time eager steps of two small shapes, in a process of its own.

Prints a JSON list of {"work": FLOPs per step, "step_seconds"}. One thread, as a worker has.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import median

WIDTHS = {"cpu": (64, 192), "cuda": (128, 512)}
SECONDS = 0.8  # for each shape
WARM_UP = 3


def main(device: str, precision: str) -> list[dict]:
    """Median step seconds of both shapes."""
    import torch

    torch.set_num_threads(1)
    return [_time(device, precision, width) for width in WIDTHS[device]]


def _time(device: str, precision: str, width: int) -> dict:
    import torch

    from harness.config import Config, ModelConfig
    from harness.optimizer import Hyper
    from harness.resolve import DataFacts, resolve
    from harness.step import Step, initial_weights

    point = resolve(Config(model=ModelConfig(width=width), precision=precision), DataFacts("probe", 256, None))
    weights = initial_weights(point, device)
    m, v = ({k: torch.zeros_like(w) for k, w in weights.items()} for _ in range(2))
    tokens = torch.randint(256, (point.batch_size, point.shape.context + 1), device=device)
    step = Step(point.shape, point.parameterization, precision, device, compiled=False)
    hyper = Hyper.of(point, device)
    times, begun = [], time.perf_counter()
    while time.perf_counter() - begun < SECONDS or len(times) <= WARM_UP:
        start = time.perf_counter()
        float(step(weights, m, v, hyper.per_step[len(times)], hyper.fixed, tokens, point.batch_size)[0])
        times.append(time.perf_counter() - start)
    return {"work": point.step_flops, "step_seconds": median(times[WARM_UP:])}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:3])))
