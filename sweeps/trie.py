"""The trie of points whose constants agree: a node wherever they part or end, pruned to trunks that serve somebody."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from harness.point import Point
from sweeps.paths import common, constants, name_of, path_of

Price = Callable[[Point, int, int], float]  # (point, from step, to step) -> what training that costs


@dataclass(eq=False)
class Node:
    """A trunk to be, or the beginning (0 steps). `nodes` and `points` begin from it.

    measured: where a finished trunk of this id validated; finished: whether that one is used as it is; gone: left out.
    """

    id: str
    steps: int
    point: Point
    parent: Node | None
    nodes: list[Node] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    measured: Collection[int] | None = None
    finished: bool = False
    gone: bool = False

    def add(self, point: Point, steps: int, name: str, measured: Collection[int] | None = None) -> Node:
        """A new node behind this one."""
        self.nodes.append(Node(name, steps, point, self, measured=measured))
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

    def hand_over(self, nodes: list[Node], points: list[Point]) -> None:
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


def grow(points: list[Point], known: Mapping[str, tuple[int, Collection[int]]]) -> list[Node]:
    """The beginning, then a node wherever points part or one of them ends, and at each known prefix; parents first."""
    nodes, fixed = [Node("", 0, points[0], None)], constants(points[0])
    at = sorted({steps for steps, _ in known.values()})
    paths = {point.id: path_of(point) for point in points}
    stack = [(points, nodes[0])]
    while stack:
        group, parent = stack.pop()
        first, *others = dict.fromkeys(paths[point.id] for point in group)
        end = common((first, *others), parent.steps)
        for steps in at[bisect_right(at, parent.steps) : bisect_right(at, end)]:
            if (name := name_of(fixed, first, steps)) in known:
                parent = parent.add(group[0], steps, name, known[name][1])
                nodes.append(parent)
        if len(group) == 1:
            parent.points += group
            continue
        if end > parent.steps:
            parent = parent.add(group[0], end, name_of(fixed, first, end))
            nodes.append(parent)
        branches = defaultdict(list)
        for point in group:
            if point.steps == end:
                parent.points.append(point)
            else:
                branches[paths[point.id].row(end)].append(point)
        stack += [(branch, parent) for branch in branches.values()]
    return nodes


def prune(nodes: list[Node]) -> None:
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


def merge(nodes: list[Node], least: float, price: Price) -> None:
    """Leave out trunks that save less than `least`, the least first; that of the others only grows by it."""

    def saves(node: Node) -> float:
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
