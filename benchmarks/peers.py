"""Processes that benchmarks/train.py measures beside our workers; each answers a line of JSON on stdin with a number.

python -m benchmarks.peers eager SHAPE    {"seconds": s} -> tokens per second; SHAPE: JSON of benchmarks.plain.Shape
                                          but "fused", and "batch"
python -m benchmarks.peers gemm           {"n": n, "seconds": s} -> bf16 FLOP/s
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

THREADS = {"eager": 2, "gemm": 1}
POOL = 32  # batches that the plain loop goes round: in memory, so that data costs it nothing


class Peer:
    """Such a process, on `cores`. Raises RuntimeError where it died."""

    def __init__(self, kind: str, cores: list[int], *words: str):
        threads = str(THREADS[kind])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers", kind, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        self.hear()

    def ask(self, **message) -> None:
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def hear(self) -> float:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} left with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def per_second(call: Callable[[], object], seconds: float) -> float:
    """How often `call` is through in a second, over at least `seconds`."""
    begun, n = time.perf_counter(), 0
    while (spent := time.perf_counter() - begun) < seconds:
        call()
        n += 1
    return n / spent


def eager(shape: dict) -> Callable[[float], float]:
    """Of the plain model, with the attention that is the faster here."""
    import torch

    from benchmarks.plain import Llama, Shape, adamw, train_step

    batch = shape.pop("batch")
    tokens = torch.randint(shape["vocab"], (POOL, batch, shape["context"] + 1))
    steps = []
    for fused in (True, False):
        model = Llama(Shape(**shape, fused=fused))
        optimizer = adamw(model, 1e-4, 0.1, (0.9, 0.95), 1e-8)
        steps.append(lambda i, m=model, o=optimizer: train_step(m, o, tokens[i % POOL], 1.0).detach())
    for step in steps:
        step(0)
    rates = [max(per_second(lambda s=step: s(0), 0.3) for _ in range(3)) for step in steps]
    best, taken = steps[rates[1] > rates[0]], iter(range(sys.maxsize))
    return lambda seconds: batch * shape["context"] * per_second(lambda: best(next(taken)), seconds)


def gemm() -> Callable[..., float]:
    import torch

    def rate(n: int, seconds: float) -> float:
        a, b = torch.randn(n, n).bfloat16(), torch.randn(n, n).bfloat16()
        out = torch.mm(a, b)
        return 2 * n**3 * per_second(lambda: torch.mm(a, b, out=out), seconds)

    return rate


def main() -> None:
    kind, *words = sys.argv[1:]
    import torch

    torch.set_num_threads(THREADS[kind])
    answer = eager(json.loads(words[0])) if kind == "eager" else gemm()
    print("0", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
