"""Common prefixes of training runs: which points share a trunk, up to which step (a trie over their steps).

Two points are in the same state after t steps where all that acts on it agrees: model, multipliers, optimizer constants,
data and its order, seeds, precision, and in each of the t steps the numbers that the step takes (harness/hyper.py, as
float32) and the batch. The schedules' kinds, lengths and names do not count: a wsd run is a constant one until it cools.

Steps are compared by chained digests of blocks and, inside the first block that differs, number by number.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from heapq import heapify, heappop, heappush

import numpy as np

from harness.hyper import rates
from harness.point import SCHEMA, DataSpec, OptimizerSpec, Point, ValidationSpec, acting_multipliers
from harness.schedule import shares

BLOCK = 512  # steps of one digest
CHUNK = 32 * BLOCK  # steps that are computed at a time for digests
Price = Callable[[Point, int, int], float]  # (point, from step, to step) -> what training that costs


@dataclass(frozen=True)
class Trunk:
    """The first `steps` steps of at least two points, trained once, from where `parent` ends (None: from the beginning).

    point: one of those that pass through it. validate_at: the steps up to `steps` at which any of them validates.
    """

    id: str
    steps: int
    parent: str | None
    point: Point
    validate_at: tuple[int, ...]


@dataclass(frozen=True)
class Forest:
    """Trunks by id, parents before their children, and for each point (by id) the trunk that it begins from.

    start: absent where a point trains from its beginning. root: the first trunk on the way to `start`, also where the
    way begins at a finished one: the points of one root share a beginning. finished: trunks that are there already.
    """

    points: tuple[Point, ...]
    trunks: dict[str, Trunk]
    start: dict[str, str]
    root: dict[str, str]
    finished: frozenset[str]

    def cost(self, price: Price) -> float:
        """Of all trunks that are to be trained, and of what the points train behind theirs."""
        steps = {None: 0, **{t.id: t.steps for t in self.trunks.values()}}
        trunks = sum(price(t.point, steps[t.parent], t.steps) for t in self.trunks.values() if t.id not in self.finished)
        return trunks + sum(price(p, steps[self.start.get(p.id)], p.steps) for p in self.points)

    def saved(self, price: Price) -> float:
        """Against training each point alone."""
        return sum(price(p, 0, p.steps) for p in self.points) - self.cost(price)

    @property
    def steps_saved(self) -> int:
        return self.saved(steps_between)

    @property
    def flops_saved(self) -> int:
        return self.saved(flops_between)


def steps_between(point: Point, start: int, stop: int) -> int:
    return stop - start


def flops_between(point: Point, start: int, stop: int) -> int:
    return point.flops_at(stop) - point.flops_at(start)


def share(
    points: Sequence[Point],
    least: float = 0.0,
    price: Price = steps_between,
    known: Mapping[str, tuple[int, Collection[int]]] | None = None,
) -> Forest:
    """The trunks of `points`: every common beginning of two or more, as long as it is common.

    least: what a trunk must save, in units of `price` (seconds, say), to be worth its job and its checkpoint; one that
    does not is left out, and what it would have carried begins at the trunk before it.
    known: id -> (steps, steps at which it validated) of finished trunks that are there. One serves a single point too,
    and is trained again only where two points need validations that it lacks.
    Points of equal id count once. A point that ends where others go on begins from a trunk at its last step, and has
    nothing left to train.
    """
    unique = list({point.id: point for point in points}.values())
    classes = defaultdict(list)
    for point in unique:
        classes[_constants(point)].append(point)
    nodes = []
    for members in classes.values():
        grown = _grow(members, known or {})
        _prune(grown)
        _merge(grown, least, price)
        nodes += [node for node in grown[1:] if not node.gone]
    trunks, start, root = {}, {}, {}
    for node in nodes:
        parent = None if node.finished or not node.parent.steps else node.parent.id
        trunks[node.id] = Trunk(node.id, node.steps, parent, node.point, tuple(sorted(node.validates())))
        for point in node.points:
            start[point.id], root[point.id] = node.id, node.root().id
    return Forest(tuple(unique), trunks, start, root, frozenset(node.id for node in nodes if node.finished))


def prefix_id(point: Point, steps: int) -> str:
    """16 hex digits: equal for points that are in the same state after `steps` steps. ValueError beyond the last one."""
    if not 0 <= steps <= point.steps:
        raise ValueError(f"{point.id} has {point.steps} steps, asked for {steps}")
    return hashlib.sha256(_constants(point) + _path(point).digest(steps)).hexdigest()[:16]


def _constants(point: Point) -> bytes:
    """What acts in every step, as bytes. Validation sequences too: a branch takes over what its trunk has measured."""
    optimizer = {k: v for k, v in vars(point.optimizer).items() if k not in ("lr", "weight_decay", "weight_decay_mode")}
    numbers = [SCHEMA, vars(point.shape), optimizer, point.data.fingerprint, point.data.seed, point.seed,
               point.precision, point.validation.sequences]  # fmt: skip
    return (json.dumps(numbers, sort_keys=True) + acting_multipliers(point.shape, point.parameterization)).encode()


# ---- steps


class _Path:
    """A point's steps: the numbers that each takes, bias corrections aside, which follow from constants and the step."""

    def __init__(self, point: Point):
        self.point, self.steps = point, point.steps
        self.table = point.rules
        self._digests: dict[int, np.ndarray] = {}

    def numbers(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Steps start ... stop-1, as far as there are: share of the peak, float64, and sequences, int64."""
        stop = min(stop, self.steps)
        return shares(self.point.schedule, self.steps, start, stop), self.point.batches(start, stop)

    def rows(self, block: int) -> np.ndarray:
        """The steps of a block as they are compared, uint32 (at most BLOCK, numbers of a step)."""
        return _rows_of(self, block)

    def digests(self, chunk: int) -> np.ndarray:
        """Of the whole blocks in a chunk, uint64 (at most CHUNK / BLOCK, 2)."""
        if chunk not in self._digests:
            numbers = self.numbers(chunk * CHUNK, (chunk + 1) * CHUNK)
            self._digests[chunk] = _digests(self.point.optimizer, self.table, *(x.tobytes() for x in numbers))
        return self._digests[chunk]

    def digest(self, steps: int) -> bytes:
        """Of the first `steps` steps."""
        blocks, rest = divmod(steps, BLOCK)
        whole = b"".join(self.digests(chunk).tobytes() for chunk in range(-(-steps // CHUNK)))[: 16 * blocks]
        return whole + (_digest(self.rows(blocks)[:rest]) if rest else b"")


@lru_cache(maxsize=4096)
def _path_of(point: Point) -> _Path:
    return _Path(point)


def _path(point: Point) -> _Path:
    """The same for points that differ only in seed, data, validation or precision."""
    nowhere = DataSpec("", "", "", 0, None)
    return _path_of(replace(point, seed=0, data=nowhere, validation=ValidationSpec(0, ()), precision=""))


@lru_cache(maxsize=512)  # 20 MB; points that differ in their seed alone ask for the same
def _rows_of(path: _Path, block: int) -> np.ndarray:
    return _rows(path.point.optimizer, path.table, *path.numbers(block * BLOCK, (block + 1) * BLOCK))


def _rows(optimizer: OptimizerSpec, table: tuple, share: np.ndarray, batches: np.ndarray) -> np.ndarray:
    numbers = rates(optimizer, table, share).view(np.uint32)
    return np.concatenate([numbers, batches.view(np.uint32).reshape(-1, 2)], axis=1)


@lru_cache(maxsize=64)  # constant stretches, of which sweeps are full, are worked out once
def _digests(optimizer: OptimizerSpec, table: tuple, share: bytes, batches: bytes) -> np.ndarray:
    rows = _rows(optimizer, table, np.frombuffer(share), np.frombuffer(batches, np.int64))
    whole = [_digest(rows[i : i + BLOCK]) for i in range(0, len(rows) // BLOCK * BLOCK, BLOCK)]
    return np.frombuffer(b"".join(whole), np.uint64).reshape(-1, 2)


def _digest(rows: np.ndarray) -> bytes:
    return hashlib.blake2b(rows.tobytes(), digest_size=16).digest()


def _common(paths: list[_Path], start: int) -> int:
    """Steps in which all paths agree; they do in the first `start`."""
    paths = list(dict.fromkeys(paths))
    agreed = min(path.steps for path in paths)
    if len(paths) == 1:
        return agreed
    if start == 0 and (here := _in_block(paths, 0, agreed)) < min(BLOCK, agreed):  # most part at once, or much later
        return here
    for chunk in range(start // CHUNK, agreed // CHUNK + 1):
        found = [path.digests(chunk) for path in paths]
        n = min(map(len, found))
        digests = np.stack([x[:n] for x in found])
        differ = (digests != digests[0]).any(axis=(0, 2))
        block = _first(differ)
        if block < CHUNK // BLOCK:
            each = {x[block].tobytes() if len(x) > block else path: path for x, path in zip(found, paths, strict=True)}
            return _in_block(list(each.values()), chunk * (CHUNK // BLOCK) + block, agreed)
    return agreed


def _in_block(paths: list[_Path], block: int, agreed: int) -> int:
    """The first step of the block in which paths differ, or its end, at most `agreed`."""
    n = min(agreed - block * BLOCK, BLOCK)
    first, *others = [path.rows(block)[:n] for path in paths]
    return block * BLOCK + min([_first((first != rows).any(axis=1)) for rows in others], default=n)


def _first(true: np.ndarray) -> int:
    return int(true.argmax()) if true.any() else len(true)


# ---- the trie of points whose constants agree


@dataclass(eq=False)
class _Node:
    """A trunk to be, or the beginning (0 steps). `nodes` and `points` begin from it.

    measured: where a finished trunk of this id validated; finished: whether that one is used as it is; gone: left out.
    """

    id: str
    steps: int
    point: Point
    parent: _Node | None
    nodes: list[_Node] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    measured: Collection[int] | None = None
    finished: bool = False
    gone: bool = False

    def add(self, point: Point, steps: int, name: str, measured: Collection[int] | None = None) -> _Node:
        """A new node behind this one."""
        self.nodes.append(_Node(name, steps, point, self, measured=measured))
        return self.nodes[-1]

    @property
    def users(self) -> int:
        return len(self.nodes) + len(self.points)

    def validates(self) -> set[int]:
        """Steps up to this one's at which any point behind it validates, other than behind a finished trunk."""
        found, stack = set(), [self]
        while stack:
            node = stack.pop()
            found.update(step for point in node.points for step in point.validation_steps)
            stack += node.nodes
        return {step for step in found if step <= self.steps}

    def root(self) -> _Node:
        """The first trunk on the way here."""
        top = node = self
        while node := node.parent:
            top = top if node.gone or not node.steps else node
        return top

    def hand_over(self, nodes: list[_Node], points: list[Point]) -> None:
        """Let `nodes` and `points`, which begin from this one, begin from its parent."""
        for node in nodes:
            node.parent = self.parent
        self.parent.nodes += nodes
        self.parent.points += points
        self.nodes = [node for node in self.nodes if node.parent is self]
        moved = {point.id for point in points}
        self.points = [point for point in self.points if point.id not in moved]

    def leave_out(self) -> None:
        self.parent.nodes.remove(self)
        self.hand_over(self.nodes, self.points)
        self.gone = True


def _grow(points: list[Point], known: Mapping[str, tuple[int, Collection[int]]]) -> list[_Node]:
    """The beginning, then a node wherever points part or one of them ends, and at each known prefix; parents first."""
    nodes = [_Node("", 0, points[0], None)]
    at = sorted({steps for steps, _ in known.values()})
    paths = {point.id: _path(point) for point in points}
    stack = [(points, nodes[0])]
    while stack:
        group, parent = stack.pop()
        end = _common([paths[point.id] for point in group], parent.steps)
        for steps in at[bisect_right(at, parent.steps) : bisect_right(at, end)]:
            if (name := prefix_id(group[0], steps)) in known:
                parent = parent.add(group[0], steps, name, known[name][1])
                nodes.append(parent)
        if len(group) == 1:
            parent.points += group
            continue
        if end > parent.steps:
            parent = parent.add(group[0], end, prefix_id(group[0], end))
            nodes.append(parent)
        branches = defaultdict(list)
        for point in group:
            if point.steps == end:
                parent.points.append(point)
            else:
                branches[paths[point.id].rows(end // BLOCK)[end % BLOCK].tobytes()].append(point)
        stack += [(branch, parent) for branch in branches.values()]
    return nodes


def _prune(nodes: list[_Node]) -> None:
    """Use finished trunks where they have measured what is asked of them, then drop what serves nobody or one alone."""
    for node in reversed(nodes[1:]):
        if node.measured is not None:
            lacks = [n for n in node.nodes if not {s for s in n.validates() if s <= node.steps} <= set(node.measured)]
            points = [p for p in node.points
                      if not {s for s in p.validation_steps if s <= node.steps} <= set(node.measured)]  # fmt: skip
            if len(lacks) + len(points) < 2:
                node.hand_over(lacks, points)
                node.finished = node.users > 0
        if node.finished:
            node.parent.nodes.remove(node)
        elif node.users < 2:
            node.leave_out()


def _merge(nodes: list[_Node], least: float, price: Price) -> None:
    """Leave out trunks that save less than `least`, the least first; that of the others only grows by it."""

    def saves(node: _Node) -> float:
        return (node.users - 1) * price(node.point, node.parent.steps, node.steps)

    heap = [(saves(node), i) for i, node in enumerate(nodes) if node.steps and not (node.finished or node.gone)]
    heapify(heap)
    while heap:
        before, i = heappop(heap)
        now = saves(nodes[i])
        if now < least and now > before:
            heappush(heap, (now, i))
        elif now < least:
            nodes[i].leave_out()
