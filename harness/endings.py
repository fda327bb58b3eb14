"""How a run ends: stopped, out of its time, diverged or done, each with its status, the last two with a result.

Every process of a group comes through here; those that do not lead write nothing (harness/rank.py).
"""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np

from harness.checkpoint import checkpoints, drop_checkpoints
from harness.curve import final_train_loss
from harness.data import open_corpus
from harness.state import State


def stopped(state: State) -> str:
    state.clock()
    state.checkpoint()
    state.run.status("pending", state.step, {"type": "stopped", "message": "asked to stop", "step": state.step})
    return "stopped"


def paused(state: State) -> str:
    """At `runtime.until`, not at the end: as a trunk that others go on from, or until it is decided whether to go on."""
    state.clock()
    if state.saved != state.step:
        state.checkpoint()
    else:  # an attempt that was killed over its checkpoint may have left no curve
        state.write_curve(state.step)
    if state.runtime.trunk:
        _write_trunk(state)
    else:  # what is known should it not go on (sweeps/prune.py)
        _write_result(state, state.step, None, final_train_loss(state.log[: state.step, 0].cpu().numpy()))
    message = f"paused at step {state.step}"
    state.run.status("pending", state.step, {"type": "paused", "message": message, "step": state.step})
    return "paused"


def out_of_time(state: State, limit: float) -> str:
    state.checkpoint()
    message = f"launcher.point_seconds={limit:g} is used up; a higher limit goes on from step {state.step}"
    state.run.status("failed", state.step, {"type": "time_limit", "message": message, "step": state.step})
    return "failed"


def diverged_at(state: State, start: int) -> tuple[int, str, str] | None:
    """(step, type, message) of the first diverged step since `start`: a loss or gradient that is not finite, or a loss
    above three times that of a uniform guess, from which no run here came back."""
    part = state.log[start : state.step].cpu().numpy()
    bad = ~np.isfinite(part).all(axis=1)
    exploded = part[:, 0] > 3 * math.log(state.point.shape.vocab)
    hits = np.flatnonzero(bad | exploded)
    if not len(hits):
        return None
    first, (loss, norm) = start + int(hits[0]) + 1, part[hits[0]]
    if bad[hits[0]]:
        return first, "non_finite", f"training loss {loss:.4g}, gradient norm {norm:.4g}"
    return first, "exploded", f"training loss {loss:.4g}, above three times that of a uniform guess"


def diverged(state: State, step: int, kind: str, message: str) -> str:
    if state.runtime.trunk:
        state.diverged = step
        return paused(state)
    state.clock()
    state.write_curve(step)
    _write_result(state, step, None, None)
    state.run.status("diverged", step, {"type": kind, "message": message, "step": step})
    _drop_checkpoints(state)
    return "diverged"


def finished(state: State) -> str:
    """ "done", or "diverged" where the loss at the end, the last of `state.validation`, says so."""
    state.clock()
    loss = state.validation[-1][1]
    # Worse than knowing nothing: the learning rate destroyed the model without ever giving a non-finite number.
    if not math.isfinite(loss) or loss > math.log(state.point.shape.vocab) + 1:
        kind = "exploded" if math.isfinite(loss) else "non_finite"
        return diverged(state, state.step, kind, f"validation loss {loss:.4g} at the end, worse than a uniform guess")
    state.write_curve(state.step)
    if state.runtime.keep_weights:
        from safetensors.torch import save

        weights = state.stepper.gather(state.weights)
        state.run.write("weights.safetensors", save({k: w.cpu().contiguous() for k, w in weights.items()}))
    _write_result(state, state.step, loss, final_train_loss(state.log[:, 0].cpu().numpy()))
    state.run.status("done", state.step)
    _drop_checkpoints(state)
    return "done"


def _drop_checkpoints(state: State) -> None:
    if state.group.leads:
        drop_checkpoints(state.run.path)


def _write_result(state: State, step: int, loss: float | None, train_loss: float | None) -> None:
    point, runtime = state.point, state.runtime
    state.run.write_json(
        "result.json",
        {
            "loss": loss,
            "train_loss": train_loss,
            "tokens": point.tokens_at(step),
            "flops": point.flops_at(step),
            "flops_spent": point.flops_at(step) - point.flops_at(min(state.first, step)),
            "device_seconds": state.device_seconds,
            "compile_seconds": state.compile_seconds,
            "micro_batch": state.largest_pass,
            "entropy_rate": _entropy_rate(runtime.corpus_dir),
            "validation": [{"step": s, "loss": v} for s, v in state.validation if math.isfinite(v)],
            "numerics": state.numerics,
            "trunk": state.trunk,
            "runtime": {
                "attempt": state.run.attempt,
                **{k: asdict(runtime)[k] for k in ("device", "threads")},
                **_speed(state, step),
                "first_step": state.first_step_at,
                "validate_seconds": state.validate_seconds,
            },
        },
    )


def _speed(state: State, step: int) -> dict[str, float | None]:
    """Training FLOPs of the run's own steps per second of each device, all that it did meanwhile included (validation,
    whose FLOPs do not count; checkpoints), and as a share of what the device does in matrix products."""
    flops = state.point.flops_at(step) - state.point.flops_at(min(state.first, step))
    per_second = flops / state.device_seconds if state.device_seconds > 0 else None
    cores = state.numerics["threads"] if state.numerics["device"] == "cpu" else 1
    peak = state.runtime.peak_flops * cores if state.runtime.peak_flops else None
    share = per_second / peak if per_second is not None and peak else None
    return {"model_flops_per_second": per_second, "peak_flops": peak, "utilisation": share}


def _write_trunk(state: State) -> None:
    """trunk.json: that the trunk has come to its end, for planning, which reads no checkpoints (sweeps/trunks.py)."""
    if not state.group.leads:
        return
    for older in checkpoints(state.run.path)[:-1]:
        older.unlink(missing_ok=True)
    end = state.diverged or state.step
    # Where its branches validate behind its divergence there is nothing to be measured.
    behind = {step for step in state.runtime.validate_at if state.diverged and step >= state.diverged}
    state.run.write_json(
        "trunk.json",
        {
            "step": state.step,
            "steps": state.runtime.until,
            "diverged": state.diverged,
            "validated": sorted({step for step, _ in state.validation} | behind),
            "flops_spent": state.point.flops_at(end) - state.point.flops_at(min(state.first, end)),
            "device_seconds": state.device_seconds,
            "compile_seconds": state.compile_seconds,
            "numerics": state.numerics,
        },
    )


@lru_cache(maxsize=4)
def _entropy_rate(corpus_dir: str) -> float | None:
    """Nats per token that no model can beat, where the source knows it (data=markov)."""
    return open_corpus(Path(corpus_dir)).entropy_rate
