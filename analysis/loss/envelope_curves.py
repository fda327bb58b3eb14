"""The lower envelope of training curves in (FLOPs, loss): which run is lowest where, and where two runs cross on it.

bins   at log-spaced FLOPs every curve is interpolated (log loss, linear in log FLOPs, never beyond its ends) and the
       lowest run is taken (Chinchilla, arXiv 2203.15556, section 3.1: 1,500 bins).
hull   the falling vertices of the lower convex hull of all checkpoints in (log FLOPs, log loss) (Gemstones, arXiv
       2502.06857, `get_resource_hull` of its code).

A winner that is the smallest or the largest model measured at its FLOPs is at the edge: a model not measured might have
won there.
"""

from dataclasses import dataclass

import numpy as np

SAME_SIZE = 1e-3


@dataclass(frozen=True)
class Curves:
    """r runs; checkpoints in order of FLOPs, without repetition."""

    names: list[str]
    size: np.ndarray  # (r,) log parameters
    excess: np.ndarray  # (r,) log of 6 N D / C
    x: list[np.ndarray]  # log FLOPs
    y: list[np.ndarray]  # log loss

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array([x[0] for x in self.x]), np.array([x[-1] for x in self.x])


@dataclass(frozen=True)
class Envelope:
    """Points on the envelope in order of FLOPs: one a bin, or the vertices of the hull."""

    x: np.ndarray  # log FLOPs
    y: np.ndarray  # log loss
    run: np.ndarray  # index
    edge: np.ndarray  # bool


@dataclass(frozen=True)
class Crossings:
    """Where the winner passes from run `left` to run `right`: there both models are as good, so that the optimum lies
    between them."""

    x: np.ndarray  # log FLOPs
    y: np.ndarray  # log loss
    left: np.ndarray
    right: np.ndarray


def sample(curves: Curves, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """(log FLOPs (b,), log loss (r, b), inf where a curve was not measured)."""
    first, last = curves.ends
    grid = np.linspace(first.min(), last.max(), bins)
    rows = [np.interp(grid, x, y, left=np.inf, right=np.inf) for x, y in zip(curves.x, curves.y, strict=True)]
    return grid, np.stack(rows)


def lowest(grid: np.ndarray, losses: np.ndarray, size: np.ndarray) -> Envelope:
    """The lowest of the curves (r, b) at every bin where one was measured."""
    known = np.isfinite(losses)
    at = np.flatnonzero(known.any(axis=0))
    run = losses[:, at].argmin(axis=0)
    low = np.where(known[:, at], size[:, None], np.inf).min(axis=0)
    high = np.where(known[:, at], size[:, None], -np.inf).max(axis=0)
    edge = (size[run] <= low + SAME_SIZE) | (size[run] >= high - SAME_SIZE)
    return Envelope(grid[at], losses[run, at], run, edge)


def hull(curves: Curves, runs: np.ndarray | None = None) -> Envelope:
    """runs: indices to use; None: all."""
    runs = np.arange(len(curves.x)) if runs is None else runs
    x, y = (np.concatenate([each[r] for r in runs]) for each in (curves.x, curves.y))
    owner = np.repeat(runs, [len(curves.x[r]) for r in runs])
    order = np.lexsort((y, x))
    corners = order[_lower_hull(x[order], y[order])]
    corners = corners[np.r_[True, np.diff(y[corners]) < 0]]
    first, last = (ends[runs] for ends in curves.ends)
    there = (first[:, None] <= x[corners] + 1e-9) & (last[:, None] >= x[corners] - 1e-9)
    sizes, own = curves.size[runs][:, None], curves.size[owner[corners]]
    low, high = np.where(there, sizes, np.inf).min(axis=0), np.where(there, sizes, -np.inf).max(axis=0)
    edge = (own <= low + SAME_SIZE) | (own >= high - SAME_SIZE)
    return Envelope(x[corners], y[corners], owner[corners], edge)


def _lower_hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the lower convex hull of points sorted by (x, y) (Andrew's monotone chain)."""
    corners: list[int] = []
    a, b = x.tolist(), y.tolist()
    for i in range(len(a)):
        if corners and a[i] == a[corners[-1]]:
            continue
        while len(corners) > 1:
            j, k = corners[-1], corners[-2]
            if (a[j] - a[k]) * (b[i] - b[k]) - (b[j] - b[k]) * (a[i] - a[k]) > 0:
                break
            corners.pop()
        corners.append(i)
    return np.array(corners)


def crossings(e: Envelope, curves: Curves) -> Crossings:
    """Every change of the winner to a model of another size, both measured on either side of it; two runs that cross
    again and again cross once, at the mean."""
    change = np.flatnonzero(e.run[1:] != e.run[:-1])
    left, right = e.run[change], e.run[change + 1]
    first, last = curves.ends
    both = (first[right] <= e.x[change] + 1e-9) & (last[left] >= e.x[change + 1] - 1e-9)
    both &= np.abs(curves.size[left] - curves.size[right]) > SAME_SIZE
    change, left, right = change[both], left[both], right[both]
    x, y = (e.x[change] + e.x[change + 1]) / 2, (e.y[change] + e.y[change + 1]) / 2
    if not len(x):
        return Crossings(x, y, left, right)
    pairs = np.minimum(left, right) * len(curves.x) + np.maximum(left, right)
    _, at, code, count = np.unique(pairs, return_index=True, return_inverse=True, return_counts=True)
    x, y = (np.bincount(code.ravel(), each) / count for each in (x, y))
    order = np.argsort(x)
    return Crossings(x[order], y[order], left[at][order], right[at][order])
