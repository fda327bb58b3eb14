"""sweep.strategy=refine: of a declared grid train what narrows the law's interval at a larger scale most, within a budget.

It begins with a few values of the cheapest slices. Each round then reads all results (sweeps/beliefs.py), spends what is
left of the budget in thought (sweeps/spend.py, by the criterion of sweeps/design.py), and trains the cheaper part of that
plan: results of small scales say where the few runs of large ones belong. Values, seeds and scales between those declared
may be added; values beyond the declared ones where an optimum lies there.

What was added is in `<out>/refine.json`, round by round, from which later commands go on. Rounds follow from results alone,
so a damaged file costs nothing but a line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.config import Config
from harness.errors import UserError
from harness.files import read_json, write_json
from harness.rundir import digest, finished
from sweeps.cells import Cell, cells_between, declared_cells, refined_key, target_of
from sweeps.expand import Facts, Member, expand_members, resolve_member
from sweeps.plan import Plan, make_plan
from sweeps.text import count_noun, quantity

FILE = "refine.json"
BUDGET = 0.4  # share of the whole grid's FLOPs
LEVEL = 0.8
START_VALUES = 7  # of a slice of the first round
START_SHARE = 0.15  # of the budget, for slices beyond those that a law needs
ROUND_SHARE = 1 / 3  # of what is left, spent in a round
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
        return (
            f"refine: {self.cells[0].key} for the scale of {scale} ({where})",
            f"budget {quantity(self.budget, 'FLOP')}, {self.budget / self.whole:.0%} of that of the whole grid of "
            f"{count_noun(len(self.grid), 'point')}; {self.spent / self.budget:.0%} of it planned so far",
        )

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


def refined_members(request, grid: list[Member], facts: Facts, path: Path, report) -> tuple[list[Member], tuple[str, ...]]:
    """(the members of `grid`, and between, that are trained so far or first, notes for the plan)."""
    if damaged(path):
        report(f"{path} is damaged: the grid is refined anew, by the results that are there")
    state = begin(request, grid, facts, path)
    return list(state.members.values()), state.notes()


def begin(request, grid: list[Member], facts: Facts, path: Path) -> Refinement:
    """The first round, and those that earlier launches added according to `path`. Raises UserError where the grid cannot be
    refined, or the budget cannot pay for a beginning."""
    sweep = request.config.sweep
    cells = declared_cells(grid, refined_key(grid, sweep.extend_target))
    found = Refinement(request, facts, grid, cells, target_of(request, cells, facts), 0.0)
    share = BUDGET if sweep.budget is None else sweep.budget
    found.budget = share * found.whole if share <= 1 else share
    for member in _start(found):
        found.members[member.point.id] = member
    for entries in read_rounds(path):
        added = [found.add(entry) for entry in entries]
        if any(added):
            found.rounds.append(entries)
    return found


def refinement(planned, cache: Path) -> Callable[[], Plan | None]:
    """The `more` of an engine for `planned` (sweeps.launch.Planned): after each round the plan of the next, its notes saying
    why; a plan without points, that says why, at the end."""
    path = planned.out / FILE
    state = begin(planned.request, expand_members(planned.request, planned.book), planned.book, path)
    ended = False

    def more() -> Plan | None:
        nonlocal ended
        if ended:
            return None
        entries, lines = next_round(state, planned.plan.runs_dir, planned.plan.workers)
        added = [member for entry in entries if (member := state.add(entry)) is not None]
        ended = not added
        if added:
            state.rounds.append(entries)
            write_json(path, {"rounds": state.rounds, "seal": _seal(state.rounds)})
        return _plan(planned, added, cache, tuple(lines))

    return more


def next_round(state: Refinement, runs_dir: Path, workers: int) -> tuple[list[dict], list[str]]:
    """(entries to add, lines for people), given the results in `runs_dir`; no entries at the end."""
    return choose_round(state, lambda member: read_loss(runs_dir, member), workers)


def choose_round(state: Refinement, loss_of: Callable[[Member], float | None], workers: int) -> tuple[list[dict], list[str]]:
    """As next_round; loss_of: infinite where a member diverged, None without a result."""
    from sweeps.beliefs import believe
    from sweeps.spend import farthest, plan_rest

    rows: dict[str, list] = {}
    for member in state.members.values():
        rows.setdefault(_cell_name(state, member), []).append((member, loss_of(member)))
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
    chosen = _cheaper(plan, left, workers)
    by_name = {cell.name: cell for cell in cells}
    entries = [entry for move in chosen for entry in _entries(state, by_name[move.cell], move)]
    cost = sum(move.cost for move in chosen)
    lines = [
        f"refine, round {len(state.rounds) + 2}: {count_noun(len(entries), 'point')}, then "
        f"{(state.spent + cost) / state.budget:.0%} of the budget is spent; {LEVEL:.0%} interval at the target now: {said}",
        "  " + _why(chosen, by_name),
    ]
    return entries, lines


def read_rounds(path: Path) -> list[list[dict]]:
    """What was added so far, round by round: {"like": run id of the grid, "set": {key: value}, "run_id"}."""
    return [] if damaged(path) else (read_json(path) or {}).get("rounds", [])


def damaged(path: Path) -> bool:
    """Whether the file is there, and not what was written."""
    said = read_json(path)
    return path.exists() if said is None else said.get("seal") != _seal(said.get("rounds"))


def _seal(rounds: object) -> str:
    return digest(json.dumps(rounds).encode())


def read_loss(runs_dir: Path, member: Member) -> float | None:
    """Infinite where it diverged, None while there is no result."""
    run_dir = Path(runs_dir) / member.point.id
    status = finished(run_dir)
    if status == "diverged":
        return math.inf
    return (read_json(run_dir / "result.json") or {}).get("loss") if status == "done" else None


def _start(state: Refinement) -> list[Member]:
    """Up to START_VALUES values at the first seed of the cheapest slices: as many slices as a law needs, and what more
    START_SHARE of the budget pays; and members that are in no slice, as they are."""
    from analysis.law import choose_predictors
    from analysis.options import PREDICTORS
    from sweeps.beliefs import place
    from sweeps.cells import ANALYSES

    inside = {cell.name for cell in state.cells}
    alone = [m for m in state.grid if _cell_name(state, m) not in inside]
    analysis = ANALYSES[state.cells[0].key]
    name = "batch_size" if analysis == "batch" else analysis
    chosen: list[Cell] = []
    for law in dict.fromkeys(cell.law for cell in state.cells):
        members = sorted((cell for cell in state.cells if cell.law == law), key=lambda cell: cell.flops)
        wanted = [p for p in PREDICTORS[analysis][name] if all(p in place(cell, name) for cell in members)]
        kept = choose_predictors([place(cell, name) for cell in members], wanted).kept
        picked: list[Cell] = []
        for cell in members:
            places = [place(c, name) for c in picked]
            enough = len(picked) > len(kept) and choose_predictors(places, kept).kept == kept
            cost = START_VALUES * sum(c.flops for c in [*chosen, *picked, cell])
            if not enough or cost <= START_SHARE * state.budget:
                picked.append(cell)
        chosen += picked
    fixed = sum(m.point.flops for m in alone)
    for count in range(START_VALUES, 2, -1):
        found = [m for cell in chosen for m in _spread(state, cell, count)]
        cost = fixed + sum(m.point.flops for m in found)
        if cost <= 0.6 * state.budget:
            break
    if cost > state.budget:
        raise UserError(f"sweep.budget={quantity(state.budget, 'FLOP')} does not pay for three values of the slices that a "
                        f"law needs:\n{quantity(cost, 'FLOP')}; raise it, or declare smaller scales.")  # fmt: skip
    return [*alone, *found]


def _spread(state: Refinement, cell: Cell, count: int) -> list[Member]:
    """`count` members of a declared cell at its first seed, evenly over its values."""
    members = {m.values[cell.key]: m for m in state.grid if _cell_name(state, m) == cell.name
               and m.point.seed == cell.seeds[0]}  # fmt: skip
    values = sorted(members)
    n = min(count, len(values))
    return [members[values[round(i * (len(values) - 1) / max(n - 1, 1))]] for i in range(n)]


def _cell_name(state: Refinement, member: Member) -> str:
    from sweeps.extend import SEEDS

    return repr(sorted((k, v) for k, v in member.values.items() if k != state.cells[0].key and k not in SEEDS))


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


def _plan(planned, added: list[Member], cache: Path, notes: tuple[str, ...]) -> Plan:
    from dataclasses import replace

    config, old = planned.request.config, planned.plan
    plan = make_plan([m.point for m in added], old.runs_dir, config.launcher, cache, old.device, config.micro_batch,
                     old.name, rates=old.rates or None, probe=False, share=config.sweep.share)  # fmt: skip
    return replace(plan, notes=notes)
