"""`sweep.strategy=halving`: the points of a slice that cannot win are stopped on the way (sweeps/stopping.py says which).

A slice is a cut of sweeps/extend.py: members that differ only in a tuned key and in seed. All of its points pause at each
rung, a share of the run; then it is decided which are stopped for good, marked `pruned`, and the others go on from their
checkpoints. A point that lies in several slices is stopped only where none of them needs it; one that lies in a slice of
at most `sweep.keep` values is never stopped, and never pauses.

The cheapest slices are trained in full (sweeps/groups.py): their optima tell how far those of the others may still move.
Decisions follow from the curves up to the rung and from those slices alone (sweeps/rungs.py), so that a launch that was
killed comes to the same. A rung that any unfinished point of a slice has passed is decided. Rungs that fall on one step
are one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.config import Config, SweepConfig
from harness.errors import UserError
from sweeps.extend import Cut, cuts, target_keys, where
from sweeps.groups import Group, choose_references, join
from sweeps.plan import Plan
from sweeps.prune import prune
from sweeps.rounds import plan_round
from sweeps.rungs import Rungs
from sweeps.status import FAILED, RunState, read_states
from sweeps.text import count_noun, quantity

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


class Halving:
    """The halving of one sweep (`planned`: sweeps.launch.Planned); `more` is what a launcher asks between stretches."""

    def __init__(self, planned, cache: Path):
        config, self.planned, self.cache = planned.request.config, planned, cache
        self.settings, self.lease_seconds = config.sweep, config.launcher.lease_seconds
        self.runs_dir = planned.plan.runs_dir
        self.all = cuts(planned.members, target_keys(config.sweep.extend_target))
        self.references = choose_references(self.all)
        self.groups = join(self.all, self.references, self.settings.keep)
        self.rungs = Rungs(self.settings, self.runs_dir, config.curve_points, self.all, self.references)
        self.stages = [self.rungs.stages(group.pausing) for group in self.groups]  # the rungs at which each is decided
        self.decided: dict[int, int] = {}  # group -> rungs of its own decided by this process
        self.asked: set[tuple[str, int | None]] = set()  # (run id, step) that a launcher was given
        self.said = False

    # ---- what a launcher asks

    def begin(self) -> Plan:
        """The plan of the sweep, paused at the next rungs, its notes saying what may be saved."""
        plan, until = self.planned.plan, {}
        open_ = []
        for k in range(len(self.groups)):
            passed = self._passed(k, plan.states)
            until |= self._until(k, passed)
            open_ += [k] if passed < len(self.stages[k]) else []
        self.asked |= {(p.id, until.get(p.id)) for p in plan.left}
        return replace(plan, until=until, notes=(*plan.notes, *self._outlook(open_)))

    def more(self) -> Plan | None:
        """What goes on now, after the decisions that can be made; a plan of nothing but notes at the end; then None."""
        if self.said:
            return None
        notes, until, members, pruned = [], {}, [], []
        self.rungs.forget()
        states = self._states()
        for k, group in enumerate(self.groups):
            passed = self._passed(k, states)
            if passed < len(self.stages[k]) and self._all_there(group, self.stages[k][passed], states):
                reasons, lines = self._decide(k, self.stages[k][passed])
                stopped = [m for m in group.pausing if m.point.id in reasons
                           and prune(self.runs_dir, m.point, reasons[m.point.id], self.lease_seconds)]  # fmt: skip
                pruned += [m.point.id for m in stopped if states[m.point.id].status != "pruned"]
                notes += lines if stopped else []
                self.decided[k] = passed = passed + 1
            until |= self._until(k, passed)
            members += group.pausing
        states = self._states()
        # What failed was tried often enough; what another launch trains now is waited for.
        going = [m for m in members if states[m.point.id].left and states[m.point.id].status not in FAILED
                 and (states[m.point.id].status == "running"
                      or (m.point.id, until.get(m.point.id)) not in self.asked)]  # fmt: skip
        self.asked |= {(m.point.id, until.get(m.point.id)) for m in going}
        if not going:
            self.said, notes = True, [*notes, *self._account(states)]
        plan = plan_round(self.planned, going, self.cache, notes, keep_pruned=True)
        return replace(plan, until=until, pruned=tuple(pruned))

    # ---- where the groups are

    def _states(self) -> dict[str, RunState]:
        points = [m.point for group in self.groups for m in group.pausing]
        return read_states(points, self.runs_dir, self.lease_seconds, self.cache)

    def _passed(self, k: int, states: dict[str, RunState]) -> int:
        """How many rungs of a group are decided: as far as this process knows, or any point that is left has passed; all
        where none is left. One that is done need not have waited for a decision: it may come from another sweep."""
        passed, pausing = self.decided.get(k, 0), self.groups[k].pausing
        if not any(states[member.point.id].left for member in pausing):
            return len(self.stages[k])
        for member in pausing:
            state = states[member.point.id]
            if state.status not in ("done", "pruned", "diverged", "damaged"):
                steps = self.rungs.steps(member)
                passed = max(passed, sum(state.step > steps[stage] for stage in self.stages[k]))
        return passed

    def _until(self, k: int, passed: int) -> dict[str, int]:
        if passed >= len(self.stages[k]):
            return {}
        return {m.point.id: self.rungs.steps(m)[self.stages[k][passed]] for m in self.groups[k].pausing}

    def _all_there(self, group: Group, stage: int, states: dict[str, RunState]) -> bool:
        """Whether all points that still train are at the rung. One that failed, or could not be brought so far, is not
        waited for."""
        for member in group.pausing:
            state, rung = states[member.point.id], self.rungs.steps(member)[stage]
            tried = (member.point.id, rung) in self.asked and state.status != "running"
            if state.left and state.status not in FAILED and not tried and not (state.paused and state.step >= rung):
                return False
        return True

    # ---- deciding

    def _decide(self, k: int, stage: int) -> tuple[dict[str, dict], list[str]]:
        """({run id: reason} of the points of a group to stop at rung `stage`, a line for each slice that loses some)."""
        group = self.groups[k]
        losing: dict[str, list[tuple[Cut, dict]]] = defaultdict(list)
        for cut in group.cuts:
            for run_id, reason in self.rungs.judge(cut, stage, len(self.stages[k])).items():
                losing[run_id].append((cut, reason))
        containing = Counter(i for cut in group.cuts for i in {m.point.id for m in cut.members})
        pausing = {m.point.id for m in group.pausing}
        reasons = {i: found[0][1] for i, found in losing.items() if i in pausing and len(found) == containing[i]}
        lines = []
        for cut in group.cuts:
            values = sorted({m.values[cut.key] for m in cut.members if m.point.id in reasons})
            if values:
                share = self.rungs.share(cut.members, stage)
                said = next(reasons[m.point.id]["message"] for m in cut.members if m.point.id in reasons)
                lines.append(f"{where(cut)}: at {share:.0%} {cut.key}={', '.join(f'{v:.4g}' for v in values)} stopped "
                             f"({said.partition(';')[2].strip()})")  # fmt: skip
        return reasons, lines

    # ---- what is said

    def _outlook(self, groups: list[int]) -> list[str]:
        """`groups`: numbers of those of which points may still be stopped."""
        if not self.groups:
            return [f"halving: no slice has more than sweep.keep={self.settings.keep} values, so nothing can be stopped"]
        if not groups:
            return ["halving: all slices are past their last rung, so nothing more can be stopped"]
        open_ = [cut for k in groups for cut in self.groups[k].cuts]
        keys = ", ".join(sorted({cut.key for cut in open_}))
        total = sum(m.point.flops for m in self.planned.members)
        most = min(self._most(groups, key) for key in sorted({cut.key for cut in open_})) / total
        shares = {self.rungs.share(self.groups[k].pausing, stage) for k in groups for stage in self.stages[k]}
        rungs = ", ".join(dict.fromkeys(f"{share:.0%}" for share in sorted(shares)))
        lines = [f"halving: {count_noun(len(open_), 'slice')} of {keys}, decided at {rungs} of the run; saves at most "
                 f"{most:.0%} of the FLOPs,",
                 f"  at a risk of {self.settings.risk:g} for each slice that its best value or a neighbour of it is stopped"]
        if self.references:
            lines.append(f"  {count_noun(len(self.references), 'slice')}, the cheapest, in full: to tell how optima move")
        if full := len(self.all) - len(self.references) - len(open_):
            lines.append(f"  {count_noun(full, 'slice')} more in full: at most {self.settings.keep} values, or past "
                         "the last rung")  # fmt: skip
        return lines

    def _most(self, groups: list[int], key: str) -> float:
        """FLOPs saved if only `keep` values of each slice of a key went beyond the first rung."""
        saved = 0.0
        for k in groups:
            pausing = {m.point.id for m in self.groups[k].pausing}
            for cut in (cut for cut in self.groups[k].cuts if cut.key == key):
                costs = [sum(m.point.flops for m in cut.members if m.values[key] == v and m.point.id in pausing)
                         for v in cut.values]  # fmt: skip
                beyond = 1 - self.rungs.share(cut.members, self.stages[k][0])
                saved += sum(sorted(costs)[self.settings.keep :]) * beyond
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
