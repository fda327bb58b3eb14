"""Trackers read along. They run on a thread of their own and can neither stop nor noticeably slow a run.

wandb's start takes seconds and may fail in many ways (no package, no network, no disk): all of it happens behind a
queue; what does not fit is dropped; an error ends the tracking, with one line, and not the run.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from pathlib import Path

from harness.point import Point

FINISH_SECONDS = 15.0  # how long the end of a run may wait for its tracker


class NoTracker:
    def log(self, step: int, values: dict) -> None:
        pass


class WandbTracker:
    """One wandb run per point, its id the point's id, files beside the runs in `wandb/`."""

    def __init__(self, settings: dict, point: Point, run_dir: Path):
        self._queue: queue.Queue = queue.Queue(maxsize=10_000)
        self._thread = threading.Thread(target=self._serve, args=(settings, point, run_dir), daemon=True)
        self._thread.start()

    def log(self, step: int, values: dict) -> None:
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait((step, values))

    def finish(self) -> None:
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(FINISH_SECONDS)

    def _serve(self, settings: dict, point: Point, run_dir: Path) -> None:
        try:
            import wandb

            folder = run_dir.parent.parent / "wandb"
            folder.mkdir(exist_ok=True)
            run = wandb.init(
                project=settings.get("project"),
                entity=settings.get("entity"),
                mode=settings.get("mode", "offline"),
                dir=str(folder.parent),
                id=point.id,
                name=point.id,
                resume="allow",
                config=point.columns(),
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off"),
            )
            while (item := self._queue.get()) is not None:
                step, values = item
                run.log(values, step=step)
            run.finish()
        except BaseException as e:  # whatever a tracker does, the run goes on
            print(f"tracking of {point.id} stopped: {type(e).__name__}: {e}".splitlines()[0], file=sys.stderr)


@contextlib.contextmanager
def tracker(settings: dict, point: Point, run_dir: Path):
    """The tracker that `settings` names, finished at the end however the run ends."""
    if settings.get("name", "none") != "wandb":
        yield NoTracker()
        return
    track = WandbTracker(settings, point, run_dir)
    try:
        yield track
    finally:
        track.finish()
