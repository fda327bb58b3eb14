"""Steady training speed at widths 64, 128 and 256 on two cores: against a plain eager loop, and against the machine.

    python -m benchmarks.train [--quick] [--json FILE] [--widths 64,128,256]

baseline  the plain model of benchmarks/plain.py, eager, fp32, fused AdamW: one process of two threads
ours      two real workers (sweeps/pool.py) of one thread, pinned one per core, each training a point compiled in bf16: its
          loop, log, clocks and status as in a sweep; tokens per second of both, between progress messages
peak      bf16 matrix products n x n, the best n of 256 ... 4096: two processes of one thread, one per core

train_W = ours / baseline; peak_share_W = ours * FLOPs per token / peak, with models.count.flops_per_token = 6 params +
12 depth width context per token (attention not halved for causality). Each round measures all three one after the other,
while the others stand still; compilation, start-up and the first second after each pause do not count.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.peers import Peer
from benchmarks.report import command_line, finish
from harness.compose import compose
from harness.places import DataBook, cache_dir
from harness.point import Point
from models.count import flops_per_token
from sweeps.expand import expand
from sweeps.jobs import Job, Settings, compile_key
from sweeps.pool import Worker
from sweeps.rate import cores

# What one would choose at these widths: bytes, heads of 32, batches of 2-4 k tokens (4,000 to 14,000 steps at 20 TPP).
SHAPES = {
    64: {"model.depth": 2, "model.context": 128, "batch_size": 16},
    128: {"model.depth": 4, "model.context": 128, "batch_size": 32},
    256: {"model.depth": 4, "model.context": 256, "batch_size": 16},
}
FIXED = ["data=sotu", "model.head_dim=32", "tokens=2e9", "data.epochs=1000", "optimizer.lr=1e-3"]
SIZES = (256, 512, 1024, 2048, 4096)
SETTLE_SECONDS = 1.0


def points_of(width: int) -> tuple[list[Point], dict]:
    """Two points of a width, longer than any measurement, and the cache and corpora of their Settings."""
    words = [f"model.width={width}", *(f"{k}={v}" for k, v in SHAPES[width].items()), *FIXED, "seed=0,1"]
    request = compose(words, "sweep")
    book = DataBook(cache_dir(request.config), prepare=True)
    points = expand(request, book)
    return points, {"cache": cache_dir(request.config), "corpora": book.corpora}


class Ours:
    """Two workers, each on a point of its own; stopped but while they are measured."""

    def __init__(self, points: list[Point], places: dict, folder: Path):
        settings = Settings(runs_dir=folder / "runs", logs=folder / "logs", workers=2, compile="always",
                            tracking={"name": "none"}, **places)
        settings.logs.mkdir(parents=True)
        self.events: queue.Queue = _Stamped()
        self.workers = [Worker(slot, settings, self.events) for slot in (0, 1)]
        self.batch_tokens = points[0].batch_tokens
        for worker, point in zip(self.workers, points, strict=True):
            worker.start(Job(point.id, (point,), compile_key(point), compile=True, seconds=0.0))
        waiting = set(self.workers)
        while waiting:  # for the first progress of both: they are compiled
            _, worker, message = self.hear(900)
            waiting -= {worker} if message["event"] == "progress" else set()
        self.signal(signal.SIGSTOP)

    def hear(self, seconds: float):
        at, (worker, message) = self.events.get(timeout=seconds)
        if message["event"] in ("end", "exit"):
            raise RuntimeError(f"a worker ended: {message}; {worker.last_words()}")
        return at, worker, message

    def signal(self, number: int) -> None:
        for worker in self.workers:
            os.killpg(worker.process.pid, number)

    def tokens_per_second(self, seconds: float) -> float:
        """Of both, between the first progress of each after it settled and its last, `seconds` or more later."""
        while not self.events.empty():
            self.events.get()
        self.signal(signal.SIGCONT)
        settled = time.perf_counter() + SETTLE_SECONDS
        first, last = {}, {}
        while len(last) < 2:
            at, worker, message = self.hear(120)
            if worker not in first:
                if at > settled:
                    first[worker] = at, message["step"]
            elif at - first[worker][0] >= seconds and worker not in last:
                last[worker] = at, message["step"]
        self.signal(signal.SIGSTOP)
        steps = sum((last[w][1] - first[w][1]) / (last[w][0] - first[w][0]) for w in self.workers)
        return steps * self.batch_tokens

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.process.wait()


def compile_ahead(widths: list[int]) -> None:
    """Compile the shapes two at a time: two workers that meet a shape for the first time compile it twice. An odd one is
    compiled while another trains that is there by then; one alone by both."""
    found = [points_of(width) for width in sorted(widths, reverse=True)]
    for (one, places), (other, _) in zip(found[::2], [*found[1::2], found[0]], strict=False):
        with tempfile.TemporaryDirectory(prefix="hyperlaw-train-") as folder:
            Ours([one[0], other[1]], places, Path(folder)).close()


class _Stamped(queue.Queue):
    """Events with the time at which they came."""

    def put(self, item):
        super().put((time.perf_counter(), item))


def peak(peers: list[Peer], seconds: float) -> float:
    """FLOP/s of both cores at the best n."""
    best = 0.0
    for n in SIZES:
        for peer in peers:
            peer.ask(n=n, seconds=seconds)
        best = max(best, sum(peer.hear() for peer in peers))
    return best


def measure(width: int, rounds: int, seconds: float, own: list[int], gemm: list[Peer]) -> dict:
    """{"shape", "baseline", "ours", "peak": one number per round, "flops_per_token"}."""
    points, places = points_of(width)
    s, batch = points[0].shape, points[0].batch_size
    plain = {"width": width, "depth": s.depth, "heads": s.n_heads, "ffn_width": s.ffn_width, "vocab": s.vocab,
             "context": s.context, "batch": batch}  # fmt: skip
    got: dict[str, list[float]] = {"baseline": [], "ours": [], "peak": []}
    with tempfile.TemporaryDirectory(prefix="hyperlaw-train-") as folder:
        ours = Ours(points, places, Path(folder))
        baseline = Peer("eager", own, json.dumps(plain))
        try:
            for _ in range(rounds):
                baseline.ask(seconds=seconds)
                got["baseline"].append(baseline.hear())
                got["ours"].append(ours.tokens_per_second(seconds))
                got["peak"].append(peak(gemm, seconds / 6))
        finally:
            ours.close()
            baseline.close()
    shape = {**plain, "head_dim": s.head_dim, "params": points[0].counts.params}
    return {"shape": shape, "flops_per_token": flops_per_token(s), **got}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--widths", default=",".join(map(str, SHAPES)))
    given = parser.parse_args()
    own = cores()[:2]
    if len(own) < 2:
        sys.exit("this benchmark needs two cores")
    os.sched_setaffinity(0, own)
    rounds, seconds = (3, 2.5) if given.quick else (7, 6.0)
    widths = [int(width) for width in given.widths.split(",") if width.isdecimal()]
    if set(widths) - set(SHAPES) or len(widths) <= given.widths.count(","):
        parser.error(f"--widths {given.widths}: some of {', '.join(map(str, SHAPES))}, with commas between")
    compile_ahead(widths)
    gemm = [Peer("gemm", [core]) for core in own]
    ratios, figures = {}, {}
    for width in widths:
        got = figures[width] = measure(width, rounds, seconds, own, gemm)
        flops = [got["flops_per_token"] * rate for rate in got["ours"]]
        ratios[f"train_{width}"] = [a / b for a, b in zip(got["ours"], got["baseline"], strict=True)]
        ratios[f"peak_share_{width}"] = [a / b for a, b in zip(flops, got["peak"], strict=True)]
        print(", ".join(f"{k} {v}" for k, v in got["shape"].items()) + f": {got['flops_per_token']:,} FLOPs per token")
        print(f"  tokens per second: ours {median(got['ours']):,.0f}, baseline {median(got['baseline']):,.0f}; "
              f"bf16 peak {median(got['peak']) / 1e9:,.0f} GFLOP/s", flush=True)  # fmt: skip
    for peer in gemm:
        peer.close()
    finish(given, dict(sorted(ratios.items(), reverse=True)), figures=figures)


if __name__ == "__main__":
    main()
