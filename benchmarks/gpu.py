"""Training speed on one GPU, from 1M to 1B parameters: eager, compiled, as a CUDA graph, and several points packed on it.

    python3 -m benchmarks.gpu [--quick] [--json FILE] [--sizes 1M,100M] [--device cuda|cpu]

On a bare machine with one H100, Python 3.12, PyTorch 2.11 and numpy, in the root of the repository and
with nothing installed, within ten minutes (what is measured by then is in FILE, also when it is cut off):

    HYPERLAW_CACHE=/tmp/hyperlaw PYTHONUNBUFFERED=1 timeout 590 python3 -m benchmarks.gpu --json gpu.json

Each way of a size trains in a process of its own (benchmarks/gpu_worker.py), on random tokens, bf16, with our step and
AdamW. The ways of a small size take turns, of a large one they come one after the other, for want of memory; medians count.
`packed`: K processes of graphs at once, under MPS where its daemon starts. Ratios, of the fastest way: gpu_NAME_vs_eager;
gpu_NAME_share of the device's dense bf16 peak by 6 params + 12 depth width context FLOPs per token;
gpu_NAME_share_causal, attention halved. Peaks are the maker's (H100 SXM: 989 TFLOP/s), of other devices measured matrix
products. Without a GPU: one line, exit status 2, nothing written. `--device cpu` tries this file itself, on a size that
means nothing, without compiling and graphs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from statistics import median

from benchmarks.report import command_line, finish
from models.count import count_params, flops_per_token
from models.shape import LlamaShape
from sweeps.rate import device_name, gpu_names
from sweeps.text import table

DENSE_BF16 = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12}  # FLOP/s
BUDGET_SECONDS = 420  # after which no further size begins: the last may take some two minutes
TURNS_PARAMS = 30e6  # up to which the ways of a size are in memory at once


@dataclass(frozen=True)
class Size:
    """A model as one would train it on one GPU; batch in sequences; `packed`: points at once."""

    name: str
    width: int
    depth: int
    head_dim: int
    context: int
    batch: int
    vocab: int = 32768
    packed: int = 1

    @property
    def shape(self) -> LlamaShape:
        return LlamaShape.build(self.width, self.depth, vocab=self.vocab, context=self.context, head_dim=self.head_dim,
                                tied=True)  # fmt: skip

    @property
    def params(self) -> int:
        return count_params(self.shape).params


SIZES = (
    Size("1M", 128, 4, 64, 256, 32, vocab=1024, packed=8),
    Size("5M", 256, 5, 64, 512, 32, vocab=4096, packed=4),
    Size("25M", 512, 6, 64, 1024, 32, vocab=8192, packed=2),
    Size("100M", 768, 10, 64, 1024, 32),
    Size("350M", 1024, 25, 64, 2048, 8),
    Size("1B", 1792, 24, 128, 2048, 4),
)
TINY = (Size("tiny", 32, 1, 16, 32, 4, vocab=64, packed=2),)
WAYS = {"cuda": ("eager", "compiled", "graph", "packed"), "cpu": ("eager", "packed")}


class Worker:
    """A process that trains a size in one way, a stretch of seconds whenever asked."""

    def __init__(self, size: Size, way: str, device: str, env: dict):
        words = json.dumps(asdict(size.shape)), str(size.batch), way, device
        command = [sys.executable, "-m", "benchmarks.gpu_worker", *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(self, seconds: float) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()

    def hear(self) -> float | None:
        """Tokens per second, or None where it died (out of memory, say; it has said so on stderr)."""
        line = self.process.stdout.readline()
        return float(line) if line.strip() else None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def measure(size: Size, device: str, rounds: int, seconds: float, env: dict) -> dict[str, list[float]]:
    """Way -> tokens per second of each round; a way that died is not there."""
    ways = [way for way in WAYS[device] if way != "packed" or size.packed > 1]
    if size.params <= TURNS_PARAMS:
        return _take_turns(size, ways, device, rounds, seconds, env)
    return {w: r for way in ways for w, r in _take_turns(size, [way], device, rounds, seconds, env).items()}


def _take_turns(size: Size, ways: list[str], device: str, rounds: int, seconds: float, env: dict) -> dict[str, list[float]]:
    single = "eager" if device == "cpu" else "graph"
    workers = {way: [Worker(size, single if way == "packed" else way, device, env)
                     for _ in range(size.packed if way == "packed" else 1)] for way in ways}  # fmt: skip
    found: dict[str, list[float]] = {way: [] for way in workers}
    try:
        for i in range(rounds + 1):  # in the first they compile and warm up
            for way, members in workers.items():
                for worker in members:
                    worker.ask(seconds if i else 0.0)
                rates = [worker.hear() for worker in members]
                if i and None not in rates:
                    found[way].append(sum(rates))
    finally:
        for worker in (w for members in workers.values() for w in members):
            worker.close()
    return {way: rates for way, rates in found.items() if len(rates) == rounds}


@contextlib.contextmanager
def mps(device: str):
    """The environment of workers under CUDA's Multi-Process Service, with a daemon of our own where it can be started."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        try:
            if device == "cpu":
                raise OSError
            for name in ("pipe", "log"):
                os.mkdir(f"{folder}/{name}")
            subprocess.run(["nvidia-cuda-mps-control", "-d"], env=env, check=True, capture_output=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            yield dict(os.environ), False
            return
        try:
            yield env, True
        finally:
            subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, env=env, capture_output=True, timeout=60)


def dense_peak(device: str) -> tuple[float, str]:
    """(FLOP/s in bf16, where that is from)."""
    name = device_name(device)
    for known, flops in DENSE_BF16.items():
        if device == "cuda" and all(word in name for word in known.split()):
            return flops, f"dense bf16 of {known}"
    code = "import sys; from harness.gemm import peak; print(peak('bf16', sys.argv[1], 1.0))"
    return float(subprocess.check_output([sys.executable, "-c", code, device])), "measured matrix products"


def shares(size: Size, tokens_per_second: float, peak: float) -> tuple[float, float]:
    """Of the peak: attention over the full context counted, and halved for causality."""
    full = flops_per_token(size.shape)
    causal = full - 6 * size.depth * size.shape.attention_width * size.context
    return tokens_per_second * full / peak, tokens_per_second * causal / peak


def main(argv: list[str] | None = None) -> int:
    parser = command_line(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", help="some of " + ",".join(size.name for size in SIZES))
    given = parser.parse_args(argv)
    if given.device == "cuda" and not gpu_names():
        print("benchmarks.gpu: there is no GPU here (nvidia-smi lists none); nothing was measured", file=sys.stderr)
        return 2
    chosen = TINY if given.device == "cpu" else SIZES
    if given.sizes:
        chosen = [size for size in SIZES if size.name in given.sizes.split(",")]
    rounds, seconds = (3, 0.7) if given.quick else (5, 1.0)
    if given.device == "cpu":
        rounds, seconds = 2, 0.1
    (peak, source), begun, ratios, rows, figures = dense_peak(given.device), time.monotonic(), {}, [], {}
    with mps(given.device) as (env, under_mps):
        for size in chosen:
            if time.monotonic() - begun > BUDGET_SECONDS:
                print(f"{size.name}: not begun after {BUDGET_SECONDS} s")
                continue
            found = measure(size, given.device, rounds, seconds, env)
            if not found:
                print(f"{size.name}: no way of it ran; what it said stands above")
                continue
            figures[size.name] = {"size": asdict(size), "params": size.params, "tokens_per_second": found}
            for way, rates in found.items():
                full, causal = shares(size, median(rates), peak)
                name = f"{way} x{size.packed}" if way == "packed" else way
                rows.append([size.name, f"{size.params / 1e6:.3g}M", size.context, size.batch, name, f"{median(rates):,.0f}",
                             f"{full:.1%}", f"{causal:.1%}"])  # fmt: skip
            best = max(found, key=lambda way, found=found: median(found[way]))
            if "eager" in found:
                ratios[f"gpu_{size.name}_vs_eager"] = [a / b for a, b in zip(found[best], found["eager"], strict=True)]
            for i, kind in enumerate(("share", "share_causal")):
                ratios[f"gpu_{size.name}_{kind}"] = [shares(size, rate, peak)[i] for rate in found[best]]
            print("\n".join(table(["size", "params", "context", "batch", "way", "tokens/s", "share", "causal"],
                                  rows[-len(found):])))  # fmt: skip
            more = {"peak": peak, "peak_is": source, "mps": under_mps, "sizes": figures}
            with contextlib.redirect_stdout(io.StringIO()):  # so that it is there, should the next size be cut off
                finish(given, ratios, kind=given.device, **more)
    print(f"peak {peak / 1e12:.4g} TFLOP/s ({source}); packed processes {'under MPS' if under_mps else 'without MPS'}")
    if not ratios:
        print("benchmarks.gpu: no size could be measured", file=sys.stderr)
        return 1
    finish(given, ratios, kind=given.device, **more)
    return 0


if __name__ == "__main__":
    sys.exit(main())
