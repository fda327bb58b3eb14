"""`sweep.strategy=halving`: the points of a slice that cannot win are stopped on the way (sweeps/stopping.py says which).

A slice is a cut of sweeps/extend.py: members that differ only in a tuned key and in seed. All of its points pause at each
rung, a share of the run; then it is decided which are stopped for good, marked `pruned`, and the others go on from their
checkpoints. A point that lies in several slices is stopped only where none of them needs it; one that lies in a slice of
at most `sweep.keep` values is never stopped, and never pauses.

The cheapest slices, up to REFERENCES of the FLOPs of their key and schedule, are trained in full: their optima tell how far
those of the others may still move.

Decisions follow from the curves up to the rung and from those slices alone, so that a launch that was killed comes to the
same. A rung that any point of a slice has passed is decided.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from harness.config import Config, SweepConfig
from harness.errors import UserError
from harness.files import read_json
from harness.rundir import finished
from sweeps.expand import Member, describe
from sweeps.extend import SEEDS, Cut, cuts, target_keys
from sweeps.plan import Plan, make_plan
from sweeps.prune import prune
from sweeps.status import FAILED, RunState, read_states
from sweeps.text import count_noun, quantity

REFERENCES = 0.1
WINDOW = 0.05  # of the run: the training loss at a rung is the mean over so much before it
LEAST_KEPT = 3  # values that have a quadratic


def check(config: Config) -> None:
    """Raises UserError for what cannot be."""
    sweep = config.sweep
    if sweep.strategy != "halving":
        usual = SweepConfig()
        for key in ("rungs", "risk", "keep"):
            if getattr(sweep, key) != getattr(usual, key):
                raise UserError(f"sweep.{key} says how sweep.strategy=halving stops points; the strategy is "
                                f"{sweep.strategy}.")  # fmt: skip
        return
    if config.launcher.name == "slurm":
        raise UserError("sweep.strategy=halving decides between stretches of training, for which launcher=slurm does not\n"
                        "wait: say launcher=local inside an allocation, launcher=ray, or sweep.strategy=grid.")  # fmt: skip
    rungs = sweep.rungs
    if not rungs or not all(0 < a < b for a, b in zip(rungs, [*rungs[1:], 1.0], strict=True)):
        raise UserError(f"sweep.rungs={rungs} must be shares of the run, above 0, ascending, below 1: [0.25,0.5].")
    if not 0 < sweep.risk < 1:
        raise UserError(f"sweep.risk={sweep.risk:g} is a chance: it must be above 0 and below 1.")
    if sweep.keep < LEAST_KEPT:
        raise UserError(f"sweep.keep={sweep.keep} must be at least {LEAST_KEPT}: an optimum is fitted to so many values.")


@dataclass(frozen=True)
class Group:
    """Slices that share points, and are decided together. `pausing`: the members that may be stopped."""

    cuts: tuple[Cut, ...]
    pausing: tuple[Member, ...]


class Halving:
    """The halving of one sweep (`planned`: sweeps.launch.Planned); `more` is what a launcher asks between stretches."""

    def __init__(self, planned, cache: Path):
        config, self.planned, self.cache = planned.request.config, planned, cache
        self.settings, self.lease_seconds = config.sweep, config.launcher.lease_seconds
        self.curve_points, self.runs_dir = config.curve_points, planned.plan.runs_dir
        self.all = cuts(planned.members, target_keys(config.sweep.extend_target))
        self.references = _references(self.all)
        self.groups = self._groups()
        self.decided: dict[int, int] = {}  # group -> rungs decided by this process
        self.asked: set[tuple[str, int | None]] = set()  # (run id, step) that a launcher was given
        self.shifts: dict[int, list] = {}  # rung -> ((key, schedule), shift or None) of every reference
        self.said = False

    def _groups(self) -> list[Group]:
        """Open slices joined through the points they share."""
        shut = [c for i, c in enumerate(self.all) if i in self.references or len(c.values) <= self.settings.keep]
        open_ = [c for i, c in enumerate(self.all) if i not in self.references and len(c.values) > self.settings.keep]
        bound = {m.point.id for c in shut for m in c.members}
        joined: list[tuple[set[str], list[Cut]]] = []
        for cut in open_:
            ids = {m.point.id for m in cut.members} - bound
            near = [entry for entry in joined if entry[0] & ids]
            joined = [entry for entry in joined if entry not in near]
            joined.append((ids.union(*(e[0] for e in near)), [c for e in near for c in e[1]] + [cut]))
        groups = []
        for ids, members in joined:
            found = {m.point.id: m for cut in members for m in cut.members if m.point.id in ids}
            if found:
                groups.append(Group(tuple(members), tuple(found.values())))
        return groups

    # ---- what a launcher asks

    def begin(self) -> Plan:
        """The plan of the sweep, paused at the next rungs, its notes saying what may be saved."""
        plan, until = self.planned.plan, {}
        stages = [self._stage(k, plan.states) for k in range(len(self.groups))]
        for group, stage in zip(self.groups, stages, strict=True):
            until |= self._until(group, stage)
        self.asked |= {(p.id, until.get(p.id)) for p in plan.left}
        open_ = [g for g, stage in zip(self.groups, stages, strict=True) if stage < len(self.settings.rungs)]
        return replace(plan, until=until, notes=(*plan.notes, *self._outlook(open_)))

    def more(self) -> Plan | None:
        """What goes on now, after the decisions that can be made; a plan of nothing but notes at the end; then None."""
        if self.said:
            return None
        notes, until, members, pruned = [], {}, [], []
        self.shifts = {}
        states = self._states()
        for k, group in enumerate(self.groups):
            stage = self._stage(k, states)
            if stage < len(self.settings.rungs) and self._all_there(group, stage, states):
                reasons, lines = self._decide(group, stage)
                stopped = [m for m in group.pausing if m.point.id in reasons
                           and prune(self.runs_dir, m.point, reasons[m.point.id], self.lease_seconds)]  # fmt: skip
                pruned += [m.point.id for m in stopped if states[m.point.id].status != "pruned"]
                notes += lines if stopped else []
                self.decided[k] = stage = stage + 1
            until |= self._until(group, stage)
            members += group.pausing
        states = self._states()
        # What failed was tried often enough; what another launch trains now is waited for.
        going = [m for m in members if states[m.point.id].left and states[m.point.id].status not in FAILED
                 and (states[m.point.id].status == "running"
                      or (m.point.id, until.get(m.point.id)) not in self.asked)]  # fmt: skip
        self.asked |= {(m.point.id, until.get(m.point.id)) for m in going}
        if not going:
            self.said, notes = True, [*notes, *self._account(states)]
        config, old = self.planned.request.config, self.planned.plan
        plan = make_plan([m.point for m in going], old.runs_dir, config.launcher, self.cache, old.device, config.micro_batch,
                         old.name, rates=old.rates or None, probe=False, keep_pruned=True, share=False)  # fmt: skip
        return replace(plan, until=until, notes=tuple(notes), pruned=tuple(pruned))

    # ---- where the groups are

    def _states(self) -> dict[str, RunState]:
        points = [m.point for group in self.groups for m in group.pausing]
        return read_states(points, self.runs_dir, self.lease_seconds, self.cache)

    def _steps(self, member: Member) -> list[int]:
        """Steps of the rungs: on marks of the curve, whose rows stay as they are once the run goes on."""
        steps, marks = member.point.steps, min(self.curve_points, member.point.steps)
        found = [round(max(round(share * marks), 1) * steps / marks) for share in self.settings.rungs]
        return [min(max(step, 1), steps - 1) for step in found]

    def _stage(self, k: int, states: dict[str, RunState]) -> int:
        """How many rungs are decided: as far as this process knows, or any point has passed."""
        stage = self.decided.get(k, 0)
        for member in self.groups[k].pausing:
            state = states[member.point.id]
            step = member.point.steps if state.status == "done" else state.step
            if state.status not in ("pruned", "diverged", "damaged"):
                stage = max(stage, sum(step > rung for rung in self._steps(member)))
        return stage

    def _until(self, group: Group, stage: int) -> dict[str, int]:
        if stage >= len(self.settings.rungs):
            return {}
        return {m.point.id: self._steps(m)[stage] for m in group.pausing}

    def _all_there(self, group: Group, stage: int, states: dict[str, RunState]) -> bool:
        """Whether all points that still train are at the rung. One that failed, or could not be brought so far, is not
        waited for."""
        for member in group.pausing:
            state, rung = states[member.point.id], self._steps(member)[stage]
            tried = (member.point.id, rung) in self.asked and state.status != "running"
            if state.left and state.status not in FAILED and not tried and not (state.paused and state.step >= rung):
                return False
        return True

    # ---- deciding

    def _decide(self, group: Group, stage: int) -> tuple[dict[str, dict], list[str]]:
        """({run id: reason} of the points to stop at rung `stage`, a line for each slice that loses some)."""
        losing: dict[str, list[tuple[Cut, dict]]] = defaultdict(list)
        for cut in group.cuts:
            for run_id, reason in self._judge(cut, stage).items():
                losing[run_id].append((cut, reason))
        containing = Counter(i for cut in group.cuts for i in {m.point.id for m in cut.members})
        pausing = {m.point.id for m in group.pausing}
        reasons = {i: found[0][1] for i, found in losing.items() if i in pausing and len(found) == containing[i]}
        lines = []
        for cut in group.cuts:
            values = sorted({m.values[cut.key] for m in cut.members if m.point.id in reasons})
            if values:
                share = self.settings.rungs[stage]
                said = next(reasons[m.point.id]["message"] for m in cut.members if m.point.id in reasons)
                lines.append(f"{_where(cut)}: at {share:.0%} {cut.key}={', '.join(f'{v:.4g}' for v in values)} stopped "
                             f"({said.partition(';')[2].strip()})")  # fmt: skip
        return reasons, lines

    def _judge(self, cut: Cut, stage: int) -> dict[str, dict]:
        import numpy as np  # here: `status` does without

        from sweeps.stopping import judge, noise_of

        share = self.settings.rungs[stage]
        losses = {m.point.id: self._loss_at(m, stage) for m in cut.members}
        rows = [(v, [losses[m.point.id] for m in cut.members if m.values[cut.key] == v]) for v in cut.values]
        rows = [(v, [x for x in row if x is not None]) for v, row in rows]
        rows = [(v, row) for v, row in rows if row]
        if len(rows) <= self.settings.keep or not any(math.isfinite(sum(row)) for _, row in rows):
            return {}
        values, mean = [v for v, _ in rows], np.array([sum(row) / len(row) for _, row in rows])
        risk = self.settings.risk / len(self.settings.rungs)
        verdict = judge(np.log(values), mean, noise_of([row for _, row in rows]), share, self._belief(cut, stage), risk,
                        self.settings.keep)  # fmt: skip
        best, found = int(mean.argmin()), {}
        for value, loss, stopped in zip(values, mean, verdict.stopped, strict=True):
            for m in cut.members if stopped else ():
                if m.values[cut.key] == value and finished(self.runs_dir / m.point.id) in (None, "pruned"):
                    step = self._steps(m)[stage]
                    message = (f"{loss - mean[best]:.3g} nats behind {cut.key}={values[best]:.4g} after {step} of "
                               f"{m.point.steps} steps; risk {max(verdict.risk, 1e-4):.2g}")  # fmt: skip
                    found[m.point.id] = {"type": "pruned", "message": message, "step": step}
        return found

    def _belief(self, cut: Cut, stage: int):
        """How far optima move: the prior, and what the references of the same key and schedule showed. Another slice that
        happens to be finished does not count: it was not when an earlier launch decided."""
        from sweeps.stopping import PRIOR

        if stage not in self.shifts:
            self.shifts[stage] = [(_kind(self.all[i]), self._shift(self.all[i], stage)) for i in sorted(self.references)]
        return PRIOR.updated([s for kind, s in self.shifts[stage] if kind == _kind(cut) and s is not None])

    def _shift(self, cut: Cut, stage: int) -> float | None:
        """How far the optimum of a slice moved from a rung to the end; None where that is not known."""
        import numpy as np

        from sweeps.stopping import moved

        end = self._profile(cut, self._end)
        rung = end and self._profile(cut, lambda m: self._loss_at(m, stage))
        if not rung:
            return None
        return moved(np.log(cut.values), np.array(list(rung.values())), np.array(list(end.values())),
                     self.settings.rungs[stage])  # fmt: skip

    def _profile(self, cut: Cut, loss: Callable[[Member], float | None]) -> dict[float, float] | None:
        """Mean loss at each value; None where any is not known."""
        found: dict[float, list[float]] = {value: [] for value in cut.values}
        for m in cut.members:
            if (one := loss(m)) is None:
                return None
            found[m.values[cut.key]].append(one)
        return {value: sum(row) / len(row) for value, row in found.items()}

    def _end(self, member: Member) -> float | None:
        """The loss of a finished run, infinite where it diverged."""
        run_dir = self.runs_dir / member.point.id
        status = finished(run_dir)
        if status == "diverged":
            return math.inf
        return (read_json(run_dir / "result.json") or {}).get("loss") if status == "done" else None

    def _loss_at(self, member: Member, stage: int) -> float | None:
        """Training loss at a rung, smoothed; infinite where the run diverged before; None where it was stopped before, or
        its curve cannot be read."""
        run_dir, step = self.runs_dir / member.point.id, self._steps(member)[stage]
        found = loss_at(run_dir, step, WINDOW * member.point.steps)
        return math.inf if found is None and finished(run_dir) == "diverged" else found

    # ---- what is said

    def _outlook(self, groups: list[Group]) -> list[str]:
        """`groups`: those of which points may still be stopped."""
        if not self.groups:
            return [f"halving: no slice has more than sweep.keep={self.settings.keep} values, so nothing can be stopped"]
        if not groups:
            return ["halving: all slices are past their last rung, so nothing more can be stopped"]
        open_ = [cut for group in groups for cut in group.cuts]
        keys = ", ".join(sorted({cut.key for cut in open_}))
        total = sum(m.point.flops for m in self.planned.members)
        most = min(self._most(groups, key) for key in sorted({cut.key for cut in open_})) / total
        rungs = ", ".join(f"{share:.0%}" for share in self.settings.rungs)
        lines = [f"halving: {count_noun(len(open_), 'slice')} of {keys}, decided at {rungs} of the run; saves at most "
                 f"{most:.0%} of the FLOPs,",
                 f"  at a risk of {self.settings.risk:g} for each slice that its best value or a neighbour of it is stopped"]
        if self.references:
            lines.append(f"  {count_noun(len(self.references), 'slice')}, the cheapest, in full: to tell how optima move")
        if full := len(self.all) - len(self.references) - len(open_):
            lines.append(f"  {count_noun(full, 'slice')} more in full: at most {self.settings.keep} values, or past "
                         "the last rung")  # fmt: skip
        return lines

    def _most(self, groups: list[Group], key: str) -> float:
        """FLOPs saved if only `keep` values of each slice of a key went beyond the first rung."""
        saved, pausing = 0.0, {m.point.id for group in groups for m in group.pausing}
        for cut in (cut for group in groups for cut in group.cuts if cut.key == key):
            costs = [sum(m.point.flops for m in cut.members if m.values[key] == v and m.point.id in pausing)
                     for v in cut.values]  # fmt: skip
            saved += sum(sorted(costs)[self.settings.keep :]) * (1 - self.settings.rungs[0])
        return saved

    def _account(self, states: dict[str, RunState]) -> list[str]:
        members = [m for group in self.groups for m in group.pausing if states[m.point.id].status == "pruned"]
        if not members:
            return ["halving: no point was stopped"] if self.groups else []
        total = sum(m.point.flops for m in self.planned.members)
        saved = sum(m.point.flops * (1 - states[m.point.id].step / m.point.steps) for m in members)
        return [f"halving: {count_noun(len(members), 'point')} of {len(self.planned.members):,} stopped, "
                f"{quantity(saved, 'FLOP')} ({saved / total:.0%}) saved; sweep.strategy=grid would finish them"]  # fmt: skip


def chained(halving: Halving, extension: Callable[[], Plan | None] | None) -> Callable[[], Plan | None]:
    """`more` of a launch: halving until it has nothing to do, then the extension of the grid."""
    def more() -> Plan | None:
        plan = halving.more()
        if plan is not None and plan.points or extension is None:
            return plan
        further = extension()
        if plan is None or further is None:
            return further or plan
        return replace(further, notes=plan.notes + further.notes, pruned=plan.pruned)

    return more


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


def _references(found: list[Cut]) -> set[int]:
    """Indices of the slices that are trained in full."""
    kinds: dict[tuple, list[int]] = defaultdict(list)
    for i, cut in enumerate(found):
        kinds[_kind(cut)].append(i)
    chosen = set()
    for indices in kinds.values():
        costs = sorted((_flops(found[i].members), i) for i in indices)
        room = REFERENCES * sum(cost for cost, _ in costs)
        for cost, i in costs:
            room -= cost
            if room < 0:
                break
            chosen.add(i)
    return chosen


def _kind(cut: Cut) -> tuple[str, str]:
    """Slices of one kind: their optima move alike."""
    return cut.key, cut.members[0].point.schedule.name


def _flops(members: Iterable[Member]) -> int:
    return sum(m.point.flops for m in members)


def _where(cut: Cut) -> str:
    rest = {k: v for k, v in cut.members[0].values.items() if k != cut.key and k not in SEEDS}
    return describe(rest) or "the sweep"
