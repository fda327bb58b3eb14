"""sweep.strategy=refine: of a declared grid train what narrows the law's interval at a larger scale most, within a budget.

It begins with a few values of the cheapest slices. Each round then reads all results (sweeps/beliefs.py), spends what is
left of the budget in thought (sweeps/spend.py, by the criterion of sweeps/design.py), and trains the cheaper part of that
plan: results of small scales say where the few runs of large ones belong. Values, seeds and scales between those declared
may be added; values beyond the declared ones where an optimum lies there.

What was added is in `<out>/refine.json` (rounds.py), from which later commands go on: {"like": run id of the grid, "set":
{key: value}, "run_id"}. One launch at a time decides (deciding.py): two would each spend what is left of the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.config import Config
from harness.errors import UserError
from sweeps.cells import Cell, cells_between, declared_cells, refined_key, target_of
from sweeps.expand import Facts, Member, expand_members, resolve_member
from sweeps.first_round import cell_name, first_members
from sweeps.plan import Plan, make_plan
from sweeps.rounds import end_loss, plan_added, read_rounds, write_rounds
from sweeps.text import count_noun, quantity

FILE = "refine.json"
BUDGET = 0.4  # share of the whole grid's FLOPs
LEVEL = 0.8
ROUND_SHARE = 1 / 3  # of what is left, spent in a round
FARTHEST = 1e6  # times the grid's largest scale, for a target
WORTH = 0.01  # gain in log half-width for which another round is begun


@dataclass
class Refinement:
    """A sweep that is refined: the grid's members and cells; those trained so far; the target; FLOPs."""

    request: object
    facts: Facts
    grid: list[Member]
    cells: list[Cell]
    target: dict[str, float]
    budget: float
    members: dict[str, Member] = field(default_factory=dict)
    rounds: list[list[dict]] = field(default_factory=list)

    @property
    def whole(self) -> float:
        """FLOPs of the declared grid."""
        return float(sum(m.point.flops for m in self.grid))

    @property
    def spent(self) -> float:
        return float(sum(m.point.flops for m in self.members.values()))

    def notes(self) -> tuple[str, ...]:
        """The plan in words: budget, target, what begins."""
        scale = f"{quantity(self.target['params'], 'params')}, {quantity(self.target['tokens'], 'tokens')}"
        where = "sweep.target" if self.request.config.sweep.target else "four times the largest, along the sweep's ray"
        lines = (
            f"refine: {self.cells[0].key} for the scale of {scale} ({where})",
            f"budget {quantity(self.budget, 'FLOP')}, {self.budget / self.whole:.0%} of that of the whole grid of "
            f"{count_noun(len(self.grid), 'point')}; {self.spent / self.budget:.0%} of it planned so far",
        )
        if (self.request.config.sweep.budget or 0) > max(self.whole, 1):
            lines += (f"sweep.budget={self.request.config.sweep.budget:g} is more than the whole grid's FLOPs: "
                      "the grid's are taken",)  # fmt: skip
        if self.request.config.sweep.extend:
            lines += ("sweep.extend: refine goes beyond the declared values by itself, within the budget and whatever "
                      "extend_rounds",)  # fmt: skip
        return lines

    def price(self, plan: Plan, cache: Path) -> tuple[float, float]:
        """(FLOPs, seconds) of all rounds together: of the budget, at the speed of the whole grid, trained as `plan` is."""
        config = self.request.config
        whole = make_plan([m.point for m in self.grid], plan.runs_dir / "none", config.launcher, cache, plan.device,
                          config.micro_batch, probe=False, share=False)  # fmt: skip
        return self.budget, whole.seconds * self.budget / self.whole

    def add(self, entry: dict) -> Member | None:
        """The member of an entry of the file; None where it is of another sweep."""
        root = next((m for m in self.grid if m.point.id == entry.get("like")), None)
        if root is None:
            return None
        values = {**root.values, **{k: self.request.typed(k, v) for k, v in entry["set"].items()}}
        member = Member(resolve_member(self.request, values, self.facts), values)
        return self.members.setdefault(member.point.id, member)


def check(config: Config) -> None:
    """Raises UserError for what cannot be."""
    sweep = config.sweep
    if sweep.strategy != "refine" and (sweep.budget is not None or sweep.target is not None):
        key = "budget" if sweep.budget is not None else "target"
        raise UserError(f"sweep.{key} says what sweep.strategy=refine may spend, and for which scale; the strategy is "
                        f"{sweep.strategy}.")  # fmt: skip
    if sweep.budget is not None and not 0 < sweep.budget < math.inf:
        raise UserError(f"sweep.budget={sweep.budget:g} must be FLOPs, or up to 1 a share of the whole grid's.")


def begin(request, grid: list[Member], facts: Facts, path: Path) -> Refinement:
    """The first round, and those that earlier launches added according to `path`. Raises UserError where the grid cannot be
    refined, or the budget cannot pay for a beginning."""
    sweep = request.config.sweep
    cells = declared_cells(grid, refined_key(grid, sweep.extend_target))
    found = Refinement(request, facts, grid, cells, target_of(request, cells, facts), 0.0)
    share = BUDGET if sweep.budget is None else sweep.budget
    found.budget = share * found.whole if share <= 1 else min(share, found.whole)
    for name in ("params", "tokens"):
        largest = max(cell.at[name] for cell in cells)
        if not found.target[name] <= FARTHEST * largest:
            raise UserError(f"sweep.target={dict(sweep.target or {})}: {quantity(found.target[name], name)} is more than a "
                            f"million times\nthe grid's largest, {quantity(largest, name)}: no law reaches so far.")
    for member in first_members(found):
        found.members[member.point.id] = member
    for entries in read_rounds(path):
        added = [found.add(entry) for entry in entries]
        if any(added):
            found.rounds.append(entries)
    return found


def refinement(planned, cache: Path, mine: Callable[[], bool] = lambda: True) -> Callable[[], Plan | None]:
    """The `more` of an engine for `planned` (sweeps.launch.Planned): after each round the plan of the next, its notes saying
    why; a plan without points, that says why, at the end. `mine`: whether this launch still decides."""
    path = planned.out / FILE
    state = begin(planned.request, expand_members(planned.request, planned.book), planned.book, path)
    planned_for = {point.id for point in planned.plan.points}
    ended = False

    def more() -> Plan | None:
        nonlocal ended
        if ended:
            return None
        # A launch that has ended since this one was planned may have added members, and died over them.
        added, lines = [m for m in state.members.values() if m.point.id not in planned_for], []
        if not added:
            entries, lines = next_round(state, planned.plan.runs_dir, planned.plan.workers)
            if not mine():
                entries, lines = [], ["refine: another launch has taken over, and decides from here on"]
            added = [member for entry in entries if (member := state.add(entry)) is not None]
            ended = not added
            if added:
                state.rounds.append(entries)
                write_rounds(path, [*read_rounds(path), entries])
        planned_for.update(member.point.id for member in added)
        return plan_added(planned, added, cache, lines)

    return more


def next_round(state: Refinement, runs_dir: Path, workers: int) -> tuple[list[dict], list[str]]:
    """(entries to add, lines for people), given the results in `runs_dir`; no entries at the end."""
    return choose_round(state, lambda member: end_loss(runs_dir, member), workers)


def choose_round(state: Refinement, loss_of: Callable[[Member], float | None], workers: int) -> tuple[list[dict], list[str]]:
    """As next_round; loss_of: infinite where a member diverged, None without a result."""
    from sweeps.beliefs import believe
    from sweeps.spend import farthest, needed_first, plan_rest

    rows: dict[str, list] = {}
    for member in state.members.values():
        rows.setdefault(cell_name(state, member), []).append((member, loss_of(member)))
    between = cells_between(state.request, state.cells, state.facts)
    cells = [*state.cells, *between]
    laws = believe(cells, rows, state.target, LEVEL)
    left = state.budget - state.spent
    plan, now, end = plan_rest(laws, left)
    said = ", ".join(f"{law.name} {_interval(law.half)}" for law in laws)
    if now - end < WORTH * len(laws):
        plan = farthest(laws, left)
    if not plan:
        cheapest = min(cell.flops for cell in cells)
        why = "the budget is spent" if left < cheapest else "nothing that the rest of the budget can buy narrows it"
        return [], [f"refine ends: {why} ({state.spent / state.budget:.0%} of it spent, {state.spent / state.whole:.0%} of "
                    f"the grid's FLOPs); {LEVEL:.0%} interval at the target: {said}"]  # fmt: skip
    chosen = _cheaper(needed_first(laws, plan), left, workers)
    by_name = {cell.name: cell for cell in cells}
    entries = [entry for move in chosen for entry in _entries(state, by_name[move.cell], move)]
    cost = sum(move.cost for move in chosen)
    lines = [
        f"refine, round {len(state.rounds) + 2}: {count_noun(len(entries), 'point')}, then "
        f"{(state.spent + cost) / state.budget:.0%} of the budget is spent; {LEVEL:.0%} interval at the target now: {said}",
        "  " + _why(chosen, by_name),
    ]
    return entries, lines


def _cheaper(plan, left: float, workers: int):
    """The cheapest moves of a plan: ROUND_SHARE of what is left, or a point for each worker; the whole plan where the rest
    would leave workers idle."""
    ordered = sorted(plan, key=lambda move: move.cost / len(move.runs))
    chosen, cost, points = [], 0.0, 0
    for move in ordered:
        if points >= workers and cost + move.cost > ROUND_SHARE * left:
            break
        chosen.append(move)
        cost, points = cost + move.cost, points + len(move.runs)
    rest = sum(len(move.runs) for move in plan) - points
    return list(plan) if 0 < rest < workers else chosen


def _entries(state: Refinement, cell: Cell, move) -> list[dict]:
    entries = []
    for value, seed in move.runs:
        values = {**cell.like.values, cell.key: value}
        if seed != cell.like.point.seed:
            values["seed"] = seed
        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float)) and v != cell.root.values.get(k)}
        member = Member(resolve_member(state.request, {k: state.request.typed(k, v) if k in numbers else v
                                                       for k, v in values.items()}, state.facts), values)  # fmt: skip
        entries.append({"like": cell.root.point.id, "set": numbers, "run_id": member.point.id})
    return entries


def _why(moves, cells: dict[str, Cell]) -> str:
    """What a round adds, and why."""
    words = {"slice": "new slices", "edge": "no optimum inside yet", "value": "optimum ill-determined", "seed": "noise"}
    parts = []
    for kind, reason in words.items():
        counts: dict[str, int] = {}
        for move in moves:
            if move.kind == kind:
                label = cells[move.cell].label
                counts[label] = counts.get(label, 0) + len(move.runs)
        if counts:
            shown = "; ".join(f"{label} +{n}" for label, n in list(counts.items())[:4])
            parts.append(f"{reason}: {shown}{' ...' if len(counts) > 4 else ''}")
    return " | ".join(parts)


def _interval(half: float) -> str:
    return f"x/{math.exp(half):.3g}" if math.isfinite(half) else "none yet"
