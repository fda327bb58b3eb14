"""What becomes of allocations in the queue: the run directories are the truth, squeue says which are still to come."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

from sweeps import squeue
from sweeps.allocation import gave_up
from sweeps.display import Display
from sweeps.jobs import Job, Settings
from sweeps.launching import ELSEWHERE_SECONDS, Launch, Running
from sweeps.plan import Plan
from sweeps.records import user_name
from sweeps.squeue import Entry
from sweeps.status import FINISHED, RunState
from sweeps.text import count_noun
from sweeps.trunks import job_states

FILES_SECONDS = 1.0  # between two looks at the run directories
QUEUE_SECONDS = 2.0, 30.0  # between two looks at the queue: of a young launch, of an old one
AGING = 20.0  # the age of a launch over the time between two looks
LOST = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "TIMEOUT")  # endings that no point brings about
LOSSES = 10  # of them that a point may suffer before they count as failed attempts
REASON_SECONDS = 10.0  # that allocations wait before it is said why


@dataclass
class Element:
    """One allocation of ours in the queue. `misses`: looks at the queue in a row that did not show it."""

    id: str
    folder: str
    own: bool  # of this launch: cancelled with it
    attempts: dict[str, int]  # that its runs had made before
    jobs: dict[str, Job] = field(default_factory=dict)  # not known to be finished
    entry: Entry | None = None
    misses: int = 0


class Watch(Launch):
    """A launch that knows of its jobs by looking."""

    def __init__(self, plan: Plan, settings: Settings, display: Display):
        self.elements: dict[tuple[str, int], Element] = {}  # by name of the array and index
        self.where: dict[str, str] = {}  # job id -> Slurm id
        self.states: dict[str, RunState] = dict(plan.states)
        self.since: dict[str, float] = {}  # job id -> when it was first seen training
        self.barred: set[str] = set()  # jobs of cancelled allocations, and what needs them
        self.losses: Counter = Counter()  # job id -> allocations that it lost
        self.reasons: dict[str, float | None] = {}  # why allocations wait -> since when; None: it was said
        self.users, self.silent = {user_name()}, False
        self.looked_files = self.looked_queue = 0.0
        self.begun = time.monotonic()
        super().__init__(plan, replace(settings, workers=plan.workers), display)

    def _add(self, plan: Plan) -> None:
        self.states.update(plan.states)
        trunks = [job for job in plan.jobs() if job.trunk]
        self.states.update(job_states(trunks, self.settings.runs_dir, self.settings.lease_seconds))
        super()._add(plan)

    def running(self) -> list[Running]:
        now, found = time.monotonic(), []
        for element in self.elements.values():
            for job in element.jobs.values():
                state = self.states[job.runs[0]]
                if state.status == "running":
                    self.since.setdefault(job.id, now)
                    found.append(Running(job, state.step, None, now - self.since[job.id]))
        return found

    def hear(self, timeout: float) -> None:
        """Looks at the files, and less often at the queue, when it is time."""
        time.sleep(timeout)
        if time.monotonic() >= self.looked_files:
            begun = time.monotonic()
            self._look_at_files()
            self.looked_files = time.monotonic() + max(FILES_SECONDS, 10 * (time.monotonic() - begun))
        now = time.monotonic()
        every = min(max((now - self.begun) / AGING, QUEUE_SECONDS[0]), QUEUE_SECONDS[1])
        if self.elements and now >= self.looked_queue + every:
            self._look_at_queue()
            self.looked_queue = time.monotonic()

    def _look_at_files(self) -> None:
        jobs = [job for e in self.elements.values() for job in e.jobs.values()]
        self.states.update(job_states(jobs, self.settings.runs_dir, self.settings.lease_seconds, self.settings.cache))
        for key, element in list(self.elements.items()):
            for job in list(element.jobs.values()):
                states = [self.states[run] for run in job.runs]
                if all(s.status in FINISHED for s in states):
                    del element.jobs[job.id]
                    self._count(job, states[-1].status, states[-1].reason)
            if not element.jobs:  # that it is still in the queue for a moment concerns nobody
                del self.elements[key]

    def _look_at_queue(self) -> None:
        entries = squeue.queue(self.users)
        if (entries is None) != self.silent:
            self.silent = entries is None
            self.display.line("squeue does not answer; waiting" if self.silent else "squeue answers again", important=True)
        if entries is None:
            return
        present = {(entry.name, entry.index): entry for entry in entries}
        gone = []
        for key, element in self.elements.items():
            element.entry = present.get(key)
            element.misses = 0 if element.entry else element.misses + 1
            if element.misses > 1:  # a state lags, and between two looks the files were read
                gone.append(key)
        self._say_why_they_wait()
        if gone:
            self._look_at_files()
        for key in gone:
            if key in self.elements:
                self._gone(self.elements.pop(key))

    def _say_why_they_wait(self) -> None:
        """Each reason once; one that does not pass by itself again when it comes back."""
        now, held = time.monotonic(), defaultdict(list)
        for element in self.elements.values():
            if element.entry and not element.entry.runs and element.entry.reason not in ("None", ""):
                held[element.entry.reason].append(element.id)
        self.reasons = {r: since for r, since in self.reasons.items()
                        if r in held or (since is None and r in squeue.ORDINARY)}  # fmt: skip
        for reason, ids in held.items():
            since = self.reasons.setdefault(reason, now)
            if since is not None and now - since >= REASON_SECONDS:
                self.reasons[reason] = None
                jobs = ", ".join(sorted({i.partition("_")[0] for i in ids}))
                usual = reason in squeue.ORDINARY
                more = "" if usual else f"; `scontrol show job {ids[0]}` says more"
                self.display.line(f"Slurm job {jobs}: {count_noun(len(ids), 'allocation')} waiting ({reason}){more}",
                                  important=not usual)  # fmt: skip

    def _gone(self, element: Element) -> None:
        """An allocation ended and left jobs unfinished. One that was lost is no fault of theirs; where it crashed, it
        counts against the jobs that it had begun, or against all where it began none."""
        state, code = squeue.ending(element.id)
        begun = {i for i, job in element.jobs.items() if self._began(job, element)} or set(element.jobs)
        again, crashed = [], []
        for job in element.jobs.values():
            self.where.pop(job.id, None)
            states = [self.states[run] for run in job.runs]
            failed = next((s for s in states if gave_up(s, element.attempts)), None)
            if any(s.status == "running" for s in states):  # an orphan, or another launch
                self.waiting[job.id] = job
                self.elsewhere[job.id] = time.monotonic() + ELSEWHERE_SECONDS
            elif failed:
                self.summary.attempts += 1
                self.display.line(f"{self._name(job)}: {failed.status}: {failed.why}", important=True)
                self._give_up(job, failed.status, failed.why)
            elif state == "CANCELLED":
                self.waiting[job.id] = job
                self.barred.add(job.id)
            elif not self.finished.issuperset(job.needs):  # it had nothing to do, and goes behind what it needs
                self.waiting[job.id] = job
            elif job.id not in begun:
                again.append(job)
            elif state in LOST and self.losses[job.id] < LOSSES:
                self.losses[job.id] += 1
                self.summary.attempts += 1
                again.append(job)
            else:
                crashed.append(job)
        if state == "CANCELLED":
            self.display.line(f"Slurm job {element.id} was cancelled: {count_noun(len(element.jobs), 'point')} left",
                              important=True)  # fmt: skip
        self._ended_badly(element, state, code, again, crashed)

    def _began(self, job: Job, element: Element) -> bool:
        """Whether a point of the job has had an attempt since the submission."""
        return any(self.states[run].attempt > element.attempts.get(run, 0) for run in job.runs)

    def _ended_badly(self, element: Element, state: str, code: str, again: list[Job], crashed: list[Job]) -> None:
        """One line for the allocation. `again`: jobs it does not count against; `crashed`: those it does."""
        said = ", ".join(filter(None, [state, code and state not in LOST and f"exit {code}"]))
        ended, failed = f"Slurm job {element.id} ended{said and f' ({said})'}", []
        for job in crashed:
            self.attempts[job.id] += 1
            self.summary.attempts += 1
            (again if self.attempts[job.id] < self.settings.max_attempts else failed).append(job)
        self.waiting.update({job.id: job for job in again})
        for job in failed:
            message = f"{ended} without finishing it; {self._last_line(element, job)}"
            self._record_failure(job, {"type": f"slurm_{(state or 'ended').lower()}", "message": message})
            self._give_up(job, "failed", message)
        parts = [f"{count_noun(len(jobs), 'point')} {what}"
                 for jobs, what in ((again, "tried again"), (failed, "failed")) if jobs]  # fmt: skip
        if parts:
            log = f"; {self._last_line(element, crashed[0])}" if crashed else ""
            self.display.line(f"{ended}: {', '.join(parts)}{log}", important=True)

    def _last_line(self, element: Element, job: Job) -> str:
        """What the allocation's log says of the job, else its end."""
        path = f"{element.folder}/{element.id}_0_log.out"
        with contextlib.suppress(OSError), open(path, errors="replace") as f:
            lines = [line.strip() for line in f if line.strip() and not line.startswith(("[", "submitit"))]
            of_job = [line for line in lines if line.startswith(f"{job.id} ")]
            own = [line for line in lines if not line.startswith(("slurmstepd:", "srun:"))]  # they say what `state` says
            if lines:
                return f"its log says: {(of_job or own or lines)[-1][:200]}"
        return f"no log in {path}"
