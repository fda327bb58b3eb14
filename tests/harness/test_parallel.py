"""Several processes for one point, two with Gloo on the CPU: the same curve and weights as one, whatever dies meanwhile."""

import os
import signal

import pandas as pd
import pytest

from harness.checkpoint import checkpoints, read_checkpoint
from harness.errors import UserError
from harness.private import compiled_folder
from harness.rundir import read_status
from harness.supervisor import RankError, check_devices
from harness.train import train_point

from .helpers import point
from .ranks import BF16, NEAR, SHORT, Midway, assert_near, curve, linux, ranks, result, run_of, setting

STEPS = 100
RUN = [f"tokens={STEPS * 64}", "validation.fractions=[0.5]", "optimizer.lr=1e-3", "model.depth=2"]
# 17 states: a vocabulary that two ranks cannot halve.
UNTIED = ["data.states=17", "model.tied=false", "model.qk_norm=true", "model.z_loss=1e-3", "parameterization=completep",
          "parameterization.base_width=8"]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    """(overrides, settings) -> run directory of the whole run, trained once; `told`: its progress."""

    def build(*overrides, **rest):
        key = (overrides, *sorted(rest.items()))
        if key not in found:
            folder, told = tmp_path_factory.mktemp("trained"), []
            assert train_point(*run_of(cache, folder, *overrides, **rest), lambda *a: told.append(a)) == "done"
            found[key], build.told[folder] = folder, told
        return found[key]

    found, build.told = {}, {}
    return build


@pytest.mark.parametrize(
    ("parallel", "overrides", "micro_batch", "near"),
    [("ddp", (), None, NEAR), ("fsdp", (), 1, NEAR), ("ddp", tuple(UNTIED), 1, NEAR),
     ("fsdp", ("precision=bf16",), None, BF16)],
    ids=["ddp", "fsdp accumulated", "ddp accumulated untied", "fsdp bf16"],
)
def test_several_devices_train_as_one(cache, trained, tmp_path, parallel, overrides, micro_batch, near):
    one = trained(*RUN, *overrides, devices=1)
    two = trained(*RUN, *overrides, parallel=parallel, micro_batch=micro_batch)
    assert_near(two, one, near)
    assert trained.told[two][-1][:2] == (STEPS, STEPS) and not checkpoints(two)
    assert result(two)["micro_batch"] == (micro_batch or 2)
    assert result(two)["numerics"]["worlds"] == [2] and result(two)["numerics"]["parallel"] == parallel
    assert "worlds" not in result(one)["numerics"]


def test_compiled_blocks_train_as_those_that_are_not(cache, trained):
    """The compiler's hooks and FSDP's together, a step of each kind: forward, backward, validation."""
    one = trained(*SHORT, devices=1)
    two = trained(*SHORT, parallel="fsdp", compile=True, compiled_cache=str(compiled_folder(cache)))
    assert result(two)["numerics"]["compiled"] and list(compiled_folder(cache).rglob("*.so"))
    assert_near(two, one)


@pytest.mark.parametrize("worlds", [(2, 1), (1, 2)])
def test_a_checkpoint_goes_on_at_another_world_size(cache, trained, tmp_path, worlds):
    p, runtime = setting(cache, *RUN, *UNTIED, parallel="fsdp", devices=worlds[0], checkpoint_seconds=0)
    middle = Midway(tmp_path, lambda: None)
    assert train_point(p, tmp_path, runtime, should_stop=lambda: middle.reached, still_mine=middle) == "stopped"
    step = read_status(tmp_path)["step"]
    assert 20 <= step < STEPS and read_checkpoint(tmp_path)[1]["step"] == step
    runtime.devices = worlds[1]
    assert train_point(p, tmp_path, runtime) == "done"
    assert result(tmp_path)["numerics"]["worlds"] == list(worlds)
    assert_near(tmp_path, trained(*RUN, *UNTIED, devices=1))


@linux
def test_a_killed_rank_fails_the_attempt_and_the_next_ends_as_if_undisturbed(cache, trained, tmp_path):
    p, runtime = setting(cache, *RUN, checkpoint_seconds=0)
    for rank, step in ((1, 20), (0, 50)):
        kill = Midway(tmp_path, lambda rank=rank: os.kill(ranks()[rank], signal.SIGKILL), step)
        with pytest.raises(RankError, match=f"rank {rank} died of SIGKILL"):
            train_point(p, tmp_path, runtime, still_mine=kill)
        assert not ranks() and step <= read_checkpoint(tmp_path)[1]["step"] < STEPS
    assert train_point(p, tmp_path, runtime) == "done"
    whole = trained(*RUN, parallel="ddp", micro_batch=None)
    pd.testing.assert_frame_equal(curve(tmp_path), curve(whole), check_exact=True)
    assert (tmp_path / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


def test_devices_share_batches_evenly():
    check_devices(point("batch_size=6"), 3, "fsdp")
    with pytest.raises(UserError, match="devices_per_point=4 must divide batch_size=6"):
        check_devices(point("batch_size=6"), 4, "ddp")
    with pytest.raises(UserError, match="parallel=zero is not one of ddp, fsdp"):
        check_devices(point(), 2, "zero")
