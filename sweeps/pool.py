"""One worker process as the launcher sees it: start it, send it a job, hear of it, and know how it died."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time

from harness.redact import redact
from sweeps.jobs import Job, Settings
from sweeps.rate import cores

LOG_LINES = 3
OVERDUE_SECONDS = 30.0  # that a worker may be late at its time limit: a slow step, a slow disk
COMPILE_SECONDS = 900.0  # and the first step with its compilation, of which nothing is heard
BEGIN_SECONDS = 120.0  # the same for data, checkpoints and the start of ranks, without compilation


class Worker:
    """Events go to `events` as (worker, message); the last one is {"event": "exit", "code": return code}."""

    def __init__(self, slot: int, settings: Settings, events: queue.Queue):
        self.slot = slot
        self.job: Job | None = None
        self.key: str | None = None  # of the last job: what it has compiled
        self.ready = False
        self.step = 0
        self.loss: float | None = None
        self._begun = 0.0  # when it was given its job
        self._first: float | None = None  # when its job's first progress was heard of: compiled by then
        self.overdue: dict | None = None  # why it was killed
        self.log_path = settings.logs / f"worker-{slot}.log"
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sweeps.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(slot, settings),
                start_new_session=True,  # Ctrl-C reaches the launcher, which tells the workers
            )
        self._send({"settings": _settings(slot, settings)})
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def start(self, job: Job) -> None:
        """Give it a job; it must have none."""
        self.job, self.key, self.step, self.loss, self._first = job, job.key, 0, None, None
        self._begun = time.monotonic()
        self._log_start = self.log_path.stat().st_size
        self._send(job.message())

    def hear(self, step: int, loss: float | None) -> None:
        """Progress of its job."""
        self._first = self._first or time.monotonic()
        self.step, self.loss = step, loss

    @property
    def training_seconds(self) -> float:
        """Since the first progress of its job."""
        return time.monotonic() - self._first if self._first else 0.0

    def end_overdue(self, limit: float) -> None:
        """Kill it where its job took longer than `limit` seconds allow. It keeps the limit itself, unless it hangs."""
        if not self.job or self.overdue:
            return
        unheard = COMPILE_SECONDS if self.job.compile else BEGIN_SECONDS
        allowed = limit + OVERDUE_SECONDS + (0 if self._first else unheard)
        if time.monotonic() - (self._first or self._begun) > allowed:
            message = (f"launcher.point_seconds={limit:g} is used up and the worker gave no answer, so it was killed; "
                       "a higher limit goes on from the last checkpoint")  # fmt: skip
            self.overdue = {"type": "time_limit", "message": message, "step": None}
            self.kill()

    def stop(self) -> None:
        """Ask it to checkpoint and leave."""
        self._send({"stop": True})
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def kill(self) -> None:
        """End it now, with whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """The last lines of its log since the job began."""
        with contextlib.suppress(OSError), open(self.log_path, "rb") as f:
            f.seek(max(self._log_start, f.seek(0, os.SEEK_END) - 4096))
            lines = [line.strip() for line in f.read().decode(errors="replace").splitlines() if line.strip()]
            return redact(" | ".join(lines[-LOG_LINES:]))
        return ""

    def _send(self, message: dict) -> None:
        # A dead worker is heard of through its exit.
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def _listen(self, events: queue.Queue) -> None:
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                events.put((self, json.loads(line)))
        events.put((self, {"event": "exit", "code": self.process.wait()}))


def exit_reason(code: int, last_words: str) -> dict:
    """Typed reason of a worker that died of `code` (subprocess's returncode)."""
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        hint = " (out of memory, or killed by hand)" if name == "SIGKILL" else ""
        what = f"worker died of {name}{hint}"
    else:
        name, what = f"exit_{code}", f"worker left with exit status {code}"
    return {"type": f"worker_{name}", "message": f"{what}{': ' if last_words else ''}{last_words}"[:500], "step": None}


def _settings(slot: int, settings: Settings) -> dict:
    available, width = cores(), settings.threads * settings.devices_per_point
    # Pinning pays when the launch fills the machine, and would stack two small launches on the same cores.
    fills = settings.pin and settings.workers * width == len(available) and settings.device == "cpu"
    return {**settings.to_dict(), "cores": available[slot * width : (slot + 1) * width] if fills else []}


def _environment(slot: int, settings: Settings) -> dict[str, str]:
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        env[name] = str(settings.threads)
    # Compiling in the worker itself: a pool of compiler processes per worker would take more memory than it.
    env.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if settings.device == "cuda":
        env["CUDA_VISIBLE_DEVICES"] = ",".join(_gpus(slot, settings))
    return env


def _gpus(slot: int, settings: Settings) -> list[str]:
    """Of the visible GPUs those of a worker: `devices_per_point` of its own, or one that `points_per_device` share."""
    visible = [v.strip() for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v.strip()]
    first = slot * settings.devices_per_point // settings.points_per_device
    wanted = range(first, first + settings.devices_per_point)
    return [visible[i % len(visible)] if visible else str(i) for i in wanted]
