"""Allocations (packing.py) handed to Slurm as job arrays, through submitit.

One array element is one allocation, which trains `points_per_job` points. What needs others (a branch its trunk) forms
arrays of its own that depend on the elements which they need.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from harness.errors import UserError
from harness.files import write_json
from sweeps import squeue
from sweeps.jobs import Job, Settings
from sweeps.packing import Share
from sweeps.records import Array, Record
from sweeps.sbatch import parameters

LONG_LIST = 100  # dependencies on single elements; beyond, on whole arrays


class Submission:
    """Hands shares to Slurm and writes the record. `where`: job id -> Slurm id of the element that trains it, of what is
    in the queue already; what is submitted is added."""

    def __init__(self, settings: Settings, record: Record, name: str, where: dict[str, str]):
        self.settings, self.record, self.where = settings, record, where
        self.name = re.sub(r"[^\w.-]+", "_", name)[:60] or "sweep"
        self.folder = Path(record.folder)
        self.limit = settings.engine["max_running"]

    def submit(self, shares: list[Share], limit: int | None, runs: Mapping[str, list[str]],
               after: Iterable[str] = ()) -> None:  # fmt: skip
        """`limit`: of elements that run at once; where there is one, arrays run one after the other, the first after the
        Slurm jobs `after`. `runs`: job id -> run ids of needs that are not among the shares' jobs. Raises UserError with
        sbatch's own words; what was submitted before is then cancelled."""
        parts = self._arrays(shares, limit)
        for k, part in enumerate(parts):
            elements = [[run for job in share.jobs for run in job.runs] for share in part]
            self.record.arrays.append(Array(f"{self.name}-{self.record.id}-{k}", elements))
        self.record.write(self.settings.out)
        every = {job.id: job.runs for share in shares for job in share.jobs} | dict(runs)
        after = set(after)
        try:
            for array, part in zip(self.record.arrays, parts, strict=True):
                spec = self._spec(array, part, every)
                array.job = self._submit(array, spec, len(part), limit, self._dependency(part, after if limit else ()))
                for i, share in enumerate(part):
                    self.where.update({job.id: element_id(array, i) for job in share.jobs})
                after = {array.job}
        except UserError:
            squeue.cancel(a.job for a in self.record.arrays if a.job)
            (self.settings.out / "launches" / f"{self.record.id}.json").unlink(missing_ok=True)
            raise
        self.record.write(self.settings.out)

    def _arrays(self, shares: list[Share], limit: int | None) -> list[list[Share]]:
        """A wave each, of which the array waits for what any of its shares needs; with a limit, which each array has for
        itself, a level each."""
        size = squeue.array_size()
        alike: dict[tuple, list[Share]] = defaultdict(list)
        for share in shares:
            alike[share.level, 0 if limit else share.wave].append(share)
        return [part[i : i + size] for _, part in sorted(alike.items()) for i in range(0, len(part), size)]

    def _dependency(self, part: list[Share], after: Iterable[str]) -> str | None:
        needed = {self.where[need] for share in part for need in share.needs if need in self.where}
        if len(needed) > LONG_LIST:
            needed = {job.partition("_")[0] for job in needed}
        needed.update(after)
        return f"afterany:{':'.join(sorted(needed))}" if needed else None

    def _spec(self, array: Array, part: list[Share], every: Mapping[str, list[str]]) -> Path:
        path = self.folder / f"{array.name}.json"
        outside = {need: every.get(need, [need]) for share in part for need in share.needs}
        write_json(path, {
            "settings": {**self.settings.to_dict(), "pin": False},
            "shares": [[job_dict(job) for job in share.jobs] for share in part],
            "needs": outside,
            "attempts": self.record.attempts,
        })  # fmt: skip
        return path

    def _submit(self, array: Array, spec: Path, count: int, limit: int | None, dependency: str | None) -> str:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        from sweeps.allocation import train_share

        executor = submitit.SlurmExecutor(self.folder)
        executor.update_parameters(**parameters(self.settings), job_name=array.name, dependency=dependency,
                                   array_parallelism=limit or count)  # fmt: skip
        try:
            jobs = executor.map_array(train_share, [str(spec)] * count, range(count))
        except (FailedJobError, FailedSubmissionError, OSError) as e:
            raise UserError(f"sbatch refused: {_own_words(e)}") from None
        return jobs[0].job_id.partition("_")[0]


def element_id(array: Array, index: int) -> str:
    """123_4, or 123 where the array has one element: submitit makes no array of it."""
    return f"{array.job}_{index}" if len(array.elements) > 1 else str(array.job)


def job_dict(job: Job) -> dict:
    """JSON."""
    return {**asdict(job), "points": [point.to_dict() for point in job.points]}


def _own_words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [re.sub(r"^sbatch: (error: )?", "", line) for line in lines if line.startswith("sbatch:")]
    return "; ".join(said[-2:]) or (lines[-1] if lines else repr(error))
