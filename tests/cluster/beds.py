"""A Slurm and a Ray cluster of two nodes each on this machine, real processes that tests may kill."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from .. import support

SCRIPT = Path(__file__).with_name("slurm.sh")
BED = "HYPERLAW_TEST_BED"  # in the environment of a Ray bed's processes: its folder
PORTS_USED = (0, 1, 11, 12)  # of a block of 20: slurm.sh
wait_for = partial(support.wait_for, every=0.1)  # each look may be a command of Slurm's or Ray's


class Unavailable(Exception):
    """This machine cannot have the bed: no root, no packages."""


def free(port):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return True
    return False


def free_ports():
    """First of 20 ports of which those that an instance uses are free."""
    blocks = range(18000, 30000, 20)
    return next(b for b in random.sample(blocks, len(blocks)) if all(free(b + i) for i in PORTS_USED))


def owned(prefix, parent):
    """A new folder for a bed, marked with this process; beds of processes that were killed are cleared first."""
    for mark in Path(parent).glob(f"{prefix}*/owner"):
        with contextlib.suppress(OSError, ValueError):
            pid, start = mark.read_text().split()
            if mark.stat().st_uid == os.getuid() and begun(int(pid)) != start:
                clear(mark.parent)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    (folder / "owner").write_text(f"{os.getpid()} {begun(os.getpid())}")
    return folder


def begun(pid):
    """When a process started, in clock ticks since boot: tells it from a later one of the same id."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def clear(folder):
    """End what a killed bed left running, and remove its folder."""
    if (folder / "instance").exists():
        env = {**os.environ, "SLURM_TEST_DIR": str(folder)}
        subprocess.run(["bash", str(SCRIPT), "clean"], env=env, capture_output=True)
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{BED}={folder}".encode() in environ.read_bytes().split(b"\0"):
                os.kill(int(environ.parent.name), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


class Slurm:
    """An instance of slurm.sh in a folder of its own. `env`: the environment in which sbatch and others find it."""

    nodes = ("n1", "n2")

    def __init__(self, accounting="none"):
        self.accounting = accounting
        self.folder = owned("hl-slurm-", "/var/tmp")
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SQUEUE"))}
        self.env = {**outer, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self._own = {**outer, "SLURM_TEST_DIR": str(self.folder), "SLURM_TEST_PORT": str(free_ports())}

    def start(self):
        """Raises Unavailable."""
        done = self._script("start", self.accounting, check=False)
        if done.returncode == 3:
            raise Unavailable(done.stderr)
        assert done.returncode == 0, done.stderr + done.stdout
        return self

    def close(self):
        self._script("clean", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill_node(self, name, jobs=False):
        """kill -9 of its slurmd: its jobs run on as orphans, unless they too are killed."""
        self._script("kill-node", name, *["all"] * jobs)

    def start_node(self, name):
        self._script("start-node", name)

    def reset(self):
        """No jobs, both nodes idle."""
        self._script("reset")

    def call(self, *command):
        """stdout of a Slurm command."""
        return subprocess.run(command, env=self.env, check=True, text=True, capture_output=True, timeout=60).stdout.strip()

    def submit(self, script, *options):
        """Job id of `script`, lines of sh. stdout goes to <folder>/<job id>.out unless options say otherwise."""
        command = ["sbatch", "--parsable", "-o", str(self.folder / "%A.out"), "-e", "/dev/null", "--open-mode=append",
                   *options]  # fmt: skip
        done = subprocess.run(command, input=f"#!/bin/sh\n{script}\n", env=self.env, check=True, text=True,
                              capture_output=True, timeout=60, cwd=self.folder)  # fmt: skip
        return done.stdout.strip()

    def squeue(self, *options):
        """[{"id", "state", "node", "reason"}] of jobs, ended ones of the last 30 s included; one row a task."""
        rows = self.call("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%N|%r", *options).splitlines()
        return [dict(zip(("id", "state", "node", "reason"), row.split("|"), strict=True)) for row in rows]

    def state(self, job):
        """PENDING, RUNNING, COMPLETED, ...; None when Slurm has forgotten it."""
        return next((row["state"] for row in self.squeue() if row["id"] == job), None)

    def requeue(self, job):
        self.call("scontrol", "requeue", job)

    def _script(self, *arguments, check=True):
        command = ["bash", str(SCRIPT), *arguments]
        done = subprocess.run(command, env=self._own, text=True, capture_output=True, stdin=subprocess.DEVNULL)
        assert not check or done.returncode == 0, done.stderr
        return done


class Ray:
    """A cluster on this machine: a head without CPUs, and nodes that may be killed. `address` is what ray.init takes."""

    def __init__(self, nodes=2, cpus=1):
        self.size, self.cpus, self.nodes = nodes, cpus, {}
        self._changed = False  # since all nodes were known to live
        self.folder = owned("hl-ray-", "/tmp")  # short: it holds sockets; 0700
        self.address = f"127.0.0.1:{next(p for p in random.sample(range(30000, 32000), 2000) if free(p))}"
        # A node that is gone is missed after 3 s; one that is only slow has 10 s to answer.
        soon = {"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000",
                "RAY_health_check_failure_threshold": "3"}  # fmt: skip
        self.env = {**os.environ, **soon, "RAY_USAGE_STATS_ENABLED": "0", BED: str(self.folder)}

    def start(self):
        port = self.address.rpartition(":")[2]
        self._start("head", ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false",
                             f"--temp-dir={self.folder}"])  # fmt: skip
        self.reset()
        return self

    def reset(self):
        """As many nodes as at the start; the cluster knows of those that died."""
        names = [f"n{i + 1}" for i in range(self.size)]
        for name in names:
            self.start_node(name)
        if self._changed:
            wait_for(lambda: sorted(self.alive()) == names)
        self._changed = False

    def alive(self):
        """Names of the nodes that the cluster takes for alive, a dead one for up to a few seconds more."""
        script = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False); print('nodes', " \
                 "*[k for node in ray.nodes() if node['Alive'] for k in node['Resources']])"  # fmt: skip
        command = [sys.executable, "-c", script, self.address]
        done = subprocess.run(command, env=self.env, text=True, capture_output=True, check=True, timeout=120)
        resources = done.stdout.splitlines()[-1].split()
        return [r for r in resources if r[0] == "n" and r[1:].isdigit()]

    def start_node(self, name):
        """A node `name` that also has one unit of the resource of this name; nothing if it lives."""
        if name in self.nodes and self.nodes[name].poll() is None:
            return
        self._start(name, [f"--address={self.address}", f"--num-cpus={self.cpus}", f"--resources={json.dumps({name: 1})}"])

    def kill_node(self, name):
        """kill -9 of all its processes: raylet, agents, workers."""
        process, self._changed = self.nodes.pop(name), True
        for pid in tree(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def close(self):
        for name in [n for n in self.nodes if n != "head"] + ["head"] * ("head" in self.nodes):
            self.kill_node(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name, options):
        log = self.folder / f"{name}-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1",
                   "--object-store-memory=100000000", "--disable-usage-stats", *options]  # fmt: skip
        with log.open("w") as out:
            self.nodes[name] = subprocess.Popen(command, env=self.env, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

        def up():
            assert self.nodes[name].poll() is None, log.read_text()
            return "Ray runtime started" in log.read_text()

        wait_for(up, 120)


def tree(pid):
    """pid and its descendants, parents first."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found = [pid]
    for parent in found:
        found += parents.get(parent, [])
    return found
