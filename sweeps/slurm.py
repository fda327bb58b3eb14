"""The Slurm launcher: allocations in job arrays (submit.py), in each of them the local launcher (allocation.py).

The launching process only watches: the run directories are the truth, squeue says which allocations are still to come. It
may stay (waits, submits again what crashed, extends the grid), leave at once (`detach`), or be started again later: what
an earlier launch has in the queue is waited for, not submitted twice.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import TextIO

from harness.errors import UserError
from harness.private import private_folder, private_name
from sweeps import squeue
from sweeps.allocation import gave_up
from sweeps.display import Display
from sweeps.jobs import Job, Settings, Summary
from sweeps.launching import MARK_SECONDS, TICK_SECONDS, signals
from sweeps.packing import pack
from sweeps.plan import Plan
from sweeps.records import Array, live, new_id, new_record, read_records
from sweeps.sbatch import check_request
from sweeps.submit import Submission, element_id
from sweeps.text import count_noun
from sweeps.watching import Element, Watch

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


class SlurmLaunch(Watch):
    """A launch whose jobs run in allocations of Slurm."""

    def __init__(self, plan: Plan, settings: Settings, display: Display):
        self.name, self.inside = plan.name, settings
        self.scratch = private_folder(settings.cache / private_name("slurm"))
        self.refused, self.refusals = 0.0, 0  # until when, how often
        self.submitted = False  # anything
        super().__init__(plan, settings, display)

    # ---- submitting

    def attach(self) -> None:
        """Take over what earlier launches have in the queue of the points of this plan."""
        records = read_records(self.settings.out)
        self.users |= {r.user for r in records}
        entries = squeue.queue(self.users) if records else []
        if entries is None:
            self.display.line("squeue does not answer: whether an earlier launch still waits in Slurm is not known; points "
                              "that it trains are not trained twice", important=True)  # fmt: skip
        by_run = {run: job for job in self.waiting.values() for run in job.runs}
        taken = Counter()
        for record, array, index, entry in live(records, (e for e in entries or [] if not e.dying)):
            jobs = [by_run[i] for i in array.elements[index] if i in by_run and by_run[i].id in self.waiting]
            jobs = [j for j in jobs if not any(gave_up(self.states[run], record.attempts) for run in j.runs)]
            if jobs:
                element = Element(entry.job, record.folder, False, record.attempts, entry=entry)
                self._fly((array.name, index), element, jobs)
                taken[entry.job.partition("_")[0]] += sum(1 for job in jobs if not job.trunk)
        for job, count in taken.items():
            self.display.line(f"{count_noun(count, 'point')} in Slurm job {job} already, of an earlier launch")
        if not self.settings.detach:  # what another launch trains now is submitted only should that launch die
            self.elsewhere = {i: 0.0 for i, job in self.waiting.items() if self.states[job.runs[0]].status == "running"}

    def _fly(self, key: tuple[str, int], element: Element, jobs: list[Job]) -> None:
        for job in jobs:
            del self.waiting[job.id]
            element.jobs[job.id] = job
            self.where[job.id] = element.id
        self.elements[key] = element

    def assign(self) -> None:
        """Submit all that waits, as far as `max_running` leaves room."""
        jobs = [job for job in self.waiting.values() if job.id not in self.elsewhere and job.id not in self.barred]
        limit, after = self.settings.engine["max_running"], set()
        if limit is not None and self.settings.detach:  # nobody submits later, when there is room
            after = {e.id.partition("_")[0] for e in self.elements.values()}
        elif limit is not None:  # each array has a limit for itself
            limit -= len(self.elements)
        if not jobs or (limit is not None and limit < 1) or time.monotonic() < self.refused:
            return
        record = new_record(private_folder(self.scratch / new_id()))
        record.attempts = {run: s.attempt for job in jobs for run in job.runs if (s := self.states[run]).attempt}
        submission = Submission(self.inside, record, self.name, self.where)
        runs = {i: job.runs for e in self.elements.values() for i, job in e.jobs.items()}
        shares = pack(jobs, self.settings.engine["points_per_job"])
        try:
            submission.submit(shares, limit, runs, after)
        except UserError as e:
            self._refused(e, jobs)
            return
        self.refusals, self.submitted = 0, True
        by_run = {run: job for job in jobs for run in job.runs}
        for array in record.arrays:
            for i, runs_of in enumerate(array.elements):
                element = Element(element_id(array, i), record.folder, True, record.attempts)
                self._fly((array.name, i), element, list({by_run[r].id: by_run[r] for r in runs_of}.values()))
            points = sum(not by_run[run].trunk for element in array.elements for run in element)
            self.display.line(_in_words(array, points, after))
        self.looked_queue = time.monotonic()

    def _refused(self, error: UserError, jobs: list[Job]) -> None:
        self.refusals += 1
        if not self.submitted and not self.attempts:
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
        self.summary.queued = sum(not job.trunk for e in self.elements.values() for job in e.jobs.values())
        self.summary.left, self.summary.seconds = self._points_waiting(), time.monotonic() - begun
        if self.waiting:
            why = "stopped before" if self.summary.signal else "the same command submits what is left"
            self.display.line(f"{count_noun(self.summary.left, 'point')} not in the queue: {why}", important=True)
        return self.summary

    # ---- watching

    def _work_off(self) -> None:
        while self.elements or self.waiting.keys() - self.barred:
            if self.summary.signal:
                return
            if time.monotonic() - self.marked > MARK_SECONDS:
                self._mark_needed()
            self._look_elsewhere()
            self._drop_dependents()
            self._bar_dependents()
            self.assign()
            self.hear(TICK_SECONDS)
            self._show()

    def _bar_dependents(self) -> None:
        while more := {j.id for j in self.waiting.values() if self.barred.intersection(j.needs)} - self.barred:
            self.barred |= more

    # ---- the end

    def leave(self) -> None:
        """After a signal: what this launch submitted is cancelled (its points checkpoint), and has some time to leave."""
        if not self.summary.signal:
            return
        jobs = sorted({e.id for e in self.elements.values() if e.own})
        if jobs:
            arrays = ", ".join(sorted({job.partition("_")[0] for job in jobs}))
            trains = bool({r.job.id for r in self.running()} & self._own_jobs())
            took = squeue.cancel(jobs)
            what = "its points checkpoint" if trains else "none of its points is in training"
            self.display.line(f"cancelled Slurm job {arrays}: {what}; the same command goes on with them"
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
            if self._own_jobs().isdisjoint(r.job.id for r in self.running()):
                break
            time.sleep(TICK_SECONDS)

    def _own_jobs(self) -> set[str]:
        return {job.id for e in self.elements.values() if e.own for job in e.jobs.values()}

    def _show(self, final: bool = False) -> None:
        runs = sum(1 for e in self.elements.values() if e.entry and e.entry.runs)
        self.progress.note = f"Slurm: {len(self.elements) - runs} wait, {runs} run" if self.elements else ""
        super()._show(final)


def _in_words(array: Array, points: int, after: set[str]) -> str:
    behind = f", after job {', '.join(sorted(after))}" if after else ""
    return f"Slurm job {array.job}: {count_noun(points, 'point')} in {count_noun(len(array.elements), 'allocation')}{behind}"
