"""Where a step's time goes: `python -m harness.profile` reads {"point", "runtime", "seconds"} on stdin, prints JSON.

Pieces of the step are timed apart, each compiled or not as training compiles it, then the step as one, then the training
loop over a stretch of steps (harness/train.py). They take turns, the device waits after each, medians count:

    data       fetching a batch and bringing it to the device
    forward    the loss alone
    backward   loss and gradients, less the loss
    update     clipping and AdamW
    fusion     the step as one, less the three above apart: what compiling across their borders saves (below zero), and
               what accumulation over micro-batches costs
    host       the loop, less the step as one and data: Python, the log, clocks; on a GPU below zero where launching a
               step overlaps with the one before

add up to `whole`, the loop's seconds per step. `error` is that of its median: 1.25 median deviations / sqrt(rounds).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median

import torch

from harness import endings, gemm
from harness.group import Alone
from harness.optimizer import Hyper
from harness.passes import cut
from harness.point import Point
from harness.rundir import RunDirectory
from harness.state import State
from harness.step import _gradient, _loss, _update
from harness.train import Runtime, _data, _never, _Training

LEAST_ROUNDS = 5
SPAN = 0.02  # seconds of one timing


def profile(point: Point, runtime: Runtime, seconds: float) -> dict:
    """{"seconds": {piece or "whole": per step}, "error", "rounds", "tokens_per_second", "model_flops_per_second",
    "peak_flops", "utilisation", "batch", "micro_batch", "numerics"} of `point` as `runtime` trains it, from its first
    weights; under a batch ramp of its first steps, `batch` sequences each.

    Takes `seconds` beside compilation and warm-up, and a third of that for the peak.
    """
    with tempfile.TemporaryDirectory() as folder:
        micro_batch = min(runtime.micro_batch or point.largest_batch, point.largest_batch)
        state = State(RunDirectory(folder, point), runtime, micro_batch, Alone())
        calls, steps = _pieces(state, runtime)
        times = _take_turns(calls, runtime.device, seconds)
    each = {name: median(values) / steps for name, values in times.items()}
    whole, spread = each["whole"], median(abs(t / steps - each["whole"]) for t in times["whole"])
    apart = each["gradient"] + each["update"]
    pieces = {"data": each["data"], "forward": each["forward"], "backward": each["gradient"] - each["forward"],
              "update": each["update"], "fusion": each["step"] - apart, "host": whole - each["step"] - each["data"],
              "whole": whole}  # fmt: skip
    batch, flops = point.sequences_at(1), point.flops_at(1)
    peak = gemm.peak(point.precision, runtime.device, seconds / 3)
    return {
        "seconds": pieces,
        "error": 1.25 * spread / whole / len(times["whole"]) ** 0.5,
        "rounds": len(times["whole"]),
        "tokens_per_second": batch * point.shape.context / whole,
        "model_flops_per_second": flops / whole,
        "peak_flops": peak,
        "utilisation": flops / whole / peak,
        "batch": batch,
        "micro_batch": state.largest_pass,
        "numerics": state.numerics,
    }


def _pieces(state: State, runtime: Runtime) -> tuple[dict[str, Callable[[], object]], int]:
    """({name: a call that does the piece for so many steps}, how many); everything is compiled and warm."""
    point, step = state.point, state.stepper
    stream, _ = _data(runtime.corpus_dir, point.shape.context, point.data.seed, point.validation.sequences)
    loop, hyper = _Training(state, None, _never), Hyper.of(point, runtime.device)
    state.step = 0
    (tokens,) = loop._tokens(stream, 1)
    parts = tokens.split(cut(len(tokens), state.micro_batch, step.shared_pass) or len(tokens))
    w, m, v = (part.flat.clone() for part in (state.weights, state.m, state.v))  # the loop trains the state's own
    gradient, loss = step._call(_gradients, w, step.scales, parts[0]).clone(), torch.zeros(2, device=runtime.device)

    def forward() -> None:
        for part in parts:
            step._call(_forward, w, step.scales, part)

    def gradients() -> None:
        for part in parts:
            step._call(_gradients, w, step.scales, part)

    def update() -> None:
        step._call(_update, w, m, v, gradient, loss, step.group, hyper.per_step[0], hyper.fixed)

    def whole() -> None:
        step(state.weights, state.m, state.v, hyper.per_step[0], hyper.fixed, tokens, state.micro_batch)

    def train() -> None:
        """The loop over `steps` steps, which it may cut into several stretches where they are slow."""
        state.step = 0
        while state.step < steps:
            start = state.step
            loop._stretch(hyper, loop._tokens(stream, steps))
            endings.diverged_at(state, start)

    def data() -> None:
        state.step = 0
        loop._tokens(stream, steps)

    single = {"forward": forward, "gradient": gradients, "update": update, "step": whole}
    for call in (*single.values(), *single.values()):  # the first compiles
        call()
    took = _seconds(whole, runtime.device)
    most = loop._stretch_end()  # from step 0
    steps = max(1, min(most, round(SPAN / took)))
    calls = {name: _times(call, steps) for name, call in single.items()}
    return {**calls, "data": data, "whole": train}, steps


def _forward(model, layout, device, precision, w, scales, tokens):
    with torch.no_grad():
        return _loss(model, layout.split(w), scales, tokens, device, precision)[1]


def _gradients(model, layout, device, precision, w, scales, tokens):
    return _gradient(model, layout, device, precision, w, scales, tokens)[0]


def _times(call: Callable[[], object], n: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(n):
            call()

    return repeated


def _take_turns(calls: dict[str, Callable], device: str, seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, round after round for about `seconds`, the first left out."""
    times, begun = {name: [] for name in calls}, time.perf_counter()
    while time.perf_counter() - begun < seconds or len(times["whole"]) <= LEAST_ROUNDS:
        for name, call in calls.items():
            times[name].append(_seconds(call, device))
    return {name: values[1:] for name, values in times.items()}


def _seconds(call: Callable[[], object], device: str) -> float:
    gemm.wait(device)
    begun = time.perf_counter()
    call()
    gemm.wait(device)
    return time.perf_counter() - begun


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no JSON
    order = json.load(sys.stdin)
    runtime = Runtime(**order["runtime"])
    if runtime.device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: runtime.threads])  # as a worker's cores are its own
    json.dump(profile(Point.from_dict(order["point"]), runtime, order["seconds"]), out)


if __name__ == "__main__":
    main()
