"""Losses at the rungs of sweep.strategy=halving, and which values of a slice they stop there (by sweeps/stopping.py).

They follow from the curves up to the rung, and from slices that are trained in full: a launch that was killed comes to the
same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from harness.config import SweepConfig
from harness.rundir import finished
from sweeps.expand import Member
from sweeps.extend import Cut
from sweeps.groups import kind
from sweeps.rounds import end_loss

WINDOW = 0.05  # of the run: the training loss at a rung is the mean over so much before it


class Rungs:
    """The rungs of one sweep: `sweep.rungs` of the runs in `runs_dir`, whose curves have up to `curve_points` rows.
    `references`: indices of the slices `found` that are trained in full. A stage is the number of a rung in `sweep.rungs`,
    from 0."""

    def __init__(self, settings: SweepConfig, runs_dir: Path, curve_points: int, found: Sequence[Cut],
                 references: Collection[int]):  # fmt: skip
        self.settings, self.runs_dir, self.curve_points = settings, runs_dir, curve_points
        self.references = [found[i] for i in sorted(references)]
        self.shifts: dict[int, list] = {}  # stage -> (kind, shift or None) of every reference

    def forget(self) -> None:
        """Slices may have been trained since."""
        self.shifts = {}

    def steps(self, member: Member) -> list[int]:
        """Steps of the rungs: on marks of the curve, whose rows stay as they are once the run goes on."""
        steps, marks = member.point.steps, min(self.curve_points, member.point.steps)
        found = [round(max(round(share * marks), 1) * steps / marks) for share in self.settings.rungs]
        return [max(min(step, steps - 1), 1) for step in found]

    def stages(self, members: Sequence[Member]) -> list[int]:
        """Stages at which these are decided together: those before which each of them trains. Of rungs that fall on the same
        step of any member (close shares, few steps, a coarse curve) the last."""
        steps = [self.steps(m) for m in members]
        last = len(self.settings.rungs) - 1
        return [s for s in range(last + 1) if s == last or all(at[s] < at[s + 1] for at in steps)]

    def share(self, members: Sequence[Member], stage: int) -> float:
        """How much of its run the least of them has behind it at a rung: its step is a mark of the curve."""
        return min(self.steps(m)[stage] / m.point.steps for m in members)

    def judge(self, cut: Cut, stage: int, rungs: int) -> dict[str, dict]:
        """{run id: reason} of the points that this slice, for itself, would stop. `rungs`: at how many it is decided, which
        share the risk."""
        import numpy as np  # here: `status` does without

        from sweeps.stopping import judge, noise_of

        losses = {m.point.id: self._loss_at(m, stage) for m in cut.members}
        rows = [(v, [losses[m.point.id] for m in cut.members if m.values[cut.key] == v]) for v in cut.values]
        rows = [(v, [x for x in row if x is not None]) for v, row in rows]
        rows = [(v, row) for v, row in rows if row]
        if len(rows) <= self.settings.keep or not any(math.isfinite(sum(row)) for _, row in rows):
            return {}
        values, mean = [v for v, _ in rows], np.array([sum(row) / len(row) for _, row in rows])
        share, noise = self.share(cut.members, stage), noise_of([row for _, row in rows])
        verdict = judge(np.log(values), mean, noise, share, self.belief(cut, stage), self.settings.risk / rungs,
                        self.settings.keep)  # fmt: skip
        best, found = int(mean.argmin()), {}
        for value, loss, stopped in zip(values, mean, verdict.stopped, strict=True):
            for m in cut.members if stopped else ():
                if m.values[cut.key] == value and finished(self.runs_dir / m.point.id) in (None, "pruned"):
                    step = self.steps(m)[stage]
                    message = (f"{loss - mean[best]:.3g} nats behind {cut.key}={values[best]:.4g} after {step} of "
                               f"{m.point.steps} steps; risk {max(verdict.risk, 1e-4):.2g}")  # fmt: skip
                    found[m.point.id] = {"type": "pruned", "message": message, "step": step}
        return found

    def belief(self, cut: Cut, stage: int):
        """How far optima move: the prior, and what the references of the same key and schedule showed. Another slice that
        happens to be finished does not count: it was not when an earlier launch decided."""
        from sweeps.stopping import PRIOR

        if stage not in self.shifts:
            self.shifts[stage] = [(kind(other), self._shift(other, stage)) for other in self.references]
        return PRIOR.updated([s for of, s in self.shifts[stage] if of == kind(cut) and s is not None])

    def _shift(self, cut: Cut, stage: int) -> float | None:
        """How far the optimum of a slice moved from a rung to the end; None where that is not known."""
        import numpy as np

        from sweeps.stopping import moved

        end = self._profile(cut, lambda m: end_loss(self.runs_dir, m, ("diverged",)))
        rung = end and self._profile(cut, lambda m: self._loss_at(m, stage))
        share = self.share(cut.members, stage)
        if not rung or share == 1:  # of one step
            return None
        return moved(np.log(cut.values), np.array(list(rung.values())), np.array(list(end.values())), share)

    def _profile(self, cut: Cut, loss: Callable[[Member], float | None]) -> dict[float, float] | None:
        """Mean loss at each value; None where any is not known."""
        found: dict[float, list[float]] = {value: [] for value in cut.values}
        for m in cut.members:
            if (one := loss(m)) is None:
                return None
            found[m.values[cut.key]].append(one)
        return {value: sum(row) / len(row) for value, row in found.items()}

    def _loss_at(self, member: Member, stage: int) -> float | None:
        """Training loss at a rung, smoothed; infinite where the run diverged before; None where it was stopped before, or
        its curve cannot be read."""
        run_dir, step = self.runs_dir / member.point.id, self.steps(member)[stage]
        found = loss_at(run_dir, step, WINDOW * member.point.steps)
        return math.inf if found is None and finished(run_dir) == "diverged" else found


def loss_at(run_dir: Path, step: int, window: float) -> float | None:
    """Mean training loss over the `window` steps up to `step`, from curve.parquet; None where that does not reach it."""
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(Path(run_dir) / "curve.parquet", columns=["step", "train_loss"]).to_pydict()
    except (OSError, ValueError, KeyError):
        return None
    steps = columns["step"]
    if not steps or steps[-1] < step:
        return None
    rows = [row for row in zip([0, *steps], steps, columns["train_loss"], strict=False) if row[1] <= step]
    near = [(b - a, loss) for a, b, loss in rows if b > step - window] or [(1, rows[-1][2])]
    if any(loss is None for _, loss in near):
        return math.inf
    return sum(weight * loss for weight, loss in near) / sum(weight for weight, _ in near)
