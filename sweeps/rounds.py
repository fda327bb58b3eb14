"""What the rounds of an adaptive sweep have in common (extend.py, refine.py, halving.py): the file that says what was added,
how a run ended, and the plan of what comes next.

The file holds the rounds in order, each a list of entries, and a digest of them. Rounds follow from results alone
(those of refine.py from the number of workers, too), so a damaged file is done without: the results lead to the same rounds
again.
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
from sweeps.rendering import taken_lines
from sweeps.reuse import reusable, sources, taken

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


def plan_round(planned, members: Sequence[Member], cache: Path, notes: Sequence[str], **how) -> Plan:
    """The plan of `members` as `planned` (sweeps.launch.Planned) is planned, at the rates known there; `how`: of make_plan,
    by default beginnings are not shared."""
    config, old = planned.request.config, planned.plan
    plan = make_plan([m.point for m in members], old.runs_dir, config.launcher, cache, old.device, config.micro_batch,
                     old.name, rates=old.rates or None, probe=False, **{"share": False, **how})  # fmt: skip
    return replace(plan, notes=tuple(notes))


def plan_added(planned, added: Sequence[Member], cache: Path, notes: Sequence[str]) -> Plan:
    """plan_round of members that a round adds, as the sweep was planned: those that another sweep has trained are taken from
    it, the others share their beginnings."""
    config, runs_dir, points = planned.request.config, planned.plan.runs_dir, [m.point for m in added]
    folders = sources(config, planned.plan.name, runs_dir, lambda line: None)  # one that is gone was named before
    found = reusable(points, runs_dir, folders, config.keep_weights)
    reused = taken(points, runs_dir, found, config.launcher.lease_seconds, config.keep_weights)
    return plan_round(planned, added, cache, [*notes, *taken_lines(reused)], share=config.sweep.share, reused=reused)


def _seal(rounds: object) -> str:
    return digest(json.dumps(rounds).encode())
