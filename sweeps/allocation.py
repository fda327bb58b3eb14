"""What runs inside an allocation of Slurm: the local launcher over its share of the points.

Signals: USR2 (the time limit is near): points checkpoint, then this element is requeued and goes on later. TERM
(preemption, requeue, scancel): points checkpoint, the process leaves; Slurm itself requeues where it shall. What is left
is read from the run directories each time, so that a second start of an element does only that.

After the failure of a node the first start may run on beside its replacement. Its runs are fenced (lease.py); its logs lie
in another folder; it requeues nothing, since Slurm counts another restart than its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from harness.files import read_json
from harness.point import Point
from harness.rundir import finished, read_status
from sweeps import squeue
from sweeps.display import Display
from sweeps.jobs import Job, Settings
from sweeps.local import LocalLaunch
from sweeps.status import FAILED, RunState
from sweeps.text import count_noun
from sweeps.trunks import job_states, known


@dataclass(frozen=True)
class Part:
    """The jobs of one allocation, as a launch takes them from a Plan."""

    members: tuple[Job, ...]
    rates = {}

    @property
    def points(self) -> list[Point]:
        return [point for job in self.members for point in job.points if not job.trunk]

    def jobs(self) -> list[Job]:
        return list(self.members)


class Signals:
    """The first of USR2 and TERM stops the launch, once: srun passes TERM on, so that it comes twice. A TERM after USR2
    is told (`number`), since Slurm then does what is to be done."""

    def __init__(self):
        self.number: int | None = None
        self.launch: LocalLaunch | None = None
        self.say = sys.stderr.write
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._hear)
        # Some clusters signal every process of the allocation. Processes started from here inherit the mask, so that
        # USR2 does not end them; here a thread waits for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        threading.Thread(target=self._listen, daemon=True).start()

    def attach(self, launch: LocalLaunch, say: Callable[[str], object]) -> None:
        self.launch, self.say = launch, say
        if self.number:
            launch.stop(self.number)

    def _listen(self) -> None:
        self._hear(signal.sigwait({signal.SIGUSR2}))

    def _hear(self, number: int, _frame=None) -> None:
        first = self.number is None
        if first:
            self.say(f"{signal.Signals(number).name}: points checkpoint\n")
        if first or number != signal.SIGUSR2:
            self.number = number
        if first and self.launch:
            self.launch.stop(number)


class Tee:
    """Writes to several streams; one that fails is left out."""

    def __init__(self, *streams: TextIO):
        self.streams = streams

    def write(self, text: str) -> None:
        for stream in self.streams:
            with contextlib.suppress(OSError, ValueError):
                stream.write(text)
                stream.flush()

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def train_share(spec_path: str, index: int) -> None:
    """The share `index` of the array in `spec_path` (submit.py), as far as its runs are not finished. Ends the process."""
    signals = Signals()
    spec = read_json(spec_path)
    if spec is None:
        sys.exit(f"{spec_path} is gone or damaged: run the sweep command again")
    job, restarts = _job(), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    settings = Settings.from_dict(spec["settings"])
    # Each start of each element has a folder of logs of its own.
    settings = replace(settings, logs=settings.logs / f"slurm-{job}{f'-{restarts}' if restarts else ''}")
    settings.logs.mkdir(parents=True, exist_ok=True)
    with open(settings.logs / "launcher.log", "a") as log:
        say = Tee(sys.stderr, log)
        say.write(f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())} Slurm job {job} on {os.uname().nodename}, "
                  f"start {restarts + 1}\n")  # fmt: skip
        share = [read_job(value) for value in spec["shares"][index]]
        before = job_states(share, settings.runs_dir, settings.lease_seconds)
        jobs = _to_do(share, spec, settings, before, restarts, say)
        launch = LocalLaunch(Part(tuple(jobs)), settings, Display(say))
        signals.attach(launch, say.write)
        summary = launch.run(None)
        for run, why in summary.failures.items():
            say.write(f"{run} {why}\n")
        after = job_states(share, settings.runs_dir, settings.lease_seconds)
        if signals.number == signal.SIGUSR2 and any(state.left for state in after.values()):
            _requeue(job, restarts, before, after, say)
        elif signals.number:
            say.write(f"{count_noun(summary.left, 'point')} left, checkpointed\n")
        elif summary.left:
            sys.exit(f"{count_noun(summary.left, 'point')} could not be trained here")
    os._exit(0)  # past submitit's result file, which nobody reads, and which a KILL now would leave in halves


def _job() -> str:
    """This element: 123_4, or 123 where there is no array. Not SLURM_JOB_ID: one element of an array has the array's own,
    and what is done to that is done to all."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def _to_do(share: list[Job], spec: dict, settings: Settings, states: dict[str, RunState], restarts: int,
           say: Tee) -> list[Job]:  # fmt: skip
    """Jobs with a point that is not finished, whose needs outside are, or that can do without: branches of a trunk that was
    not trained. A restarted element does not try again what failed for good in its earlier start."""
    there = known(settings.runs_dir)
    unmet = {need: why for need, runs in spec["needs"].items()
             if need not in there and (why := _unmet(runs, settings.runs_dir))}  # fmt: skip
    jobs = []
    for job in share:
        mine = [states[run] for run in job.runs]
        if job.start in unmet:
            say.write(f"{job.id}: its trunk {job.start} was not trained, it is trained alone\n")
            job = job.alone()
        missing = [f"{need}, {unmet[need]}" for need in job.needs if need in unmet]
        if missing:
            say.write(f"{job.id} is not trained: it needs {'; '.join(missing)}\n")
        elif restarts and any(gave_up(s, spec["attempts"]) for s in mine):
            say.write(f"{job.id} failed before: {mine[0].why}\n")
        elif any(s.left for s in mine):
            jobs.append(job)
    return jobs


def read_job(value: dict) -> Job:
    """Inverse of submit.job_dict."""
    points = tuple(Point.from_dict(p) for p in value["points"])
    return Job(**{**value, "points": points, **{key: tuple(value[key]) for key in ("needs", "validate_at", "carries")}})


def gave_up(state: RunState, attempts: dict[str, int]) -> bool:
    """Whether a run failed after it was submitted; `attempts`: how many each had made by then."""
    return state.status in FAILED and state.attempt > attempts.get(state.run_id, 0)


def _unmet(runs: list[str], runs_dir: Path) -> str:
    """What is wrong with runs that must be finished; "" if they are."""
    return ", ".join(f"which is {read_status(runs_dir / run)['status']}" for run in runs if not finished(runs_dir / run))


def _requeue(job: str, restarts: int, before: dict[str, RunState], after: dict[str, RunState], say: Tee) -> None:
    """This element once more, unless this start got nowhere: the next would not either."""
    if all(after[i].step <= s.step and after[i].status == s.status for i, s in before.items()):
        say.write("the time limit came before anything was trained: not requeued; raise launcher.time\n")
        sys.exit(1)
    found = squeue.details(job)
    if found.get("Restarts") != str(restarts) or found.get("JobState") != "RUNNING":
        say.write("Slurm has another start of this job by now: not requeued\n")
        return
    say.write("the time limit is near: points are checkpointed, this job is requeued\n")
    if squeue.call("scontrol", "requeue", job) is None:
        say.write("Slurm did not take it: the same sweep command goes on with what is left\n")
        sys.exit(1)
