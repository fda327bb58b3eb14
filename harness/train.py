"""Training of one point, from its directory to its result: resumes by itself, ends with a status.

    train_point(point, run_dir, runtime)
        -> "done" | "diverged" | "out_of_memory" | "failed" (time limit) | "stopped" | "paused" (at runtime.until)

A step's loss and gradient norm stay on the device; they are read once per stretch of steps, where divergence is found
at its exact step. A resumed run gives the same curve bit for bit on a CPU: its steps are compiled from the first to the
last, or none is. Where compiled code cannot be had a run begins anew uncompiled, unless it has a checkpoint.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from harness import endings
from harness.aot import CompiledCodeError
from harness.data import Stream, open_corpus
from harness.group import Alone
from harness.memory import no_memory
from harness.optimizer import Hyper
from harness.point import Point
from harness.redact import redact
from harness.rundir import RunDirectory
from harness.state import State
from harness.supervisor import supervise
from harness.tracking import tracker

STRETCH_STEPS, STRETCH_TOKENS = 64, 2**17  # most steps between two looks at the log, fewer for large batches
STRETCH_SECONDS = 1.0  # and a stretch of slow steps ends early
EVALUATE_TOKENS = {"cpu": 2**12, "cuda": 2**16}  # of a validation forward pass; twice as many leave a core's cache
STATUS_SECONDS = 5.0
PASSES = 1e6  # how often a stream may go through its corpus; what a point may ask was checked when it was resolved


@dataclass
class Runtime:
    """Where and how fast a point runs; nothing here changes what the point is."""

    corpus_dir: str
    device: str = "cpu"
    threads: int = 1
    compile: bool = False
    must_compile: bool = False  # fail where compiled code cannot be had, rather than train uncompiled
    uncompiled: str | None = None  # why it could not be had
    micro_batch: int | None = None  # most sequences per forward pass
    shared_pass: int | None = None  # sequences of the pass that a sweep's batch sizes share (harness/passes.py)
    checkpoint_seconds: float = 30.0
    curve_points: int = 200
    keep_weights: bool = False  # leave weights.safetensors in the run directory
    compiled_cache: str | None = None  # folder of compiled code, shared by all workers
    tracking: dict = field(default_factory=dict)
    devices: int = 1  # that train the point together, each with a process of its own
    parallel: str = "ddp"  # how: ddp | fsdp
    point_seconds: float | None = None  # of training, all attempts together, after which the point is given up
    until: int | None = None  # step at which it pauses: a checkpoint, status pending, "paused"
    start: str | None = None  # run directory of a trunk, whose checkpoint it begins from where it has none of its own
    first: int | None = None  # step of that checkpoint, unless the trunk diverged
    root: str | None = None  # what the result names as its trunk (sweeps/prefix.py); None: that of `start`
    trunk: bool = False  # it is one: it pauses where it diverges, too, so that its branches diverge there
    peak_flops: float | None = None  # FLOP/s of one core, or of the GPU, in matrix products of the point's precision
    validate_at: tuple[int, ...] = ()  # steps at which it validates beside the point's own: those of a trunk's branches


def train_point(
    point: Point,
    run_dir: str | Path,
    runtime: Runtime,
    on_progress: Callable[[int, int, float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    still_mine: Callable[[], bool] = lambda: True,
    attempt: int = 1,
    scratch: Path | None = None,
) -> str:
    """Train `point` into `run_dir`, from its last checkpoint if there is one, and return how it ended.

    on_progress(step, steps, loss) is called about twice a second. When should_stop() is true the run is checkpointed,
    marked pending, and "stopped" returned. Out of device memory, the micro-batch is halved and the run goes on.
    Where runtime.until is reached, "paused": a checkpoint, and pending. A run with no checkpoint begins from the one of
    runtime.start, if that is there and whole.
    With runtime.devices > 1 as many processes train (harness/supervisor.py), to the same loss within rounding.
    Raises LostRun once a later attempt has the run, OSError where files cannot be written, UserError on damaged data,
    RankError where a process of several died, CompiledCodeError where compiled code cannot be had and has to be.
    """
    run = RunDirectory(run_dir, point, still_mine, attempt, scratch)
    run.begin()
    if runtime.devices > 1:
        return supervise(run, runtime, on_progress or _ignore, should_stop or _never)
    micro_batch = min(runtime.micro_batch or point.largest_batch, point.largest_batch)
    while True:
        news = train_rank(run, runtime, micro_batch, Alone(), on_progress, should_stop)
        if news["event"] == "end":
            return news["status"]
        if news["event"] == "uncompiled":  # from the beginning: a trunk's branch, too, has steps of one kind only
            print(f"{point.id}: {news['message']}; trained uncompiled, from the beginning", file=sys.stderr)
            runtime = replace(runtime, compile=False, uncompiled=news["message"], shared_pass=None, start=None, root=None)
            continue
        micro_batch = news["micro_batch"]
        if micro_batch == 1:
            reason = {"type": "out_of_memory", "message": news["message"], "step": news["step"]}
            run.status("out_of_memory", news["step"], reason)
            return "out_of_memory"
        micro_batch //= 2
        print(f"{point.id}: out of memory at step {news['step']}, the micro-batch is now {micro_batch}", file=sys.stderr)
        gc.collect()
        torch.cuda.empty_cache()


def train_rank(run: RunDirectory, runtime: Runtime, micro_batch: int, group: Alone, on_progress, should_stop) -> dict:
    """One process's part of training `run.point` with `group`: the message of how it ended (harness/rank.py)."""
    state = None
    try:
        state = State(run, runtime, micro_batch, group)
        return {"event": "end", "status": _Training(state, on_progress or _ignore, should_stop or _never).train()}
    except CompiledCodeError as e:
        if runtime.must_compile:
            raise CompiledCodeError(f"{e}; launcher.compile=auto or never trains without") from e
        if state.saved:
            raise CompiledCodeError(f"{e}; the run has trained compiled up to step {state.saved} and goes on only so: mend "
                                    f"that, or delete {run.path} to begin anew") from e  # fmt: skip
        return {"event": "uncompiled", "message": redact(str(e))}
    except (MemoryError, RuntimeError) as e:
        if not no_memory(e):
            raise
        step, micro_batch = (state.step, state.largest_pass) if state else (0, micro_batch)
        message = (str(e).strip().splitlines() or [type(e).__name__])[0]
        return {"event": "out_of_memory", "message": message, "step": step, "micro_batch": micro_batch}


class _Training:
    """The loop over a run's steps, which all processes of a group run in lockstep."""

    def __init__(self, state: State, on_progress, should_stop):
        self.state, self.group, self.runtime, self.point = state, state.group, state.runtime, state.point
        self.on_progress, self.should_stop = on_progress, should_stop
        self.pace: float | None = None  # seconds of a step, in the last stretch
        self.validated = False
        sizes, ends = [size for _, size in self.point.stretches], accumulate(steps for steps, _ in self.point.stretches)
        self.ends = list(zip(sizes, ends, strict=True))  # (sequences, step after which the batch is another)

    def train(self) -> str:
        point, state = self.point, self.state
        state.run.status("running", state.step)
        stream, held_out = _data(self.runtime.corpus_dir, point.shape.context, point.data.seed, point.validation.sequences)
        hyper = Hyper.of(point, self.runtime.device)
        validate_at = sorted({*point.validation_steps, *self.runtime.validate_at})
        last = min(self.runtime.until or point.steps, point.steps)
        self._saved = self._told = self._said = state.start_clock()
        with tracker(self.runtime.tracking if self.group.leads else {}, point, state.run.path) as track:
            if state.step and (diverged := endings.diverged_at(state, 0)):  # on the way of its trunk
                return endings.diverged(state, *diverged)
            while state.step < last:
                limit = self.runtime.point_seconds
                if limit and self.group.agree(state.seconds >= limit)[0]:
                    return endings.out_of_time(state, limit)
                pending = [s for s in validate_at if s > state.step]
                end = self._agreed(min([self._stretch_end(), last, *pending[:1]]))
                start, begun = state.step, time.perf_counter()
                stopped = end == start or self._stretch(hyper, self._tokens(stream, end))
                if self.group.world > 1:
                    state.log[start : state.step, 0] = self.group.mean(state.log[start : state.step, 0])
                diverged = endings.diverged_at(state, start)  # reads the log, so the device has done its steps
                self.pace = (time.perf_counter() - begun) / max(state.step - start, 1)
                if diverged:
                    return endings.diverged(state, *diverged)
                if stopped:
                    return endings.stopped(state)
                if state.step in validate_at:
                    self._validate(held_out)
                self._look_up(track)
            if last < point.steps or self.runtime.trunk:
                return endings.paused(state)
            self._validate(held_out)
            return self._finish(track)

    def _stretch_end(self) -> int:
        """Where the stretch from here ends at the latest: its batches are of one size."""
        size, end = next((size, end) for size, end in self.ends if end > self.state.step)
        steps = STRETCH_TOKENS // (size * self.point.shape.context)
        return min(self.state.step + max(1, min(STRETCH_STEPS, steps)), end)

    def _agreed(self, end: int) -> int:
        """Where the stretch that could go to `end` ends: alone, there; in a group where rank 0 says, which has an eye on
        the clock and on being asked to stop: then at once."""
        if self.group.world == 1:
            return end
        count = max(1, int(STRETCH_SECONDS / self.pace)) if self.pace else 1
        step = self.state.step
        return self.group.agree(step if self.should_stop() else min(end, step + count))[0]

    def _tokens(self, stream: Stream, end: int) -> torch.Tensor:
        """This process's share of the batches up to step `end`: (steps, B / world, T+1)."""
        first, after = (self.point.sequences_at(step) for step in (self.state.step, end))
        steps, world = end - self.state.step, self.group.world
        batch = (after - first) // steps
        if world == 1:
            tokens = stream.batch(first, after - first)
        else:
            share = batch // world
            starts = range(first + self.group.rank * share, after, batch)
            tokens = np.concatenate([stream.batch(i, share) for i in starts])
        return torch.from_numpy(tokens).to(self.runtime.device).view(steps, batch // world, -1)

    def _stretch(self, hyper: Hyper, batches: torch.Tensor) -> bool:
        """Train on batches (steps, B, T+1), or as many as a second allows. True where it was asked to stop."""
        begun, state = time.perf_counter(), self.state
        step, w, m, v = state.stepper, state.weights, state.m, state.v
        for tokens in batches:
            if self.group.world == 1:  # a group has agreed on its steps
                if self.should_stop():
                    return True
                if time.perf_counter() - begun > STRETCH_SECONDS:
                    return False
            row = hyper.per_step[state.step]
            state.log[state.step] = step(w, m, v, row, hyper.fixed, tokens, state.micro_batch)
            state.step += 1
            state.first_step_at = state.first_step_at or time.time()
            if step.was_first():
                state.compiled_now()
        return False

    def _look_up(self, track) -> None:
        """Between two stretches: progress, checkpoint, status, as often as their clocks say."""
        state = self.state
        now = state.clock()
        if now - self._told > 0.5:
            self._told = now
            loss = float(state.log[state.step - 1, 0])
            self.on_progress(state.step, self.point.steps, loss)
            track.log(state.step, {"train_loss": loss, "tokens": self.point.tokens_at(state.step)})
        (due,) = self.group.agree(now - self._saved > self.runtime.checkpoint_seconds)
        if due and state.step < self.point.steps:
            state.checkpoint()
            self._saved = time.perf_counter()
        if now - self._said > STATUS_SECONDS:
            self._said = now
            state.run.status("running", state.step)

    def _validate(self, held_out: torch.Tensor) -> None:
        state = self.state
        if state.validation and state.validation[-1][0] == state.step:
            return
        chunk = max(1, EVALUATE_TOKENS[self.runtime.device] // self.point.shape.context)
        if state.numerics["compiled"] and not self.validated:
            state.clock()
            state.stepper.evaluate(state.weights, held_out[:chunk], chunk)  # the first one compiles
            state.compiled_now()
            state.stepper.was_first()  # no step of training
        self.validated, begun = True, time.perf_counter()
        state.validation.append((state.step, state.stepper.evaluate(state.weights, held_out, chunk)))
        state.validate_seconds += time.perf_counter() - begun

    def _finish(self, track) -> str:
        status = endings.finished(self.state)
        if status == "done":
            loss = self.state.validation[-1][1]
            track.log(self.state.step, {"validation_loss": loss})
            self.on_progress(self.state.step, self.point.steps, loss)
        return status


@lru_cache(maxsize=4)
def _data(corpus_dir: str, context: int, seed: int, sequences: int) -> tuple[Stream, torch.Tensor]:
    """The stream of training windows and the validation windows (n, T+1), shared by the points of a worker."""
    corpus = open_corpus(Path(corpus_dir)).verify()
    stream = Stream(corpus, context, seed, epochs=PASSES)
    return stream, torch.from_numpy(stream.validation(sequences))


def _ignore(*_) -> None:
    pass


def _never() -> bool:
    return False


if __name__ == "__main__":
    from harness.multirun import main

    sys.exit(main())
