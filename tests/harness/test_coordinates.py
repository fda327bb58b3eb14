"""The coordinate check passes muP and CompleteP, and each wrong multiplier turns its verdict."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import harness.coordinates
import harness.step
import models.parameterization as tables
from harness.coordinates import check, figure, slopes, verdict
from harness.errors import UserError
from models.parameterization import Parameterization
from models.shape import LlamaShape

# Text, as in training: of noise a narrow model cannot line up what it learns.
TEXT = (Path(__file__).parents[2] / "LICENSE").read_bytes()[1000 : 1000 + 4 * 33]
TOKENS = np.frombuffer(TEXT, np.uint8).astype(np.int64).reshape(4, 33)
WIDTHS = ((32, 2), (64, 2), (128, 2))
DEPTHS = ((64, 4), (64, 10), (64, 24))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def measure(name, shapes=WIDTHS, tied=False, steps=4):
    p = Parameterization.build(name, *shapes[0])
    shapes = [LlamaShape.build(w, d, head_dim=16, vocab=128, context=32, tied=tied) for w, d in shapes]
    return check(shapes, p, lr=0.004, steps=steps, seed=0, tokens=TOKENS)


def wrong(name, shapes=WIDTHS, tied=False):
    """(layer, quantity) of the slopes that do not pass."""
    found = slopes(measure(name, shapes, tied))
    assert verdict(found).startswith("passed" if found.ok.all() else "failed")
    return {(r.layer, r.quantity) for r in found[~found.ok].itertuples()}


@pytest.mark.parametrize("tied", [True, False])
def test_mup_passes_over_width(tied):
    assert wrong("mup", tied=tied) == set()


def test_standard_drifts_and_its_embedding_is_not_why():
    assert {("0.attention", "change"), ("head", "change")} <= wrong("standard")
    assert ("embedding", "change") in wrong("standard_embedding")  # at a base LR that does not fall with width


def test_completep_passes_over_depth_and_mup_does_not():
    assert wrong("completep", DEPTHS) == set()
    assert ("residual", "change") in wrong("mup", DEPTHS)


@pytest.mark.parametrize(
    ("group", "field", "power", "seen"),
    [
        ("hidden", "lr", 1, ("0.attention", "change")),
        ("hidden", "lr", -1, ("1.attention", "change")),
        ("embedding", "lr", 1, ("embedding", "change")),
        ("embedding", "lr", -1, ("embedding", "change")),
        ("head", "lr", 1, ("head", "change")),
        ("head", "lr", -1, ("head", "change")),
        ("hidden", "init_std", 0.5, ("0.ffn", "initial")),
        ("hidden", "init_std", -0.5, ("0.ffn", "initial")),
        ("embedding", "init_std", -0.5, ("embedding", "initial")),
        ("head", "init_std", -0.5, ("logits", "initial")),
    ],
)
def test_a_wrong_entry_in_the_table_is_seen(group, field, power, seen, monkeypatch):
    right = tables._mup

    def off(s, m, w):
        table = right(s, m, w)
        return table | {group: replace(table[group], **{field: getattr(table[group], field) * m**power})}

    monkeypatch.setattr(tables, "_mup", off)
    assert seen in wrong("mup")


@pytest.mark.parametrize(
    ("scale", "power", "seen"),
    [
        ("logits", 1, ("logits", "initial")),
        ("logits", -1, ("head", "change")),
        ("embedding", 0.5, ("embedding", "initial")),
        ("residual", 0.5, ("residual", "initial")),
    ],
)
def test_a_wrong_forward_multiplier_is_seen(scale, power, seen, monkeypatch):
    def off(shape, p):
        right = tables.scales(shape, p)
        return replace(right, **{scale: getattr(right, scale) * (shape.width / p.base_width) ** power})

    monkeypatch.setattr(harness.coordinates, "scales", off)
    monkeypatch.setattr(harness.step, "scales", off)
    assert seen in wrong("mup")


def test_weights_that_get_another_groups_rule_are_seen(monkeypatch):
    """The check goes through the harness's step, so a wrong wiring of right tables is seen too."""
    right = harness.step.group_index

    def swapped(shape, p):
        index, order = right(shape, p), list(tables.rules(shape, p))
        swap = {order.index("hidden"): order.index("embedding"), order.index("embedding"): order.index("hidden")}
        return {name: swap.get(i, i) for name, i in index.items()}

    monkeypatch.setattr(harness.step, "group_index", swapped)
    assert {("embedding", "change"), ("0.attention", "change")} <= wrong("mup")


def test_what_is_recorded_and_drawn(tmp_path):
    table = measure("mup", WIDTHS[:2], steps=2)
    assert list(table) == ["width", "depth", "layer", "step", "rms", "change", "loss"]
    blocks = {"0.attention", "0.ffn", "1.attention", "1.ffn"}
    assert set(table.layer) == {"embedding", "residual", "head", "logits"} | blocks
    assert (table[table.step == 0].change == 0).all() and (table[table.step > 0].change > 0).all()
    loss = table[(table.layer == "logits") & (table.width == 64)].set_index("step").loss
    assert loss[1] > loss[2] and abs(loss[1] - np.log(128)) < 1
    figure(table, tmp_path / "coordinates.png", "muP")
    assert (tmp_path / "coordinates.png").read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.iterdir()] == ["coordinates.png"]


@pytest.mark.parametrize("shapes", [WIDTHS[:1], ((32, 2), (64, 4)), ((32, 2), (32, 2)), ((32, 2), (64, 2), (64, 4))])
def test_shapes_that_give_no_slope_are_refused(shapes):
    with pytest.raises(UserError, match="differ in"):
        measure("mup", shapes)
