"""The learning-rate history of a run: sums over steps, and drops, from LR on any grid of steps.

Between rows the LR is taken as linear in the step, so the sums below are those of the per-step definitions
(S(t) = sum of eta_k over k = 1..t) whatever the spacing of the grid, and exactly so on a grid of single steps.

A step of the schedule (two-stage, multi-step) between rows farther than one step apart is no line but a jump, and the
multi-power kernel weighs it by the LR after it: a fall alone between segments much flatter is taken as one drop
(`jumps`). Where between its rows it lies the table does not say; by convention (ours) the new LR holds from the step
after the earlier row on, as in a run whose row says the LR of its own step and which steps down after a row (where it
steps down a whole segment of 100 steps later, a planted law is 0.003 nats off 500 steps after, 0.0004 at the end of
16,000). A cooldown
that one segment spans looks alike: it is left a line where it ends the run, falls to nothing, or is longer than the
segments beside it (a table of corners).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

MOST_CUTS = 250  # rows of a history kept as ends of segments, beside the steps at which a loss is asked for
GAUSS = np.array([0.5 - 0.5 / 3**0.5, 0.5 + 0.5 / 3**0.5])  # two-point Gauss-Legendre on (0, 1)
FLAT = 1e-9  # of the peak: a smaller move of LR is none
# A jump: slopes beside it below this share of its own, a fall of at least and at most these shares of the LR, and no longer
# than this many times the segments beside it.
BESIDE, LEAST_FALL, MOST_FALL, LONGEST = 0.05, 0.05, 0.99, 2.0


@dataclass(frozen=True)
class History:
    """steps (n,) increasing from 0 on, lr (n,) at these steps."""

    steps: np.ndarray
    lr: np.ndarray

    @classmethod
    def of(cls, steps: np.ndarray, lr: np.ndarray) -> "History":
        """From rows that may begin after step 0: a history that begins by rising is continued down to step 0 (a linear
        warm-up), any other at its first value; jumps between rows become drops of one step."""
        steps, lr = np.asarray(steps, float), np.asarray(lr, float)
        if steps[0] > 0:
            rises = len(lr) > 1 and lr[1] > lr[0] * (1 + FLAT)
            slope = (lr[1] - lr[0]) / (steps[1] - steps[0]) if rises else 0.0
            steps = np.concatenate([[0.0], steps])
            lr = np.concatenate([[max(0.0, lr[0] - slope * steps[1])], lr])
        at = jumps(steps, lr)
        return cls(np.insert(steps, at + 1, steps[at] + 1), np.insert(lr, at + 1, lr[at + 1]))

    @property
    def peak(self) -> float:
        return float(self.lr.max())

    @property
    def end(self) -> float:
        return float(self.steps[-1])

    @cached_property
    def warmup(self) -> int:
        """Index of the row at which the first rise ends: 0 where there is none."""
        falls = np.flatnonzero(np.diff(self.lr) <= FLAT * self.peak)
        return int(falls[0]) if len(falls) else len(self.lr) - 1

    @cached_property
    def _sums(self) -> np.ndarray:
        n, a, b = np.diff(self.steps), self.lr[:-1], self.lr[1:]
        return np.concatenate([[0.0], np.cumsum(n * (a + b) / 2 + (b - a) / 2)])

    def at(self, steps: np.ndarray) -> np.ndarray:
        return np.interp(steps, self.steps, self.lr)

    def total(self, steps: np.ndarray) -> np.ndarray:
        """Sum of LR over the steps 1..t, for each t; t need not be whole. Beyond the last row LR stays."""
        steps = np.asarray(steps, float)
        if len(self.steps) == 1:
            return self.lr[0] * steps
        i = np.clip(np.searchsorted(self.steps, steps, side="right") - 1, 0, len(self.steps) - 2)
        slope = (self.lr[i + 1] - self.lr[i]) / (self.steps[i + 1] - self.steps[i])
        inside = np.minimum(steps, self.end) - self.steps[i]
        beyond = np.maximum(steps - self.end, 0.0) * self.lr[-1]
        return self._sums[i] + inside * self.lr[i] + slope * inside * (inside + 1) / 2 + beyond

    def cuts(self, asked: np.ndarray) -> np.ndarray:
        """Ends of the segments after warm-up over which LR is integrated: every asked step, and all rows, or MOST_CUTS
        of them spread evenly over steps, over the path of the LR and over its bends (jumps and corners keep their rows)."""
        rows, lr = self.steps[self.warmup :], self.lr[self.warmup :]
        if len(rows) > MOST_CUTS:
            slope = np.diff(lr) / np.diff(rows)
            bends = np.abs(np.diff(slope, prepend=slope[0], append=slope[-1]))
            ways = (rows - rows[0], np.cumsum(np.abs(np.diff(lr, prepend=lr[0]))), np.cumsum(bends))
            way = sum(w / (w[-1] or 1.0) for w in ways)
            chosen = np.searchsorted(way, np.linspace(0, way[-1], MOST_CUTS)).clip(0, len(rows) - 1)
            rows = rows[np.unique(np.concatenate([chosen, np.maximum(chosen - 1, 0)]))]
        inside = asked[(asked > rows[0]) & (asked <= rows[-1])]
        return np.unique(np.concatenate([rows, inside]))


def jumps(steps: np.ndarray, lr: np.ndarray) -> np.ndarray:
    """Rows (of n) after which the LR falls by a step rather than along a line (see above)."""
    n, fall = np.diff(steps), -np.diff(lr)
    slope = np.abs(fall) / n
    beside, shorter = np.maximum(slope[:-2], slope[2:]), np.minimum(n[:-2], n[2:])
    own, before = slice(1, -1), lr[1:-2]
    alone = (beside < BESIDE * slope[own]) & (n[own] > 1) & (n[own] <= LONGEST * shorter)
    return 1 + np.flatnonzero(alone & (fall[own] >= LEAST_FALL * before) & (fall[own] <= MOST_FALL * before))


@dataclass(frozen=True)
class Points:
    """Places on curves at which a law is evaluated, with all drops of LR before each, flat over (place, drop).

    total (P,) sum of LR up to each place; row (Q,) the place of each pair, rising; drop (Q,) fall of LR there; age (Q,)
    steps since it; log_lr (Q,) log LR right after it; log_area (Q,) log of the sum of LR since it, it included.
    """

    total: np.ndarray
    row: np.ndarray
    drop: np.ndarray
    age: np.ndarray
    log_lr: np.ndarray
    log_area: np.ndarray

    @classmethod
    def of(cls, history: History, steps: np.ndarray) -> "Points":
        """The drops within a segment are spread evenly over its steps a+1..b and enter at the two points of a Gauss
        rule (a segment of one step at its end)."""
        steps = np.asarray(steps, float)
        total = history.total(steps)
        cuts = history.cuts(steps)
        a, b = cuts[:-1], cuts[1:]
        drop = history.at(a) - history.at(b)
        moves = np.abs(drop) > FLAT * history.peak
        a, b, drop = a[moves], b[moves], drop[moves]
        n = (b - a)[:, None]
        when = np.where(n > 1, a[:, None] + 0.5 + n * GAUSS, b[:, None])
        row, segment = np.nonzero(steps[:, None] >= b[None, :])
        row, segment = np.repeat(row, 2), np.repeat(segment, 2)
        when = when[segment, np.tile([0, 1], len(segment) // 2)]
        lr = np.maximum(history.at(when), FLAT * history.peak)
        area = np.maximum(total[row] - history.total(when) + lr, lr)
        return cls(total, row, drop[segment] / 2, steps[row] - when, np.log(lr), np.log(area))

    @classmethod
    def join(cls, parts: list["Points"]) -> "Points":
        offset = np.concatenate([[0], np.cumsum([len(p.total) for p in parts])])
        rows = [p.row + start for p, start in zip(parts, offset, strict=False)]
        rest = {
            name: np.concatenate([getattr(p, name) for p in parts])
            for name in ("total", "drop", "age", "log_lr", "log_area")
        }
        return cls(row=np.concatenate(rows), **rest)

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Sum of values (Q,) over the drops before each place: (P,)."""
        return np.bincount(self.row, weights=values, minlength=len(self.total))

    def take(self, chosen: np.ndarray) -> "Points":
        """The places where `chosen` (P,) bool holds."""
        keep, number = chosen[self.row], np.cumsum(chosen) - 1
        rest = {name: getattr(self, name)[keep] for name in ("drop", "age", "log_lr", "log_area")}
        return Points(total=self.total[chosen], row=number[self.row[keep]], **rest)
