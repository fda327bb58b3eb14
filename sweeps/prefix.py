"""Common beginnings of training runs: which points share a trunk, up to which step.

Where points agree is seen in paths.py, step by step; trie.py holds them by common steps. Here are the trunks that follow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from harness.point import Point
from sweeps.paths import constants, name_of, path_of, prefix_id
from sweeps.trie import Price, grow, merge, prune

__all__ = ["Forest", "Price", "Trunk", "flops_between", "prefix_id", "share", "steps_between"]


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

    start: absent where a point trains from its beginning. root: of the others `prefix_id` after the first step: points that
    share any step share that one, and what else is planned, now or in a later round, does not change it. finished: trunks
    that are there already.
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
        classes[constants(point)].append(point)
    nodes, start, root = [], {}, {}
    for fixed, members in classes.items():
        grown = grow(members, known or {})
        prune(grown)
        merge(grown, least, price)
        kept = [node for node in grown[1:] if not node.gone]
        start.update({point.id: node.id for node in kept for point in node.points})
        root.update({point.id: name_of(fixed, path_of(point), 1) for node in kept for point in node.points})
        nodes += kept
    trunks = {}
    for node in nodes:
        parent = None if node.finished or not node.parent.steps else node.parent.id
        trunks[node.id] = Trunk(node.id, node.steps, parent, node.point, tuple(sorted(node.validates())))
    return Forest(tuple(unique), trunks, start, root, frozenset(node.id for node in nodes if node.finished))
