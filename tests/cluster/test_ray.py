"""launcher=ray on real clusters: two nodes that join by address, and private ones."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from sweeps.lease import newest_attempt
from sweeps.ray_cluster import address_error, check_reachable, resources

from .beds import tree, wait_for
from .sweeping import SLOW, Sweeping, results

PRIVATE = ("launcher=ray", "launcher.cpus=2")


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def undisturbed(module_folder):
    """Results of three slow points by the local launcher."""
    sweeping = Sweeping(module_folder).define(tokens=SLOW)
    yield sweeping.undisturbed()
    sweeping.close()


@pytest.fixture
def sweeping(tmp_path):
    """Three slow points. Private clusters lie in a folder of their own."""
    scratch = Path("/tmp") / f"hl-{os.getpid()}"
    scratch.mkdir(exist_ok=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"TMPDIR": str(scratch)}
    found = Sweeping(tmp_path, env=env).define(tokens=SLOW)
    yield found
    found.close()
    wait_for(lambda: not processes_of(scratch), 30)
    subprocess.run(["rm", "-rf", str(scratch)], check=True)


def processes_of(folder):
    """Process ids of Ray clusters whose files lie in the folder."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in cmdline.read_bytes():
                found.append(int(cmdline.parent.name))
        except OSError:
            pass
    return found


def clusters(sweeping):
    """Folders of private clusters."""
    return list(Path(sweeping.env["TMPDIR"]).glob("hyperlaw-ray-*/*"))


def listening(pids):
    """(address in hex, port) of the sockets on which processes accept connections."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    rows = [row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return [(address.split(":")[0], int(address.split(":")[1], 16))
            for _, address, _, state, *_, inode in (row[:10] for row in rows)
            if state == "0A" and inode in inodes]  # fmt: skip


def gone(pids):
    """Zombies count: they do nothing any more."""
    return not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)


def worker(run):
    """The process that trains a run."""
    return newest_attempt(run).pid


@contextlib.contextmanager
def frozen(pids):
    """Processes that do nothing meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def joins(ray_cluster):
    return "launcher=ray", f"launcher.address={ray_cluster.address}"


# ---- a private cluster


def test_a_private_cluster_trains_what_local_workers_train_and_is_seen_by_nobody(sweeping, undisturbed):
    process = sweeping.start("sweep", *PRIVATE, env={"RAY_ADDRESS": "192.0.2.77:1"})
    sweeping.training(2)
    assert process.poll() is None
    pids = tree(process.pid)
    sockets = listening(pids)
    assert sockets and 8265 not in [port for _, port in sockets]
    assert {address for address, _ in sockets} <= {"0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000"}
    (folder,) = clusters(sweeping)
    assert folder.parent.stat().st_mode & 0o077 == 0
    assert not list(folder.rglob("usage_stats.json"))
    # Another user of this machine has no token, and does not get in.
    gcs = next(p for p in pids if b"gcs_server" in Path(f"/proc/{p}/cmdline").read_bytes())
    address = f"127.0.0.1:{listening([gcs])[0][1]}"
    code = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"
    env = {**sweeping.env, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    with subprocess.Popen([sys.executable, "-c", code, address], env=env, stderr=subprocess.PIPE, text=True) as stranger:
        assert any("Unauthenticated" in line for line in stranger.stderr)  # it would go on asking for minutes
        stranger.kill()
    said = sweeping.end(process)
    assert "RAY_ADDRESS is set" in said and "(raylet)" not in said and "3 done" in said
    out = sweeping.folder / "out"
    assert results(out / "runs") == undisturbed
    assert not clusters(sweeping)
    wait_for(lambda: gone(pids), 30)
    names = {path.name for path in out.rglob("*") if path.is_file()}
    assert {name.rpartition(".")[2] for name in names} <= {"json", "yaml", "parquet", "log"}, names
    token = b"RAY_AUTH_TOKEN"
    assert not any(token in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_a_killed_launcher_takes_its_cluster_with_it_and_the_next_one_goes_on(sweeping, undisturbed):
    process = sweeping.start("sweep", *PRIVATE)
    sweeping.training(2)
    # Ray's agents give up a minute later; they have nobody to listen to.
    pids = [pid for pid in tree(process.pid) if b"Agent" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    process.kill()
    process.wait()
    wait_for(lambda: gone(pids), 30)
    assert len(clusters(sweeping)) == 1
    sweeping.run("sweep", *PRIVATE)
    assert results(sweeping.folder / "out" / "runs") == undisturbed
    assert not clusters(sweeping)


def test_the_death_of_a_private_cluster_is_said_and_the_next_launch_goes_on(sweeping, undisturbed):
    process = sweeping.start("sweep", *PRIVATE)
    workers = [worker(run) for run in sweeping.training(2)]
    (raylet,) = [p for p in tree(process.pid) if Path(f"/proc/{p}/comm").read_text() == "raylet\n"]
    with frozen(workers):  # Ray takes its time to hear of it; on a fast machine all points would be done by then
        os.kill(raylet, signal.SIGKILL)
        said = sweeping.end(process, status=1)
    assert "the private cluster died" in said and "left" in said and "Traceback" not in said
    sweeping.run("sweep", *PRIVATE)
    assert results(sweeping.folder / "out" / "runs") == undisturbed


# ---- a cluster of two nodes


def test_both_nodes_train_and_the_loss_of_one_loses_nothing(ray_cluster, sweeping, undisturbed):
    process = sweeping.start("sweep", *joins(ray_cluster))
    one, other = sweeping.training(2)
    nodes = {name: tree(node.pid) for name, node in ray_cluster.nodes.items()}
    homes = [next(name for name, pids in nodes.items() if worker(run) in pids) for run in (one, other)]
    assert sorted(homes) == ["n1", "n2"]
    ray_cluster.kill_node(homes[0])
    said = sweeping.end(process)
    assert "its node was lost, tried again" in said and "(raylet)" not in said
    assert results(sweeping.folder / "out" / "runs") == undisturbed
    assert sweeping.attempts() == [1, 1, 2]


def test_a_killed_worker_fails_one_attempt(ray_cluster, sweeping, undisturbed):
    process = sweeping.start("sweep", *joins(ray_cluster))
    os.kill(worker(sweeping.training(2)[0]), signal.SIGKILL)
    said = sweeping.end(process)
    assert said.count("failed: its worker died") == 1 and "tried again" in said and "(raylet)" not in said
    assert results(sweeping.folder / "out" / "runs") == undisturbed
    assert sweeping.attempts() == [1, 1, 2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_workers_checkpoint_and_leave(ray_cluster, sweeping, undisturbed, number):
    process = sweeping.start("sweep", *joins(ray_cluster))
    workers = [worker(run) for run in sweeping.training(2)]
    process.send_signal(number)
    said = sweeping.end(process, status=128 + number)
    assert "3 left" in said
    assert set(sweeping.statuses()) == {"pending"}
    wait_for(lambda: gone(workers), 30)
    if number == signal.SIGINT:
        sweeping.run("sweep", *joins(ray_cluster))
        assert results(sweeping.folder / "out" / "runs") == undisturbed


def test_a_point_that_cannot_be_trained_fails_alone(ray_cluster, sweeping):
    sweeping.define(tokens=8_192)
    run_id = sorted(sweeping.undisturbed())[1]
    (sweeping.folder / "out" / "runs" / run_id / "status.json").mkdir(parents=True)  # can never be written
    said = sweeping.run("sweep", *joins(ray_cluster), status=1)
    assert "2 done, 1 failed" in said and said.count(": failed: ") == 3  # two attempts and the summary
    assert "Traceback" not in said


# ---- requests


def test_nodes_that_do_not_see_the_data_are_told_in_one_line(ray_cluster, tmp_path):
    code = """
        import sys
        from sweeps.jobs import Settings
        from sweeps.ray_cluster import connected, resources
        from sweeps.ray_worker import RayWorker, loss_reason
        import ray
        here = sys.argv[2]
        settings = Settings(here, here, here, {"x": f"{here}/absent"}, engine={"address": sys.argv[1]})
        with connected(settings):
            try:
                ray.get(RayWorker(0, settings, resources(settings)).refs["hello"])
            except ray.exceptions.RayError as e:
                print(loss_reason(e)["message"])
    """
    said = python(code, ray_cluster.address, tmp_path)
    assert len(said.splitlines()) == 1 and "does not see" in said and "absent (data)" in said


def test_points_that_share_a_gpu_get_a_fraction_of_it(sweeping, tmp_path):
    """Ray counts GPUs that it is told of; nothing runs on them here."""
    code = """
        import sys
        from pathlib import Path
        from sweeps.jobs import Settings
        from sweeps.ray_cluster import connected, places, resources
        from sweeps.ray_worker import RayWorker
        here = Path(sys.argv[1])
        settings = Settings(here, here, here, {}, device="cuda", points_per_device=2, engine={"cpus": 4, "gpus": 1})
        with connected(settings):
            import ray
            need = resources(settings)
            workers = [RayWorker(i, settings, need) for i in range(3)]
            refs = [w.refs["hello"] for w in workers]
            done, waiting = ray.wait(refs, num_returns=2)
            seen = [ray.get(ref)["assigned"] for ref in done]
            _, still = ray.wait(waiting, timeout=1)
            print(places(need), [s["GPU"] for s in seen], len(still))
    """
    assert python(code, tmp_path, env=sweeping.env) == "2 [0.5, 0.5] 1"


def python(code, *arguments, env=None):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"num_cpus": 1, "num_gpus": 0}),
        ({"threads": 2, "devices_per_point": 2}, {"num_cpus": 4, "num_gpus": 0}),
        ({"device": "cuda"}, {"num_cpus": 1, "num_gpus": 1}),
        ({"device": "cuda", "devices_per_point": 2}, {"num_cpus": 2, "num_gpus": 2}),
        ({"device": "cuda", "points_per_device": 3}, {"num_cpus": 1, "num_gpus": 0.3333}),
    ],
)
def test_what_a_worker_takes(tmp_path, given, expected):
    from sweeps.jobs import Settings

    assert resources(Settings(tmp_path, tmp_path, tmp_path, {}, **given)) == expected


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["launcher.address=127.0.0.1:1"], "cannot be reached"),
        (["launcher.address=ray://127.0.0.1:1"], "not supported"),
        (["launcher.address=nonsense"], "HOST:PORT"),
        (["launcher.address=auto", "launcher.cpus=2"], "private cluster"),
        (["launcher.cpus=1", "launcher.threads=2"], "takes 2 CPUs"),
        (["--detach"], "ray job submit"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_or_two(sweeping, words, why):
    said = sweeping.define(tokens=8_192).run("sweep", "launcher=ray", *words, status=2, seconds=60)
    last = [line for line in said.splitlines() if line.startswith("hyperlaw: ")]
    assert len(last) == 1 and why in said and "Traceback" not in said


@pytest.mark.parametrize("address", ["auto", "head:6379", "10.1.2.3:6379", "[::1]:6379", None])
def test_addresses(address):
    assert address_error(address) is None


def test_a_host_that_is_silent_is_given_up_soon():
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        found = []

        def ask():
            try:
                check_reachable(f"127.0.0.1:{server.getsockname()[1]}")
            except Exception as e:
                found.append(e)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(20)
        assert not asking.is_alive() and "timed out" in str(found[0])
