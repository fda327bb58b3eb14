"""What Slurm says of jobs: squeue, sacct or scontrol, each asked in one call, with a time limit, and allowed to fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

ANSWER_SECONDS = 20.0
UNTIL = re.compile(r"(?:^|\s)(JobState|ExitCode|Reason|Restarts)=(\S+)")
CANCELLED_AT_ONCE = 500  # ids on one command line
NOT_ENDED = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "RESIZING", "SUSPENDED")
# Reasons to wait that pass by themselves.
ORDINARY = ("Priority", "Resources", "JobArrayTaskLimit", "Dependency", "BeginTime", "None", "")


@dataclass(frozen=True)
class Entry:
    """One allocation in the queue. `job`: 123 or 123_4; `state`: PENDING, RUNNING, ...; `reason`: why it waits."""

    job: str
    name: str
    state: str
    reason: str

    @property
    def index(self) -> int:
        """Of the element in its array; 0 where there is no array."""
        return int(self.job.partition("_")[2] or 0)

    @property
    def runs(self) -> bool:
        return self.state not in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")

    @property
    def dying(self) -> bool:
        """Cancelled or through, and still checkpointing or in the cluster's epilog."""
        return self.state == "COMPLETING"

    @property
    def where(self) -> str:
        """For people."""
        if self.runs:
            return f"Slurm job {self.job} ({self.state.lower()})"
        held = f" ({self.reason})" if self.reason not in ("None", "") else ""
        return f"waits in Slurm job {self.job}{held}"


def here() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("squeue") is not None


def queue(users: Iterable[str]) -> list[Entry] | None:
    """All that these users have in the queue, one entry an array element; None where squeue does not answer."""
    out = call("squeue", "--noheader", "--array", f"--user={','.join(sorted(set(users)))}", "--format=%i|%T|%r|%j")
    if out is None:
        return None
    rows = [line.split("|", 3) for line in out.splitlines()]
    return [Entry(job, name, state, reason) for job, state, reason, name in (row for row in rows if len(row) == 4)
            if re.fullmatch(r"\d+(_\d+)?", job)]  # fmt: skip


def ending(job: str) -> tuple[str, str]:
    """(state, exit code) of a job that left the queue, from sacct, else from scontrol while it remembers; "" unknown."""
    out = call("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State,ExitCode")
    rows = [line.split("|") for line in (out or "").splitlines()]
    if rows and len(rows[-1]) == 2 and rows[-1][0] and rows[-1][0] not in NOT_ENDED:  # accounting may lag
        return rows[-1][0].split()[0], rows[-1][1]  # "CANCELLED by 1000"
    found = details(job)
    return found.get("JobState", ""), found.get("ExitCode", "")


def details(job: str) -> dict[str, str]:
    """JobState, ExitCode, Reason and Restarts of a job that slurmctld still knows."""
    out = call("scontrol", "show", "job", "--oneliner", job)
    return dict(UNTIL.findall((out or "").splitlines()[0])) if out and out.strip() else {}


def cancel(jobs: Iterable[str]) -> bool:
    """scancel: TERM, then KILL after Slurm's KillWait. Whether Slurm took it."""
    jobs = list(jobs)
    parts = [jobs[i : i + CANCELLED_AT_ONCE] for i in range(0, len(jobs), CANCELLED_AT_ONCE)]
    return all([call("scancel", *part) is not None for part in parts])


def array_size() -> int:
    """The most elements that an array may have."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config") or "", re.MULTILINE)
    return max(int(found[1]), 1) if found else 1000


def call(*command: str) -> str | None:
    """stdout, or None where the command is missing, fails, or takes longer than `ANSWER_SECONDS`."""
    # SQUEUE_STATES and the like are for the user's own eyes.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SACCT_", "SCANCEL_"))}
    try:
        done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=ANSWER_SECONDS,
                              stdin=subprocess.DEVNULL)  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
