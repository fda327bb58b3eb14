"""Training speed on one GPU, from 1M to 1B parameters: eager, compiled, as a CUDA graph, and several points packed on it.

    python3 -m benchmarks.gpu [--quick] [--json FILE] [--sizes 1M,100M] [--limit SECONDS] [--device cuda|cpu]

On a bare machine with one H100, Python 3.12, PyTorch 2.11 and numpy, in the root of the repository and with nothing
installed; each ends within its limit (--quick: 280 s, else 570 s), what is measured by then is in FILE:

    HYPERLAW_CACHE=/tmp/hyperlaw python3 -u -m benchmarks.gpu --sizes 1M,5M,25M --json small.json
    HYPERLAW_CACHE=/tmp/hyperlaw python3 -u -m benchmarks.gpu --sizes 100M,350M,1B --json large.json

All train on random tokens in bf16 with AdamW. `eager` is the plain loop that a user would write (benchmarks/plain.py), with
flash attention and fused AdamW; `compiled` and `graph` are our step. Packed, K points at once, three kinds: `streams`, K
graphs on streams of one process; `processes`, K processes of a graph each, under MPS where its daemon starts; `axis`, one
graph with a leading axis of K on every weight (benchmarks/stacked.py). The ways of a small size take turns, of a large one
they come one after the other, for want of memory; medians count. --quick: the sizes 1M, 100M and 350M, without `axis`.

Ratios, of the fastest way: gpu_NAME_vs_eager; gpu_NAME_share of the device's dense bf16 peak by 6 params + 12 depth width
context FLOPs per token; gpu_NAME_share_causal, attention halved. Peaks are the maker's (H100 SXM: 989 TFLOP/s), of other
devices measured matrix products. Without a GPU: one line, exit status 2, nothing written. `--device cpu` tries this file
itself, on a size that means nothing, without compiling and graphs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
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
LIMITS = {True: 280, False: 570}  # seconds until it ends, --quick and not
LEAVE_SECONDS = 10.0
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
QUICK = ("1M", "100M", "350M")
TINY = (Size("tiny", 32, 1, 16, 32, 4, vocab=64, packed=2),)
WAYS = ("eager", "compiled", "graph")
PACKED = ("streams", "axis", "processes")


class Late(Exception):
    """The limit is reached."""


class Worker:
    """A process that trains a size, a stretch of seconds whenever asked. `end`: time.monotonic() when it is given up."""

    def __init__(self, size: Size, device: str, env: dict, end: float):
        words = json.dumps(asdict(size.shape)), str(size.batch), str(size.packed), device
        command = [sys.executable, "-m", "benchmarks.gpu_worker", *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.end = end

    def ask(self, way: str, seconds: float) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.write(f"{way} {seconds}\n")
            self.process.stdin.flush()

    def hear(self) -> float | None:
        """Tokens per second, None where there are none: it has said why on stderr. Raises Late."""
        if not select.select([self.process.stdout], [], [], max(self.end - time.monotonic(), 0))[0]:
            raise Late
        line = self.process.stdout.readline()
        return json.loads(line) if line.strip() else None

    def let_go(self) -> None:
        """It ends once it has answered."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def close(self, seconds: float) -> None:
        """It ends within `seconds`, by force if need be: one that is killed may take MPS with it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def measure(size: Size, packed: tuple[str, ...], device: str, rounds: int, seconds: float, env: dict,
            end: float) -> dict[str, list[float]]:  # fmt: skip
    """Way -> tokens per second of each round; a way that could not be gone, or not before `end`, is not there."""
    ways = WAYS + (packed if size.packed > 1 else ())
    groups = [ways] if size.params <= TURNS_PARAMS else [ways[:1], ways[1:]]  # ours share what they compiled
    found: dict[str, list[float]] = {}
    with contextlib.suppress(Late):
        for group in groups:
            _take_turns(size, group, device, rounds, seconds, env, end, found)
    return {way: rates for way, rates in found.items() if len(rates) == rounds}


def _take_turns(size, ways, device, rounds, seconds, env, end, found) -> None:
    """Adds to `found`. One process is for all ways but `processes`."""
    workers = [Worker(size, device, env, end) for _ in range(size.packed if "processes" in ways else 1)]
    try:
        for i in range(rounds + 1):  # in the first they compile and warm up
            for way in ways:
                asked = workers if way == "processes" else workers[:1]
                for worker in asked:
                    worker.ask("graph" if way == "processes" else way, seconds if i else 0.0)
                rates = [worker.hear() for worker in asked]
                if i and None not in rates:
                    found.setdefault(way, []).append(sum(rates))
    finally:
        for worker in workers:
            worker.let_go()
        last = time.monotonic() + LEAVE_SECONDS
        for worker in workers:
            worker.close(max(last - time.monotonic(), 0.0))


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
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(["nvidia-cuda-mps-control"], input=b"quit\n", env=env, capture_output=True, timeout=20)


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


def render_size(size: Size, found: dict[str, list[float]], peak: float) -> str:
    """The table of a size's ways."""
    rows = []
    for way, rates in found.items():
        full, causal = shares(size, median(rates), peak)
        name = f"{way} x{size.packed}" if way in PACKED else way
        rows.append([size.name, f"{size.params / 1e6:.3g}M", size.context, size.batch, name, f"{median(rates):,.0f}",
                     f"{full:.1%}", f"{causal:.1%}"])  # fmt: skip
    return "\n".join(table(["size", "params", "context", "batch", "way", "tokens/s", "share", "causal"], rows))


def main(argv: list[str] | None = None) -> int:
    parser = command_line(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--limit", type=float, help="seconds after which it ends, with what it has")
    parser.add_argument("--sizes", help="some of " + ",".join(size.name for size in SIZES))
    given = parser.parse_args(argv)
    if given.device == "cuda" and not gpu_names():
        print("benchmarks.gpu: there is no GPU here (nvidia-smi lists none); nothing was measured", file=sys.stderr)
        return 2
    end = time.monotonic() + (given.limit or LIMITS[given.quick])
    chosen = TINY if given.device == "cpu" else [size for size in SIZES if not given.quick or size.name in QUICK]
    if given.sizes:
        if unknown := set(given.sizes.split(",")) - {size.name for size in SIZES}:
            parser.error(f"--sizes: {', '.join(sorted(unknown))}? There are {', '.join(size.name for size in SIZES)}.")
        chosen = [size for size in SIZES if size.name in given.sizes.split(",")]
    rounds, seconds = (3, 0.5) if given.quick else (5, 1.0)
    if given.device == "cpu":
        rounds, seconds = 2, 0.1
    (peak, source), ratios, figures = dense_peak(given.device), {}, {}
    with mps(given.device) as (env, under_mps):
        for size in chosen:
            packed = tuple(way for way in PACKED if way != "axis") if given.quick and given.device == "cuda" else PACKED
            found = measure(size, packed, given.device, rounds, seconds, env, end)
            if not found:
                late = time.monotonic() > end
                print(f"{size.name}: {'not before the limit' if late else 'no way of it ran; why stands above'}", flush=True)
                continue
            figures[size.name] = {"size": asdict(size), "params": size.params, "tokens_per_second": found}
            best = max(found, key=lambda way, found=found: median(found[way]))
            if "eager" in found:
                ratios[f"gpu_{size.name}_vs_eager"] = [a / b for a, b in zip(found[best], found["eager"], strict=True)]
            for i, kind in enumerate(("share", "share_causal")):
                ratios[f"gpu_{size.name}_{kind}"] = [shares(size, rate, peak)[i] for rate in found[best]]
            print(render_size(size, found, peak), flush=True)
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
