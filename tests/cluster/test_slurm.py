"""launcher=slurm on a real Slurm: what is asked for arrives, whatever happens to a sweep it ends as if nothing had."""

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config import LauncherConfig
from harness.rundir import read_status
from sweeps.engines import engine_settings
from sweeps.jobs import Settings
from sweeps.lease import newest_attempt
from sweeps.plan import Plan, make_plan
from sweeps.slurm import run as launch

from .beds import wait_for
from .sweeping import SLOW, Sweeping, results

ONE = "launcher.points_per_job=1"
POINTS = {"seed": [0, 1]}


@pytest.fixture
def sweeps(slurm, tmp_path):
    found = Sweeping(tmp_path, "launcher=slurm", "launcher.lease_seconds=10", env=slurm.env)
    yield found
    found.close()


@pytest.fixture(scope="session")
def slow(tmp_path_factory):
    """Results of an undisturbed sweep of two points that take some seconds each."""
    sweeping = Sweeping(tmp_path_factory.mktemp("slow")).define(tokens=SLOW, **POINTS)
    return sweeping.undisturbed()


def ids(slurm, state=None):
    """Elements in the queue, ended ones left out."""
    rows = [row for row in slurm.squeue() if row["state"] in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")]
    return [row["id"] for row in rows if state in (None, row["state"])]


def shown(slurm, job):
    return slurm.call("scontrol", "show", "job", job)


def test_over_two_nodes_as_on_one_machine(slurm, sweeps):
    sweeps.define(**{"seed": [0, 1, 2], "optimizer.lr": [1e-3, 1e9]})
    launcher, nodes = sweeps.start("sweep", "launcher.points_per_job=2"), set()
    wait_for(lambda: nodes.update(r["node"] for r in slurm.squeue() if r["state"] == "RUNNING") or nodes == {"n1", "n2"})
    said = sweeps.end(launcher)
    assert "3 done, 3 diverged" in said and "6 points in 3 allocations" in said
    assert results(sweeps.folder / "out/runs") == sweeps.undisturbed()
    assert sweeps.attempts() == [1] * 6
    assert "nothing left to do" in sweeps.run("sweep")
    folder = next((sweeps.folder / "cache").glob("slurm-*"))
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder, *folder.iterdir()))
    assert not list((sweeps.folder / "out").rglob("*.pkl"))


def test_parameters_arrive_and_the_array_keeps_its_limit(slurm, sweeps):
    sweeps.define(seed=[0, 1, 2, 3])
    given = ["launcher.partition=high", "launcher.time=1:30:00", "launcher.memory=900M", "launcher.cpus=2",
             "launcher.gpus=1", "device=auto", "launcher.max_running=1", "launcher.sbatch={nice: 5}",
             'launcher.sbatch.comment="hello there"', 'launcher.setup=["export HL_MARK=1"]']  # fmt: skip
    slurm.call("scontrol", "update", "PartitionName=high", "State=DOWN")
    try:
        said = sweeps.run("sweep", "--detach", "launcher.points_per_job=2", *given)
        job = re.search(r"Slurm job (\d+)", said)[1]
        facts = shown(slurm, f"{job}_1")
    finally:
        slurm.call("scontrol", "update", "PartitionName=high", "State=UP")
    for fact in ("Partition=high", "TimeLimit=01:30:00", "MinMemoryNode=900M", "CPUs/Task=2", "Comment=hello there",
                 "ArrayTaskThrottle=1", "Requeue=1", "gres:gpu:1"):  # fmt: skip
        assert fact in facts, facts
    script = slurm.call("scontrol", "write", "batch_script", job, "-")
    assert "\nexport HL_MARK=1\n" in script and "--signal=USR2@120" in script
    slurm.call("scancel", job)


def test_what_sbatch_refuses_is_told_in_its_words(slurm, sweeps):
    sweeps.define()
    said = sweeps.run("sweep", "launcher.partition=nosuch", status=2)
    assert said.splitlines()[-1].startswith("hyperlaw: sbatch refused: ") and "partition" in said.splitlines()[-1]
    assert not sweeps.records() and not ids(slurm)


def test_dependencies_are_slurms_and_a_failed_need_is_said(slurm, tiny, corpus, tmp_path, capfd):
    points, _ = tiny("seed=0,1,2,3")
    needs = {points[2].id: (points[0].id,), points[3].id: (points[1].id,)}

    class Branches(Plan):
        def jobs(self):
            return [replace(job, needs=needs.get(job.id, ())) for job in super().jobs()]

    launcher = LauncherConfig(name="slurm", compile="never", points_per_job=2)
    plan = make_plan(points, tmp_path / "out/runs", launcher, tmp_path / "cache", "cpu", probe=False)
    settings = Settings(tmp_path / "out/runs", tmp_path / "cache", tmp_path / "out/logs", max_attempts=1,
                        corpora={corpus.fingerprint: str(corpus.dir)}, engine=engine_settings(launcher))  # fmt: skip
    # This trunk cannot write how it ended.
    (tmp_path / "out/runs" / points[1].id / "status.json").mkdir(parents=True)
    summary = launch(Branches(**vars(plan)), settings)
    assert (summary.done, summary.failed) == (2, 2)
    assert "which failed" in summary.failures[points[3].id]
    assert re.search("its log says: .* failed: .*status.json", summary.failures[points[1].id])
    assert len(list((tmp_path / "out/launches").glob("*.json"))) == 1  # nothing started early, to be submitted again
    began = {p.id: (tmp_path / "out/runs" / p.id / "attempts/000001.json").stat().st_mtime for p in (points[0], points[2])}
    ended = (tmp_path / "out/runs" / points[0].id / "result.json").stat().st_mtime
    assert ended <= began[points[2].id] and not (tmp_path / "out/runs" / points[3].id).exists()
    logs = [path.read_text() for path in (tmp_path / "out/logs").rglob("launcher.log")]
    assert any(f"{points[3].id} is not trained: it needs {points[1].id}" in log for log in logs)


def test_detached_then_followed_from_elsewhere(slurm, sweeps, slow):
    sweeps.define(tokens=SLOW, **POINTS)
    assert "1 point" in sweeps.run("sweep", "--detach", "launcher.max_running=1", "seed=0")
    said = sweeps.run("sweep", "--detach", "launcher.max_running=1", ONE)  # nobody submits the other when there is room
    first, second = (record["arrays"][0]["job"] for record in sweeps.records())
    assert f"1 point in Slurm job {first} already" in said and f"1 point in 1 allocation, after job {first}" in said
    assert "2 points in the queue" in said and "hyperlaw status" in said
    sweeps.training()
    elsewhere = {"HYPERLAW_CACHE": str(sweeps.folder / "cache2")}
    report = json.loads(sweeps.run("status", "--json", env=elsewhere))
    assert report["counts"]["running"] == 1 and report["counts"]["pending"] == 1
    assert list(report["queued"].values()) == [f"waits in Slurm job {second} (Dependency)"]
    # Without Slurm's commands, on a machine that only sees the folder.
    said = sweeps.run("status", env={**elsewhere, "PATH": "/nowhere"})
    assert "submitted to Slurm by" in said and "squeue is not here" in said
    again = sweeps.start("sweep", ONE)
    assert "2/2 points finished" in (said := sweeps.run("status", "--wait", env=elsewhere)) or "2 done" in said
    assert f"1 point in Slurm job {second}" in sweeps.end(again) and len(sweeps.records()) == 2
    assert results(sweeps.folder / "out/runs") == slow and sweeps.attempts() == [1, 1]


def test_preempted_and_requeued(slurm, sweeps, slow):
    sweeps.define(tokens=SLOW, **POINTS)
    launcher = sweeps.start("sweep", ONE)
    sweeps.training(2)
    slurm.submit("sleep 1", "-phigh", "-N2", "-c2", "--exclusive")
    sweeps.end(launcher)
    assert results(sweeps.folder / "out/runs") == slow and sweeps.attempts() == [2, 2]
    assert len(sweeps.records()) == 1
    assert len(list((sweeps.folder / "out/logs").glob("slurm-*-1"))) == 2


def test_preempted_and_cancelled_is_submitted_again_and_counts_nothing(slurm, sweeps, slow):
    sweeps.define(tokens=SLOW, **POINTS)
    slurm.call("scontrol", "update", "PartitionName=main", "PreemptMode=CANCEL")
    try:
        launcher = sweeps.start("sweep", "launcher.points_per_job=2", "launcher.workers=2", "launcher.max_attempts=1")
        sweeps.training(2)
        slurm.submit("sleep 1", "-phigh", "-N2", "-c2", "--exclusive")
        said = sweeps.end(launcher)
    finally:
        slurm.call("scontrol", "update", "PartitionName=main", "PreemptMode=REQUEUE")
    assert said.count("ended (PREEMPTED): 2 points tried again\n") == 1 and "failed" not in said
    assert results(sweeps.folder / "out/runs") == slow and sweeps.attempts() == [2, 2] and len(sweeps.records()) == 2


def test_near_its_time_limit_it_checkpoints_and_goes_on_in_the_next(slurm, sweeps, slow):
    # Slurm sends the signal up to a minute early, here 30 to 60 s after the start. Until then training is held.
    sweeps.define(tokens=SLOW, **POINTS)
    launcher = sweeps.start("sweep", "launcher.time=2", "launcher.signal_seconds=60", ONE)
    held = [newest_attempt(run).pid for run in sweeps.training(2)]
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    # Each goes on as soon as its own element has heard: the two hear at moments far apart, and the grace is short.
    log = {pid: Path(os.readlink(f"/proc/{pid}/fd/2")).parent / "launcher.log" for pid in held}
    while log:
        heard = wait_for(lambda: [pid for pid in log if "SIGUSR2" in log[pid].read_text()], 100)
        for pid in heard:
            os.kill(pid, signal.SIGCONT)
            del log[pid]
    logs = lambda: [path.read_text() for path in (sweeps.folder / "out/logs").rglob("launcher.log")]  # noqa: E731
    sweeps.end(launcher)
    requeued = sum("the time limit is near: points are checkpointed, this job is requeued" in log for log in logs())
    assert requeued >= 2 and sum(sweeps.attempts()) == 2 + requeued  # a slow machine meets the limit again
    assert results(sweeps.folder / "out/runs") == slow and len(sweeps.records()) == 1


def test_a_dead_node_whose_job_runs_on_changes_nothing(slurm, sweeps, slow):
    """One orphan trains on while its replacement waits; one hangs, is replaced, and wakes up later."""
    sweeps.define(tokens=SLOW, **POINTS)
    launcher = sweeps.start("sweep", ONE, "launcher.lease_seconds=4")
    hangs, _ = sweeps.training(2)
    orphan = newest_attempt(hangs).pid
    os.kill(orphan, signal.SIGSTOP)
    assert {row["node"] for row in slurm.squeue() if row["state"] == "RUNNING"} == {"n1"}
    slurm.kill_node("n1")
    wait_for(lambda: newest_attempt(hangs).number == 2, 120)
    os.kill(orphan, signal.SIGCONT)
    sweeps.end(launcher)
    assert results(sweeps.folder / "out/runs") == slow and sweeps.attempts() == [1, 2]
    wait_for(lambda: not os.path.exists(f"/proc/{orphan}"))
    assert results(sweeps.folder / "out/runs") == slow


def test_cancelled_by_hand_is_left_and_goes_on_later(slurm, sweeps, slow):
    sweeps.define(tokens=SLOW, **POINTS)
    launcher = sweeps.start("sweep", ONE)
    sweeps.training(2)
    slurm.call("scancel", ids(slurm, "RUNNING")[0])
    said = sweeps.end(launcher, status=1)
    assert "was cancelled: 1 point left" in said and "1 done, 1 left" in said
    sweeps.run("sweep")
    assert results(sweeps.folder / "out/runs") == slow


def test_what_crashes_is_submitted_again_and_then_failed_with_the_reason(slurm_dbd, tmp_path):
    sweeps = Sweeping(tmp_path, "launcher=slurm", env=slurm_dbd.env).define(seed=[0])
    said = sweeps.run("sweep", 'launcher.setup=["echo no such module >&2; exit 3"]', status=1)
    sweeps.close()
    assert said.count("tried again") == 1 and len(sweeps.records()) == 2
    assert "FAILED, exit 3:0" in said and "its log says: no such module" in said
    assert sweeps.statuses() == ["failed"]


def test_two_launches_at_once(slurm, sweeps, slow):
    sweeps.define(tokens=SLOW, **POINTS)
    both = [sweeps.start("sweep", ONE), sweeps.start("sweep", "launcher=local", "launcher.workers=1", bare=True)]
    third = sweeps.start("sweep", ONE)
    for process in (*both, third):
        sweeps.end(process)
    assert results(sweeps.folder / "out/runs") == slow and sweeps.attempts() == [1, 1]


@pytest.fixture
def epilog(slurm):
    """The cluster has an epilog, which lasts as long as this file is there."""
    held, script, conf = (slurm.folder / name for name in ("held", "epilog", "slurm.conf"))
    held.touch()
    script.write_text(f"#!/bin/sh\nwhile [ -e {held} ]; do sleep 0.2; done\n")
    script.chmod(0o755)
    before = conf.read_text()
    conf.write_text(f"{before}\nEpilog={script}\n")
    slurm.call("scontrol", "reconfigure")
    yield held
    held.unlink(missing_ok=True)
    conf.write_text(before)
    slurm.call("scontrol", "reconfigure")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_what_was_submitted_and_the_same_command_goes_on_at_once(slurm, epilog, sweeps, slow, number):
    sweeps.define(tokens=SLOW, **POINTS)
    launcher = sweeps.start("sweep", ONE)
    sweeps.training(2)
    launcher.send_signal(number)
    said = sweeps.end(launcher, status=128 + number)
    assert "cancelled Slurm job" in said and "its points checkpoint" in said and "2 left" in said
    runs = list((sweeps.folder / "out/runs").iterdir())
    assert {read_status(run)["status"] for run in runs} == {"pending"} and all(read_status(run)["step"] for run in runs)
    again = sweeps.start("sweep", ONE)
    wait_for(lambda: sweeps.attempts() == [2, 2])  # while Slurm is not through with the cancelled ones
    assert len(ids(slurm, "COMPLETING")) == 2
    epilog.unlink()
    sweeps.end(again)
    assert results(sweeps.folder / "out/runs") == slow and sweeps.attempts() == [2, 2] and len(sweeps.records()) == 2


def test_a_job_that_waits_for_ever_says_why(slurm, sweeps):
    sweeps.define(seed=[0])
    launcher = sweeps.start("sweep", "launcher.sbatch.hold=true")
    lines = iter(launcher.stdout.readline, "")
    assert any("Slurm job" in line and "1 allocation waiting (JobHeldUser)" in line for line in lines)
    launcher.send_signal(signal.SIGINT)
    assert "none of its points is in training" in sweeps.end(launcher, status=130) and not ids(slurm)


def test_after_kill_9_of_the_launcher_the_same_command_attaches(slurm, sweeps, slow):
    sweeps.define(tokens=SLOW, **POINTS)
    launcher = sweeps.start("sweep", ONE)
    sweeps.training(1)
    os.kill(launcher.pid, signal.SIGKILL)
    said = sweeps.run("sweep", ONE)
    assert "points in Slurm job" in said and len(sweeps.records()) == 1
    assert results(sweeps.folder / "out/runs") == slow and sweeps.attempts() == [1, 1]


def test_a_squeue_that_fails_for_a_while_ends_nothing(slurm, sweeps):
    sweeps.define(tokens=SLOW, seed=[0])
    shim = sweeps.folder / "bin" / "squeue"
    shim.parent.mkdir()
    real = slurm.call("sh", "-c", "command -v squeue")
    shim.write_text(f"#!/bin/sh\n[ -e {sweeps.folder}/broken ] && exit 1\nexec {real} \"$@\"\n")
    shim.chmod(0o755)
    launcher = sweeps.start("sweep", env={"PATH": f"{shim.parent}:{os.environ['PATH']}"})
    sweeps.training(1)
    (sweeps.folder / "broken").touch()
    said = wait_for(lambda: sweeps.statuses() == ["done"], 120) and sweeps.end(launcher)
    assert "squeue does not answer; waiting" in said
