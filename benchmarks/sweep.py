"""The bench sweep (configs/sweep/bench.yaml, 18 points) end to end on two cores: ours against what a user would do by hand.

    python -m benchmarks.sweep [--quick] [--json FILE] [--tpp 20] [--keep DIR]

cold   `hyperlaw sweep sweep=bench` with an empty cache, but for the prepared data
warm   the same command into another folder: compiled code and measured rates are there
user   benchmarks/user_train.py: one process per point, one after the other (so would a shell's loop or a multirun whose
       launcher starts processes), eager, fp32, two threads, fused AdamW
hand   the same script tuned: torch.compile, bf16 autocast, one thread, attention written out (compiled, in bf16 and of 64
       tokens less than half a step of the fused one; in eager fp32 the two are equal); two processes at a time from a queue,
       one pinned on each core, largest first, the inductor's cache warm. To compile clipping and AdamW too gains 2 %

All sides take the same steps on the same tokens in the same order from the same weights, under the same schedule, and
validate on the same windows after the same steps. Losses must agree within the noise of seeds, which differs by learning
rate: at each, a side's differences from warm, root mean square over the widths, against that of two seeds (sqrt 2 standard
deviations of 8 runs of ours at width 32), by an F test at 1 %. `--tpp` shortens all sides alike, for trials.

`--quick` repeats nothing, asks 5 seeds, and lets the user's side, ten minutes of processes one after the other, train every
second learning rate: its seconds are doubled.

Each side's wall time is split: train, validate and compile are sums over points, divided by how many train at once; what
is left is start-up, with the ends of processes and the time that one of two waits for the other.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from statistics import mean, median, stdev

from benchmarks.report import command_line, finish
from harness.compose import compose
from harness.places import DataBook, cache_dir
from harness.point import Point
from sweeps.expand import expand
from sweeps.rate import cores
from sweeps.text import table

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("start-up", "compile", "train", "validate")
SEEDS, SEEDS_QUICK = 8, 5


def points_of(words: list[str]) -> tuple[list[Point], DataBook]:
    request = compose(words, "sweep")
    book = DataBook(cache_dir(request.config), prepare=True)
    return expand(request, book), book


# ---- ours


def ours(words: list[str], out: Path, cache: Path) -> dict:
    """{"wall", "split": seconds by part, "first_step": seconds to it, "losses": by point id} of `hyperlaw sweep`."""
    command = [sys.executable, "-m", "harness.cli", "sweep", *words, f"out={out}", f"cache={cache}", "device=cpu"]
    began = time.time()
    _call(command, out.with_suffix(".log"))
    wall = time.time() - began
    results = [json.loads(file.read_text()) | {"id": file.parent.name} for file in out.glob("runs/*/result.json")]
    compiled, device, validating = (sum(r.get(k) or r["runtime"].get(k, 0.0) for r in results) / 2
                                    for k in ("compile_seconds", "device_seconds", "validate_seconds"))  # fmt: skip
    return {"wall": wall, "split": _split(wall, compiled, device - validating, validating),
            "first_step": min(r["runtime"]["first_step"] for r in results) - began,
            "losses": {r["id"]: r["loss"] for r in results}}  # fmt: skip


def prepared(cache: Path, corpora: dict[str, str]) -> Path:
    """`cache`, with the prepared data of `corpora` and nothing else."""
    for folder in corpora.values():
        shutil.copytree(folder, cache / "data" / Path(folder).name)
    return cache


# ---- by hand


def write_inputs(points: list[Point], corpus_dir: str, folder: Path) -> None:
    """What benchmarks/user_train.py reads: tokens, the order of our stream, and our weights at each width."""
    import numpy as np
    import torch

    from harness.data import open_corpus
    from harness.data.stream import permute
    from harness.step import initial_weights

    corpus, context = open_corpus(Path(corpus_dir)), points[0].shape.context
    for split in ("train", "validation"):
        np.concatenate(corpus.arrays(split)).tofile(folder / f"{split}.bin")
    windows = (corpus.train_tokens - 1) // context
    most = max(p.steps * p.batch_size for p in points)
    np.save(folder / "order.npy", permute(np.arange(most), windows, points[0].data.seed, 0) * context)
    n, of = points[0].validation.sequences, (corpus.validation_tokens - 1) // context
    np.save(folder / "held_out.npy", np.arange(min(n, of)) * of // min(n, of) * context)
    for point in {p.shape.width: p for p in points}.values():
        torch.save(initial_weights(point, "cpu"), folder / f"init-{point.shape.width}.pt")


def command_of(point: Point, inputs: Path, result: Path, tuned: bool) -> list[str]:
    """The command line that trains `point` by hand."""
    s, o = point.shape, point.optimizer
    words = {"data": inputs, "init": inputs / f"init-{s.width}.pt", "result": result, "width": s.width, "depth": s.depth,
             "heads": s.n_heads, "ffn_width": s.ffn_width, "vocab": s.vocab, "context": s.context, "lr": o.lr,
             "batch": point.batch_size, "steps": point.steps, "warmup": point.schedule.warmup_steps,
             "weight_decay": o.weight_decay, "betas": f"[{o.beta1},{o.beta2}]", "eps": o.eps, "clip": o.clip,
             "validate": f"[{','.join(map(str, (*point.validation.fractions, 1.0)))}]",
             "threads": 1 if tuned else 2,
             "tuned": str(tuned).lower(), "fused_attention": str(not tuned).lower()}  # fmt: skip
    return [sys.executable, str(ROOT / "benchmarks/user_train.py"), *(f"{k}={v}" for k, v in words.items())]


def by_hand(points: list[Point], inputs: Path, folder: Path, own: list[int], tuned: bool) -> dict:
    """As `ours`. `tuned`: two at a time, one pinned on each core; else one after the other on both."""
    folder.mkdir(parents=True)
    slots: SimpleQueue = SimpleQueue()
    for slot in [[core] for core in own] if tuned else [own]:
        slots.put(slot)
    width = slots.qsize()

    def train(point: Point) -> dict:
        slot, result = slots.get(), folder / f"{point.id}.json"
        environment = {"OMP_NUM_THREADS": str(1 if tuned else 2), "TORCHINDUCTOR_CACHE_DIR": str(inputs / "inductor")}
        try:
            _call(command_of(point, inputs, result, tuned), result.with_suffix(".log"), slot, environment)
        finally:
            slots.put(slot)
        return json.loads(result.read_text()) | {"id": point.id}

    began = time.time()
    with ThreadPoolExecutor(width) as pool:
        results = list(pool.map(train, sorted(points, key=lambda p: -p.flops)))
    wall = time.time() - began
    seconds = [r["seconds"] for r in results]
    compiled = sum(s["first"] for s in seconds) / width
    validating = sum(s["validate"] for s in seconds) / width
    training = sum(s["all"] for s in seconds) / width - compiled - validating
    return {"wall": wall, "split": _split(wall, compiled, training, validating),
            "first_step": min(r["ready"] + r["seconds"]["first"] for r in results) - began,
            "losses": {r["id"]: r["loss"] if math.isfinite(r["loss"]) else None for r in results}}  # fmt: skip


def warm_up(points: list[Point], inputs: Path, own: list[int]) -> None:
    """Fill the inductor's cache of the hand: four steps at each width, and a validation, in chunks as those that count."""
    short = {p.shape.width: replace(p, steps=4, validation=replace(p.validation, fractions=())) for p in points}
    by_hand(list(short.values()), inputs, inputs / "short", own, tuned=True)


def _split(wall: float, compiled: float, train: float, validate: float) -> dict[str, float]:
    return dict(zip(PARTS, (wall - compiled - train - validate, compiled, train, validate), strict=True))


def _call(command: list[str], log: Path, own: list[int] | None = None, environment: dict | None = None) -> None:
    """Run it to its end, what it says into `log`. Raises RuntimeError with the last of that where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=file, stderr=file,
                              preexec_fn=(lambda: os.sched_setaffinity(0, own)) if own else None)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} left with {done.returncode}: {log.read_text(errors='replace')[-2000:]}")


# ---- the comparison


def differences(a: dict, b: dict) -> dict[str, float]:
    """Of two sides' losses, by point: infinite where it diverged on one side only."""
    if a.keys() != b.keys():
        raise RuntimeError(f"points of one side only: {a.keys() ^ b.keys()}")
    return {i: 0.0 if a[i] is b[i] is None else math.inf if None in (a[i], b[i]) else abs(a[i] - b[i]) for i in a}


def seed_differences(points: list[Point], losses: dict) -> dict[float, float]:
    """By learning rate what two seeds differ by, in root mean square; infinite where some of them diverge."""
    found: dict[float, list] = {}
    for point in points:
        found.setdefault(point.optimizer.lr, []).append(losses[point.id])
    return {lr: math.inf if None in known else math.sqrt(2) * stdev(known) for lr, known in found.items()}


def against_seeds(points: list[Point], apart: dict[str, float], by_seed: dict[float, float]) -> dict[float, float]:
    """By learning rate how far a side is from warm, in root mean square over the widths, as a multiple of `by_seed`."""
    squares: dict[float, list[float]] = {}
    for point in (p for p in points if p.id in apart):
        squares.setdefault(point.optimizer.lr, []).append(apart[point.id] ** 2)
    return {lr: 0.0 if by_seed[lr] == math.inf else math.sqrt(mean(known)) / by_seed[lr] for lr, known in squares.items()}


def largest_multiple(widths: int, seeds: int) -> float:
    """Below which such a multiple is noise: the root of F's 99 % quantile."""
    from scipy.stats import f

    return math.sqrt(f.ppf(0.99, widths, seeds - 1))


def every_second(points: list[Point]) -> list[Point]:
    """Those of every second learning rate, the highest among them."""
    rates = sorted({p.optimizer.lr for p in points}, reverse=True)[::2]
    return [p for p in points if p.optimizer.lr in rates]


def doubled(side: dict) -> dict:
    """What a side takes whose points come one after the other, and that has trained half of them."""
    return {**side, "wall": 2 * side["wall"], "split": {part: 2 * seconds for part, seconds in side["split"].items()}}


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("--tpp", type=float, default=20.0)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there and keep it")
    given = parser.parse_args()
    own = cores()[:2]
    if len(own) < 2:
        sys.exit("this benchmark needs two cores")
    os.sched_setaffinity(0, own)
    with tempfile.TemporaryDirectory(prefix="hyperlaw-sweep-") as scratch:
        return compare(given, (given.keep or Path(scratch)).absolute(), own)


def compare(given, folder: Path, own: list[int]) -> int:
    words = ["sweep=bench", f"tpp={given.tpp:g}"]
    points, book = points_of(words)
    inputs = folder / "inputs"
    if inputs.exists():
        sys.exit(f"{folder} holds an earlier measurement: name another folder")
    inputs.mkdir(parents=True)
    write_inputs(points, *book.corpora.values(), inputs)
    warm_up(points, inputs, own)
    sides: dict[str, list[dict]] = {}
    for repeat in range(1 if given.quick else 3):
        for name, measured in measure(words, points, book, inputs, folder / str(repeat), own, given.quick):
            sides.setdefault(name, []).append(measured)
            print(f"{name}: {measured['wall']:.1f} s", flush=True)
    narrow = [*words, "model.width=32"]
    seeds = ",".join(map(str, range(1, SEEDS_QUICK if given.quick else SEEDS)))
    others = ours([*narrow, f"seed={seeds}"], folder / "seeds", folder / "0/cache")["losses"]
    known = sides["warm"][-1]["losses"]
    by_seed = seed_differences(points_of([*narrow, f"seed=0,{seeds}"])[0], known | others)
    trained = {name: every_second(points) if given.quick and name == "user" else points for name in ("cold", "user", "hand")}
    apart = {name: differences(sides[name][-1]["losses"], {p.id: known[p.id] for p in of}) for name, of in trained.items()}
    return report(given, sides, points, by_seed, apart)


def measure(words: list[str], points: list[Point], book: DataBook, inputs: Path, folder: Path, own: list[int], quick: bool):
    """(name, figures) of each side, one after the other."""
    cache = prepared(folder / "cache", book.corpora)
    yield "cold", ours(words, folder / "cold", cache)
    yield "warm", ours(words, folder / "warm", cache)
    if quick:
        yield "user", doubled(by_hand(every_second(points), inputs, folder / "user", own, tuned=False))
    else:
        yield "user", by_hand(points, inputs, folder / "user", own, tuned=False)
    yield "hand", by_hand(points, inputs, folder / "hand", own, tuned=True)


def report(given, sides: dict[str, list[dict]], points: list[Point], by_seed: dict[float, float],
           apart: dict[str, dict[str, float]]) -> int:  # fmt: skip
    last = {name: runs[-1] for name, runs in sides.items()}
    header = ["side", "wall, s", *PARTS, "first step"]
    rows = [[name, *(f"{x:.1f}" for x in (r["wall"], *r["split"].values(), r["first_step"]))] for name, r in last.items()]
    print("\n".join(table(header, rows)))
    multiples = {name: against_seeds(points, apart[name], by_seed) for name in apart}
    limit = largest_multiple(len({p.shape.width for p in points}), SEEDS_QUICK if given.quick else SEEDS)
    rows = [[f"{lr:.4g}", f"{by_seed[lr]:.4f}", *(f"{of[lr]:.2f}" if lr in of else "" for of in multiples.values())]
            for lr in by_seed]  # fmt: skip
    print("\n".join(table(["learning rate", "seeds differ by", *(f"{name} / that" for name in apart)], rows)))
    worst = max(x for of in multiples.values() for x in of.values())
    same = worst <= limit
    print(f"losses of all sides: {'the same' if same else 'NOT THE SAME'} within seed noise; "
          f"{worst:.2f} times a difference of seeds at most, {limit:.2f} is the limit")  # fmt: skip
    wall = {name: [r["wall"] for r in runs] for name, runs in sides.items()}
    pairs = {"sweep_cold_vs_user": ("user", "cold"), "sweep_warm_vs_user": ("user", "warm"),
             "sweep_warm_vs_hand": ("hand", "warm")}  # fmt: skip
    ratios = {name: [a / b for a, b in zip(wall[slow], wall[fast], strict=True)] for name, (slow, fast) in pairs.items()}
    figures = {name: [{k: r[k] for k in ("wall", "split", "first_step")} for r in runs] for name, runs in sides.items()}
    seconds = {"start_up_warm": median(r["first_step"] for r in sides["warm"])}
    print(f"warm, the first training step is done {seconds['start_up_warm']:.1f} s after the command (target 4)")
    finish(given, ratios, seconds=seconds, tpp=given.tpp, sides=figures,
           losses={"seeds": by_seed, "multiples": multiples, "limit": limit, "same": same,
                   "sides": {name: runs[-1]["losses"] for name, runs in sides.items()}})  # fmt: skip
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
