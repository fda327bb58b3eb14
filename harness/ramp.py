"""Batch-size ramps in whole steps: `schedule.batch_ramp=[[until_tokens, batch_size], ...]`, then the nominal batch.

A stretch is (steps, sequences per step). Each stage gets the whole number of steps that ends nearest its `until_tokens`,
counted from where the stage before it really ended, so that rounding does not add up; what is left of the budget goes to
the nominal batch in the same way. A budget that ends inside the ramp ends the run there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from harness.errors import UserError
from models.shape import LARGEST

Stretches = tuple[tuple[int, int], ...]


def stretches(ramp: Sequence | None, batch_size: int, tokens: float, context: int) -> Stretches:
    """All stretches of a run of `tokens`, neighbours of unequal batch; none where the budget is less than half a batch.

    Raises UserError where the ramp is not pairs of rising tokens and whole batches, or a stage is less than half a batch.
    """
    found: list[list[int]] = []
    done = 0  # sequences
    for until, size in [*_stages(ramp), (math.inf, batch_size)]:
        steps = max(round((min(until, tokens) - done * context) / (size * context)), 0)
        if not steps and until < tokens:
            raise UserError(f"schedule.batch_ramp: the stage until {until:g} tokens is shorter than half a batch of {size} "
                            f"sequences of {context} tokens.")  # fmt: skip
        if steps and found and found[-1][1] == size:
            found[-1][0] += steps
        elif steps:
            found.append([steps, size])
        done += steps * size
        if until >= tokens:
            break
    return tuple((steps, size) for steps, size in found)


def _stages(ramp: Sequence | None) -> list[tuple[float, int]]:
    stages, last = [], 0.0
    for stage in ramp or ():
        if not (isinstance(stage, list | tuple) and len(stage) == 2 and all(map(_number, stage))):
            raise UserError(f"schedule.batch_ramp: each stage is [until_tokens, batch_size], but one is {stage}.")
        until, size = stage
        if not (last < until < math.inf and size == int(size) and 1 <= size <= LARGEST):
            raise UserError(f"schedule.batch_ramp: {list(stage)} is impossible: tokens rise from stage to stage, and a "
                            f"batch is a whole number of sequences, 1 to {LARGEST}.")  # fmt: skip
        stages.append((float(until), int(size)))
        last = until
    return stages


def _number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def steps_after(run: Iterable[tuple[int, int]], tokens: float, context: int) -> int:
    """The step that ends nearest `tokens`, the last batch going on for ever."""
    run = list(run)
    before = 0
    for i, (steps, size) in enumerate(run):
        if i == len(run) - 1 or tokens <= steps * size * context:
            return before + round(tokens / (size * context))
        before, tokens = before + steps, tokens - steps * size * context
    return before
