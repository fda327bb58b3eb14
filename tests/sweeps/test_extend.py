"""A grid grows where, and only where, an optimum sits at its edge."""

import json
import math
from types import SimpleNamespace

import pytest

from harness.errors import UserError
from harness.rundir import finished
from sweeps.expand import expand_members
from sweeps.extend import FILE, extended_members, extension, target_keys
from sweeps.plan import make_plan

WIDTHS, LRS = [32, 64], "log2(-8, -5, 4)"
BEST = {32: 2.0**-6.4, 64: 2.0**-10.2}  # inside the grid, and two values below it


@pytest.fixture
def sweep(request_of, facts, tmp_path):
    """(planned, train): train writes the results of all points of a plan from a parabola in log2 of the LR."""
    axes = {"model.width": WIDTHS, "optimizer.lr": LRS, "seed": [0, 1]}

    def build(best=BEST, rounds=3):
        r = request_of(f"reuse=[{tmp_path}/other]", axes=axes, extend=True, extend_rounds=rounds)
        members = extended_members(r, expand_members(r, facts), tmp_path / FILE, facts)
        plan = make_plan([m.point for m in members], tmp_path / "runs", r.config.launcher, tmp_path, "cpu", probe=False)
        planned = SimpleNamespace(request=r, members=members, plan=plan, book=facts, out=tmp_path)

        def train(plan):
            for p in plan.left:
                loss = 2 + 0.05 * math.log2(p.optimizer.lr / best[p.shape.width]) ** 2 + 0.001 * p.seed
                folder = tmp_path / "runs" / p.id
                folder.mkdir(parents=True, exist_ok=True)
                done = p.optimizer.lr <= 0.03
                (folder / "status.json").write_text(json.dumps({"status": "done" if done else "diverged"}))
                (folder / "result.json").write_text(json.dumps({"loss": loss if done else None}))

        return planned, train

    return build


def launch(planned, train, tmp_path):
    """Rounds as the launcher goes through them: [(width, log2 lr), ...] added in each."""
    train(planned.plan)
    more, rounds = extension(planned, tmp_path), []
    while (plan := more()) is not None and plan.points:
        rounds.append(sorted({(p.shape.width, round(math.log2(p.optimizer.lr), 6)) for p in plan.points}))
        assert len(plan.points) == 2 * len(rounds[-1])  # both seeds
        train(plan)
    return rounds, plan


def test_only_the_slice_at_the_edge_grows_and_until_its_optimum_is_inside(sweep, tmp_path):
    rounds, last = launch(*sweep(), tmp_path)
    assert rounds == [[(64, -10.0), (64, -9.0)], [(64, -11.0)]] and last is None


def test_a_later_command_goes_on_from_the_file(sweep, tmp_path):
    planned, train = sweep()
    launch(planned, train, tmp_path)
    again, train = sweep()
    assert len(again.members) == len(planned.members) + 6 and not again.plan.left
    assert launch(again, train, tmp_path) == ([], None)


def test_a_round_takes_what_another_sweep_has_trained(sweep, tmp_path, write_sealed):
    planned, train = sweep()
    train(planned.plan)
    first, *others = extension(planned, tmp_path)().points
    (tmp_path / FILE).unlink()
    write_sealed(tmp_path / "other" / first.id, first, 2.5)
    again = extension(sweep()[0], tmp_path)()
    assert again.points == (first, *others) and again.left == others and finished(tmp_path / "runs" / first.id) == "done"
    assert again.notes[-1] == f"1 point taken from {tmp_path}/other"


def test_rounds_are_bounded_and_what_is_left_is_said(sweep, tmp_path):
    rounds, last = launch(*sweep(best={32: 2.0**-30, 64: 2.0**-6.4}, rounds=2), tmp_path)
    assert [len(r) for r in rounds] == [2, 2]
    assert "still at an edge after 2 rounds" in last.notes[0] and "model.width=32" in last.notes[1]


def test_diverged_values_bound_a_slice(sweep, tmp_path):
    # The best LR would be above the last that trains: no use in going there.
    rounds, _ = launch(*sweep(best={32: 2.0**-5.4, 64: 2.0**-6.4}), tmp_path)
    assert all(lr < -5 for added in rounds for _, lr in added)


def test_target_keys():
    assert target_keys("lr") == ["optimizer.lr"] == target_keys("optimizer.lr")
    assert "tau" in target_keys(None)
    with pytest.raises(UserError, match="extend_target"):
        target_keys("width")
