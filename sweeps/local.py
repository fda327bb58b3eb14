"""The local launcher: persistent workers, one per core or device share.

A worker that dies fails one attempt of one point and is replaced; the point is tried again up to `max_attempts` times.
Ctrl-C and TERM make every worker checkpoint and leave. Points that another launch is training are waited for, and taken
over should that launch die.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TextIO

from harness.point import Point
from harness.rundir import LostRun, RunDirectory, read_status
from sweeps.display import Display, Progress, Work, labels
from sweeps.jobs import Job, Settings, Summary
from sweeps.lease import claim
from sweeps.order import choose
from sweeps.plan import Plan
from sweeps.pool import Worker, exit_reason
from sweeps.rate import CompiledShapes, record
from sweeps.status import FINISHED, read_state

TICK_SECONDS = 0.25
ELSEWHERE_SECONDS = 2.0  # between two looks at a point that another launch is training
GRACE_SECONDS = 30.0  # for workers to checkpoint and leave; a second Ctrl-C does not wait
STEPS_MEASURED = 200  # steps of a run that tells how fast this device is
FALSE_STARTS = 3  # workers in a row that die before they are ready


def run(
    plan: Plan,
    settings: Settings,
    more: Callable[[], Plan | None] | None = None,
    stream: TextIO | None = None,
    quiet: bool = False,
) -> Summary:
    """Train what is left of `plan`; blocks until all is through or a signal stops it.

    `more` is asked once nothing is left: a plan with further points (an extended grid) goes on with the same workers.
    Progress goes to `stream` (default stderr). Raises OSError where the folder of logs cannot be made.
    """
    settings.logs.mkdir(parents=True, exist_ok=True)
    launch = _Launch(plan, settings, Display(stream or sys.stderr, quiet))
    with _signals(launch.stop):
        return launch.run(more)


class _Launch:
    """The state of one launch: jobs waiting, workers, and what has come of it."""

    def __init__(self, plan: Plan, settings: Settings, display: Display):
        self.settings, self.display = settings, display
        self.events: queue.Queue = queue.Queue()
        self.workers: list[Worker] = []
        self.waiting: dict[str, Job] = {}
        self.elsewhere: dict[str, float] = {}  # job id -> when to look again
        self.finished: set[str] = set()
        self.attempts: Counter = Counter()
        self.compiled = CompiledShapes(settings.cache)
        self.cold: set[str] = set()  # keys in their first compilation on this machine
        self.summary, self.progress = Summary(), Progress()
        self.labels: dict[str, str] = {}
        self.false_starts, self.stopping_since, self.killed = 0, None, False
        self._add(plan)

    def stop(self, number: int) -> None:
        """A signal: the first lets workers checkpoint, the second does not wait."""
        self.killed = self.summary.signal is not None
        self.summary.signal = self.summary.signal or number

    def run(self, more: Callable[[], Plan | None] | None) -> Summary:
        begun = time.monotonic()
        try:
            while True:
                self._work_off()
                if self.summary.signal or self.waiting or not more:
                    break
                plan = more()
                if plan is None:
                    break
                for note in plan.notes:
                    self.display.line(note)
                if not plan.left and not plan.points:
                    break
                self._add(plan)
        finally:
            self._leave()
            self.summary.left = len(self.waiting)
            self.summary.seconds = time.monotonic() - begun
            self._show(final=True)
        return self.summary

    # ---- jobs

    def _add(self, plan: Plan) -> None:
        jobs = plan.jobs()
        self.waiting.update({job.id: job for job in jobs})
        self.labels.update(labels(plan.points))
        self.progress.total += len(jobs)
        self.compile_seconds = max(rates.compile_cold for rates in plan.rates.values()) if plan.rates else 0.0
        for job in jobs:
            self._work(job).total += job.seconds

    def _work_off(self) -> None:
        while self.waiting or any(w.job for w in self.workers):
            if self.summary.signal or self.false_starts >= FALSE_STARTS:
                return
            self._look_elsewhere()
            self._assign()
            self._hear(TICK_SECONDS)
            self._show()

    def _assign(self) -> None:
        ready = {i: job for i, job in self.waiting.items()
                 if i not in self.elsewhere and self.finished.issuperset(job.needs)}  # fmt: skip
        for worker in self.workers:
            if worker.ready and worker.job is None and ready:
                others = {w.key for w in self.workers if w is not worker and w.job}
                job = choose(ready.values(), worker.key, others, self.cold)
                del ready[job.id], self.waiting[job.id]
                if job.compile and job.key not in self.compiled and job.key not in others:
                    self.cold.add(job.key)
                worker.start(job)
        coming = sum(1 for w in self.workers if not w.ready)
        for _ in range(min(len(ready) - coming, self.settings.workers - len(self.workers))):
            slot = min(set(range(self.settings.workers)) - {w.slot for w in self.workers})
            self.workers.append(Worker(slot, self.settings, self.events))

    def _look_elsewhere(self) -> None:
        """Points that were another launch's: finished by now, or free again."""
        now = time.monotonic()
        for job_id in [i for i, when in self.elsewhere.items() if when <= now]:
            state = read_state(self.settings.runs_dir, self.waiting[job_id].points[0], self.settings.lease_seconds)
            if state.status == "running":
                self.elsewhere[job_id] = now + ELSEWHERE_SECONDS
                continue
            del self.elsewhere[job_id]
            if state.status in FINISHED:
                self._count(self.waiting.pop(job_id), state.status)

    # ---- events

    def _hear(self, timeout: float) -> None:
        """All that the workers have said, waiting at most `timeout` for the first."""
        with contextlib.suppress(queue.Empty):
            worker, message = self.events.get(timeout=timeout)
            while True:
                getattr(self, f"_on_{message['event']}")(worker, message)
                worker, message = self.events.get_nowait()

    def _on_ready(self, worker: Worker, message: dict) -> None:
        worker.ready, self.false_starts = True, 0

    def _on_progress(self, worker: Worker, message: dict) -> None:
        if worker.job and worker.job.id == message["job"]:
            worker.hear(message["step"], message["loss"])
            self.cold.discard(worker.key)

    def _on_end(self, worker: Worker, message: dict) -> None:
        job, worker.job = worker.job, None
        self.cold.discard(worker.key)
        spent = worker.training_seconds
        status = message["status"]
        if status in FINISHED:
            if message["trained"]:
                self._work(job).busy += message.get("device_seconds", spent)
                self._learn(job, message)
            self._count(job, status, message.get("reason"))
        elif status == "busy":
            self.waiting[job.id] = job
            self.elsewhere[job.id] = time.monotonic() + ELSEWHERE_SECONDS
        elif status == "stopped":
            self.waiting[job.id] = job
        else:
            self._failed(job, status, message["reason"])

    def _on_exit(self, worker: Worker, message: dict) -> None:
        if worker in self.workers:
            self.workers.remove(worker)
        job, worker.job = worker.job, None
        stopping = self.stopping_since is not None
        if job is None:
            if not worker.ready and not stopping:
                self.false_starts += 1
                self._say_false_start(worker, message["code"])
            return
        self.cold.discard(job.key)
        if stopping or message["code"] == 0:  # 0: it was told to leave, and did
            self.waiting[job.id] = job
        else:
            self._failed(job, "failed", exit_reason(message["code"], worker.last_words()), crashed=True)

    def _failed(self, job: Job, status: str, reason: dict, crashed: bool = False) -> None:
        """One attempt ended badly. Device memory is not tried again: the micro-batch was already halved to the end."""
        self.attempts[job.id] += 1
        self.summary.attempts += 1
        what = reason.get("message") or reason.get("type")
        again = status != "out_of_memory" and self.attempts[job.id] < self.settings.max_attempts
        tail = ", tried again" if again else ""
        self.display.line(f"{self._name(job)}: {status}: {what}{tail}", important=True)
        if again:
            self.waiting[job.id] = job  # behind those that wait already, in case the trouble passes
            return
        if crashed:
            self._record_failure(job.points[0], reason)
        self.summary.failed += 1
        self.summary.failures[job.id] = f"{status}: {what}"
        self.progress.failed += 1
        self._work(job).done += job.seconds

    def _record_failure(self, point: Point, reason: dict) -> None:
        """A worker that died could not write its own end."""
        run_dir = self.settings.runs_dir / point.id
        with contextlib.suppress(OSError, LostRun):
            lease = claim(run_dir, self.settings.lease_seconds)
            if lease is not None:
                step = read_status(run_dir).get("step") or 0
                RunDirectory(run_dir, point, lease.still_mine, lease.number).status(
                    "failed", step, {**reason, "step": step}
                )
                lease.release()

    def _count(self, job: Job, status: str, reason: dict | None = None) -> None:
        self.finished.add(job.id)
        self.progress.done += 1
        self._work(job).done += job.seconds
        if status == "done":
            self.summary.done += 1
        else:
            self.summary.diverged += 1
        if not self.display.live:
            why = f" ({reason['message']}, step {reason['step']})" if reason else ""
            self.display.line(f"{self._name(job)}: {status}{why}")

    def _learn(self, job: Job, message: dict) -> None:
        """What the run tells of this device's speed."""
        point, compiled = job.points[0], message["compiled"]
        # In a short run validation, whose speed is another, and the start decide.
        if message["status"] == "done" and point.steps >= STEPS_MEASURED and message.get("device_seconds", 0) > 0:
            more = {}
            if compiled and message.get("compile_seconds", 0) > 1:
                more = {"first_seconds": message["compile_seconds"], "cold": job.key not in self.compiled}
            seconds = message["device_seconds"] / point.steps
            record(self.settings.cache, self.settings.device, point, compiled, seconds, **more)
        if compiled:
            self.compiled.add(job.key)

    # ---- the end

    def _leave(self) -> None:
        """Workers checkpoint and leave; those that do not are killed after a while."""
        self.stopping_since = time.monotonic()
        for worker in self.workers:
            worker.stop()
        while self.workers:
            if self.killed or time.monotonic() - self.stopping_since > GRACE_SECONDS:
                for worker in self.workers:
                    worker.kill()
            self._hear(TICK_SECONDS)

    # ---- what is shown

    def _work(self, job: Job) -> Work:
        return self.progress.work.setdefault(job.key, Work())

    def _name(self, job: Job) -> str:
        return self.labels.get(job.id, job.id)

    def _show(self, final: bool = False) -> None:
        p = self.progress
        busy = [w for w in self.workers if w.job]
        p.workers = max(min(self.settings.workers, len(busy) + len(self.waiting)), 1)
        p.elsewhere = len(self.elsewhere)
        p.running = [(self._name(w.job), w.step, w.job.points[0].steps, w.loss) for w in busy]
        shown = replace(p, work={key: replace(work) for key, work in p.work.items()})
        for w in busy:
            work = shown.work[w.job.key]
            work.done += w.job.seconds * w.step / w.job.points[0].steps
            work.busy += w.training_seconds
        unseen = {job.key for job in self.waiting.values() if job.compile and job.key not in self.compiled} | self.cold
        shown.compilations = self.compile_seconds * len(unseen)
        if final:
            self.display.close(shown)
        else:
            self.display.update(shown)

    def _say_false_start(self, worker: Worker, code: int) -> None:
        reason = exit_reason(code, worker.last_words())
        self.display.line(f"worker {worker.slot} did not start: {reason['message']}", important=True)
        if self.false_starts >= FALSE_STARTS:
            self.display.line(f"no worker starts; see {worker.log_path}", important=True)
            self.summary.attempts += 1


@contextlib.contextmanager
def _signals(stop: Callable[[int], None]):
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
