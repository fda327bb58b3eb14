"""profile=true: pieces that add up to the step of the point as it would train, before it trains; where it is refused."""

import json

import pytest

from harness.compose import compose
from harness.errors import UserError
from sweeps import commands
from sweeps.launch import prepare_plan
from sweeps.peaks import known_peak
from sweeps.profiling import profile, render_profile
from sweeps.rate import device_name

TINY = ["data=markov", "data.states=16", "data.tokens=200000", "data.epochs=100", "model.width=16", "model.depth=1",
        "model.context=32", "batch_size=4", "tokens=8192", "validation.tokens=512", "precision=fp32", "device=cpu",
        "launcher.compile=never", "profile=true"]  # fmt: skip


def places(folder):
    return [f"out={folder / 'out'}", f"cache={folder / 'cache'}"]


@pytest.mark.parametrize("micro_batch, more", [(None, []), (2, ["micro_batch=2"]),
                                               (None, ["schedule.batch_ramp=[[512,1]]"]),
                                               (None, ["schedule.batch_ramp=[[512,8]]"])])  # fmt: skip
def test_pieces_add_up_to_the_step(tmp_path, micro_batch, more):
    words = [*TINY, *places(tmp_path), *more]
    planned = prepare_plan(compose(words, "train"), name="train", report=lambda _: None, only_one=True, probe=False)
    found = profile(planned, seconds=0.3)
    (member,) = planned.members
    assert json.loads((planned.plan.runs_dir / member.point.id / "profile.json").read_text()) == found
    seconds = dict(found["seconds"])
    whole = seconds.pop("whole")
    assert list(seconds) == ["data", "forward", "backward", "update", "fusion", "host"]
    assert sum(seconds.values()) == pytest.approx(whole) and whole > 0
    assert all(seconds[name] > 0 for name in ("data", "forward", "update"))
    assert found["rounds"] >= 5 and found["micro_batch"] == (micro_batch or member.point.largest_batch)
    assert found["numerics"]["precision"] == "fp32" and found["numerics"]["compiled"] is False
    first = member.point.stretches[0][1] if member.point.batch_ramp else 4
    assert found["batch"] == first  # of a ramp the first steps are timed
    assert found["tokens_per_second"] * whole == pytest.approx(found["batch"] * 32)
    assert found["model_flops_per_second"] * whole == pytest.approx(member.point.flops_at(1))
    assert found["utilisation"] == pytest.approx(found["model_flops_per_second"] / found["peak_flops"])
    assert known_peak(tmp_path / "cache", device_name("cpu"), "fp32") == found["peak_flops"]
    lines = render_profile(found).splitlines()
    assert max(map(len, lines)) < 100 and "% of the" in lines[-1]
    assert f"{found['batch']} sequence" in lines[0] and "eager, 1 CPU thread" in lines[0]


def test_a_point_is_profiled_then_trained_and_a_finished_one_only_profiled(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sweeps.profiling.SECONDS", 0.1)
    assert commands.train([*TINY, *places(tmp_path)], {"--dry-run": True}) == 0
    assert "a step of" not in capsys.readouterr().out and not list(tmp_path.rglob("profile.json"))
    for flags in ({}, {"--json": True}):
        assert commands.train([*TINY, *places(tmp_path)], flags) == 0
        shown = capsys.readouterr()
    first_json = json.loads(shown.out)
    assert first_json["status"] == "done" and first_json["profile"]["seconds"]["whole"] > 0
    assert "a step of 4 sequences (fp32, eager" in shown.err and first_json["runtime"]["attempt"] == 1


@pytest.mark.parametrize("command, words, what", [
    (commands.sweep, ["sweep=lr_width", "profile=true"], "one point"),
    (commands.train, ["profile=true", "launcher=slurm"], "launcher=local"),
    (commands.train, ["profile=true", "launcher.devices_per_point=2"], "one device"),
])  # fmt: skip
def test_refused_before_anything_starts(tmp_path, command, words, what):
    with pytest.raises(UserError, match=what):
        command([*words, *places(tmp_path)], {})
    assert not list(tmp_path.iterdir())
