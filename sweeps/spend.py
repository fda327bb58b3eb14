"""Which runs to train next, of sweep.strategy=refine: those that narrow the predicted interval most per FLOP.

Moves are runs of one cell that belong together: a further value, a value at a further seed, or (where a slice has no optimum
yet) as many values as it takes to find one. All that is left of the budget is spent in thought, move by move, by the gain in
log half-width per FLOP; that greed would never save up for a dear slice, so plans that begin with one are tried beside it,
and the best plan's cheapest moves are trained first: what they tell decides where the dear ones go (sweeps/refine.py).
"""

from __future__ import annotations

import math
from collections import defaultdict
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations

import numpy as np

from sweeps.beliefs import Belief, LawBelief
from sweeps.cells import lattice
from sweeps.design import Sums, vertex_variance

NOTHING = 20.0  # log half-width of a law that is not determined
LEAST = 4e-4  # gain in log half-width of a move worth its point
DEAR = 0.1  # share of what is left that a slice costs, for greed to miss it
MANY = 0.06  # share of what is left up to which a new slice gets SIX values: a basin's bend is told by as many
SIX = 6
RUNS = 3  # runs of a slice, at most, times those of the grid's


@dataclass(frozen=True)
class Move:
    """Runs of one cell: (value, seed) each. kind: value, edge, seed or slice."""

    cell: str
    kind: str
    runs: tuple[tuple[float, int], ...]
    cost: float
    variance: float = field(compare=False)  # of the slice's optimum, afterwards


class Slots:
    """A cell in thought: what it has, and its best next move."""

    def __init__(self, belief: Belief):
        self.belief, self.cell = belief, belief.cell
        self.tried = belief.tried
        self.values = lattice(self.cell, [value for value, _ in belief.tried])
        self.log = np.log(self.values)
        self.groups: dict[int, Sums] = {}
        self.taken: dict[int, set[float]] = defaultdict(set)
        codes = np.unique(belief.seed, return_counts=True)
        told = len(codes[0]) < 2 or (codes[1].min() > 1 and len(belief.x) > 2 + len(codes[0]))
        self.base = self.cell.seeds[0]
        for seed in codes[0].tolist():
            chosen = belief.x[belief.seed == seed]
            group = seed if told else self.base
            sums = Sums.of(chosen - belief.centre)
            self.groups[group] = self.groups[group] + sums if group in self.groups else sums
        for x, seed in zip(belief.x, belief.seed.tolist(), strict=True):
            self.taken[seed].add(self._nearest(x))
        self.variance = self._variance(sum(s.scatter for s in self.groups.values())) if belief.inside else math.inf
        self.count, self.distinct = len(belief.x), len(set().union(*self.taken.values()))
        self.most = RUNS * len(self.cell.values) * len(self.cell.seeds)
        self._best: dict[bool, Move | None] = {}

    def copy(self) -> Slots:
        new = copy(self)
        new.groups, new._best = dict(self.groups), dict(self._best)
        new.taken = defaultdict(set, {seed: set(values) for seed, values in self.taken.items()})
        return new

    def _nearest(self, x: float) -> float:
        return self.values[int(np.abs(self.log - x).argmin())]

    def _variance(self, scatter):
        b = self.belief
        return vertex_variance(np.asarray(scatter), b.curvature, b.noise, b.doubt, b.bend)

    def apply(self, move: Move) -> None:
        self.tried = self.tried | set(move.runs)
        for value, seed in move.runs:
            self.taken[seed].add(value)
        seeds = {seed for _, seed in move.runs}
        for seed in seeds:
            sums = Sums.of(np.log([v for v, s in move.runs if s == seed]) - self.belief.centre)
            self.groups[seed] = self.groups[seed] + sums if seed in self.groups else sums
        self.variance = move.variance
        self.count, self.distinct = self.count + len(move.runs), len(set().union(*self.taken.values()))
        self._best.clear()

    @property
    def telling(self) -> bool:
        """Whether its values are enough to tell a bend (analysis/bend.py)."""
        return self.distinct >= SIX

    def best(self, budget: float, many: bool) -> Move | None:
        """The move of most gain in variance per FLOP that `budget` affords; many: a new slice takes SIX values."""
        if many not in self._best:
            self._best[many] = self._find(many)
        move = self._best[many]
        return move if move is not None and move.cost <= budget else None

    def _find(self, many: bool) -> Move | None:
        if self.count >= self.most:
            return None
        return self._one_more() if math.isfinite(self.variance) else self._begin(many)

    def one_more_value(self) -> Move | None:
        """A further value, whatever it gains."""
        used = set().union(*self.taken.values())
        return self._pick([(self.base, self._new(used)[:, None])], used)

    def _new(self, used: set[float]) -> np.ndarray:
        """Indices of values that were not tried, may hold the optimum's basin, would not diverge for what is known, and lie
        no more than a step beyond those used."""
        b = self.belief
        low, high = max(b.low, b.centre - b.reach - b.step / 2), min(b.high, b.centre + b.reach + b.step / 2)
        if used:
            first, last = math.log(min(used)), math.log(max(used))
            low, high = max(low, first - 2.01 * b.step), min(high, last + 2.01 * b.step)
        there = (self.log > low + 1e-9) & (self.log < high - 1e-9)
        return np.array([i for i in np.flatnonzero(there) if (self.values[i], self.base) not in self.tried], int)

    def _one_more(self) -> Move | None:
        """A further value, or a value at another seed: two at a seed that is new, so that its level can be told."""
        used = set().union(*self.taken.values())
        options = [(self.base, self._new(used)[:, None])]
        again = np.array([i for i, v in enumerate(self.values) if v in used], int)
        seeds = sorted({*self.cell.seeds, *self.taken, self.base})
        for seed in seeds:
            if self.taken.get(seed):
                options.append((seed, np.array([[i] for i in again if (self.values[i], seed) not in self.tried], int)))
        fresh = next((s for s in seeds if not self.taken.get(s)), max(seeds) + 1)
        pairs = again[_choices(len(again), 2)]
        centre = self.belief.centre
        pairs = pairs[(self.log[pairs[:, 0]] < centre) & (self.log[pairs[:, 1]] > centre)]
        options.append((fresh, pairs))
        return self._pick(options, used)

    def _begin(self, many: bool) -> Move | None:
        """As few values as make an optimum that lies between them; with `many`, SIX round it."""
        b = self.belief
        used = set().union(*self.taken.values()) if self.taken else set()
        near = self._new(used)
        margin = min(b.doubt, b.step) / 2 + b.step / 8
        low, high = min(map(math.log, used), default=math.inf), max(map(math.log, used), default=-math.inf)
        counts = (SIX, 5, 4, 3) if many and not used else (1, 2, 3)
        for count in counts:
            if len(used) + count < 3 or len(near) < count:
                continue
            if count > 3:
                middle = np.sort(near[np.argsort(np.abs(self.log[near] - b.centre))][: 2 * SIX])
                spaced = [v[np.round(np.linspace(0, len(v) - 1, count)).astype(int)] for v in (near, middle)]
                options = np.unique(spaced, axis=0)
            else:
                options = near[_choices(len(near), count)]
            first, last = self.log[options].min(axis=1), self.log[options].max(axis=1)
            options = options[(np.minimum(first, low) <= b.centre - margin) & (np.maximum(last, high) >= b.centre + margin)]
            if len(options) and (move := self._pick([(self.base, options)], used)) is not None:
                return move
        return None

    def _pick(self, options: list[tuple[int, np.ndarray]], used: set[float]) -> Move | None:
        """Of indices of values (k, m) at a seed the best by gain per run."""
        best, score = None, 0.0
        for seed, picked in options:
            if not len(picked):
                continue
            rest = sum((s.scatter for k, s in self.groups.items() if k != seed), np.zeros((3, 3)))
            sums = Sums.of(self.log[picked] - self.belief.centre)
            if seed in self.groups:
                sums = sums + self.groups[seed]
            after = self._variance(sums.scatter + rest)
            at, size = int(np.argmin(after)), picked.shape[1]
            if not np.isfinite(after[at]):
                continue
            gain = math.log(self.variance / after[at]) / size if math.isfinite(self.variance) else 1 / (after[at] * size)
            if gain > score:
                runs = tuple((self.values[i], seed) for i in picked[at])
                if not self.tried.intersection(runs):
                    best, score = Move(self.cell.name, self._kind(runs, used), runs, size * self.cell.flops,
                                       float(after[at])), gain  # fmt: skip
        return best

    def _kind(self, runs, used: set[float]) -> str:
        if not used:
            return "slice"
        if runs[0][0] in used:
            return "seed"
        return "value" if math.isfinite(self.variance) else "edge"


@cache
def _choices(n: int, k: int) -> np.ndarray:
    """(ways, k) indices."""
    return np.array(list(combinations(range(n), k)), int).reshape(-1, k)


class Thought:
    """All laws in thought: a state that moves change."""

    def __init__(self, laws: list[LawBelief], slots: list[list[Slots]] | None = None):
        self.laws = laws
        self.slots = slots or [[Slots(b) for b in law.cells] for law in laws]
        self.where = {s.cell.name: (i, j) for i, law in enumerate(self.slots) for j, s in enumerate(law)}

    def copy(self) -> Thought:
        return Thought(self.laws, [[slot.copy() for slot in law] for law in self.slots])

    def log_half(self, i: int, j: int | None = None, variance: float = math.nan) -> float:
        """Log half-width of law i, with the variance of its cell j replaced."""
        variances = self._variances(i)
        if j is not None:
            variances[j] = variance
        half = self.laws[i].design.half_width(variances, self._spare(i))
        return math.log(half) if math.isfinite(half) else self._nothing(i, variances)

    def _variances(self, i: int) -> np.ndarray:
        return np.array([s.variance for s in self.slots[i]])

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
            known = self.laws[i].design.parts(variances, spare)
            for j in range(len(slots)):
                move = self.best(i, j, budget)
                if move is None:
                    continue
                if known and math.isfinite(variances[j]):  # the slices of the law stay: so does h
                    less = known[2][j] ** 2 * (variances[j] - move.variance)
                    gain = -0.5 * math.log1p(-less / known[1])
                else:
                    gain = before - self.log_half(i, j, move.variance)
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
