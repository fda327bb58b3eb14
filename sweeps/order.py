"""Which job a free worker takes next. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

from sweeps.jobs import Job

DEAR = 0.05  # share of the longest job from which on it is worth while to stay with a shape


def choose(ready: Iterable[Job], mine: str | None, others: Collection[str], compiling: Collection[str],
           first: Callable[[Job], float] = lambda job: 0.0, load: float = 0.0) -> Job | None:  # fmt: skip
    """The job for a worker whose last job had key `mine`, while other workers are at jobs of the keys `others`, of
    which `compiling` are having their first compilation on this machine.

    first(job): seconds that it compiles or loads before its first step. load: those of compiled code that is on the disk.

    Longest first, compilation included, so that the tail is short; where loading is dear (torch.compile), a worker stays
    with the shape whose compiled step it has, and takes a new one where most work is waiting and nobody else is at it.
    A shape that another worker is compiling is taken only when nothing else is left (two cold compilations of one shape
    do nobody any good).
    """
    jobs = list(ready)
    if not jobs:
        return None
    if load <= DEAR * max(map(_length, jobs)):
        return max(jobs, key=lambda job: (job.key not in compiling, first(job) + _length(job)))
    by_key: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        by_key[job.key].append(job)
    if mine in by_key and by_key[mine][0].compile:
        key = mine
    else:

        def preference(key: str) -> tuple:
            jobs = by_key[key]
            busy = others if jobs[0].compile else ()
            work = sum(map(_length, jobs)) if jobs[0].compile else max(map(_length, jobs))
            return key not in compiling, key not in busy, work

        key = max(by_key, key=preference)
    return max(by_key[key], key=_length)


def _length(job: Job) -> float:
    """Seconds, with those of the longest chain that waits for it."""
    return job.seconds + job.after
