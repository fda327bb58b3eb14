"""The benchmarks of throughput: their arithmetic, and that the rival does the same work as we do."""

import json
import math
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks import plain, report, sweep
from benchmarks.peers import Peer
from harness.optimizer import Hyper
from harness.step import Step, initial_weights
from harness.train import Runtime, train_point
from tests.points import small_corpus, tiny_points


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("cache"))


def test_ratios_are_told_with_their_targets(tmp_path, capsys):
    given = Namespace(quick=True, json=tmp_path / "r.json")
    report.finish(given, {"train_64": [4.0, 6.0, 5.5], "prefix_flops": [0.5], "own": [1.0]}, seconds={"start_up": 3.0},
                  widths=[math.inf, (1.0, math.nan)])  # fmt: skip
    written = json.loads(given.json.read_text(), parse_constant=pytest.fail)
    assert written["widths"] == [None, [1.0, None]]
    assert written["ratios"]["train_64"] == {"median": 5.5, "min": 4.0, "max": 6.0, "n": 3}
    assert written["versions"].keys() == {"python", "torch", "hyperlaw"} and written["device"]
    changes = (Path(__file__).parent.parent / "CHANGELOG.md").read_text()
    assert changes.split("## ")[1].startswith(written["versions"]["hyperlaw"])
    assert written["seconds"] == {"start_up": 3.0}
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    ends = {line[0]: line[-2:] for line in lines}
    assert ends["train_64"] == ["5", "met"] and ends["prefix_flops"] == ["not", "met"] and ends["own"] == ["1", "1"]


@pytest.mark.parametrize("name, value, expected", [("sweep_warm_vs_hand", 1.3, True), ("sweep_warm_vs_hand", 1.29, False),
                                                   ("refine_flops", 0.4, True), ("refine_flops", 0.41, False),
                                                   ("refine_interval", 1.0, True), ("real_interval", 3.4, False),
                                                   ("other", 9.0, None)])  # fmt: skip
def test_times_are_met_from_above_and_flops_from_below(name, value, expected):
    assert report.met(name, value) is expected


def test_a_ratio_has_repeats():
    with pytest.raises(ValueError, match="without repeats"):
        report.ratio([])


@pytest.mark.parametrize("fused", [True, False])
def test_the_plain_step_is_ours(corpus, fused):
    """Loss, gradient and update of fp32 steps on the same weights; the two round in another order."""
    point = tiny_points(corpus, "model.width=32", "model.depth=2", "optimizer.lr=0.01", "optimizer.clip=0.5")[0][0]
    s, o = point.shape, point.optimizer
    step, hyper = Step(s, point.parameterization, "fp32", "cpu", compiled=False), Hyper.of(point, "cpu")
    weights, m, v = step.place(initial_weights(point, "cpu")), step.zeros(), step.zeros()
    model = plain.Llama(plain.Shape(s.width, s.depth, s.n_heads, s.ffn_width, s.vocab, s.context, fused))
    model.load_state_dict(initial_weights(point, "cpu"))
    optimizer = plain.adamw(model, o.lr, o.weight_decay, (o.beta1, o.beta2), o.eps)
    tokens = torch.randint(s.vocab, (3, 4, s.context + 1), generator=torch.Generator().manual_seed(0))
    for t, batch in enumerate(tokens):
        for group in optimizer.param_groups:
            group["lr"] = float(hyper.per_step[t][0])  # standard parameterization: one rate for all
        theirs = plain.train_step(model, optimizer, batch, o.clip)
        loss, norm = step(weights, m, v, hyper.per_step[t], hyper.fixed, batch, 4)
        assert float(norm) > o.clip  # so that it clips
        torch.testing.assert_close(theirs.detach(), loss, rtol=0, atol=1e-5)
    for name, w in model.named_parameters():
        torch.testing.assert_close(w.detach(), weights[name], rtol=0, atol=1e-4)  # Adam magnifies gradients near zero


def test_the_plain_model_begins_as_ours_does(corpus):
    point = tiny_points(corpus, "model.width=32", "model.depth=2")[0][0]
    s = point.shape
    model = plain.Llama(plain.Shape(s.width, s.depth, s.n_heads, s.ffn_width, s.vocab, s.context, True))
    for name, ours in initial_weights(point, "cpu").items():
        theirs = model.get_parameter(name)
        assert theirs.shape == ours.shape
        torch.testing.assert_close(theirs.std().detach(), ours.std(), rtol=0.15, atol=1e-6)


def test_a_point_by_hand_comes_to_our_loss(corpus, tmp_path):
    """The same tokens, order, weights, schedule, validation windows and steps: 64 steps apart by rounding only."""
    points, _ = tiny_points(corpus, "optimizer.lr=0.01", "seed=3")
    sweep.write_inputs(points, corpus.dir, tmp_path)
    cores = sorted(os.sched_getaffinity(0))
    theirs = sweep.by_hand(points, tmp_path, tmp_path / "user", cores, tuned=False)
    assert theirs["losses"].keys() == {p.id for p in points}
    for point in points:
        assert train_point(point, tmp_path / "ours" / point.id, Runtime(str(corpus.dir))) == "done"
        ours = json.loads((tmp_path / "ours" / point.id / "result.json").read_text())
        by_hand = json.loads((tmp_path / "user" / f"{point.id}.json").read_text())
        assert [step for step, _ in by_hand["validation"]] == [v["step"] for v in ours["validation"]]
        for (_, loss), validation in zip(by_hand["validation"], ours["validation"], strict=True):
            assert loss == pytest.approx(validation["loss"], abs=2e-4)
        assert 0 < ours["runtime"]["validate_seconds"] < ours["device_seconds"]
    assert sum(theirs["split"].values()) == pytest.approx(theirs["wall"])
    assert 0 < theirs["first_step"] < theirs["wall"] and min(theirs["split"].values()) > 0


def test_a_script_that_fails_is_told_with_its_words(corpus, tmp_path):
    points, _ = tiny_points(corpus)
    with pytest.raises(RuntimeError, match="FileNotFoundError.*init-16"):
        sweep.by_hand(points, tmp_path, tmp_path / "user", sorted(os.sched_getaffinity(0)), tuned=False)


def test_points_that_diverge_on_one_side_only_differ():
    assert sweep.differences({"a": 1.0, "b": None}, {"a": 1.5, "b": None}) == {"a": 0.5, "b": 0.0}
    assert sweep.differences({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": None})["b"] == math.inf


def test_differences_are_measured_by_those_of_seeds_at_their_learning_rate(corpus):
    lrs = "optimizer.lr=0.01,0.02,0.04"
    points, seeds = (tiny_points(corpus, lrs, more)[0] for more in ("optimizer.beta2=0.9,0.95", "seed=0,1,2,3,4,5,6,7"))
    noise = {0.01: 0.001, 0.02: 0.1, 0.04: None}  # the highest diverges now and then

    def loss(point):
        return noise[point.optimizer.lr] and 2 + noise[point.optimizer.lr] * (-1) ** point.seed

    by_seed = sweep.seed_differences(seeds, {p.id: loss(p) for p in seeds})
    deviation = math.sqrt(8 / 7)  # of eight, each one away from the mean
    assert by_seed == pytest.approx({0.01: 0.001 * math.sqrt(2) * deviation, 0.02: 0.1 * math.sqrt(2) * deviation,
                                     0.04: math.inf})  # fmt: skip
    multiples = sweep.against_seeds(points, {p.id: math.inf if p.optimizer.lr == 0.04 else 0.05 for p in points}, by_seed)
    assert multiples[0.02] < 1 < sweep.largest_multiple(2, 8) < 30 < multiples[0.01] and multiples[0.04] == 0
    assert sweep.largest_multiple(3, 8) == pytest.approx(math.sqrt(8.45), abs=1e-2)  # F(3, 7), any table


def test_the_quick_users_side_is_half_of_the_points_twice(corpus):
    points, _ = tiny_points(corpus, "optimizer.lr=0.01,0.02,0.04,0.08", "optimizer.beta2=0.9,0.95")
    half = sweep.every_second(points)
    assert sorted(p.optimizer.lr for p in half) == [0.02, 0.02, 0.08, 0.08]
    side = {"wall": 5.0, "split": {"train": 3.0, "validate": 2.0}, "first_step": 1.0, "losses": {"a": 2.0}}
    assert sweep.doubled(side) == {**side, "wall": 10.0, "split": {"train": 6.0, "validate": 4.0}}
    multiples = sweep.against_seeds(points, {p.id: 0.1 for p in half}, dict.fromkeys((0.01, 0.02, 0.04, 0.08), 0.2))
    assert multiples == pytest.approx({0.02: 0.5, 0.08: 0.5})


@pytest.mark.parametrize("off, verdict", [(0.001, "the same within"), (0.1, "NOT THE SAME within")])
def test_the_sweeps_report_says_what_was_measured_and_whether_losses_agree(corpus, tmp_path, capsys, off, verdict):
    points, _ = tiny_points(corpus, "optimizer.lr=0.01,0.02", "optimizer.beta2=0.9,0.95")
    by_seed = {0.01: 0.01, 0.02: 0.01}

    def side(wall):
        split = dict(zip(sweep.PARTS, (1.0, 2.0, wall - 4, 1.0), strict=True))
        return {"wall": wall, "split": split, "first_step": 3.0, "losses": {p.id: 2.0 for p in points}}

    sides = {name: [side(wall)] for name, wall in (("cold", 30.0), ("warm", 20.0), ("user", 120.0), ("hand", 30.0))}
    apart = {"cold": dict.fromkeys(sides["warm"][0]["losses"], 0.0)}
    apart |= dict.fromkeys(("user", "hand"), dict.fromkeys(apart["cold"], off))
    given = Namespace(quick=True, json=tmp_path / "r.json", tpp=20.0)
    assert sweep.report(given, sides, points, by_seed, apart) == int("NOT" in verdict)
    assert f"losses of all sides: {verdict} seed noise" in capsys.readouterr().out
    written = json.loads(given.json.read_text())
    ratios = {name: r["median"] for name, r in written["ratios"].items()}
    assert ratios == {"sweep_cold_vs_user": 4.0, "sweep_warm_vs_user": 6.0, "sweep_warm_vs_hand": 1.5}
    assert all(sum(s["split"].values()) == s["wall"] and s["split"].keys() == set(sweep.PARTS)
               for runs in written["sides"].values() for s in runs)  # fmt: skip
    assert written["losses"]["same"] == ("NOT" not in verdict) and written["seconds"] == {"start_up_warm": 3.0}


def test_peers_answer_with_rates():
    cores = sorted(os.sched_getaffinity(0))
    shape = {"width": 16, "depth": 1, "heads": 1, "ffn_width": 32, "vocab": 16, "context": 8, "batch": 2}
    eager, gemm = Peer("eager", cores, json.dumps(shape)), Peer("gemm", cores[:1])
    eager.ask(seconds=0.05)
    gemm.ask(n=64, seconds=0.05)
    assert eager.hear() > 0 and gemm.hear() > 0
    for peer in (eager, gemm):
        peer.close()
        assert peer.process.returncode == 0


@pytest.mark.parametrize("name", ["train", "sweep"])
def test_the_command_line_explains_itself(name):
    out = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--help"], capture_output=True, text=True, check=True)
    assert "--quick" in out.stdout and "--json FILE" in out.stdout
