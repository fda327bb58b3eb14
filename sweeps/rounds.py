"""What the rounds of an adaptive sweep have in common (extend.py, refine.py, halving.py): the file that says what was added,
how a run ended, and the plan of what comes next.

The file holds the rounds in order, each a list of entries, and a digest of them. Rounds follow from results alone, so a
damaged file is done without: the results lead to the same rounds again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from harness.files import read_json, write_json
from harness.rundir import digest, finished
from sweeps.expand import Member
from sweeps.plan import Plan, make_plan

LOST = ("diverged", "pruned")  # ended without a loss: others of their slice are better


def read_rounds(path: Path) -> list[list[dict]]:
    """What was added so far, round by round; nothing where the file is absent or damaged."""
    return [] if damaged(path) else (read_json(path) or {}).get("rounds", [])


def write_rounds(path: Path, rounds: list[list[dict]]) -> None:
    """Raises OSError."""
    write_json(path, {"rounds": rounds, "seal": _seal(rounds)})


def damaged(path: Path) -> bool:
    """Whether the file is there, and not what was written."""
    said = read_json(path)
    return path.exists() if said is None else said.get("seal") != _seal(said.get("rounds"))


def end_loss(runs_dir: Path, member: Member, lost: Collection[str] = LOST) -> float | None:
    """The loss of a finished run, infinite where it ended as one of `lost`; None while there is none."""
    run_dir = Path(runs_dir) / member.point.id
    status = finished(run_dir)
    if status in lost:
        return math.inf
    return (read_json(run_dir / "result.json") or {}).get("loss") if status == "done" else None


def plan_round(planned, members: Sequence[Member], cache: Path, notes: Sequence[str], keep_pruned: bool = False,
               share: bool = False) -> Plan:  # fmt: skip
    """The plan of `members` as `planned` (sweeps.launch.Planned) is planned, at the rates known there."""
    config, old = planned.request.config, planned.plan
    plan = make_plan([m.point for m in members], old.runs_dir, config.launcher, cache, old.device, config.micro_batch,
                     old.name, rates=old.rates or None, probe=False, keep_pruned=keep_pruned, share=share)  # fmt: skip
    return replace(plan, notes=tuple(notes))


def _seal(rounds: object) -> str:
    return digest(json.dumps(rounds).encode())
