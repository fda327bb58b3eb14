"""What sweep.strategy=refine begins with: a few values of the cheapest slices, as many as its laws need."""

from __future__ import annotations

from harness.errors import UserError
from sweeps.cells import ANALYSES, Cell
from sweeps.expand import Member
from sweeps.extend import SEEDS
from sweeps.text import quantity

START_VALUES = 7  # of a slice of the first round
START_SHARE = 0.15  # of the budget, for slices beyond those that a law needs
MOST_SHARE = 1 / 3  # of the budget, that the first round may take: else its slices get fewer values


def first_members(state) -> list[Member]:
    """Of a sweeps.refine.Refinement: up to START_VALUES values at the first seed of the cheapest slices: as many slices as a
    law needs, and what more START_SHARE of the budget pays; and members that are in no slice, as they are. Raises UserError
    where the budget cannot pay for a beginning."""
    from analysis.law import choose_predictors
    from analysis.options import PREDICTORS
    from sweeps.beliefs import place

    inside = {cell.name for cell in state.cells}
    alone = [m for m in state.grid if cell_name(state, m) not in inside]
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
        if cost <= MOST_SHARE * state.budget:
            break
    if cost > state.budget:
        raise UserError(f"sweep.budget={quantity(state.budget, 'FLOP')} does not pay for three values of the slices that a "
                        f"law needs:\n{quantity(cost, 'FLOP')}; raise it, or declare smaller scales.")  # fmt: skip
    return [*alone, *found]


def _spread(state, cell: Cell, count: int) -> list[Member]:
    """`count` members of a declared cell at its first seed: START_VALUES evenly over its values, fewer from their middle."""
    members = {m.values[cell.key]: m for m in state.grid if cell_name(state, m) == cell.name
               and m.point.seed == cell.seeds[0]}  # fmt: skip
    values = sorted(members)
    n = min(count, len(values))
    if n < min(START_VALUES, len(values)):
        return [members[value] for value in values[(len(values) - n) // 2 :][:n]]
    return [members[values[round(i * (len(values) - 1) / max(n - 1, 1))]] for i in range(n)]


def cell_name(state, member: Member) -> str:
    """Of the cell (sweeps/cells.py) that a member belongs to."""
    return repr(sorted((k, v) for k, v in member.values.items() if k != state.cells[0].key and k not in SEEDS))
