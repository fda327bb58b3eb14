"""The beds themselves do what the tests upon them take for granted."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

from .beds import wait_for


def states(slurm, job):
    """States of a job, or of the tasks of an array."""
    return [row["state"] for row in slurm.squeue() if row["id"].split("_")[0] == job]


def lines(slurm, job):
    file = slurm.folder / f"{job}.out"
    return file.read_text().split() if file.exists() else []


def test_both_nodes_work_at_once(slurm):
    jobs = [slurm.submit("echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES; exec sleep 100", "-c2", "--gres=gpu:1") for _ in "ab"]
    wait_for(lambda: all(lines(slurm, job) for job in jobs))
    assert sorted(lines(slurm, job)[0] for job in jobs) == ["n1", "n2"]
    assert [lines(slurm, job)[1] for job in jobs] == ["0", "0"]


def test_an_array_keeps_its_limit(slurm):
    log = slurm.folder / "array.log"
    job = slurm.submit(f"echo + >>{log}; sleep 0.5; echo - >>{log}", "--array=0-2%1")
    wait_for(lambda: states(slurm, job) == ["COMPLETED"] * 3)
    assert log.read_text().split() == ["+", "-"] * 3


def test_requeue_says_term_and_starts_again(slurm):
    job = slurm.submit("trap 'echo term; exit 0' TERM; echo start; while :; do sleep 0.1; done")
    wait_for(lambda: lines(slurm, job) == ["start"])
    slurm.requeue(job)
    wait_for(lambda: lines(slurm, job) == ["start", "term", "start"])


def test_the_high_partition_preempts(slurm):
    low = [slurm.submit("echo start; exec sleep 100", "-c2") for _ in "ab"]
    wait_for(lambda: all(lines(slurm, job) for job in low))
    high = slurm.submit("echo high", "-c2", "-phigh")
    wait_for(lambda: lines(slurm, high) == ["high"])
    wait_for(lambda: sorted(len(lines(slurm, job)) for job in low) == [1, 2])  # one was requeued and has begun again


def test_a_job_of_a_dead_node_starts_elsewhere(slurm):
    job = slurm.submit("echo $SLURMD_NODENAME $$; exec sleep 100")
    wait_for(lambda: lines(slurm, job))
    node, orphan = lines(slurm, job)
    slurm.kill_node(node)
    wait_for(lambda: len(lines(slurm, job)) == 4)
    assert lines(slurm, job)[2] != node
    assert Path(f"/proc/{orphan}").exists()  # the first attempt runs on


def test_accounting_remembers(slurm_dbd):
    job = slurm_dbd.submit("exit 3")
    wait_for(lambda: slurm_dbd.call("sacct", "-n", "-X", "-P", "-o", "state,exitcode", "-j", job) == "FAILED|3:0")


def test_without_accounting_sacct_fails(slurm):
    assert subprocess.run(["sacct"], capture_output=True).returncode != 0


def test_two_ray_nodes_take_a_task_each(ray_cluster):
    script = """
        import json, sys, ray
        ray.init(address=sys.argv[1], log_to_driver=False)

        @ray.remote(num_cpus=1)
        class Task:  # holds its CPU until the script ends
            def node(self):
                return ray.get_runtime_context().get_node_id()

        tasks = [Task.remote() for _ in "ab"]
        print(json.dumps(ray.get([task.node.remote() for task in tasks])))
        """
    command = [sys.executable, "-c", textwrap.dedent(script), ray_cluster.address]

    def nodes():
        done = subprocess.run(command, env=ray_cluster.env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return set(json.loads(done.stdout.splitlines()[-1]))

    before = nodes()
    assert len(before) == 2
    ray_cluster.kill_node("n1")
    ray_cluster.reset()
    assert len(nodes() - before) == 1  # n1 is a new one
