"""Which job a free worker takes next. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from sweeps.jobs import Job


def choose(ready: Iterable[Job], mine: str | None, others: Collection[str], compiling: Collection[str]) -> Job | None:
    """The job for a worker whose last job had key `mine`, while other workers are at jobs of the keys `others`, of
    which `compiling` are having their first compilation on this machine.

    Largest first, so that the tail is short, but staying with the shape whose compiled step the worker has; a new
    shape is taken where most work is waiting and nobody else is at it yet, and one that another worker is compiling
    only when nothing else is left (two cold compilations of one shape do nobody any good).
    """
    by_key: dict[str, list[Job]] = defaultdict(list)
    for job in ready:
        by_key[job.key].append(job)
    if not by_key:
        return None
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
