"""A plan as people read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.passes import LEAST_TOKENS, SLOWER
from sweeps.rate import Rates
from sweeps.status import FAILED
from sweeps.text import count_noun, duration, quantity, table

if TYPE_CHECKING:
    from sweeps.plan import Plan

GROUPS_SHOWN = 12
# A yardstick for sweeps that are not for this machine: one H100, dense bf16, at the share of its peak that trainers
# of models of about 1B parameters publish.
YARDSTICK_FLOPS, YARDSTICK_SHARE, YARDSTICK_FROM = 989e12, 0.4, 1e18


def taken_lines(reused: Mapping[str, Path]) -> list[str]:
    """Where points were taken from; `reused`: run id -> run of another sweep."""
    counts = Counter(run_dir.parent for run_dir in reused.values())
    return [f"{count_noun(count, 'point')} taken from {folder}" for folder, count in counts.items()]


def render(plan: Plan) -> str:
    """The plan for people: under 100 columns."""
    counts = plan.counts
    said = ", ".join(f"{counts[s]} {s}" for s in counts)
    lines = [f"{plan.name or 'sweep'}: {count_noun(len(plan.points), 'point')} ({said}), {len(plan.left)} to train"]
    lines.append(f"runs in {plan.runs_dir}")
    lines += taken_lines(plan.reused)
    retried = sum(counts[s] for s in FAILED)
    if retried:
        lines.append(f"{count_noun(retried, 'failed point')} tried again, at most {plan.max_attempts} times each")
    if not plan.groups:
        return "\n".join([*lines, "nothing left to do so far" if plan.whole else "nothing left to do", *_whole(plan),
                          *plan.notes])  # fmt: skip
    lines.append("")
    groups = sorted(plan.groups, key=lambda g: -g.seconds)
    rows = [[g.label, f"{g.points[0].precision}", str(len(g.points)), quantity(g.flops, "FLOP"),
             duration(g.seconds), "compile" if g.compile else "eager", g.reason]
            for g in groups[:GROUPS_SHOWN]]  # fmt: skip
    lines += table(["width x depth", "in", "points", "work", "1 worker", "step", "because"], rows, wrap=True)
    if len(groups) > GROUPS_SHOWN:
        rest = groups[GROUPS_SHOWN:]
        lines.append(f"  and {len(rest)} more shapes: {quantity(sum(g.flops for g in rest), 'FLOP')}, "
                     f"{duration(sum(g.seconds for g in rest))}")  # fmt: skip
    lines += ["", *_sharing(plan), *_saving(plan), _price(plan), *_whole(plan)]
    if plan.flops > YARDSTICK_FROM:
        seconds = plan.flops / (YARDSTICK_FLOPS * YARDSTICK_SHARE)
        lines.append(f"one H100 at {YARDSTICK_SHARE:.0%} of its bf16 peak would take {duration(seconds)}")
    lines += [line for precision, rates in plan.rates.items() for line in _render_rates(precision, rates)]
    lines += plan.notes
    return "\n".join(lines)


def _sharing(plan: Plan) -> list[str]:
    """What shared passes save and cost, in one line."""
    less = sum(len(group.batches) - 1 for group in plan.groups if group.shared_pass)
    return [f"batch sizes share passes of {LEAST_TOKENS} tokens or more: {count_noun(less, 'compilation')} less, "
            f"their steps about {SLOWER:.0%} slower"] if less else []  # fmt: skip


def _saving(plan: Plan) -> list[str]:
    """What shared beginnings save, in one line."""
    if not plan.forest.start:
        return []
    finished = len(plan.forest.finished)
    there = f", {finished} of them trained before" if finished else ""
    share = plan.flops_saved / max(plan.flops + plan.flops_saved, 1)
    return [f"{count_noun(len(plan.forest.start), 'point')} begin from {count_noun(len(plan.forest.trunks), 'trunk')}"
            f"{there}: {quantity(plan.flops_saved, 'FLOP')} saved, {share:.0%}"]  # fmt: skip


def _price(plan: Plan) -> str:
    workers = count_noun(plan.workers, "worker" if plan.device == "cpu" else "GPU worker")
    what = "so far" if plan.whole else "in all"
    return (f"{what} {quantity(plan.flops, 'FLOP')}, about {duration(plan.seconds)} on {workers}; "
            f"checkpoints up to {quantity(plan.checkpoint_bytes, 'B')}")  # fmt: skip


def _whole(plan: Plan) -> list[str]:
    """What all rounds take, in one line, where what they train is not known yet."""
    if not plan.whole:
        return []
    return [f"in all rounds up to {quantity(plan.whole[0], 'FLOP')}, the budget, about {duration(plan.whole[1])}"]


def _render_rates(precision: str, rates: Rates) -> list[str]:
    lines = []
    for name, speed in (("eager", rates.eager), ("compiled", rates.compiled)):
        lines.append(f"{precision} {name}: {speed.overhead * 1e3:.2g} ms + work / {quantity(speed.rate, 'FLOP/s')} "
                     f"a step and worker ({speed.source})")  # fmt: skip
    return [*lines, f"on {rates.device}"[:99]] if lines else lines
