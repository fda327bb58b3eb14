"""A Ray cluster to train on: somebody's, joined by address, or a private one on this machine, ended with the launch.

The private one listens on the loopback interface only, admits only who has its token, sends nothing anywhere, and keeps
its files (logs, pickles) in a folder of this user's that goes with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UserError
from harness.private import private_folder, private_name
from sweeps.jobs import Settings
from sweeps.launching import signals
from sweeps.rate import cores

ADDRESS = re.compile(r"auto|(\[[0-9a-fA-F:.%]+\]|[\w.-]+):(\d{1,5})")
REACH_SECONDS = 5.0
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # HTTP/2, which gRPC speaks; 4: settings
SOCKET_BYTES, SESSION_BYTES = 107, 73  # the longest path of a Unix socket; what follows our folder in it
STORE_BYTES = 100 * 2**20  # of shared memory for objects: ours are small
LOOPBACK = "127.0.0.1"
# The third drops what Ray would print of others' workers and of dead ones: the launch says that itself, in one line.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1", "RAY_DEDUP_LOGS_SKIP_REGEX": ".*"}


def resources(settings: Settings) -> dict[str, float]:
    """What Ray sets aside for one worker: `num_cpus`, `num_gpus`; a GPU that several points share is a fraction."""
    gpus = 0.0
    if settings.device == "cuda":
        gpus = float(settings.devices_per_point)
        if settings.points_per_device > 1:
            gpus = int(1e4 / settings.points_per_device) / 1e4  # Ray's granularity, rounded so that all fit
    return {"num_cpus": settings.threads * settings.devices_per_point, "num_gpus": gpus}


def places(need: dict[str, float]) -> int:
    """Workers of `need` (see `resources`) that the nodes hold at once, were they free."""
    import ray

    def of(node: dict) -> int:
        cpus, gpus = node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)
        fit = int(cpus // need["num_cpus"])
        if 0 < need["num_gpus"] < 1:  # no worker has parts of two GPUs
            return min(fit, int(gpus) * int(1 / need["num_gpus"]))
        return min(fit, int(gpus // need["num_gpus"])) if need["num_gpus"] else fit

    return sum(of(node) for node in ray.nodes() if node["Alive"])


def alive(node_id: str) -> bool:
    """Whether the cluster still counts on a node."""
    import ray

    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def address_error(address: str | None) -> str | None:
    """What is wrong with launcher.address, or None."""
    if address is None or (match := ADDRESS.fullmatch(address)) and (match[2] is None or 0 < int(match[2]) < 65536):
        return None
    if address.startswith("ray://"):
        return (f"launcher.address={address}: Ray Client is not supported. Start the sweep on a node of the cluster with "
                "launcher.address=auto.")  # fmt: skip
    return f"launcher.address={address} must be auto, HOST:PORT, or null for a private cluster."


def check_reachable(address: str) -> str:
    """HOST:PORT of a cluster that answers. Raises UserError: Ray itself would try for minutes."""
    found = os.environ.get("RAY_ADDRESS") if address == "auto" else address
    if not found:
        from ray._private.services import canonicalize_bootstrap_address

        try:
            found = canonicalize_bootstrap_address("auto")
        except ConnectionError:
            raise UserError("launcher.address=auto, but no Ray cluster runs on this machine (`ray start`).") from None
    if wrong := address_error(found):
        raise UserError(f"RAY_ADDRESS={found}: {wrong.partition(': ')[2] or wrong}")
    host, _, port = found.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS) as connection:
            connection.settimeout(REACH_SECONDS)
            connection.sendall(GREETING)
            answers = connection.recv(9)[3:4] == b"\x04"
    except OSError as e:
        raise UserError(f"the Ray cluster at {found} cannot be reached: {e.strerror or e}.") from None
    if not answers:
        raise UserError(f"what answers at {found} is no Ray cluster; `ray status` on its head shows the right port.")
    return found


@contextlib.contextmanager
def connected(settings: Settings) -> Iterator[None]:
    """Meanwhile this process is the driver of the cluster that `settings.engine` names. Raises UserError where there is
    none, or it is of another version."""
    address = settings.engine.get("address")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_as_before())
        os.environ.update(QUIET)  # Ray reads them when it is imported
        given = {"address": check_reachable(address)} if address else _private(settings, stack.enter_context(_folder()))
        _init(given)
        import ray

        stack.callback(_shutdown)
        if not address and ray.util.get_node_ip_address() != LOOPBACK:
            raise UserError("Ray was imported before the sweep, so that its private cluster would not stay on loopback.")
        yield


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Puts back what Ray and we change of this process: the environment, and what TERM does."""
    env, main = dict(os.environ), threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name not in env]:
            del os.environ[name]
        os.environ.update(env)
        if main:
            signal.signal(signal.SIGTERM, handler)


def _shutdown() -> None:
    """A second or two, in which a signal would leave processes behind."""
    import ray

    with signals(lambda _: None):
        ray.shutdown()


def _init(given: dict) -> None:
    import ray

    if ray.is_initialized():
        raise UserError("this process is connected to Ray already: ray.shutdown() first.")
    try:
        ray.init(**given, logging_level=logging.CRITICAL, log_to_driver=False, include_dashboard=False)
    except SystemExit:  # Ray's own answer to TERM
        raise SystemExit(128 + signal.SIGTERM) from None
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
        what = (str(e).strip().splitlines() or [repr(e)])[0]
        raise UserError(f"Ray: {what}") from None


def _private(settings: Settings, folder: Path) -> dict:
    """Arguments of ray.init for a cluster on this machine alone."""
    engine = settings.engine
    # The first is how Ray is told to stay on loopback (on Linux too); without a token every user here could run code.
    os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
    gpus = engine.get("gpus") or None if settings.device == "cuda" else 0
    return {"address": "local", "num_cpus": engine.get("cpus") or len(cores()), "num_gpus": gpus,
            "object_store_memory": STORE_BYTES, "_temp_dir": str(folder)}  # fmt: skip


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder for this user only, short enough for Unix sockets, gone afterwards; those of killed launches go first."""
    for parent in (tempfile.gettempdir(), "/tmp"):
        base = Path(parent) / private_name("hyperlaw-ray")
        if len(str(base)) + SESSION_BYTES <= SOCKET_BYTES:
            break
    private_folder(base)
    for old in base.iterdir():
        with contextlib.suppress(OSError), _locked(old):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="", dir=base))
    with _locked(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process's life. Raises BlockingIOError while another has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
