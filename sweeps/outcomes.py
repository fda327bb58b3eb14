"""How jobs of a launch end, what that comes to, and what of it is shown.

A failed attempt is made again up to `max_attempts` times; what a trunk carries trains alone where it is given up.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace

from harness.rundir import FINISHED
from sweeps import trunks
from sweeps.crashes import Crashes
from sweeps.display import Display, Progress, Work
from sweeps.jobs import Job, Settings, Summary
from sweeps.passes import SLOWER
from sweeps.rate import CompiledShapes, record

ELSEWHERE_SECONDS = 2.0  # between two looks at a point that another launch is training
STEPS_MEASURED = 200  # steps of a run that tells how fast this device is


@dataclass
class Running:
    """A job in training: where it is, and the seconds it has trained."""

    job: Job
    step: int = 0
    loss: float | None = None
    seconds: float = 0.0


class Outcomes:
    """The state of one launch: jobs waiting, what became of the others, and how far all are."""

    compile_seconds = load_seconds = 0.0  # of one shape: cold, and where its code is there

    def __init__(self, settings: Settings, display: Display):
        self.settings, self.display = settings, display
        self.waiting: dict[str, Job] = {}
        self.elsewhere: dict[str, float] = {}  # job id -> when to look again
        self.finished: set[str] = set()
        self.lost: set[str] = set()  # jobs that failed for good
        self.paused: set[str] = set()  # ids of points that were, at some step
        self.attempts: Counter = Counter()
        self.compiled = CompiledShapes(settings.cache, settings.threads)
        self.cold: set[str] = set()  # keys in their first compilation on this machine
        self.warm: set[str] = set()  # jobs that began where their compiled steps were there
        self.uncompiled: set[str] = set()  # keys of which it was said that their code cannot be had
        self.summary, self.progress = Summary(), Progress()
        self.labels: dict[str, str] = {}
        self.crashes = Crashes(settings.lease_seconds)
        self.parents: dict[str, str | None] = {}  # of trunks
        self.branches: list[Job] = []  # jobs that begin from trunks

    def running(self) -> list[Running]:
        """Jobs in training."""
        raise NotImplementedError

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
            cold = job.key not in self.compiled
            # Another may have compiled meanwhile: its first step waited for that, and tells of neither.
            if compiled and message.get("compile_seconds", 0) > 1 and (cold or job.id in self.warm):
                more = {"first_seconds": message["compile_seconds"], "cold": cold}
            seconds = message["device_seconds"] / steps
            if compiled and message.get("shared_pass"):
                seconds /= 1 + SLOWER  # rates are those of whole steps
            record(self.settings.cache, self.settings.device, point, compiled, seconds, **more)
        self._mark_compiled(job, message)

    def _mark_compiled(self, job: Job, message: dict) -> None:
        """The steps of the job's key are there now, unless its run had begun with others, or they cannot be had."""
        if job.compile and message.get("uncompiled") and job.key not in self.uncompiled:
            self.uncompiled.add(job.key)
            self.display.line(f"{self._name(job)}, and others of its shape: trained uncompiled: {message['uncompiled']}",
                              important=True)  # fmt: skip
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
