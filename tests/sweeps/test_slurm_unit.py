"""What the Slurm launcher does that needs no Slurm: packing, what sbatch is asked for, records, signals' bookkeeping."""

import io
import json
from dataclasses import replace

import pytest

from harness.config import Config, LauncherConfig
from harness.errors import UserError
from sweeps import follow as following
from sweeps import squeue, watching
from sweeps.allocation import gave_up, read_job
from sweeps.display import Display
from sweeps.engines import engine_settings
from sweeps.jobs import Job, Settings
from sweeps.packing import pack
from sweeps.plan import make_plan
from sweeps.records import Array, Record, live, new_id, queued, read_records
from sweeps.sbatch import check_request, check_values, minutes, parameters
from sweeps.slurm import SlurmLaunch
from sweeps.squeue import Entry
from sweeps.status import RunState
from sweeps.submit import Submission, job_dict
from sweeps.watching import LOSSES, Element


def job(name, seconds=1.0, key="a", needs=(), points=1):
    return Job(name, (None,) * points, key, False, seconds, tuple(needs))


def names(shares):
    return [[j.id for j in share.jobs] for share in shares]


def config(device="auto", **launcher):
    return replace(Config(), device=device, launcher=LauncherConfig(name="slurm", **launcher))


def settings(tmp_path, **launcher):
    engine = engine_settings(LauncherConfig(name="slurm", **launcher))
    return Settings(tmp_path / "runs", tmp_path / "cache", tmp_path / "out/logs", {}, workers=2, threads=3, engine=engine)


def test_shares_hold_one_shape_longest_first_and_are_even():
    jobs = [job("s1", 1, "small"), job("b1", 9, "big"), job("s2", 2, "small"), job("b2", 8, "big"), job("s3", 3, "small")]
    assert names(pack(jobs, 3)) == [["b1", "b2", "s3"], ["s2", "s1"]]
    assert names(pack(jobs, 1)) == [["b1"], ["b2"], ["s3"], ["s2"], ["s1"]]
    assert [len(n) for n in names(pack([job(str(i)) for i in range(17)], 8))] == [6, 6, 5]
    assert names(pack([job("trunk", points=9), job("x")], 8)) == [["trunk"], ["x"]]


def test_what_needs_others_is_packed_apart_by_what_it_needs():
    needs = {"t1": (), "t2": (), "a": ["t1"], "b": ["t2"], "c": ["t1"], "d": ["a"]}
    shares = pack([job(name, needs=needed) for name, needed in needs.items()], 8)
    assert names(shares) == [["t1", "t2"], ["a", "b", "c"], ["d"]]  # they wait for one allocation
    assert [share.level for share in shares] == [0, 1, 2] and shares[1].needs == {"t1", "t2"}
    apart = pack([job(name, points=2, needs=needed) for name, needed in needs.items()], 2)
    assert names(apart) == [["t1"], ["t2"], ["a"], ["c"], ["b"], ["d"]]
    assert [(share.level, share.wave) for share in apart] == [(0, 0), (0, 0), (1, 0), (1, 0), (1, 1), (2, 0)]
    assert pack([job("a", needs=["done before"])], 8)[0].level == 0


def test_as_many_arrays_as_waves_however_many_trunks(tmp_path, monkeypatch):
    monkeypatch.setattr(squeue, "call", lambda *command: None)
    jobs = [job(f"t{i}", points=2) for i in range(100)] + [job(f"b{i}", needs=[f"t{i}"]) for i in range(100)]
    submission, shares = Submission(settings(tmp_path), record(), "x", {}), pack(jobs, 2)
    assert [len(part) for part in submission._arrays(shares, None)] == [100, *[7] * 7, 5]  # 13 or 9 points in pairs
    assert [len(part) for part in submission._arrays(shares, 2)] == [100, 54]
    for number, share in enumerate(shares[:100]):
        submission.where[share.jobs[0].id] = f"7_{number}"
    waits = [submission._dependency(part, ()) for part in submission._arrays(shares, None)]
    assert waits[0] is None and waits[1].startswith("afterany:7_") and waits[1].count(":") == 13


@pytest.mark.parametrize("limit, expected", [("30", 30), ("4:00:00", 240), ("1-0", 1440), ("1-12:30", 2190), ("90:30", 91),
                                             ("0:30", 1), ("2-01:00:00", 2940)])  # fmt: skip
def test_time_limits(limit, expected):
    assert minutes(limit) == expected


@pytest.mark.parametrize("wrong, say", [
    (config(time="soon"), "launcher.time=soon is no time limit"),
    (config(time="0"), "must be positive"),
    (config(time="1", signal_seconds=60), "launcher.signal_seconds=60 is not below launcher.time=1"),
    (config(memory="lots"), "launcher.memory=lots is no size"),
    (config("cuda"), "device=cuda with launcher.gpus=0"),
    (config("cpu", gpus=1), "device=cpu with launcher.gpus=1"),
    (config(gpus=1, devices_per_point=2), "launcher.devices_per_point=2 is more than launcher.gpus=1"),
    (config(sbatch={"partition": "x"}), "launcher.sbatch.partition: this has a key of its own, launcher.partition"),
    (config(sbatch={"cpus_per_task": 3}), "launcher.sbatch.cpus_per_task: this has a key of its own, launcher.cpus"),
    (config(sbatch={"job-name": "x"}), "launcher.sbatch.job-name cannot be set"),
    (config(sbatch={"comment": "a\n#SBATCH --x"}), "must be one value"),
    (config(setup=["a\nb"]), "launcher.setup is a list of lines"),
])  # fmt: skip
def test_wrong_values_are_told_in_one_line(wrong, say):
    with pytest.raises(UserError) as said:
        check_values(wrong)
    assert say in str(said.value) and "\n" not in str(said.value)


def test_without_slurm_or_submitit(monkeypatch):
    monkeypatch.setattr(squeue.shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="sbatch is not here"):
        check_request(config())
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'hyperlaw\[slurm\]'"):
        check_request(config())


def test_what_sbatch_is_asked_for(tmp_path):
    asked = parameters(settings(tmp_path))
    assert asked["cpus_per_task"] == 6 and asked["srun_args"] == ["--cpus-per-task=6"]
    assert asked["time"] is None and asked["wckey"] is None and asked["gpus_per_node"] is None
    given = {"gpus": 2, "cpus": 8, "time": "1:00:00", "memory": "16gb", "sbatch": {"mem_per_cpu": None, "nice": 0}}
    asked = parameters(settings(tmp_path, **given))
    assert (asked["gpus_per_node"], asked["cpus_per_task"], asked["time"], asked["mem"]) == (2, 8, 60, "16G")
    assert asked["additional_parameters"] == {"requeue": True, "nice": 0}
    check_values(config(memory="0"))
    assert parameters(settings(tmp_path, memory="0"))["mem"] == "0"  # all of a node
    assert parameters(settings(tmp_path, gpus=2, sbatch={"gres": "gpu:h100:2"}))["gpus_per_node"] is None


def record(**changes):
    arrays = [Array("mine-x-0", [["r1", "r2"], ["r3"]], "7"), Array("mine-x-1", [["r4"]], "9")]
    return replace(Record(new_id(), "ada", "login", "2026-01-01 00:00:00 UTC", "/scratch", arrays, {"r1": 2}), **changes)


def test_records_are_read_back_and_damaged_ones_passed_over(tmp_path):
    first = record()
    first.write(tmp_path)
    assert read_records(tmp_path) == [first]
    for name, text in (("a", "{"), ("b", "[]"), ("c", json.dumps({"format": 9})),
                       ("d", json.dumps({"format": 1, "engine": "slurm", "arrays": [{"name": 3}]}))):  # fmt: skip
        (tmp_path / "launches" / f"{name}.json").write_text(text)
    assert read_records(tmp_path) == [first]


def test_an_id_that_another_cluster_used_before_is_nobodys(tmp_path):
    mine, other = Entry("7_1", "mine-x-0", "PENDING", "Priority"), Entry("7_0", "else", "RUNNING", "None")
    found = [(array.name, index) for _, array, index, _ in live([record()], [mine, other])]
    assert found == [("mine-x-0", 1)]


def test_queued_tells_where_and_why(tmp_path, monkeypatch):
    record().write(tmp_path)
    entries = [Entry("7_1", "mine-x-0", "PENDING", "Priority"), Entry("9", "mine-x-1", "RUNNING", "None")]
    monkeypatch.setattr(squeue, "here", lambda: True)
    monkeypatch.setattr(squeue, "queue", lambda users: entries)
    assert queued(tmp_path) == {"r3": "waits in Slurm job 7_1 (Priority)", "r4": "Slurm job 9 (running)"}
    monkeypatch.setattr(squeue, "queue", lambda users: None)
    assert queued(tmp_path)["r1"] == "submitted to Slurm by ada at 2026-01-01 00:00:00 UTC; squeue does not answer"
    assert queued(tmp_path / "nothing") == {}


def test_jobs_travel_as_json(tiny):
    points, _ = tiny("seed=0")
    one = Job("x", tuple(points), "k", True, 3.5, ("t",))
    assert read_job(json.loads(json.dumps(job_dict(one)))) == one


def test_a_failure_counts_only_if_it_came_after_the_submission():
    failed = RunState("r", "failed", attempt=2)
    assert gave_up(failed, {"r": 1}) and gave_up(failed, {}) and not gave_up(failed, {"r": 2})
    assert not gave_up(RunState("r", "done", attempt=2), {})


@pytest.fixture
def flying(tiny, tmp_path, monkeypatch):
    """`flying(state)` -> (launch, what it said, end): `end()` is the end in `state` of an allocation of two points, of
    which the first had begun."""
    monkeypatch.setattr(squeue, "call", lambda *command: None)

    def make(state, code="0:0"):
        points, _ = tiny("seed=0,1")
        given = LauncherConfig(name="slurm")
        plan = make_plan(points, tmp_path / "runs", given, tmp_path / "cache", "cpu", probe=False)
        stream = io.StringIO()
        launch = SlurmLaunch(plan, settings(tmp_path), Display(stream))
        monkeypatch.setattr(squeue, "ending", lambda job: (state, code))
        numbers = iter(range(1, 100))

        def end():
            element = Element("7", str(tmp_path), True, {i: s.attempt for i, s in launch.states.items()})
            launch._fly(("a", 0), element, list(launch.waiting.values()))
            first = points[0].id
            launch.states[first] = RunState(first, "interrupted", 5, 9, next(numbers))
            launch._gone(launch.elements.pop(("a", 0)))

        return launch, stream, end, points

    return make


@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL", "TIMEOUT", "BOOT_FAIL"])
def test_a_lost_allocation_is_no_failed_attempt_up_to_a_cap(flying, state):
    launch, stream, end, points = flying(state)
    for _ in range(LOSSES):
        end()
    assert len(launch.waiting) == 2 and not launch.attempts and launch.losses == {points[0].id: LOSSES}
    assert stream.getvalue().splitlines() == [f"Slurm job 7 ended ({state}): 2 points tried again"] * LOSSES
    end()
    end()
    assert launch.summary.failed == 1 and list(launch.waiting) == [points[1].id] and not launch.barred


def test_a_crashed_allocation_counts_against_the_points_that_it_began(flying):
    launch, stream, end, points = flying("FAILED", "9:0")
    end()
    end()
    assert launch.attempts == {points[0].id: 2} and list(launch.waiting) == [points[1].id]
    first, second = stream.getvalue().splitlines()
    assert first.startswith("Slurm job 7 ended (FAILED, exit 9:0): 2 points tried again; no log in ")
    assert second.startswith("Slurm job 7 ended (FAILED, exit 9:0): 1 point tried again, 1 point failed; ")


def test_cancelled_by_hand_is_not_submitted_again(flying):
    launch, stream, end, _ = flying("CANCELLED")
    end()
    assert launch.barred == launch.waiting.keys() and "was cancelled: 2 points left" in stream.getvalue()


def test_dying_elements_are_not_waited_for(flying, monkeypatch):
    launch, _, _, points = flying("")
    array = Array("mine-x-0", [[p.id] for p in points], "7")
    Record("x", "ada", "login", "", "/scratch", [array]).write(launch.settings.out)
    entries = [Entry("7_0", "mine-x-0", "COMPLETING", "None"), Entry("7_1", "mine-x-0", "RUNNING", "None")]
    monkeypatch.setattr(squeue, "queue", lambda users: entries)
    launch.attach()
    assert list(launch.waiting) == [points[0].id] and list(launch.elements) == [("mine-x-0", 1)]


def test_why_allocations_wait_is_said_once_and_when_it_changes(flying, monkeypatch):
    launch, stream, _, _ = flying("")
    monkeypatch.setattr(watching, "REASON_SECONDS", 0.0)
    element = Element("7_0", "", True, {})
    launch.elements["a", 0] = element
    for reason in ("None", "Priority", "JobHeldUser", "JobHeldUser", "Priority", "JobHeldUser"):
        element.entry = Entry("7_0", "a", "PENDING", reason)
        launch._say_why_they_wait()
    held = "Slurm job 7: 1 allocation waiting (JobHeldUser); `scontrol show job 7_0` says more"
    assert stream.getvalue().splitlines() == ["Slurm job 7: 1 allocation waiting (Priority)", held, held]


def test_status_wait_ends_where_the_queue_cannot_be_seen(tiny, tmp_path, monkeypatch):
    points, _ = tiny("seed=0,1")
    monkeypatch.setattr(squeue.shutil, "which", lambda _: None)
    monkeypatch.setattr(following, "UNSEEN_SECONDS", 0.5)
    monkeypatch.setattr(following, "LOOK_SECONDS", (0.1, 0.1))
    Record("x", "ada", "login", "now", "/scratch", [Array("a", [[p.id for p in points]], "7")]).write(tmp_path)
    lines = []
    states = following.follow(points, tmp_path / "runs", tmp_path, 0.1, tmp_path / "cache", lines.append)
    assert all(s.left for s in states.values())
    assert lines[0] == "0/2 points finished, 0 in training, 2 in the queue (squeue is not here)"
    assert "2 points may wait in Slurm's queue, which cannot be seen here (squeue is not here)" in lines[-1]


def test_what_trains_is_not_in_the_queue(tmp_path, monkeypatch):
    monkeypatch.setattr(squeue, "queue", lambda users: None)
    record().write(tmp_path)
    states = {i: RunState(i, status) for i, status in (("r1", "running"), ("r2", "pending"), ("r3", "done"))}
    assert list(following.waiting(tmp_path, states)[0]) == ["r2"]
