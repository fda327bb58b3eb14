"""The Slurm launcher: allocations in job arrays (submit.py), in each of them the local launcher (allocation.py).

The launching process only watches: the run directories are the truth, squeue says which allocations are still to come. It
may stay (waits, submits again what crashed, extends the grid), leave at once (`detach`), or be started again later: what
an earlier launch has in the queue is waited for, not submitted twice.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TextIO

from harness.errors import UserError
from harness.private import private_folder, private_name
from sweeps import squeue
from sweeps.allocation import gave_up
from sweeps.display import Display
from sweeps.jobs import Job, Settings, Summary
from sweeps.launching import ELSEWHERE_SECONDS, TICK_SECONDS, Launch, Running, signals
from sweeps.plan import Plan
from sweeps.records import Array, live, new_id, new_record, read_records, user_name
from sweeps.sbatch import check_request
from sweeps.squeue import Entry
from sweeps.status import FINISHED, RunState, read_states
from sweeps.submit import Submission, element_id, pack
from sweeps.text import count_noun

FILES_SECONDS = 1.0  # between two looks at the run directories
QUEUE_SECONDS = 2.0, 30.0  # between two looks at the queue: of a young launch, of an old one
AGING = 20.0  # the age of a launch over the time between two looks
LEAVING_SECONDS = 40.0  # for points of cancelled allocations to checkpoint
REFUSED_SECONDS, REFUSALS = 30.0, 20  # when sbatch refuses in mid-launch: again after so long, so many times

check = check_request


def run(
    plan: Plan,
    settings: Settings,
    more: Callable[[], Plan | None] | None = None,
    stream: TextIO | None = None,
    quiet: bool = False,
) -> Summary:
    """Submit what is left of `plan` and is not in the queue yet; blocks until all is through or a signal stops it, which
    cancels what this launch submitted; with `settings.detach` returns at once. Raises UserError where sbatch refuses."""
    settings.logs.mkdir(parents=True, exist_ok=True)
    display = Display(stream or sys.stderr, quiet)
    launch = SlurmLaunch(plan, settings, display)
    with signals(launch.stop):
        launch.attach()
        if not settings.detach:
            return launch.run(more)
        if more:
            display.line("the grid is extended by a launcher that stays: run the same command without --detach later")
        return launch.detach()


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


class SlurmLaunch(Launch):
    """A launch whose jobs run in allocations of Slurm."""

    def __init__(self, plan: Plan, settings: Settings, display: Display):
        self.elements: dict[tuple[str, int], Element] = {}  # by name of the array and index
        self.where: dict[str, str] = {}  # job id -> Slurm id
        self.states: dict[str, RunState] = dict(plan.states)
        self.since: dict[str, float] = {}  # job id -> when it was first seen training
        self.barred: set[str] = set()  # jobs of cancelled allocations, and what needs them
        self.name, self.inside = plan.name, settings
        self.scratch, self.users = private_folder(settings.cache / private_name("slurm")), {user_name()}
        self.looked_files = self.looked_queue = self.refused = 0.0
        self.refusals, self.silent, self.begun = 0, False, time.monotonic()
        super().__init__(plan, replace(settings, workers=plan.workers), display)

    # ---- submitting

    def attach(self) -> None:
        """Take over what earlier launches have in the queue of the points of this plan."""
        records = read_records(self.settings.out)
        self.users |= {r.user for r in records}
        entries = squeue.queue(self.users) if records else []
        if entries is None:
            self.display.line("squeue does not answer: whether an earlier launch still waits in Slurm is not known; points "
                              "that it trains are not trained twice", important=True)  # fmt: skip
        by_run = {p.id: job for job in self.waiting.values() for p in job.points}
        taken = Counter()
        for record, array, index, entry in live(records, entries or []):
            jobs = [by_run[i] for i in array.elements[index] if i in by_run and by_run[i].id in self.waiting]
            jobs = [j for j in jobs if not any(gave_up(self.states[p.id], record.attempts) for p in j.points)]
            if jobs:
                element = Element(entry.job, record.folder, False, record.attempts, entry=entry)
                self._fly((array.name, index), element, jobs)
                taken[entry.job.partition("_")[0]] += len(jobs)
        for job, count in taken.items():
            self.display.line(f"{count_noun(count, 'point')} in Slurm job {job} already, of an earlier launch")
        if not self.settings.detach:  # what another launch trains now is submitted only should that launch die
            self.elsewhere = {i: 0.0 for i, job in self.waiting.items() if self.states[job.points[0].id].status == "running"}

    def _add(self, plan: Plan) -> None:
        self.states.update(plan.states)
        super()._add(plan)

    def _fly(self, key: tuple[str, int], element: Element, jobs: list[Job]) -> None:
        for job in jobs:
            del self.waiting[job.id]
            element.jobs[job.id] = job
            self.where[job.id] = element.id
        self.elements[key] = element

    def assign(self) -> None:
        """Submit all that waits, as far as `max_running` leaves room."""
        jobs = [job for job in self.waiting.values() if job.id not in self.elsewhere and job.id not in self.barred]
        limit = self.settings.engine["max_running"]
        if limit is not None:  # each array has a limit for itself
            limit -= len(self.elements)
        if not jobs or (limit is not None and limit < 1) or time.monotonic() < self.refused:
            return
        record = new_record(private_folder(self.scratch / new_id()))
        record.attempts = {p.id: s.attempt for job in jobs for p in job.points if (s := self.states[p.id]).attempt}
        submission = Submission(self.inside, record, self.name, self.where)
        runs = {i: [p.id for p in job.points] for e in self.elements.values() for i, job in e.jobs.items()}
        shares = pack(jobs, self.settings.engine["points_per_job"])
        try:
            submission.submit(shares, limit, runs)
        except UserError as e:
            self._refused(e, jobs)
            return
        self.refusals = 0
        by_run = {p.id: job for job in jobs for p in job.points}
        for array in record.arrays:
            for i, runs_of in enumerate(array.elements):
                element = Element(element_id(array, i), record.folder, True, record.attempts)
                self._fly((array.name, i), element, list({by_run[r].id: by_run[r] for r in runs_of}.values()))
            self.display.line(self._submitted(array))
        self.looked_queue = time.monotonic()

    def _submitted(self, array: Array) -> str:
        points = sum(len(runs) for runs in array.elements)
        return f"Slurm job {array.job}: {count_noun(points, 'point')} in {count_noun(len(array.elements), 'allocation')}"

    def _refused(self, error: UserError, jobs: list[Job]) -> None:
        self.refusals += 1
        if not any(e.own for e in self.elements.values()) and not self.attempts:
            raise error
        self.display.line(str(error), important=True)
        self.refused = time.monotonic() + REFUSED_SECONDS
        if self.refusals >= REFUSALS:
            for job in jobs:
                del self.waiting[job.id]
                self._give_up(job, "failed", str(error))

    def detach(self) -> Summary:
        """All is submitted."""
        begun = time.monotonic()
        self.assign()
        if self.summary.signal:
            self.leave()
            self.elements.clear()
        self.summary.queued = sum(len(e.jobs) for e in self.elements.values())
        self.summary.left, self.summary.seconds = len(self.waiting), time.monotonic() - begun
        return self.summary

    # ---- watching

    def running(self) -> list[Running]:
        now, found = time.monotonic(), []
        for element in self.elements.values():
            for job in element.jobs.values():
                state = self.states[job.points[0].id]
                if state.status == "running":
                    self.since.setdefault(job.id, now)
                    found.append(Running(job, state.step, None, now - self.since[job.id]))
        return found

    def _work_off(self) -> None:
        while self.elements or self.waiting.keys() - self.barred:
            if self.summary.signal:
                return
            self._look_elsewhere()
            self._drop_dependents()
            self._bar_dependents()
            self.assign()
            self.hear(TICK_SECONDS)
            self._show()

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
        points = [p for e in self.elements.values() for job in e.jobs.values() for p in job.points]
        self.states.update(read_states(points, self.settings.runs_dir, self.settings.lease_seconds, self.settings.cache))
        for key, element in list(self.elements.items()):
            for job in list(element.jobs.values()):
                states = [self.states[p.id] for p in job.points]
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
        if gone:
            self._look_at_files()
        for key in gone:
            if key in self.elements:
                self._gone(self.elements.pop(key))

    def _gone(self, element: Element) -> None:
        """An allocation ended and left jobs unfinished."""
        state, code = squeue.ending(element.id)
        if state == "CANCELLED":
            self.display.line(f"Slurm job {element.id} was cancelled: {count_noun(len(element.jobs), 'point')} left",
                              important=True)  # fmt: skip
        said = f" ({', '.join(filter(None, [state, code and f'exit {code}']))})" if state or code else ""
        ended = f"Slurm job {element.id} ended{said} without finishing it"
        kind = f"slurm_{(state or 'ended').lower()}"
        for job in element.jobs.values():
            self.where.pop(job.id, None)
            states = [self.states[p.id] for p in job.points]
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
            else:
                message = f"{ended}; {self._last_line(element, job)}"
                self.failed(job, "failed", {"type": kind, "message": message, "step": None}, crashed=True)

    def _bar_dependents(self) -> None:
        while more := {j.id for j in self.waiting.values() if self.barred.intersection(j.needs)} - self.barred:
            self.barred |= more

    def _last_line(self, element: Element, job: Job) -> str:
        """What the allocation's log says of the job, else its end."""
        path = f"{element.folder}/{element.id}_0_log.out"
        with contextlib.suppress(OSError), open(path, errors="replace") as f:
            lines = [line.strip() for line in f if line.strip() and not line.startswith(("[", "submitit"))]
            if lines:
                of_job = [line for line in lines if line.startswith(f"{job.id} ")]
                return f"its log says: {(of_job or lines)[-1][:200]}"
        return f"no log in {path}"

    # ---- the end

    def leave(self) -> None:
        """After a signal: what this launch submitted is cancelled (its points checkpoint), and has some time to leave."""
        if not self.summary.signal:
            return
        jobs = sorted({e.id for e in self.elements.values() if e.own})
        if jobs:
            arrays = ", ".join(sorted({job.partition("_")[0] for job in jobs}))
            took = squeue.cancel(jobs)
            self.display.line(f"cancelled Slurm job {arrays}: its points checkpoint; the same command goes on with them"
                              if took else f"scancel failed: `scancel {' '.join(arrays.split(', '))}`", important=True)
            self._wait_for_leave(LEAVING_SECONDS * took)
        others = sorted({e.id.partition("_")[0] for e in self.elements.values() if not e.own})
        if others:
            self.display.line(f"left in the queue, as an earlier launch put it there: `scancel {' '.join(others)}`",
                              important=True)  # fmt: skip
        for element in self.elements.values():
            self.waiting.update(element.jobs)

    def _wait_for_leave(self, seconds: float) -> None:
        """Until no point of ours trains: then `status` tells the truth."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.killed:
            self._look_at_files()
            own = {job.id for e in self.elements.values() if e.own for job in e.jobs.values()}
            if not any(r.job.id in own for r in self.running()):
                break
            time.sleep(TICK_SECONDS)

    def _show(self, final: bool = False) -> None:
        runs = sum(1 for e in self.elements.values() if e.entry and e.entry.runs)
        self.progress.note = f"Slurm: {len(self.elements) - runs} wait, {runs} run" if self.elements else ""
        super()._show(final)
