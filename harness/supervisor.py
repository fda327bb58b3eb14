"""Several processes train one point: one per device, started, watched and ended together.

    supervise(run, runtime, on_progress, should_stop) -> status

The supervisor holds the lease and trains nothing. Its ranks (harness/rank.py) write through rank 0 alone, which asks the
supervisor before each file whether the run is still its own. A rank that dies ends them all: the attempt has failed, the
next one goes on from the last checkpoint. Ranks whose supervisor dies leave at once. Out of device memory on any rank,
the micro-batch is halved and the group starts again from its checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from harness.errors import UserError
from harness.point import Point
from harness.rundir import LostRun, RunDirectory, finished, read_status

PARALLEL = ("ddp", "fsdp")
TICK_SECONDS = 0.1
LEAVE_SECONDS = 8.0  # for rank 0 to hear that it shall stop; less than a launcher waits for its workers
OVERDUE_SECONDS = 20.0  # that ranks may be late at their time limit; less than a launcher waits for its workers
BEGIN_SECONDS = 900.0  # and their start and the first step with its compilation, of which nothing is heard
BLAME_SECONDS = 2.0  # when one rank dies the others fail too, and may say so first


class RankError(RuntimeError):
    """A rank died or failed; one line that says which and of what."""


def check_devices(point: Point, devices: int, parallel: str) -> None:
    """Raises UserError where `devices` devices cannot train `point` together."""
    if parallel not in PARALLEL:
        raise UserError(f"launcher.parallel={parallel} is not one of {', '.join(PARALLEL)}.")
    if devices < 1:
        raise UserError(f"launcher.devices_per_point={devices} must be at least 1.")
    for _, size in point.stretches:
        if size % devices:
            key = "batch_size" if size == point.batch_size else "each batch of schedule.batch_ramp, here "
            raise UserError(f"launcher.devices_per_point={devices} must divide {key}={size}: "
                            "each device takes an equal share of every batch.")  # fmt: skip


def supervise(run: RunDirectory, runtime: Any, on_progress: Callable[[int, int, float], None],
              should_stop: Callable[[], bool]) -> str:  # fmt: skip
    """Train `run.point` on `runtime.devices` processes; arguments, result and errors as of `train.train_point`.
    Raises RankError where a rank dies."""
    check_devices(run.point, runtime.devices, runtime.parallel)
    batch = run.point.largest_batch
    share, micro_batch = batch // runtime.devices, min(runtime.micro_batch or batch, batch)
    while True:
        if should_stop():
            return _stopped(run)
        with tempfile.TemporaryDirectory(prefix="hyperlaw-") as meeting:
            ranks = _Ranks(run, runtime, micro_batch, meeting)
            try:
                status, news = ranks.watch(on_progress, should_stop)
            except RankError:
                ranks.kill()
                if not (status := _ended(run)):
                    raise
                return status
            finally:
                ranks.kill()
        if status == "unheard":
            return _stopped(run)
        if status == "overdue":
            return _out_of_time(run, runtime.point_seconds)
        if status != "out_of_memory":
            return status
        micro_batch = min(share, news["micro_batch"])
        if micro_batch == 1:
            reason = {"type": "out_of_memory", "message": news["message"], "step": news["step"]}
            run.status("out_of_memory", news["step"], reason)
            return "out_of_memory"
        micro_batch //= 2
        print(f"{run.point.id}: out of memory at step {news['step']}, the micro-batch is now {micro_batch}", file=sys.stderr)


def _stopped(run: RunDirectory) -> str:
    """Asked to stop before the ranks could hear of it: nothing is lost but what they did since the last checkpoint."""
    step = read_status(run.path).get("step") or 0
    run.status("pending", step, {"type": "stopped", "message": "asked to stop", "step": step})
    return "stopped"


def _out_of_time(run: RunDirectory, limit: float) -> str:
    step = read_status(run.path).get("step") or 0
    message = (f"launcher.point_seconds={limit:g} is used up and the ranks gave no answer, so they were killed; "
               "a higher limit goes on from the last checkpoint")  # fmt: skip
    run.status("failed", step, {"type": "time_limit", "message": message, "step": step})
    return "failed"


def _ended(run: RunDirectory) -> str | None:
    """How this attempt has ended the run, though nobody could say so any more."""
    status = finished(run.path)
    if status is None or read_status(run.path).get("attempt") != run.attempt:
        return None
    from harness.checkpoint import drop_checkpoints  # imports torch, of which planning knows nothing

    drop_checkpoints(run.path)
    return status


class _Ranks:
    """The processes of one group and what they say: (rank, message), the last one {"event": "exit", "code"}."""

    def __init__(self, run: RunDirectory, runtime: Any, micro_batch: int, meeting: str):
        self.run, self.runtime, self.said = run, runtime, queue.Queue()
        self.processes: list[subprocess.Popen] = []
        scratch = str(run.scratch) if run.scratch else None
        order = {"point": run.point.to_dict(), "run_dir": str(run.path), "attempt": run.attempt, "scratch": scratch,
                 "runtime": asdict(runtime), "micro_batch": micro_batch, "meeting": meeting}  # fmt: skip
        try:
            for rank, env in enumerate(_environments(runtime)):
                command = [sys.executable, "-m", "harness.rank", str(rank)]
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
                process = subprocess.Popen(command, env=env, **pipes)
                self.processes.append(process)
                threading.Thread(target=self._listen, args=(rank, process), daemon=True).start()
                self._send(rank, {**order, "rank": rank})
        except BaseException:
            self.kill()
            raise

    def watch(self, on_progress, should_stop) -> tuple[str, dict]:
        """(status, message) of how the group ended; "unheard": it did not hear in time that it shall stop; "overdue": it
        hangs, and its time is used up."""
        asked, heard, begun, first = None, False, time.monotonic(), None
        while True:
            with contextlib.suppress(queue.Empty):
                rank, message = self.said.get(timeout=TICK_SECONDS)
                event = message["event"]
                if event == "ask":
                    self._send(rank, {"mine": self.run.still_mine()})
                elif event == "progress":
                    first = first or time.monotonic()
                    on_progress(message["step"], message["steps"], message["loss"])
                elif event == "stopping":
                    heard = True
                elif event == "end":
                    if rank == 0:
                        self._dismiss()
                        return message["status"], message
                else:
                    return self._blame([(rank, message)])
            if asked is None and should_stop():
                asked = time.monotonic()
                self._send(0, {"stop": True})
            if asked is not None and not heard and time.monotonic() - asked > LEAVE_SECONDS:
                return "unheard", {}
            if self._overdue(begun, first):
                return "overdue", {}

    def _overdue(self, begun: float, first: float | None) -> bool:
        """Whether the ranks took longer than their time limit allows, since their first progress. They keep it
        themselves, unless one hangs."""
        limit = self.runtime.point_seconds
        if not limit:
            return False
        return time.monotonic() - (first or begun) > limit + OVERDUE_SECONDS + (0 if first else BEGIN_SECONDS)

    def kill(self) -> None:
        """End what is left of the processes."""
        for process in self.processes:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _blame(self, news: list[tuple[int, dict]]) -> tuple[str, dict]:
        """What went wrong first; raises it, unless it is a lack of memory. Nothing did once rank 0 has ended the run."""
        end = time.monotonic() + BLAME_SECONDS
        left = len(self.processes) - (news[0][1]["event"] == "exit")
        while news[-1][1]["event"] != "out_of_memory" and left and (now := time.monotonic()) < end:
            with contextlib.suppress(queue.Empty):
                news.append(self.said.get(timeout=end - now))
                left -= news[-1][1]["event"] == "exit"
                if news[-1][0] == 0 and news[-1][1]["event"] == "end":
                    return news[-1][1]["status"], news[-1][1]
        # A killed rank says nothing, and its death makes the others fail: signals come first.
        kinds = {"died": [], "out_of_memory": [], "lost": [], "error": [], "exit": []}
        for rank, m in news:
            kinds.get("died" if m["event"] == "exit" and m["code"] < 0 else m["event"], []).append((rank, m))
        rank, message = next(found[0] for found in kinds.values() if found)
        if message["event"] == "out_of_memory":
            return "out_of_memory", message
        raise _error(rank, message)

    def _dismiss(self) -> None:
        """All have trained to the end: the end of its input lets a rank leave."""
        for process in self.processes:
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=LEAVE_SECONDS)

    def _send(self, rank: int, message: dict) -> None:
        # A dead rank is heard of through its exit.
        with contextlib.suppress(OSError, ValueError):
            self.processes[rank].stdin.write(json.dumps(message) + "\n")
            self.processes[rank].stdin.flush()

    def _listen(self, rank: int, process: subprocess.Popen) -> None:
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                self.said.put((rank, json.loads(line)))
        self.said.put((rank, {"event": "exit", "code": process.wait()}))


def _environments(runtime: Any) -> list[dict[str, str]]:
    """One per rank: its threads, and its own GPU of those that this process was given."""
    env = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        env[name] = str(runtime.threads)
    if runtime.device != "cuda":
        return [env] * runtime.devices
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(i) for i in range(runtime.devices)] if given is None else [g.strip() for g in given.split(",") if g.strip()]
    if len(gpus) < runtime.devices:
        raise UserError(f"{runtime.devices} devices for one point, but this worker was given {len(gpus)} "
                        f"(CUDA_VISIBLE_DEVICES={given}).")  # fmt: skip
    return [{**env, "CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[: runtime.devices]]


def _error(rank: int, message: dict) -> Exception:
    """The exception that stands for what a rank said, or for its silence."""
    if message["event"] == "lost":
        return LostRun(message["message"])
    if message["event"] == "error":
        if message["errno"] is not None:
            return OSError(message["errno"], message["message"], message["filename"])
        if message["type"] == "UserError":
            return UserError(message["message"])
        return RankError(f"rank {rank}: {message['type']}: {message['message']}")
    code = message["code"]
    if code >= 0:
        return RankError(f"rank {rank} left with exit status {code}")
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    hint = " (out of memory, or killed by hand)" if name == "SIGKILL" else ""
    return RankError(f"rank {rank} died of {name}{hint}")
