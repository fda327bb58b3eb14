"""Large slices: runs at the same tuned value averaged in groups of equal size, so that a million rows fit in seconds.

Least squares of group means is that of the runs where groups are of one size, and the noise of a mean is told by the
means themselves; so optima and intervals stay, and what is lost are degrees of freedom of the noise beyond some hundreds.
Groups are of whole seeds where every seed has its run at (nearly) every value, so a seed's offset stays an offset; else
of the runs of one value, in order of their block (branches of one trunk go together). Diverged runs, and those far up the
walls, make groups of their own. Of random search the tuned values are put into bins of the log axis first, each at its
mean: the bins are far narrower than any basin; the offsets of its seeds, which no group keeps, count as noise.

Slices of SLICE rows or fewer stay as they are unless the table has more than WHOLE rows in slices.
"""

from dataclasses import replace

import numpy as np

from analysis.slices import Partition, Slice
from analysis.surface import censored

SLICE, WHOLE = 2000, 20_000  # rows fitted as they are, of a slice and of all
FEWEST = 200  # rows a slice of a large table keeps
BINS = {1: 200}  # values of one hyper-parameter, and of each of several
OTHERWISE = 30
EVEN = 0.5  # runs of the smallest group, of those of the largest, where groups are of seeds


def thin(found: Partition) -> Partition:
    """The same slices, large ones with a row for each group of runs; a note says so. Small ones are untouched."""
    rows = sum(len(s.rows) for s in found.slices)
    most = SLICE if rows <= WHOLE else min(SLICE, max(WHOLE // len(found.slices), FEWEST))
    slices = [_thinned(s, most) if len(s.rows) > most else s for s in found.slices]
    left = sum(len(s.rows) for s in slices)
    if left == rows:
        return found
    line = f"{rows} rows are many: runs at the same value were averaged in groups, {left} means are fitted and counted."
    return Partition(slices, [*found.notes, line])


def _thinned(s: Slice, most: int) -> Slice:
    kind = np.where(s.diverged | ~np.isfinite(s.loss), 2, censored(s.loss, s.diverged))
    x, cell = _binned(s.x)
    cell = 3 * cell + kind
    size = -(-len(cell) // most)
    seeds = _of_seeds(s, cell, kind, size)
    part = _of_runs(s, cell, size) if seeds is None else seeds
    first, group = np.unique(cell * (int(part.max()) + 1) + part, return_index=True, return_inverse=True)[1:]
    loss = np.bincount(group, np.where(kind == 2, 0.0, s.loss)) / np.bincount(group)
    loss[kind[first] == 2] = np.nan
    return replace(
        s,
        x=x[first],
        loss=loss,
        diverged=kind[first] == 2,
        seed=np.full(len(first), -1) if seeds is None else part[first],
        block=s.block[first],
        rows=s.rows[first],
        pruned=None if s.pruned is None else s.pruned[first],
    )


def _binned(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values (n, k), of random search those of the bins; codes (n,) of equal ones)."""
    columns, bins = [], BINS.get(x.shape[1], OTHERWISE)
    for column in x.T:
        values, codes = np.unique(column.round(9), return_inverse=True)
        if len(values) > bins:
            share = (column - column.min()) / np.ptp(column)
            codes = np.unique(np.minimum((bins * share).astype(int), bins - 1), return_inverse=True)[1]
            values = np.bincount(codes, column) / np.bincount(codes)
            column = values[codes]
        columns.append((column, codes))
    code = np.zeros(len(x), int)
    for _, codes in columns:
        code = np.unique(code * (int(codes.max()) + 1) + codes, return_inverse=True)[1]
    return np.stack([column for column, _ in columns], axis=1), code


def _of_seeds(s: Slice, cell: np.ndarray, kind: np.ndarray, size: int) -> np.ndarray | None:
    """(n,) codes of groups of `size` seeds, or None where seeds are unknown or miss too many values."""
    seeds = np.unique(s.seed, return_inverse=True)[1]
    count = int(seeds.max()) + 1
    if (s.seed < 0).any() or count < 2 * size:
        return None
    groups = count // size
    part = seeds * groups // count
    good = kind == 0
    cells = np.unique(cell[good], return_inverse=True)[1]
    runs = np.bincount(cells * groups + part[good], minlength=groups * (int(cells.max()) + 1)) if good.any() else [0]
    return part if min(runs) >= EVEN * max(max(runs), 1) else None


def _of_runs(s: Slice, cell: np.ndarray, size: int) -> np.ndarray:
    """(n,) codes, within each cell, of groups of about `size` rows."""
    order = np.lexsort((s.block, cell))
    cells, starts, counts = np.unique(cell[order], return_index=True, return_counts=True)
    at = np.repeat(np.arange(len(cells)), counts)
    groups = np.maximum(np.round(counts / size).astype(int), 1)
    part = np.empty(len(cell), int)
    part[order] = (np.arange(len(cell)) - starts[at]) * groups[at] // counts[at]
    return part
