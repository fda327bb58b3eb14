"""The state of one run in memory: begun, or restored from its newest whole checkpoint, and kept in checkpoints."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from harness.checkpoint import checkpoints, drop_checkpoints, read_checkpoint, write_checkpoint
from harness.curve import curve_columns
from harness.errors import UserError
from harness.flat import group_index
from harness.group import Alone
from harness.passes import cut
from harness.rundir import RunDirectory
from harness.step import Step, initial_weights


class State:
    """What `run.point` has come to after `step` steps, in this process of `group`; `runtime` as in harness/train.py.

    weights, m, v    this process's part of each tensor, by name; `stepper` steps with them
    log              float32 (steps, 2) on the device: loss and gradient norm of each step
    validation       (steps done, loss) in nats per token, each time it was measured
    seconds          of training, all attempts together; device_seconds: the same summed over the devices

    Raises UserError where the run began on another device.
    """

    def __init__(self, run: RunDirectory, runtime: Any, micro_batch: int, group: Alone):
        point = run.point
        self.point, self.run, self.runtime, self.micro_batch, self.group = point, run, runtime, micro_batch, group
        self.step, self.seconds, self.compile_seconds, self.device_seconds = 0, 0.0, 0.0, 0.0
        self.validation: list[tuple[int, float]] = []
        self.first_step_at: float | None = None  # time.time() after this attempt's first step
        self.validate_seconds = 0.0  # of this attempt
        self.trunk: str | None = None  # what names its noise, where it was branched from one, in whatever attempt
        self.first = 0  # step at which it was branched
        self.saved: int | None = None  # step of its newest checkpoint
        self.diverged: int | None = None  # step at which a trunk did, with its branches
        self.numerics = {"compiled": runtime.compile, "threads": runtime.threads, "device": runtime.device,
                         "precision": point.precision, "torch": torch.__version__,
                         "shared_pass": runtime.shared_pass if group.world == 1 else None}  # fmt: skip
        if runtime.uncompiled:
            self.numerics.update(uncompiled=runtime.uncompiled)
        found = self._agreed(self._own() or self._trunk())
        if found:
            self._take_facts(*found[1:])
        elif checkpoints(run.path):
            print(f"{point.id}: no checkpoint is whole, training begins anew", file=sys.stderr)
        self.stepper = self._stepper()
        self.log = torch.zeros(point.steps, 2, device=runtime.device)
        if found:
            self._take_tensors(found[0])
        else:
            self.weights = self.stepper.place_weights(initial_weights(point, "cpu"))
            self.m, self.v = self.stepper.zeros(), self.stepper.zeros()
        self._mark = time.perf_counter()

    def _agreed(self, found: tuple[dict, dict, list[str]] | None) -> tuple[dict, dict, list[str]] | None:
        """What rank 0 found too: the others read the same files, which may be deleted meanwhile. Raises RuntimeError where
        one has not got what rank 0 begins from: the attempt fails, the next one reads again."""
        mine = found[1]["step"] if found else 0
        (step,) = self.group.agree(mine)
        if step and step != mine:
            raise RuntimeError(f"rank {self.group.rank} does not find the checkpoint of step {step} that rank 0 begins from")
        return found if step else None

    def _own(self) -> tuple[dict, dict, list[str]] | None:
        """The newest whole checkpoint. A trunk that has not validated where its branches do begins anew."""
        found = read_checkpoint(self.run.path)
        if found and self.runtime.trunk and not _measured(found, self.runtime.validate_at):
            if self.group.leads:
                drop_checkpoints(self.run.path)
            return None
        self.saved = found[1]["step"] if found else None
        return found

    def _trunk(self) -> tuple[dict, dict, list[str]] | None:
        """The checkpoint of the trunk that this run is a branch of, with what it measured at this point's own steps only."""
        start = self.runtime.start
        if not start:
            return None
        name, first = Path(start).name, self.runtime.first
        found, own = read_checkpoint(Path(start)), {*self.point.validation_steps, *self.runtime.validate_at}
        wrong = ("has no whole checkpoint" if found is None else
                 "holds something else" if not _is_trunk(found[1], name, first) else
                 "was trained on another device" if found[1]["numerics"]["device"] != self.runtime.device else
                 "has not validated where this run does" if not _measured(found, own) else "")  # fmt: skip
        if wrong:
            print(f"{self.point.id}: its trunk {name} {wrong}, trained from the beginning", file=sys.stderr)
            return None
        tensors, facts, damaged = found
        tensors["validation"] = torch.tensor([row for row in tensors["validation"].tolist() if row[0] in own],
                                             dtype=torch.float64).reshape(-1, 2)  # fmt: skip
        # Its micro-batch holds for this run where it was asked for, or memory had no room for its whole batch.
        held = facts["micro_batch"] < facts.get("largest_batch", 0)
        new = {"seconds": 0.0, "device_seconds": 0.0, "first": facts["step"], "trunk": self.runtime.root or name,
               "micro_batch": facts["micro_batch"] if held else self.micro_batch}  # fmt: skip
        return tensors, {**facts, **new}, damaged

    def _take_facts(self, facts: dict, damaged: list[str]) -> None:
        for name in damaged:
            print(f"{self.point.id}: checkpoint {name} is damaged, the one before it is used", file=sys.stderr)
        # A resumed run keeps the numerics it began with, whatever this launch would have chosen.
        self.numerics = facts["numerics"]
        if self.numerics["device"] != self.runtime.device:
            raise UserError(
                f"{self.point.id} began on {self.numerics['device']} and cannot go on on {self.runtime.device}.\n"
                f"Resume it there, or delete {self.run.path} to begin anew."
            )
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.device_seconds = facts.get("device_seconds", self.seconds)
        self.micro_batch = min(self.micro_batch, facts["micro_batch"])
        self.trunk, self.first = facts.get("trunk"), facts.get("first", 0)
        self.diverged = facts.get("diverged")

    def _take_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        # In the model's order: sums over tensors (the gradient norm) depend on it, and so does the compiled graph.
        names = group_index(self.point.shape, self.point.parameterization)
        parts = {p: {k: tensors[f"{p}/{k}"] for k in names} for p in "wmv"}
        self.weights = self.stepper.place_weights(parts["w"])
        self.m, self.v = self.stepper.place(parts["m"]), self.stepper.place(parts["v"])
        self.validation = [(int(s), float(loss)) for s, loss in tensors["validation"].tolist()]
        self.log[: self.step] = tensors["log"].to(self.runtime.device)

    def _stepper(self) -> Step:
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
        if group.world == 1:
            return Step(point.shape, point.parameterization, point.precision, device, compiled, self._shared_pass)
        from harness.parallel import ParallelStep

        self.numerics.update(parallel=self.runtime.parallel)
        return ParallelStep(point, device, compiled, group, self.runtime.parallel)

    def checkpoint(self) -> None:
        """Write a checkpoint and the curve up to here. Every process of the group must call it."""
        parts = {"w": self.weights, "m": self.m, "v": self.v}
        tensors = {f"{p}/{k}": t for p, part in parts.items() for k, t in self.stepper.gather(part).items()}
        if not self.group.leads:
            return
        tensors["log"] = self.log[: self.step]
        tensors["validation"] = torch.tensor(self.validation, dtype=torch.float64).reshape(-1, 2)
        facts = {"run": self.run.path.name, "numerics": self.numerics, "seconds": self.seconds,
                 "micro_batch": self.micro_batch, "device_seconds": self.device_seconds,
                 "trunk": self.trunk, "first": self.first, "diverged": self.diverged,
                 "largest_batch": self.point.largest_batch}  # fmt: skip
        write_checkpoint(self.run, self.step, tensors, facts)
        self.saved = self.step
        self.write_curve(self.step)

    def write_curve(self, step: int) -> None:
        log = self.log[:step].cpu().numpy()
        self.run.curve(curve_columns(self.point, log, self.validation, self.runtime.curve_points))

    @property
    def largest_pass(self) -> int:
        """Sequences of a pass of this process's share of the largest batch."""
        share = self.point.largest_batch // self.group.world
        return cut(share, self.micro_batch, self._shared_pass) or share

    @property
    def _shared_pass(self) -> int | None:
        return self.numerics.get("shared_pass") if self.group.world == 1 else None

    # ---- its clock

    def start_clock(self) -> float:
        self._mark = time.perf_counter()
        return self._mark

    def clock(self) -> float:
        """Add the time since the last call to the seconds of this run."""
        now = time.perf_counter()
        self.device_seconds += (now - self._mark) * self.group.world
        self.seconds, self._mark = self.seconds + now - self._mark, now
        return now

    def compiled_now(self) -> None:
        """The first step of a shape and batch compiles; the time since the last call of `clock` is no time of this point."""
        now = time.perf_counter()
        self.compile_seconds, self._mark = self.compile_seconds + now - self._mark, now


def _is_trunk(facts: dict, name: str, first: int | None) -> bool:
    """Whether a checkpoint with these facts is that of the trunk `name`, a hash of its steps, at its end, step `first`."""
    return facts.get("run") == name and (first in (None, facts["step"]) or bool(facts.get("diverged")))


def _measured(found: tuple[dict, dict, list[str]], steps: set[int]) -> bool:
    """Whether a checkpoint has the validation losses at those of `steps` that a run as far as it, or diverged, has them."""
    tensors, facts, _ = found
    end = facts.get("diverged") or facts["step"] + 1
    return {s for s in steps if s < end} <= {int(s) for s, _ in tensors["validation"].tolist()}
