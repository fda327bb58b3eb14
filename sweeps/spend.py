"""Which runs to train next, of sweep.strategy=refine: those that narrow the predicted interval most per FLOP.

Moves are runs of one cell that belong together: a further value, a value at a further seed, or (where a slice has no optimum
yet) as many values as it takes to find one. All that is left of the budget is spent in thought, move by move, by the gain in
log half-width per FLOP; that greed would never save up for a dear slice, so plans that begin with one are tried beside it,
and the best plan's cheapest moves are trained first: what they tell decides where the dear ones go (sweeps/refine.py).
"""

from __future__ import annotations

import math

import numpy as np

from sweeps.beliefs import LawBelief
from sweeps.design import shape_variance
from sweeps.moves import SIX, Move, Slots

NOTHING = 20.0  # log half-width of a law that is not determined
LEAST = 4e-4  # gain in log half-width of a move worth its point
DEAR = 0.1  # share of what is left that a slice costs, for greed to miss it
MANY = 0.06  # share of what is left up to which a new slice gets SIX values: a basin's bend is told by as many


class Thought:
    """All laws in thought: a state that moves change."""

    def __init__(self, laws: list[LawBelief], slots: list[list[Slots]] | None = None):
        self.laws = laws
        self.slots = slots or [[Slots(b) for b in law.cells] for law in laws]
        for law in self.slots if slots is None else []:
            told = sum((slot.shape[1] for slot in law if slot.terms), 0.0)
            for slot in law:
                slot.others = told - slot.shape[1] if slot.terms else slot.others
        self.where = {s.cell.name: (i, j) for i, law in enumerate(self.slots) for j, s in enumerate(law)}

    def copy(self) -> Thought:
        return Thought(self.laws, [[slot.copy() for slot in law] for law in self.slots])

    def log_half(self, i: int, j: int | None = None, move: Move | None = None) -> float:
        """Log half-width of law i, after a move of its cell j."""
        variances = self._variances(i)
        if j is not None:
            variances[j] = move.variance
        half = self.laws[i].design.half_width(variances, self._spare(i), self._shape(i, j, move))
        return math.log(half) if math.isfinite(half) else self._nothing(i, variances)

    def _variances(self, i: int) -> np.ndarray:
        return np.array([s.variance for s in self.slots[i]])

    def _shape(self, i: int, j: int | None = None, move: Move | None = None) -> tuple[np.ndarray, np.ndarray] | None:
        """(loading (N, m), what is told of the shape (m, m)), after a move of cell j."""
        if not self.slots[i][0].terms:
            return None
        shapes = [slot.shape for slot in self.slots[i]]
        if j is not None:
            shapes[j] = move.shape
        return np.array([loading for loading, _ in shapes]), sum(told for _, told in shapes)

    def _spare(self, i: int) -> float:
        return sum(max(s.count - 3, 0) for s in self.slots[i] if math.isfinite(s.variance))

    def _nothing(self, i: int, variances: np.ndarray) -> float:
        """Stands for the log half-width of a law that is not determined: less, the nearer it is."""
        x = self.laws[i].design.x[np.isfinite(variances)]
        p = self.laws[i].design.x.shape[1]
        rank = np.linalg.matrix_rank(x, 1e-6) if len(x) else 0
        return NOTHING + 2 * (p - rank) + max(p + 1 - len(x), 0)

    @property
    def total(self) -> float:
        return sum(self.log_half(i) for i in range(len(self.laws)))

    def apply(self, move: Move) -> None:
        i, j = self.where[move.cell]
        self.slots[i][j].apply(move)

    def greedy(self, budget: float) -> list[Move]:
        """Moves until the budget is spent or none helps."""
        plan = []
        while (move := self._next(budget)) is not None:
            self.apply(move)
            plan.append(move)
            budget -= move.cost
        return plan

    def best(self, i: int, j: int, budget: float) -> Move | None:
        """The next move of a cell. A new slice takes SIX values where they are cheap, or where else no more than half of the
        slices would tell a bend."""
        slot = self.slots[i][j]
        cheap = SIX * slot.cell.flops <= MANY * budget
        return slot.best(budget, cheap or self.surplus(i) < 2)

    def surplus(self, i: int) -> int:
        """Slices in law i that tell a bend, less those that do not."""
        return sum(1 if s.telling else -1 for s in self.slots[i] if math.isfinite(s.variance))

    def tell(self, budget: float) -> list[Move]:
        """Values for the cheapest slices until more than half tell a bend."""
        moves = []
        for i, slots in enumerate(self.slots):
            for slot in sorted(slots, key=lambda slot: slot.cell.flops):
                if math.isfinite(slot.variance):
                    while self.surplus(i) < 1 and not slot.telling:
                        move = slot.one_more_value()
                        if move is None or move.cost > budget:
                            break
                        slot.apply(move)
                        moves.append(move)
                        budget -= move.cost
        return moves

    def _next(self, budget: float) -> Move | None:
        best, score = None, 0.0
        for i, slots in enumerate(self.slots):
            variances, spare = self._variances(i), self._spare(i)
            before = self.log_half(i)
            shape = self._shape(i)
            known = self.laws[i].design.parts(variances, spare, shape)
            for j in range(len(slots)):
                move = self.best(i, j, budget)
                if move is None:
                    continue
                if known and math.isfinite(variances[j]):  # the slices of the law stay: so does h
                    less = known[2][j] ** 2 * (variances[j] - move.variance)
                    if shape:
                        less += shape_variance(known[2], *shape) - shape_variance(known[2], *self._shape(i, j, move))
                    gain = -0.5 * math.log1p(-less / known[1])
                else:
                    gain = before - self.log_half(i, j, move)
                if gain > LEAST * len(move.runs) and gain / move.cost > score:
                    best, score = move, gain / move.cost
        return best


def plan_rest(laws: list[LawBelief], budget: float) -> tuple[list[Move], float, float]:
    """(moves for all of the budget, sum of the laws' log half-widths now, and after them)."""
    start = Thought(laws)
    now = start.total
    chosen = start.tell(budget)
    left = budget - sum(move.cost for move in chosen)
    plan, end = _rollout(start, left)
    plan = [*chosen, *plan]
    while True:
        better = None
        for name in _dear(laws, chosen, left):
            i, j = start.where[name]
            move = start.best(i, j, left)
            if move is not None:
                tried = start.copy()
                tried.apply(move)
                rest, total = _rollout(tried, left - move.cost)
                if total < end - 1e-9:
                    better, plan, end = move, [*chosen, move, *rest], total
        if better is None:
            return plan, now, end
        chosen.append(better)
        left -= better.cost
        start.apply(better)


def needed_first(laws: list[LawBelief], plan: list[Move]) -> list[Move]:
    """What of a plan makes slices with an optimum, while a law has no interval yet: to measure others better would spend
    what those turn out to need."""
    if all(math.isfinite(law.half) for law in laws):
        return plan
    return [move for move in plan if move.kind in ("slice", "edge")] or plan


def farthest(laws: list[LawBelief], budget: float) -> list[Move]:
    """The slice of the largest declared scale that the budget affords, where a law has none as large: a law is to be
    measured as near to its target as can be, also where it expects nothing from that."""
    thought, moves = Thought(laws), []
    for i, slots in enumerate(thought.slots):
        reached = max((s.cell.flops for s in slots if math.isfinite(s.variance)), default=0.0)
        for slot in sorted(slots, key=lambda slot: -slot.cell.flops):
            if slot.cell.declared and slot.cell.flops > reached and (move := thought.best(i, slots.index(slot), budget)):
                moves.append(move)
                budget -= move.cost
                break
    return moves


def _rollout(start: Thought, budget: float) -> tuple[list[Move], float]:
    thought = start.copy()
    return thought.greedy(budget), thought.total


def _dear(laws: list[LawBelief], chosen: list[Move], left: float) -> list[str]:
    """Cells without an optimum whose slice would take a good share of what is left."""
    begun = {move.cell for move in chosen}
    return [b.cell.name for law in laws for b in law.cells
            if not b.inside and b.cell.name not in begun and DEAR * left < 3 * b.cell.flops <= left]  # fmt: skip
