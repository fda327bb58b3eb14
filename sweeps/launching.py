"""What every engine that hears of each job's end does alike: waiting, trying again, counting and showing (outcomes.py).

    class Engine(Launch):        # sweeps/local.py, sweeps/ray.py
        def assign(self): ...    # start jobs of self.ready()
        def hear(self, timeout): # wait for news; calls self.ended(...) for every job that ended
        def running(self): ...   # what trains now
        def leave(self): ...     # let all that runs checkpoint and stop

A failed attempt is made again up to `max_attempts` times; points that another launch is training are waited for, and taken
over should that launch die; jobs that need a failed job fail with it, but branches of a failed trunk train alone.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable

from harness.rundir import FINISHED
from sweeps import trunks
from sweeps.display import Display, labels, trunk_labels
from sweeps.jobs import Job, Settings, Summary, pausing
from sweeps.order import choose
from sweeps.outcomes import ELSEWHERE_SECONDS, Outcomes, Running
from sweeps.plan import Plan
from sweeps.prune import reopen
from sweeps.trunks import job_states

__all__ = ["ELSEWHERE_SECONDS", "TICK_SECONDS", "Launch", "Running", "signals"]

TICK_SECONDS = 0.25
MARK_SECONDS = trunks.ABANDONED_SECONDS / 7  # between two times that needed trunks are marked


class Launch(Outcomes):
    """One launch, from its plan to its summary."""

    def __init__(self, plan: Plan, settings: Settings, display: Display):
        super().__init__(settings, display)
        self.killed = False
        self._add(plan)

    # ---- what an engine says

    def assign(self) -> None:
        """Start what can start of `ready()`, taking it out of `waiting`."""
        raise NotImplementedError

    def hear(self, timeout: float) -> None:
        """News, waiting at most `timeout` seconds for the first."""
        raise NotImplementedError

    def leave(self) -> None:
        """Let what runs checkpoint and stop; must not fail."""
        raise NotImplementedError

    @property
    def broken(self) -> bool:
        """Whether the engine can start nothing any more."""
        return False

    # ---- the launch

    def stop(self, number: int) -> None:
        """A signal: the first lets points checkpoint, the second does not wait."""
        self.killed = self.summary.signal is not None
        self.summary.signal = self.summary.signal or number

    def run(self, more: Callable[[], Plan | None] | None) -> Summary:
        """Until all is through, `more` has nothing to add, or a signal stops it."""
        begun = time.monotonic()
        try:
            while True:
                self._work_off()
                if self.summary.signal or self.waiting or not more:
                    break
                plan = more()
                if plan is None:
                    break
                self.summary.pruned += len(plan.pruned)
                self.progress.done += len(plan.pruned)
                for note in plan.notes:
                    self.display.line(note)
                if not plan.left and not plan.points:
                    break
                self._add(plan)
        finally:
            self.leave()
            self._record_crashes()
            self.summary.left = self._points_waiting()
            trunks.clean(self.settings.runs_dir, self.waiting)
            self.summary.seconds = time.monotonic() - begun
            self._show(final=True)
        return self.summary

    def _work_off(self) -> None:
        while self.waiting or self.running():
            if self.summary.signal or self.broken:
                return
            if time.monotonic() - self.marked > MARK_SECONDS:
                self._mark_needed()
            self._look_elsewhere()
            self._drop_dependents()
            self.assign()
            self.hear(TICK_SECONDS)
            self.crashes.look()
            self._show()

    def _record_crashes(self) -> None:
        """Those on other machines, once their leases have run out; a signal, or an error on its way out, does not wait."""
        if self.crashes.look() and not self.summary.signal and sys.exc_info()[0] is None:
            self.display.line("waiting for the lease of a process that died, to record why")
            while self.crashes.look() and not self.summary.signal:
                time.sleep(TICK_SECONDS)

    def _add(self, plan: Plan) -> None:
        jobs = self._stretches(plan)
        # What a job needs and no job of this launch will do was done before.
        known = {job.id for job in jobs} | self.waiting.keys()
        self.finished.update(need for job in jobs for need in job.needs if need not in known | self.lost)
        self.waiting.update({job.id: job for job in jobs})
        self.branches += [job for job in jobs if job.start]
        self._mark_needed()
        trunks.clean(self.settings.runs_dir, self.waiting)
        self.parents.update({job.id: job.start for job in jobs if job.trunk})
        self.labels.update(labels(plan.points) | trunk_labels(jobs))
        self.progress.total += sum(1 for job in jobs if not job.trunk)
        self.progress.total -= sum(job.id in self.paused for job in jobs)  # it is the same point
        rates = plan.rates.values()
        self.compile_seconds = max((r.compile_cold for r in rates), default=0.0)
        self.load_seconds = max((r.compile_warm for r in rates), default=0.0)
        for job in jobs:
            self._work(job).total += job.seconds

    def _mark_needed(self) -> None:
        """The marks of the trunks that this launch still needs, made anew: those of a launch that is gone grow old."""
        ended = self.finished | self.lost
        open_ = [job for job in self.branches if job.id not in ended and job.start not in self.lost]
        trunks.need(open_, self.settings.runs_dir)
        self.marked = time.monotonic()

    def _stretches(self, plan: Plan) -> list[Job]:
        """The plan's jobs, as far as their points go for now; points that were pruned are open again where it wants them."""
        jobs, until = plan.jobs(), getattr(plan, "until", {})
        for job in jobs:
            if not job.trunk and until.get(job.id) is None and self._was_pruned(plan, job):
                reopen(self.settings.runs_dir, job.points[0], self.settings.lease_seconds)
        return pausing(jobs, until, plan.states) if until else jobs

    def _was_pruned(self, plan: Plan, job: Job) -> bool:
        state = getattr(plan, "states", {}).get(job.id)
        return state is not None and state.reopened

    def _points_waiting(self) -> int:
        return sum(1 for job in self.waiting.values() if not job.trunk)

    def ready(self) -> dict[str, Job]:
        """Jobs that can start now."""
        return {i: job for i, job in self.waiting.items()
                if i not in self.elsewhere and self.finished.issuperset(job.needs)}  # fmt: skip

    def chosen(self, ready: dict[str, Job], worker) -> Job:
        """Takes from `ready`, which is not empty, what `worker` does next."""
        others = {r.job.key for r in self.running()}
        there = {key for key in {job.key for job in ready.values()} if key in others or key in self.compiled}

        def first(job: Job) -> float:
            if not job.compile or job.key == worker.key:
                return 0.0
            return self.load_seconds if job.key in there else self.compile_seconds

        return ready.pop(choose(ready.values(), worker.key, others, self.cold, first, self.load_seconds).id)

    def heard(self, job: Job, step: int) -> None:
        """`job` is at `step`. Both its libraries, of the step and of validation, are there once it has validated."""
        if step > min(job.points[0].validation_steps, default=0):
            self.cold.discard(job.key)

    def take(self, job: Job) -> None:
        """`job` is about to start."""
        del self.waiting[job.id]
        if job.key in self.compiled:
            self.warm.add(job.id)
        elif job.compile and job.key not in {r.job.key for r in self.running()}:
            self.cold.add(job.key)

    def _look_elsewhere(self) -> None:
        """Points that were another launch's: finished by now, or free again."""
        now = time.monotonic()
        for job_id in [i for i, when in self.elsewhere.items() if when <= now]:
            job = self.waiting[job_id]
            state = job_states([job], self.settings.runs_dir, self.settings.lease_seconds)[job_id]
            if state.status == "running":
                self.elsewhere[job_id] = now + ELSEWHERE_SECONDS
                continue
            del self.elsewhere[job_id]
            if state.status in FINISHED:
                self._count(self.waiting.pop(job_id), state.status)

    def _drop_dependents(self) -> None:
        """What needs a job that failed can't be trained, but for the branches of a trunk: they train alone."""
        while lost := [job for job in self.waiting.values() if self.lost.intersection(job.needs)]:
            for job in lost:
                if job.start in self.lost:
                    self.waiting[job.id] = job.alone()
                    continue
                del self.waiting[job.id]
                need = min(self.lost.intersection(job.needs))
                self._give_up(job, "failed", f"it needs {self._name_of(need)}, which failed")
        idle = {i for i, job in self.waiting.items() if job.trunk}
        if idle:  # their branches may have been trained elsewhere
            for job in [*self.waiting.values(), *(r.job for r in self.running())]:
                idle.discard(job.start)
            for job_id in [i for i in idle if not trunks.needed(self.settings.runs_dir, i, self.waiting)]:
                self._count(self.waiting.pop(job_id), "done")


@contextlib.contextmanager
def signals(stop: Callable[[int], None]):
    """INT and TERM call `stop` meanwhile; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {n: signal.signal(n, lambda number, _: stop(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
