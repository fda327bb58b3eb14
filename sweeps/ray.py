"""The Ray launcher: persistent workers as actors, which Ray places on the nodes of a cluster and queues while it is full.

A worker that dies fails one attempt of one point; the loss of its node is no attempt of the point's. Ctrl-C and TERM make
every worker checkpoint and leave.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import TextIO

from harness.config import Config
from harness.errors import UserError
from sweeps.display import Display
from sweeps.jobs import Settings, Summary
from sweeps.launching import TICK_SECONDS, Launch, Running, signals
from sweeps.plan import Plan
from sweeps.ray_cluster import address_error, check_reachable, connected, places, resources
from sweeps.ray_worker import RayWorker, loss_reason, node_lost
from sweeps.worker import GRACE_SECONDS, LEAVE_SECONDS

LEAST = (2, 50)  # Ray's version
FALSE_STARTS = 3  # workers in a row that do not come up
NODES_LOST = 10  # losses of its node that a point may have before they count as its own
COUNT_SECONDS = 5.0  # between two looks at how many workers the cluster holds
PATIENCE_SECONDS = 10.0  # without a place on the cluster, before that is said


def check(config: Config) -> None:
    """Raises UserError where Ray is missing or too old, or the cluster cannot be."""
    launcher = config.launcher
    try:
        found = version("ray")
    except PackageNotFoundError:
        raise UserError("launcher=ray needs Ray: pip install 'hyperlaw[ray]'.") from None
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < LEAST:
        raise UserError(f"launcher=ray needs Ray {'.'.join(map(str, LEAST))} or newer, this is {found}: pip install -U ray.")
    if wrong := address_error(launcher.address):
        raise UserError(wrong)
    if launcher.address and (launcher.cpus or launcher.gpus):
        raise UserError(f"launcher.cpus and launcher.gpus are of a private cluster; the one at {launcher.address} has its "
                        "own (for its GPUs say device=cuda).")  # fmt: skip
    if launcher.address not in (None, "auto"):
        check_reachable(launcher.address)
    width = launcher.threads * launcher.devices_per_point
    if launcher.cpus and width > launcher.cpus:
        raise UserError(f"a point takes {width} CPUs (threads * devices_per_point), but launcher.cpus={launcher.cpus}.")


def run(
    plan: Plan,
    settings: Settings,
    more: Callable[[], Plan | None] | None = None,
    stream: TextIO | None = None,
    quiet: bool = False,
) -> Summary:
    """Train what is left of `plan` on the cluster at settings.engine["address"], null for a private one; blocks until all
    is through or a signal stops it. Raises UserError where the cluster cannot be had, OSError where the folder of logs
    cannot be made."""
    if settings.detach:
        raise UserError("--detach: Ray ends a launch's workers with it. To leave it to the cluster:\n"
                        "ray job submit --no-wait -- hyperlaw sweep ... launcher=ray launcher.address=auto")  # fmt: skip
    settings.logs.mkdir(parents=True, exist_ok=True)
    display = Display(stream or sys.stderr, quiet)
    if not plan.left and more is None:
        return Launch(plan, settings, display).summary
    if not settings.engine.get("address") and os.environ.get("RAY_ADDRESS"):
        display.line("RAY_ADDRESS is set, but launcher.address is null: a private cluster (launcher.address=auto joins it)")
    with connected(settings):
        launch = RayLaunch(plan, settings, display)
        with signals(launch.stop):
            return launch.run(more)


class RayLaunch(Launch):
    """A launch whose jobs run in actors of a cluster that this process is connected to."""

    def __init__(self, plan: Plan, settings: Settings, display: Display):
        self.workers: list[RayWorker] = []
        self.need = resources(settings)
        self.false_starts, self.stopping_since, self.dead = 0, None, False
        self.lost_nodes: Counter = Counter()
        self.counted, self.begun, self.said_waiting = 0.0, time.monotonic(), False
        super().__init__(plan, settings, display)
        self._count_places()

    @property
    def broken(self) -> bool:
        return self.dead or self.false_starts >= FALSE_STARTS and not any(w.job for w in self.workers)

    def running(self) -> list[Running]:
        return [Running(w.job, w.step, w.loss, w.training_seconds) for w in self.workers if w.job]

    def assign(self) -> None:
        ready = self.ready()
        for worker in list(self.workers):
            if not worker.ready or worker.job:
                continue
            if ready:
                job = self.chosen(ready, worker)
                self.take(job)
                worker.start(job)
            elif not self.waiting:  # others on the cluster may want its place
                self._drop(worker)
        self._hire(len(ready))
        self._say_waiting()

    def _hire(self, unserved: int) -> None:
        """Workers for `unserved` jobs. Ray queues those that find no place."""
        self._count_places()
        coming = sum(1 for w in self.workers if not w.ready)
        if self.dead or self.false_starts >= FALSE_STARTS:
            return
        for _ in range(min(unserved - coming, self.settings.workers - len(self.workers))):
            slot = min(set(range(self.settings.workers)) - {w.slot for w in self.workers})
            self.workers.append(RayWorker(slot, self.settings, self.need))

    def _count_places(self) -> None:
        """Nodes come and go."""
        if time.monotonic() - self.counted < COUNT_SECONDS:
            return
        found, asked = places(self.need), self.settings.engine.get("workers")
        if not found and not self.settings.engine.get("address"):
            if not self.counted:
                raise UserError(f"a point takes {self._needs()}, more than this machine gives a private cluster.")
            self.dead = True
            self.display.line("the private cluster died; the same command goes on", important=True)
            return
        # Those beyond what is there now wait in Ray's queue, where an autoscaler sees them.
        self.settings = replace(self.settings, workers=asked or max(found, 1))
        self.counted = time.monotonic()

    def _needs(self) -> str:
        cpus, gpus = self.need["num_cpus"], self.need["num_gpus"]
        return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")

    def _say_waiting(self) -> None:
        if any(w.ready for w in self.workers):
            self.begun, self.said_waiting = time.monotonic(), False
        elif self.workers and not self.said_waiting and time.monotonic() - self.begun > PATIENCE_SECONDS:
            self.said_waiting = True
            self.display.line(f"waiting for a place on the cluster: {self._needs()} a point", important=True)

    # ---- events

    def hear(self, timeout: float) -> None:
        import ray

        for worker in self.workers:
            worker.look()
            if self.settings.point_seconds:
                worker.end_overdue(self.settings.point_seconds)
        refs = {ref: (worker, name) for worker in self.workers for name, ref in worker.refs.items()}
        if not refs:
            time.sleep(timeout)
            return
        done, _ = ray.wait(list(refs), num_returns=1, timeout=timeout)
        if done:
            done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        for ref in done:
            worker, name = refs[ref]
            if worker.refs.get(name) != ref:  # gone with another piece of news
                continue
            del worker.refs[name]
            try:
                news = ray.get(ref)
            except ray.exceptions.RayError as error:
                self._on_loss(worker, error)
            else:
                getattr(self, f"_on_{name}")(worker, news)

    def _on_hello(self, worker: RayWorker, news: dict) -> None:
        worker.node, self.false_starts = news["node"], 0

    def _on_look(self, worker: RayWorker, news: dict) -> None:
        if worker.lost:  # it is there again, but what it was doing will not be heard of
            self._on_loss(worker, None)
            return
        worker.hear(news)
        if worker.job:
            self.heard(worker.job, worker.step)

    def _on_train(self, worker: RayWorker, message: dict) -> None:
        job, worker.job = worker.job, None
        self.ended(job, message, worker.training_seconds)
        if self.stopping_since is not None:
            self._drop(worker)

    def _on_loss(self, worker: RayWorker, error: Exception | None) -> None:
        """Its process or its node died, contact with it was lost (None: for a while), or it could not begin."""
        import ray

        stopping = self.stopping_since is not None
        if isinstance(error, ray.exceptions.ActorUnavailableError) and not stopping and worker.ask_again():
            return
        job, worker.job = worker.job, None
        self._drop(worker)
        if job is None:
            if not worker.ready and not stopping:
                self.false_starts += 1
                self.display.line(f"a worker did not start: {loss_reason(error)['message']}", important=True)
                self.summary.attempts += self.broken
        elif stopping:
            self.cold.discard(job.key)
            self.waiting[job.id] = job
        elif not worker.overdue and node_lost(worker, error) and self.lost_nodes[job.id] < NODES_LOST:
            self.lost_nodes[job.id] += 1
            self.summary.attempts += 1
            self.cold.discard(job.key)
            self.waiting[job.id] = job
            self.display.line(f"{self._name(job)}: its node was lost, tried again", important=True)
        else:
            self.failed(job, "failed", worker.overdue or loss_reason(error), crashed=True)

    def _drop(self, worker: RayWorker) -> None:
        worker.kill()
        if worker in self.workers:
            self.workers.remove(worker)

    # ---- the end

    def leave(self) -> None:
        """Workers checkpoint and leave; those that do not are killed after a while, compilations sooner."""
        self.stopping_since = time.monotonic()
        for worker in list(self.workers):
            if worker.job:
                worker.stop()
            else:
                self._drop(worker)
        while self.workers:
            spent = time.monotonic() - self.stopping_since
            for worker in list(self.workers):
                patience = LEAVE_SECONDS if worker.compiling and not worker.asked else GRACE_SECONDS
                if self.killed or self.dead or spent > patience:  # a second Ctrl-C does not wait
                    self.waiting[worker.job.id] = worker.job
                    self._drop(worker)
            self.hear(TICK_SECONDS)
