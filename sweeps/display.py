"""Progress of a launch: some lines redrawn in place on a terminal, else a plain line now and then."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TextIO

from harness.point import Point
from sweeps.jobs import Job
from sweeps.text import count_noun, duration

REDRAW_SECONDS, LINE_SECONDS = 0.5, 10.0
WORKERS_SHOWN = 6
BAR = 20
# Of columns that say one thing twice, the one with fewer values is shown.
LABELS = (("parameterization",), ("schedule",), ("data",), ("width",), ("depth",), ("tpp", "tokens"), ("batch_size",),
          ("lr",), ("tau", "weight_decay"), ("beta1",), ("beta2",), ("precision",), ("seed",))  # fmt: skip


# Trust in the plan, seconds of work, so that the first estimates do not jump.
TRUST = 10.0


@dataclass
class Work:
    """Of the points of one shape, in expected seconds on one worker; `busy`: the seconds that `done` really took."""

    total: float = 0.0
    done: float = 0.0
    busy: float = 0.0


@dataclass
class Progress:
    """What there is to show. `work` by shape; `compilations`: expected seconds of those still to come."""

    total: int = 0
    done: int = 0
    failed: int = 0
    work: dict[str, Work] = field(default_factory=dict)
    compilations: float = 0.0
    workers: int = 1
    elsewhere: int = 0  # points that another launch is training
    running: list[tuple[str, int, int, float | None]] = field(default_factory=list)  # label, step, steps, loss
    note: str = ""  # of the engine

    @property
    def eta(self) -> float:
        """Seconds left: expected work over the workers, corrected shape by shape by how long it really took so far."""
        every = self.work.values()
        overall = (sum(w.busy for w in every) + TRUST) / (sum(w.done for w in every) + TRUST)
        left = sum(max(w.total - w.done, 0) * (w.busy + TRUST * overall) / (w.done + TRUST) for w in every)
        return (left + self.compilations) / max(self.workers, 1)

    @property
    def share(self) -> float:
        """Of the work."""
        total = sum(w.total for w in self.work.values())
        return min(sum(w.done for w in self.work.values()) / total, 1.0) if total else 1.0


class Display:
    """Writes to `stream`; with `quiet` nothing but failures."""

    def __init__(self, stream: TextIO, quiet: bool = False):
        self.stream, self.quiet = stream, quiet
        self.live = not quiet and stream.isatty()
        self._drawn, self._last = 0, 0.0

    def update(self, progress: Progress, force: bool = False) -> None:
        """Redraw if it is time."""
        now = time.monotonic()
        if self.quiet or (now - self._last < (REDRAW_SECONDS if self.live else LINE_SECONDS) and not force):
            return
        self._last = now
        if not self.live:
            self._write(summary_line(progress) + "\n")
            return
        width = max(shutil.get_terminal_size((80, 24)).columns - 1, 1)
        lines = [line[:width] for line in (summary_line(progress), *worker_lines(progress))]
        self._clear()
        self._write("\n".join(lines) + "\n")
        self._drawn = len(lines)

    def line(self, text: str, important: bool = False) -> None:
        """A line that stays."""
        if important or not self.quiet:
            self._clear()
            self._write(text + "\n")

    def close(self, progress: Progress) -> None:
        """The last state stays on the screen as one line."""
        self._clear()
        if not self.quiet and progress.total:
            self._write(summary_line(progress) + "\n")

    def _clear(self) -> None:
        if self._drawn:
            self._write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):  # a closed pipe is no reason to stop training
            self.quiet = True
            self.live = False


def summary_line(p: Progress) -> str:
    """`[####----] 12/48 points, 31 %, about 3 min left`."""
    filled, ended = int(p.share * BAR), p.done + p.failed
    parts = [f"[{'#' * filled}{'-' * (BAR - filled)}] {ended}/{count_noun(p.total, 'point')}, {p.share:.0%}"]
    if ended < p.total:
        parts.append(f"about {duration(p.eta)} left")
    if p.failed:
        parts.append(f"{p.failed} failed")
    if p.elsewhere:
        parts.append(f"{p.elsewhere} trained by another launch")
    if p.note:
        parts.append(p.note)
    return ", ".join(parts)


def worker_lines(p: Progress) -> list[str]:
    """A line per running point."""
    lines = []
    for label, step, steps, loss in p.running[:WORKERS_SHOWN]:
        at = f"{step / steps:4.0%} of {steps} steps" if step else "starting"
        lines.append(f"  {label}: {at}" + (f", loss {loss:.3f}" if loss is not None else ""))
    if len(p.running) > WORKERS_SHOWN:
        lines.append(f"  and {len(p.running) - WORKERS_SHOWN} more")
    return lines


def labels(points: Iterable[Point]) -> dict[str, str]:
    """A short name for each point: the columns in which the points differ."""
    rows = {point.id: point.columns() for point in points}
    shown = []
    for group in LABELS:
        counts = {key: len({_short(row[key]) for row in rows.values()}) for key in group}
        key = min(group, key=lambda k: counts[k])
        if counts[key] > 1:
            shown.append(key)
    def label(row: dict) -> str:
        return " ".join(f"{key}={_short(row[key])}" if key != "parameterization" else row[key] for key in shown)

    return {run_id: label(row) or run_id for run_id, row in rows.items()}


def trunk_labels(jobs: Iterable[Job]) -> dict[str, str]:
    """A short name for each trunk among the jobs."""
    return {job.id: f"trunk of {count_noun(len(job.carries), 'point')} to step {job.last}" for job in jobs if job.trunk}


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
