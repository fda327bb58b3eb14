"""A persistent worker on a Ray cluster: the actor that trains, and how the launch sees it.

An actor rather than a task a point: it keeps its compiled step and its share of a GPU from point to point, and answers
while it trains.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from pathlib import Path

from harness.errors import UserError
from harness.redact import redacted
from sweeps.jobs import Job, Settings
from sweeps.pool import Worker
from sweeps.ray_cluster import alive

LOOK_SECONDS = 1.0  # between two questions how far it is
CONTACT_SECONDS = 60.0  # that Ray has to find out why a worker does not answer; it misses a node after some 20


class Trainer:
    """The actor: `train` runs in one thread, `look` and `stop` beside it. `settings` as Settings.to_dict gives them."""

    def __init__(self, slot: int, settings: dict):
        from sweeps.worker import Stop

        self.settings, self.stopping = settings, Stop()
        self.job, self.step, self.loss = None, 0, None
        # Read when torch is imported. Compiling in the worker itself: compiler processes would outlive it.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(settings["threads"])
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        with contextlib.suppress(OSError):  # hello says what is missing
            log = open(Path(settings["logs"]) / f"worker-{slot}.log", "a", buffering=1)
            sys.stdout = sys.stderr = redacted(log)

    def hello(self) -> dict:
        """Ready: the node's id and name. Raises UserError where the node does not see what it needs."""
        import ray

        places = {"runs": self.settings["runs_dir"], "cache": self.settings["cache"]}
        for key, path in [*places.items(), *(("data", path) for path in self.settings["corpora"].values())]:
            if not os.path.isdir(path):
                raise UserError(f"{socket.gethostname()} does not see {path} ({key}): nodes need it at the same path")
        import torch

        import harness.train  # noqa: F401  seconds of imports, before the first job waits for them

        torch.set_num_threads(self.settings["threads"])
        return {"node": ray.get_runtime_context().get_node_id(), "host": socket.gethostname(), "pid": os.getpid(),
                "assigned": ray.get_runtime_context().get_assigned_resources()}  # fmt: skip

    def train(self, message: dict) -> dict:
        """One job: what `execute` returns."""
        from sweeps.execute import execute

        self.job, self.step, self.loss = message["job"], 0, None
        self.stopping.begin(message["compile"])
        return execute(message, self.settings, self._progress, self.stopping.ask)

    def look(self) -> dict:
        """How far it is. `asked`, `compiling`: as of sweeps.worker.Stop."""
        return {"job": self.job, "step": self.step, "loss": self.loss, "asked": self.stopping.asked,
                "compiling": self.stopping.compiling}  # fmt: skip

    def stop(self) -> None:
        """Checkpoint and end the job."""
        self.stopping.set()

    def _progress(self, event: str, job: str, step: int, steps: int, loss: float | None) -> None:
        self.step, self.loss = step, loss


class RayWorker:
    """A Trainer as the launch sees it. `refs` are what it waits for from it: name -> Ray's reference."""

    def __init__(self, slot: int, settings: Settings, need: dict[str, float]):
        import ray

        remote = ray.remote(Trainer).options(**need, max_restarts=0, max_task_retries=0, max_concurrency=2)
        self.slot = slot
        self.actor = remote.remote(slot, settings.to_dict())
        self.job: Job | None = None
        self.key: str | None = None  # of the last job: what it has compiled
        self.node: str | None = None  # once it is ready
        self.step, self.loss = 0, None
        self.asked = self.compiling = False
        self.refs = {"hello": self.actor.hello.remote()}
        self._begun = self._looked = 0.0
        self._first: float | None = None  # when its job's first progress was heard of: compiled by then
        self.overdue: dict | None = None  # why it was killed
        self.lost: float | None = None  # since when it does not answer

    end_overdue = Worker.end_overdue  # a hanging worker is no other here
    training_seconds = Worker.training_seconds

    @property
    def ready(self) -> bool:
        return self.node is not None

    def start(self, job: Job) -> None:
        """Give it a job; it must have none."""
        self.job, self.key, self.step, self.loss, self._first = job, job.key, 0, None, None
        self._begun, self.compiling = time.monotonic(), job.compile
        self.refs["train"] = self.actor.train.remote(job.message())

    def look(self) -> None:
        """Ask how far it is, once a second."""
        now = time.monotonic()
        if self.job and "look" not in self.refs and now - self._looked > LOOK_SECONDS:
            self._looked = now
            self.refs["look"] = self.actor.look.remote()

    def hear(self, news: dict) -> None:
        """What `look` returned."""
        self.asked = news["asked"]
        if self.job and news["job"] == self.job.id:
            self.compiling = news["compiling"]
            if news["step"]:
                self._first = self._first or time.monotonic()
                self.step, self.loss = news["step"], news["loss"]

    def ask_again(self) -> bool:
        """Contact was lost: what comes of one more question tells why. False once that took too long."""
        now = time.monotonic()
        self.lost = self.lost or now
        if "look" not in self.refs:
            self.refs["look"] = self.actor.look.remote()
        return now - self.lost < CONTACT_SECONDS

    def stop(self) -> None:
        """Ask it to checkpoint and end its job."""
        self.actor.stop.remote()

    def kill(self) -> None:
        """End it now, or give up its place in the queue."""
        import ray

        with contextlib.suppress(Exception):
            ray.kill(self.actor)


def node_lost(worker: RayWorker, error: Exception | None) -> bool:
    """Whether a worker was lost with its node or the way there, rather than by itself."""
    import ray

    unheard = error is None or isinstance(error, ray.exceptions.ActorUnavailableError)
    return unheard or "node has died" in str(error) or not alive(worker.node)


def loss_reason(error: Exception | None) -> dict:
    """Typed reason of a worker whose call ended in `error` (Ray's), in one line."""
    cause = getattr(error, "cause", None)
    if cause is not None:  # raised in the worker
        what = (str(cause).strip().splitlines() or [repr(cause)])[0]
        if isinstance(cause, ImportError):
            what += "; hyperlaw must be installed on every node, in the driver's version"
        return {"type": type(cause).__name__, "message": what[:500], "step": None}
    said = str(error)
    if "memory" in said and type(error).__name__ == "OutOfMemoryError" or "memory monitor" in said:
        return {"type": "node_memory", "message": "Ray killed the worker: its node ran out of memory", "step": None}
    return {"type": "worker_died", "message": "its worker died (killed, out of memory, or crashed)", "step": None}
