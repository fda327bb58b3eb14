"""Training of one point, from its directory to its result: resumes by itself, ends with a status.

    train_point(point, run_dir, runtime) -> "done" | "diverged" | "out_of_memory" | "failed" (time limit) | "stopped"

A step's loss and gradient norm stay on the device; they are read once per stretch of steps, where divergence is found
at its exact step. A resumed run gives the same curve bit for bit on a CPU.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from harness.checkpoint import checkpoints, drop_checkpoints, read_checkpoint, write_checkpoint
from harness.curve import curve_columns, final_train_loss
from harness.data import Stream, open_corpus
from harness.errors import UserError
from harness.group import Alone, Group
from harness.optimizer import Hyper
from harness.point import Point
from harness.rundir import RunDirectory
from harness.step import Step, group_index, initial_weights
from harness.supervisor import supervise
from harness.tracking import tracker

STRETCH_STEPS, STRETCH_TOKENS = 64, 2**17  # most steps between two looks at the log, fewer for large batches
STRETCH_SECONDS = 1.0  # and a stretch of slow steps ends early
EVALUATE_TOKENS = 2**13  # tokens of a validation forward pass
STATUS_SECONDS = 5.0
PASSES = 1e6  # how often a stream may go through its corpus; what a point may ask was checked when it was resolved


@dataclass
class Runtime:
    """Where and how fast a point runs; nothing here changes what the point is."""

    corpus_dir: str
    device: str = "cpu"
    threads: int = 1
    compile: bool = False
    micro_batch: int | None = None  # sequences per forward pass
    checkpoint_seconds: float = 30.0
    curve_points: int = 200
    keep_weights: bool = False  # leave weights.safetensors in the run directory
    compiled_cache: str | None = None  # folder of compiled code, shared by all workers
    tracking: dict = field(default_factory=dict)
    devices: int = 1  # that train the point together, each with a process of its own
    parallel: str = "ddp"  # how: ddp | fsdp
    point_seconds: float | None = None  # of training, all attempts together, after which the point is given up


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
    With runtime.devices > 1 as many processes train (harness/supervisor.py), to the same loss within rounding.
    Raises LostRun once a later attempt has the run, OSError where files cannot be written, UserError on damaged data,
    RankError where a process of several died.
    """
    run = RunDirectory(run_dir, point, still_mine, attempt, scratch)
    run.begin()
    if runtime.devices > 1:
        return supervise(run, runtime, on_progress or _ignore, should_stop or _never)
    micro_batch = min(runtime.micro_batch or point.batch_size, point.batch_size)
    while True:
        news = train_rank(run, runtime, micro_batch, Alone(), on_progress, should_stop)
        if news["event"] == "end":
            return news["status"]
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
    training = None
    try:
        training = _Training(run.point, run, runtime, micro_batch, on_progress or _ignore, should_stop or _never, group)
        return {"event": "end", "status": training.train()}
    except (MemoryError, RuntimeError) as e:
        if not _no_memory(e):
            raise
        step, micro_batch = (training.step, training.micro_batch) if training else (0, micro_batch)
        message = (str(e).strip().splitlines() or [type(e).__name__])[0]
        return {"event": "out_of_memory", "message": message, "step": step, "micro_batch": micro_batch}


def _no_memory(error: BaseException) -> bool:
    """Whether a tensor, or what Python needs beside it, found no room. PyTorch has a type for that on a GPU only."""
    said = ("DefaultCPUAllocator: ", "bad_alloc")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in said)


class _Training:
    """The state of one run in memory and the loop over its steps, which all processes of a group run in lockstep."""

    def __init__(self, point: Point, run: RunDirectory, runtime: Runtime, micro_batch: int, on_progress, should_stop,
                 group: Group | None = None):  # fmt: skip
        self.group: Alone = group or Alone()
        self.pace: float | None = None  # seconds of a step, in the last stretch
        self.point, self.run, self.runtime, self.micro_batch = point, run, runtime, micro_batch
        self.on_progress, self.should_stop = on_progress, should_stop
        self.step, self.seconds, self.compile_seconds = 0, 0.0, 0.0
        self.device_seconds = 0.0  # seconds on each device, summed
        self.validation: list[tuple[int, float]] = []  # (steps done, loss)
        self.numerics = {"compiled": runtime.compile, "threads": runtime.threads, "device": runtime.device,
                         "precision": point.precision, "torch": torch.__version__}  # fmt: skip
        self._restore_or_begin()

    # ---- state

    def _restore_or_begin(self) -> None:
        point, device = self.point, self.runtime.device
        found = read_checkpoint(self.run.path)
        if found:
            tensors, facts, damaged = found
            for name in damaged:
                print(f"{point.id}: checkpoint {name} is damaged, the one before it is used", file=sys.stderr)
            # A resumed run keeps the numerics it began with, whatever this launch would have chosen.
            self.numerics = facts["numerics"]
            if self.numerics["device"] != device:
                raise UserError(
                    f"{point.id} began on {self.numerics['device']} and cannot go on on {device}.\n"
                    f"Resume it there, or delete {self.run.path} to begin anew."
                )
            self.step, self.seconds = facts["step"], facts["seconds"]
            self.device_seconds = facts.get("device_seconds", self.seconds)
            self.micro_batch = min(self.micro_batch, facts["micro_batch"])
        elif checkpoints(self.run.path):
            print(f"{point.id}: no checkpoint is whole, training begins anew", file=sys.stderr)
        self._begin_step()
        if found:
            # In the model's order: sums over tensors (the gradient norm) depend on it, and so does the compiled graph.
            names = group_index(point.shape, point.parameterization)
            parts = {p: {k: tensors[f"{p}/{k}"] for k in names} for p in "wmv"}
            self.weights = self.stepper.place_weights(parts["w"])
            self.m, self.v = self.stepper.place(parts["m"]), self.stepper.place(parts["v"])
            self.validation = [(int(s), float(loss)) for s, loss in tensors["validation"].tolist()]
        else:
            self.weights = self.stepper.place_weights(initial_weights(point, "cpu"))
            self.m = {k: torch.zeros_like(w) for k, w in self.weights.items()}
            self.v = {k: torch.zeros_like(w) for k, w in self.weights.items()}
        self.log = torch.zeros(point.steps, 2, device=device)  # loss and gradient norm of each step
        if found:
            self.log[: self.step] = tensors["log"].to(device)

    def _begin_step(self) -> None:
        """The step function, by numerics that stay as the run began, but for how many processes share it."""
        point, group = self.point, self.group
        torch.set_num_threads(self.numerics["threads"])
        if self.runtime.compiled_cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = self.runtime.compiled_cache
        device, compiled = self.runtime.device, self.numerics["compiled"]
        worlds = self.numerics.get("worlds", [1] if self.step else [])
        if worlds[-1:] != [group.world]:
            worlds = [*worlds, group.world]
        if max(worlds) > 1:
            self.numerics.update(worlds=worlds)
        if group.world > 1:
            from harness.parallel import ParallelStep

            self.numerics.update(parallel=self.runtime.parallel)
            self.stepper = ParallelStep(point, device, compiled, group, self.runtime.parallel)
        else:
            self.stepper = Step(point.shape, point.parameterization, point.precision, device, compiled)

    def _checkpoint(self) -> None:
        parts = {"w": self.weights, "m": self.m, "v": self.v}
        tensors = {f"{p}/{k}": t for p, part in parts.items() for k, t in self.stepper.gather(part).items()}
        if not self.group.leads:
            return
        tensors["log"] = self.log[: self.step]
        tensors["validation"] = torch.tensor(self.validation, dtype=torch.float64).reshape(-1, 2)
        facts = {"numerics": self.numerics, "seconds": self.seconds, "micro_batch": self.micro_batch,
                 "device_seconds": self.device_seconds}  # fmt: skip
        write_checkpoint(self.run, self.step, tensors, facts)
        self._write_curve(self.step)

    # ---- the loop

    def train(self) -> str:
        point = self.point
        self.run.status("running", self.step)
        stream, held_out = _data(self.runtime.corpus_dir, point.shape.context, point.data.seed, point.validation.sequences)
        step = self.stepper
        hyper = Hyper.of(point, self.runtime.device)
        validate_at = sorted({min(max(round(f * point.steps), 1), point.steps) for f in point.validation.fractions})
        stretch = max(1, min(STRETCH_STEPS, STRETCH_TOKENS // point.batch_tokens))
        self._mark = self._saved = self._told = self._said = time.perf_counter()
        with tracker(self.runtime.tracking if self.group.leads else {}, point, self.run.path) as track:
            while self.step < point.steps:
                limit = self.runtime.point_seconds
                if limit and self.group.agree(self.seconds >= limit)[0]:
                    return self._time_limit(limit)
                pending = [s for s in validate_at if s > self.step]
                end = min([self.step + stretch, point.steps, *pending[:1]])
                end = self._agreed(end)
                start, begun = self.step, time.perf_counter()
                stopped = end == start or self._stretch(step, hyper, self._tokens(stream, end))
                diverged = self._diverged_at(start)  # reads the log, so the device has done its steps
                self.pace = (time.perf_counter() - begun) / max(self.step - start, 1)
                if diverged:
                    return self._finish_diverged(*diverged)
                if stopped:
                    return self._stop()
                if self.step in validate_at:
                    self._validate(step, held_out)
                self._look_up(track)
            self._validate(step, held_out)
            return self._finish(track)

    def _agreed(self, end: int) -> int:
        """Where the stretch that could go to `end` ends: alone, there; in a group where rank 0 says, which has an eye on
        the clock and on being asked to stop: then at once."""
        if self.group.world == 1:
            return end
        count = max(1, int(STRETCH_SECONDS / self.pace)) if self.pace else 1
        return self.group.agree(self.step if self.should_stop() else min(end, self.step + count))[0]

    def _tokens(self, stream: Stream, end: int) -> torch.Tensor:
        """This process's share of the batches up to step `end`: (steps, B / world, T+1)."""
        batch, share = self.point.batch_size, self.point.batch_size // self.group.world
        if self.group.world == 1:
            parts = [stream.batch(self.step * batch, (end - self.step) * batch)]
        else:
            parts = [stream.batch(i * batch + self.group.rank * share, share) for i in range(self.step, end)]
        tokens = torch.from_numpy(np.concatenate(parts)).to(self.runtime.device)
        return tokens.view(end - self.step, share, -1)

    def _stretch(self, step: Step, hyper: Hyper, batches: torch.Tensor) -> bool:
        """Train on batches (steps, B, T+1), or as many as a second allows. True where it was asked to stop."""
        begun = time.perf_counter()
        for tokens in batches:
            if self.group.world == 1:  # a group has agreed on its steps
                if self.should_stop():
                    return True
                if time.perf_counter() - begun > STRETCH_SECONDS:
                    return False
            first = not step.used
            row = hyper.per_step[self.step]
            self.log[self.step] = step(self.weights, self.m, self.v, row, hyper.fixed, tokens, self.micro_batch)
            self.step += 1
            if first:
                # The first step of a shape compiles; that is no time of this point.
                now = time.perf_counter()
                self.compile_seconds, self._mark = now - self._mark, now

    def _stop(self) -> str:
        self._clock()
        self._checkpoint()
        self.run.status("pending", self.step, {"type": "stopped", "message": "asked to stop", "step": self.step})
        return "stopped"

    def _time_limit(self, limit: float) -> str:
        self._checkpoint()
        message = f"launcher.point_seconds={limit:g} is used up; a higher limit goes on from step {self.step}"
        self.run.status("failed", self.step, {"type": "time_limit", "message": message, "step": self.step})
        return "failed"

    def _look_up(self, track) -> None:
        """Between two stretches: progress, checkpoint, status, as often as their clocks say."""
        now = self._clock()
        if now - self._told > 0.5:
            self._told = now
            loss = float(self.log[self.step - 1, 0])
            self.on_progress(self.step, self.point.steps, loss)
            track.log(self.step, {"train_loss": loss, "tokens": self.step * self.point.batch_tokens})
        (due,) = self.group.agree(now - self._saved > self.runtime.checkpoint_seconds)
        if due and self.step < self.point.steps:
            self._checkpoint()
            self._saved = time.perf_counter()
        if now - self._said > STATUS_SECONDS:
            self._said = now
            self.run.status("running", self.step)

    def _clock(self) -> float:
        """Add the time since the last call to the seconds of this run."""
        now = time.perf_counter()
        self.device_seconds += (now - self._mark) * self.group.world
        self.seconds, self._mark = self.seconds + now - self._mark, now
        return now

    def _validate(self, step: Step, held_out: torch.Tensor) -> None:
        if self.validation and self.validation[-1][0] == self.step:
            return
        chunk = max(1, EVALUATE_TOKENS // self.point.shape.context)
        self.validation.append((self.step, step.evaluate(self.weights, held_out, chunk)))

    # ---- endings

    def _diverged_at(self, start: int) -> tuple[int, str, str] | None:
        """(step, type, message) of the first diverged step since `start`: a loss or gradient that is not finite, or a loss
        above three times that of a uniform guess, from which no run here came back."""
        self.log[start : self.step, 0] = self.group.mean(self.log[start : self.step, 0])
        part = self.log[start : self.step].cpu().numpy()
        bad = ~np.isfinite(part).all(axis=1)
        exploded = part[:, 0] > 3 * math.log(self.point.shape.vocab)
        hits = np.flatnonzero(bad | exploded)
        if not len(hits):
            return None
        first, (loss, norm) = start + int(hits[0]) + 1, part[hits[0]]
        if bad[hits[0]]:
            return first, "non_finite", f"training loss {loss:.4g}, gradient norm {norm:.4g}"
        return first, "exploded", f"training loss {loss:.4g}, above three times that of a uniform guess"

    def _finish_diverged(self, step: int, kind: str, message: str) -> str:
        self._clock()
        self._write_curve(step)
        self._write_result(step, None, None)
        self.run.status("diverged", step, {"type": kind, "message": message, "step": step})
        self._drop_checkpoints()
        return "diverged"

    def _finish(self, track) -> str:
        self._clock()
        loss = self.validation[-1][1]
        # Worse than knowing nothing: the learning rate destroyed the model without ever giving a non-finite number.
        if not math.isfinite(loss) or loss > math.log(self.point.shape.vocab) + 1:
            kind = "exploded" if math.isfinite(loss) else "non_finite"
            message = f"validation loss {loss:.4g} at the end, worse than a uniform guess"
            return self._finish_diverged(self.step, kind, message)
        self._write_curve(self.step)
        if self.runtime.keep_weights:
            from safetensors.torch import save

            weights = self.stepper.gather(self.weights)
            self.run.write("weights.safetensors", save({k: w.cpu().contiguous() for k, w in weights.items()}))
        self._write_result(self.step, loss, final_train_loss(self.log[:, 0].cpu().numpy()))
        self.run.status("done", self.step)
        self._drop_checkpoints()
        track.log(self.step, {"validation_loss": loss})
        self.on_progress(self.step, self.point.steps, loss)
        return "done"

    def _drop_checkpoints(self) -> None:
        if self.group.leads:
            drop_checkpoints(self.run.path)

    def _write_result(self, step: int, loss: float | None, train_loss: float | None) -> None:
        self.run.write_json(
            "result.json",
            {
                "loss": loss,
                "train_loss": train_loss,
                "tokens": step * self.point.batch_tokens,
                "flops": self.point.flops * step // self.point.steps,
                "device_seconds": self.device_seconds,
                "compile_seconds": self.compile_seconds,
                "micro_batch": min(self.micro_batch, self.point.batch_size // self.group.world),
                "entropy_rate": _entropy_rate(self.runtime.corpus_dir),
                "validation": [{"step": s, "loss": v} for s, v in self.validation if math.isfinite(v)],
                "numerics": self.numerics,
                "runtime": {"attempt": self.run.attempt, **{k: asdict(self.runtime)[k] for k in ("device", "threads")}},
            },
        )

    def _write_curve(self, step: int) -> None:
        log = self.log[:step].cpu().numpy()
        self.run.curve(curve_columns(self.point, log, self.validation, self.runtime.curve_points))


@lru_cache(maxsize=4)
def _data(corpus_dir: str, context: int, seed: int, sequences: int) -> tuple[Stream, torch.Tensor]:
    """The stream of training windows and the validation windows (n, T+1), shared by the points of a worker."""
    corpus = open_corpus(Path(corpus_dir)).verify()
    stream = Stream(corpus, context, seed, epochs=PASSES)
    return stream, torch.from_numpy(stream.validation(sequences))


@lru_cache(maxsize=4)
def _entropy_rate(corpus_dir: str) -> float | None:
    """Nats per token that no model can beat, where the source knows it (data=markov)."""
    return open_corpus(Path(corpus_dir)).entropy_rate


def _ignore(*_) -> None:
    pass


def _never() -> bool:
    return False


if __name__ == "__main__":
    from harness.multirun import main

    sys.exit(main())
