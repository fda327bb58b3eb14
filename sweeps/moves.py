"""What a slice may get next, of sweep.strategy=refine: moves, and of each slice the best by gain in variance per run."""

from __future__ import annotations

import math
from collections import defaultdict
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations

import numpy as np

from sweeps.beliefs import Belief
from sweeps.cells import lattice
from sweeps.design import POWERS, PRIOR, Sums, shape_terms, vertex_variance

SIX = 6  # values that tell a bend
RUNS = 3  # runs of a slice, at most, times those of the grid's


@dataclass(frozen=True)
class Move:
    """Runs of one cell: (value, seed) each. kind: value, edge, seed or slice."""

    cell: str
    kind: str
    runs: tuple[tuple[float, int], ...]
    cost: float
    variance: float = field(compare=False)  # of the slice's optimum, afterwards
    shape: tuple | None = field(default=None, compare=False)  # of the slice afterwards: design.shape_terms


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
        self.terms = belief.terms
        self.fewest = 4 if self.terms else 3
        self.others = np.zeros((self.terms, self.terms))  # what other slices tell of the shape
        self.shape = self._shape() if self.terms else None
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

    def _shape(self) -> tuple[np.ndarray, np.ndarray]:
        total = sum((s.scatter for s in self.groups.values()), np.zeros((POWERS, POWERS)))
        if not math.isfinite(self.variance):
            return np.zeros(self.terms), np.zeros((self.terms, self.terms))
        return shape_terms(total, self.terms, self.belief.curvature / self.belief.noise)

    def _error(self, variance: np.ndarray, shape: tuple | None) -> np.ndarray:
        """(...,) variance with the shape's share in it, as far as this slice and the others tell."""
        if shape is None:
            return variance
        loading, told = shape
        solved = np.linalg.solve(self.others + told + PRIOR * np.eye(self.terms), loading[..., None])[..., 0]
        return variance + (loading * solved).sum(axis=-1)

    def apply(self, move: Move) -> None:
        self.tried = self.tried | set(move.runs)
        for value, seed in move.runs:
            self.taken[seed].add(value)
        seeds = {seed for _, seed in move.runs}
        for seed in seeds:
            sums = Sums.of(np.log([v for v, s in move.runs if s == seed]) - self.belief.centre)
            self.groups[seed] = self.groups[seed] + sums if seed in self.groups else sums
        self.variance, self.shape = move.variance, move.shape
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
        low, high = max(b.low, b.centre - b.reach[0] - b.step / 2), min(b.high, b.centre + b.reach[1] + b.step / 2)
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
        counts = (SIX, 5, 4, 3) if many and not used else (1, 2, 3, 4)
        for count in counts:
            if len(used) + count < self.fewest or len(near) < count:
                continue
            if count > 4:
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
            rest = sum((s.scatter for k, s in self.groups.items() if k != seed), np.zeros((POWERS, POWERS)))
            sums = Sums.of(self.log[picked] - self.belief.centre)
            if seed in self.groups:
                sums = sums + self.groups[seed]
            total = sums.scatter + rest
            own = self._variance(total)
            shape = shape_terms(total, self.terms, self.belief.curvature / self.belief.noise) if self.terms else None
            after = self._error(own, shape)
            at, size = int(np.argmin(after)), picked.shape[1]
            if not np.isfinite(after[at]):
                continue
            now = float(self._error(self.variance, self.shape)) if math.isfinite(self.variance) else math.inf
            gain = math.log(now / after[at]) / size if math.isfinite(now) else 1 / (after[at] * size)
            if gain > score:
                runs = tuple((self.values[i], seed) for i in picked[at])
                if not self.tried.intersection(runs):
                    best, score = Move(self.cell.name, self._kind(runs, used), runs, size * self.cell.flops, float(own[at]),
                                       (shape[0][at], shape[1][at]) if shape else None), gain  # fmt: skip
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
