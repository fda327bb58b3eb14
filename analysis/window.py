"""Which rows of a slice its quadratic is fitted to.

A parabola over the whole slice is the most precise where the basin is one. Basins are not: loss blows up at high LR
and levels off at high tau, which shows as a cubic term. So with window=auto the whole slice is used unless cubic terms
show, in the slice itself (F test, 1 %) or in the slices of one law together (Stouffer's sum of their z, each within
+-3, 5 %: a bend that all share moves all optima alike, and must not depend on which slice happens to show it). Then

- of one hyper-parameter the values farthest from the lowest loss are dropped, one in each such slice at a time, until
  cubic terms show no more or five values are left;
- of several the rows above 1.025 times the lowest loss are dropped, but the lowest twelve or more (two a coefficient)
  stay. Step Law's basins, published in full, give one law from 2 % to 10 %; narrower windows are mostly noise.

These are the windows of the quadratic. Where more than half of the slices of one hyper-parameter have six values or more
and cubic terms show at BENT, window=auto then takes the optima from the shape that the slices share, over all rows up to
1.10 times the lowest loss (analysis/bend.py).

window=none: always the whole slice. window=0.05: rows up to 1.05 times the lowest loss, and at least the lowest five.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis.surface import centred, monomials, pairs, told

OWN, TOGETHER = 0.01, 0.05  # significance of cubic terms in one slice, and in the slices of a law
BENT = 0.2  # significance of cubic terms in the slices of a law, for analysis/bend.py
CAP = 3.0  # no single slice decides for all
FEWEST = 5  # values that a window of one hyper-parameter keeps
JOINT = 0.025  # excess loss of a window of several, relative to the lowest


@dataclass
class Rows:
    """Rows of one slice that a quadratic may use: x (n, k) natural logs, loss (n,), seed (n,) codes, keep (n,)
    bool."""

    x: np.ndarray
    loss: np.ndarray
    seed: np.ndarray
    keep: np.ndarray

    @property
    def fewest(self) -> int:
        k = self.x.shape[1]
        return FEWEST if k == 1 else 2 * (1 + k + len(pairs(k)))

    @property
    def shrinkable(self) -> bool:
        """Whether more would stay than the fewest: values of one hyper-parameter, rows of several."""
        if self.x.shape[1] > 1:
            return int(self.keep.sum()) > self.fewest
        return len(np.unique(self.x[self.keep, 0].round(9))) > self.fewest


def choose_windows(slices: list[Rows], window: str | float = "auto") -> list[np.ndarray]:
    """(n,) bool for each slice of one law."""
    if window == "none":
        return [rows.keep for rows in slices]
    if window != "auto":
        return [lowest_rows(rows, float(window)) for rows in slices]
    slices = [Rows(rows.x, rows.loss, rows.seed, rows.keep.copy()) for rows in slices]
    open_ = [rows for rows in slices if rows.shrinkable]
    while open_:
        chances = [cubic_chance(rows) for rows in open_]
        known = np.array([chance for chance in chances if chance is not None])
        shared = bool(len(known)) and _stouffer(known) < TOGETHER
        bent = [rows for rows, p in zip(open_, chances, strict=True) if p is not None and (shared or p < OWN)]
        if not bent:
            break
        for rows in bent:
            _shrink(rows)
        open_ = [rows for rows in open_ if rows.shrinkable and rows.x.shape[1] == 1]
    return [rows.keep for rows in slices]


def share_bend(slices: list[Rows]) -> bool:
    """Whether cubic terms show in the slices of one law together, at BENT: a bend missed costs an optimum its interval,
    one looked for in vain costs a law's coefficient a little precision and its exponents none."""
    known = [chance for chance in map(cubic_chance, slices) if chance is not None]
    return bool(known) and _stouffer(np.array(known)) < BENT


def cubic_chance(rows: Rows) -> float | None:
    """Chance that cubic terms improve on the quadratic this much by luck (F test); None where too few rows tell."""
    x, loss, seed = rows.x[rows.keep], rows.loss[rows.keep], rows.seed[rows.keep]
    u = (x - x.mean(axis=0)) / np.maximum(np.ptp(x, axis=0), 1e-300)
    (without, dof2), (with_, dof3) = _rss(u, loss, seed, 2), _rss(u, loss, seed, 3)
    if dof3 < 1 or dof2 <= dof3:
        return None
    negligible = len(loss) * (1e-9 * np.abs(loss).max()) ** 2  # rounding, where a table is free of noise
    f = max(without - with_, 0.0) / (dof2 - dof3) / (max(with_, negligible) / dof3)
    return float(special.fdtrc(dof2 - dof3, dof3, f))


def _rss(u: np.ndarray, loss: np.ndarray, seed: np.ndarray, degree: int) -> tuple[float, int]:
    base = monomials(u, degree)
    codes = told(base, seed)
    matrix, y = centred(base[:, 1:], codes), centred(loss[:, None], codes)[:, 0]
    coefficients, _, rank, _ = np.linalg.lstsq(matrix, y, rcond=None)
    residual = y - matrix @ coefficients
    return float(residual @ residual), len(loss) - int(rank) - int(codes.max()) - 1


def _stouffer(chances: np.ndarray) -> float:
    z = np.clip(-special.ndtri(chances), -CAP, CAP)
    return float(special.ndtr(-z.sum() / np.sqrt(len(z))))


def _shrink(rows: Rows) -> None:
    if rows.x.shape[1] > 1:
        rows.keep = lowest_rows(rows, JOINT)
        return
    values = rows.x[:, 0].round(9)
    levels = np.unique(values[rows.keep])
    means = np.array([rows.loss[rows.keep & (values == level)].mean() for level in levels])
    distance = np.abs(levels - levels[means.argmin()]).round(6)
    far = np.flatnonzero(distance == distance.max())
    rows.keep &= values != levels[far[means[far].argmax()]]


def lowest_rows(rows: Rows, excess: float) -> np.ndarray:
    """Rows within `excess` of the lowest loss, and at least the fewest lowest."""
    loss = rows.loss[rows.keep]
    if len(loss) <= rows.fewest:
        return rows.keep
    return rows.keep & (rows.loss <= max((1 + excess) * loss.min(), np.sort(loss)[rows.fewest - 1]))
