"""The local launcher: persistent workers, one per core or device share.

A worker that dies fails one attempt of one point and is replaced. Ctrl-C and TERM make every worker checkpoint and leave.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import time
from collections.abc import Callable
from typing import TextIO

from sweeps.display import Display
from sweeps.jobs import Settings, Summary
from sweeps.launching import TICK_SECONDS, Launch, Running, signals
from sweeps.plan import Plan
from sweeps.pool import Worker, exit_reason
from sweeps.worker import GRACE_SECONDS

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
    launch = LocalLaunch(plan, settings, Display(stream or sys.stderr, quiet))
    with signals(launch.stop):
        return launch.run(more)


class LocalLaunch(Launch):
    """A launch whose jobs run in worker processes of its own."""

    def __init__(self, plan: Plan, settings: Settings, display: Display):
        self.events: queue.Queue = queue.Queue()
        self.workers: list[Worker] = []
        self.false_starts, self.stopping_since = 0, None
        super().__init__(plan, settings, display)

    @property
    def broken(self) -> bool:
        return self.false_starts >= FALSE_STARTS

    def running(self) -> list[Running]:
        return [Running(w.job, w.step, w.loss, w.training_seconds) for w in self.workers if w.job]

    def assign(self) -> None:
        ready = self.ready()
        for worker in self.workers:
            if worker.ready and worker.job is None and ready:
                job = self.chosen(ready, worker)
                self.take(job)
                worker.start(job)
        coming = sum(1 for w in self.workers if not w.ready)
        for _ in range(min(len(ready) - coming, self.settings.workers - len(self.workers))):
            slot = min(set(range(self.settings.workers)) - {w.slot for w in self.workers})
            self.workers.append(Worker(slot, self.settings, self.events))

    # ---- events

    def hear(self, timeout: float) -> None:
        if self.settings.point_seconds:
            for worker in self.workers:
                worker.end_overdue(self.settings.point_seconds)
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
            self.heard(worker.job, message["step"])

    def _on_end(self, worker: Worker, message: dict) -> None:
        job, worker.job = worker.job, None
        self.ended(job, message, worker.training_seconds)

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
        if stopping or message["code"] == 0:  # 0: it was told to leave, and did
            self.cold.discard(job.key)
            self.waiting[job.id] = job
        else:
            reason = worker.overdue or exit_reason(message["code"], worker.last_words())
            self.failed(job, "failed", reason, crashed=True)

    # ---- the end

    def leave(self) -> None:
        """Workers checkpoint and leave; those that do not are killed after a while."""
        self.stopping_since = time.monotonic()
        for worker in self.workers:
            worker.stop()
        while self.workers:
            # A second Ctrl-C does not wait.
            if self.killed or time.monotonic() - self.stopping_since > GRACE_SECONDS:
                for worker in self.workers:
                    worker.kill()
            self.hear(TICK_SECONDS)

    def _say_false_start(self, worker: Worker, code: int) -> None:
        reason = exit_reason(code, worker.last_words())
        self.display.line(f"worker {worker.slot} did not start: {reason['message']}", important=True)
        if self.broken:
            self.display.line(f"no worker starts; see {worker.log_path}", important=True)
            self.summary.attempts += 1
