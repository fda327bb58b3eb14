"""What every engine that hears of each job's end does alike: waiting, counting, trying again, showing.

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
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.rundir import FINISHED
from sweeps import trunks
from sweeps.crashes import Crashes
from sweeps.display import Display, Progress, Work, labels, trunk_labels
from sweeps.jobs import Job, Settings, Summary, pausing
from sweeps.plan import Plan
from sweeps.prune import reopen
from sweeps.rate import CompiledShapes, record
from sweeps.trunks import job_states

TICK_SECONDS = 0.25
ELSEWHERE_SECONDS = 2.0  # between two looks at a point that another launch is training
MARK_SECONDS = trunks.ABANDONED_SECONDS / 7  # between two times that needed trunks are marked
STEPS_MEASURED = 200  # steps of a run that tells how fast this device is


@dataclass
class Running:
    """A job in training: where it is, and the seconds it has trained."""

    job: Job
    step: int = 0
    loss: float | None = None
    seconds: float = 0.0


class Launch:
    """The state of one launch: jobs waiting, what became of the others, and how far all are."""

    def __init__(self, plan: Plan, settings: Settings, display: Display):
        self.settings, self.display = settings, display
        self.waiting: dict[str, Job] = {}
        self.elsewhere: dict[str, float] = {}  # job id -> when to look again
        self.finished: set[str] = set()
        self.lost: set[str] = set()  # jobs that failed for good
        self.paused: set[str] = set()  # ids of points that were, at some step
        self.attempts: Counter = Counter()
        self.compiled = CompiledShapes(settings.cache, settings.threads)
        self.cold: set[str] = set()  # keys in their first compilation on this machine
        self.summary, self.progress = Summary(), Progress()
        self.labels: dict[str, str] = {}
        self.crashes = Crashes(settings.lease_seconds)
        self.parents: dict[str, str | None] = {}  # of trunks
        self.branches: list[Job] = []  # jobs that begin from trunks
        self.killed = False
        self._add(plan)

    # ---- what an engine says

    def assign(self) -> None:
        """Start what can start of `ready()`, taking it out of `waiting`."""
        raise NotImplementedError

    def hear(self, timeout: float) -> None:
        """News, waiting at most `timeout` seconds for the first."""
        raise NotImplementedError

    def running(self) -> list[Running]:
        """Jobs in training."""
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
        self.compile_seconds = max(rates.compile_cold for rates in plan.rates.values()) if plan.rates else 0.0
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

    def take(self, job: Job) -> None:
        """`job` is about to start."""
        del self.waiting[job.id]
        if job.compile and job.key not in self.compiled and job.key not in {r.job.key for r in self.running()}:
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

    # ---- how jobs end

    def ended(self, job: Job, message: dict, spent: float) -> None:
        """`message`: what `execute` returned. `spent`: seconds that it trained, as seen from here."""
        self.cold.discard(job.key)
        status = message["status"]
        if status in FINISHED or (job.trunk and status == "paused"):
            if message["trained"]:
                devices = self.settings.devices_per_point
                self._work(job).busy += message.get("device_seconds", spent * devices) / devices
                self.summary.flops_spent += message.get("flops_spent", 0)
                self._learn(job, message)
            if message.get("alone"):
                self.display.line(f"{self._name(job)}: its {self._name_of(job.start)} was not to be had, trained alone")
            self._count(job, status, message.get("reason"))
        elif status == "paused":
            self._paused(job, message, spent)
        elif status == "busy":
            self.waiting[job.id] = job
            self.elsewhere[job.id] = time.monotonic() + ELSEWHERE_SECONDS
        elif status == "stopped":
            self.waiting[job.id] = job
        else:
            self.failed(job, status, message["reason"])

    def failed(self, job: Job, status: str, reason: dict, crashed: bool = False) -> None:
        """One attempt ended badly; `crashed`: without saying so itself. What another attempt cannot mend is not tried
        again: device memory (the micro-batch was already halved to the end), time."""
        self.cold.discard(job.key)
        self.attempts[job.id] += 1
        self.summary.attempts += 1
        what = reason.get("message") or reason.get("type")
        final = status == "out_of_memory" or reason.get("type") == "time_limit"
        again = not final and self.attempts[job.id] < self.settings.max_attempts
        tail = ", tried again" if again else ""
        self.display.line(f"{self._name(job)}: {status}: {what}{tail}", important=True)
        if again:
            self.waiting[job.id] = job  # behind those that wait already, in case the trouble passes
            return
        if crashed:
            self._record_failure(job, reason)
        self._give_up(job, status, what)

    def _give_up(self, job: Job, status: str, what: str) -> None:
        self.lost.add(job.id)
        if job.trunk:
            self._work(job).done += job.seconds
            self.display.line(f"{self._name(job)}: given up, they train alone", important=True)
            return
        self.summary.failed += 1
        self.summary.failures[job.id] = f"{status}: {what}"
        self.progress.failed += 1
        self._work(job).done += job.seconds

    def _record_failure(self, job: Job, reason: dict) -> None:
        self.crashes.record(job.folder(self.settings.runs_dir), job.points[0], reason)

    def _count(self, job: Job, status: str, reason: dict | None = None) -> None:
        self.finished.add(job.id)
        self._work(job).done += job.seconds
        trunk = job.start
        while trunk and trunks.drop(self.settings.runs_dir, trunk, self.waiting):
            trunk = self.parents.get(trunk)
        if job.trunk:
            return
        self.progress.done += 1
        if status == "done":
            self.summary.done += 1
        elif status == "pruned":
            self.summary.pruned += 1
        else:
            self.summary.diverged += 1
        if not self.display.live:
            why = f" ({reason['message']}, step {reason['step']})" if reason else ""
            self.display.line(f"{self._name(job)}: {status}{why}")

    def _learn(self, job: Job, message: dict) -> None:
        """What the run tells of this device's speed; one that several trained tells nothing of one."""
        if self.settings.devices_per_point > 1:
            return
        point, compiled = job.points[0], message["compiled"]
        # Its own, whatever was planned: it may have diverged, or begun elsewhere than where its trunk should have ended.
        steps = message.get("flops_spent", 0) / point.step_flops
        # In a short run validation, whose speed is another, and the start decide.
        ended = message["status"] in ("done", "paused")
        if ended and steps >= STEPS_MEASURED and message.get("device_seconds", 0) > 0:
            more = {}
            if compiled and message.get("compile_seconds", 0) > 1:
                more = {"first_seconds": message["compile_seconds"], "cold": job.key not in self.compiled}
            seconds = message["device_seconds"] / steps
            record(self.settings.cache, self.settings.device, point, compiled, seconds, **more)
        self._mark_compiled(job, message)

    def _mark_compiled(self, job: Job, message: dict) -> None:
        """The steps of the job's key are there now, unless its run had begun with others."""
        if message.get("compiled") and message.get("shared_pass") == job.shared_pass:
            self.compiled.add(job.key)

    def _paused(self, job: Job, message: dict, spent: float) -> None:
        """At a rung: whether it goes on, `more` says."""
        self.paused.add(job.id)
        self._work(job).busy += spent
        self._work(job).done += job.seconds
        self._mark_compiled(job, message)
        if not self.display.live:
            self.display.line(f"{self._name(job)}: paused at step {job.until} of {job.points[0].steps}")

    # ---- what is shown

    def _work(self, job: Job) -> Work:
        return self.progress.work.setdefault(job.key, Work())

    def _name(self, job: Job) -> str:
        return self._name_of(job.id)

    def _name_of(self, job_id: str) -> str:
        return self.labels.get(job_id, job_id)

    def _show(self, final: bool = False) -> None:
        p, busy = self.progress, self.running()
        p.workers = max(min(self.settings.workers, len(busy) + len(self.waiting)), 1)
        p.elsewhere = len(self.elsewhere)
        p.running = [(self._name(r.job), r.step, r.job.last, r.loss) for r in busy]
        shown = replace(p, work={key: replace(work) for key, work in p.work.items()})
        for r in busy:
            work = shown.work[r.job.key]
            work.done += r.job.seconds * r.job.share_done(r.step)
            work.busy += r.seconds
        unseen = {job.key for job in self.waiting.values() if job.compile and job.key not in self.compiled} | self.cold
        shown.compilations = self.compile_seconds * len(unseen)
        if final:
            self.display.close(shown)
        else:
            self.display.update(shown)


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
