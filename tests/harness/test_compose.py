"""Composing: layers, relations, axes on the command line, and errors that name the mend."""

import pytest

from harness.compose import compose
from harness.errors import UserError
from harness.resolve import resolve

from .helpers import FACTS


def test_a_default_yields_to_a_given_side():
    c = compose(["tokens=1000000", "tau=0.3", "batch_tokens=1024", "schedule.warmup_tokens=5120"]).config
    assert (c.tpp, c.optimizer.weight_decay, c.batch_size, c.schedule.warmup) == (None, None, None, None)


@pytest.mark.parametrize(
    "pair", [("tpp=1", "tokens=5"), ("tau=1", "optimizer.weight_decay=0.1"), ("batch_size=2", "batch_tokens=128")]
)
def test_both_sides_in_one_command_are_an_error_naming_both(pair):
    with pytest.raises(UserError) as e:
        compose(list(pair))
    assert all(word.split("=")[0] in str(e.value) for word in pair)


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "sweep").mkdir()

    def write(text):
        (tmp_path / "sweep" / "mine.yaml").write_text("# @package _global_\n" + text)
        return tmp_path

    return write


def test_both_sides_in_one_sweep_file_are_an_error_naming_both(mine):
    folder = mine("tokens: 1000\ntpp: 5\n")
    with pytest.raises(UserError, match="tpp and tokens"):
        compose(["sweep=mine"], "sweep", folder)


def test_the_command_line_displaces_what_the_sweep_file_fixes(mine):
    folder = mine("tokens: 1000\noptimizer: {weight_decay: 0.2}\n")
    c = compose(["sweep=mine", "tpp=7", "tau=0.5"], "sweep", folder).config
    assert (c.tpp, c.tokens, c.tau, c.optimizer.weight_decay) == (7, None, 0.5, None)
    assert compose(["sweep=mine"], "sweep", folder).config.tpp is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model.widht=3"], "model.width"),
        (["schedule=liner"], "linear"),
        (["optimizer.learning_rate=1"], "no such key"),
        (["model.width=abc"], "model.width"),
        (["model.width=null"], "model.width"),
        (["seed=1.5"], "seed"),
        (["foo"], "KEY=VALUE"),
        (["~tpp"], "null"),
        (["hydra.run.dir=x"], "Hydra"),
        (["sweep=none_such"], "no such sweep"),
        (["optimizer.lr=1,2"], "one value"),
        (["sweep.axes.tau=[1]"], "axis"),
    ],
)
def test_bad_words_name_the_mend(words, expected):
    with pytest.raises(UserError, match="(?s)") as e:
        compose(words)
    assert expected in str(e.value) and len(str(e.value).splitlines()) <= 2


def test_comma_lists_and_ranges_are_axes():
    axes = compose(["model.width=32,64", "optimizer.lr=log2(-9, -7, 3)", "parameterization=standard,mup"], "sweep").axes
    assert axes == {"model.width": [32, 64], "optimizer.lr": "log2(-9, -7, 3)", "parameterization": ["standard", "mup"]}


def test_values_keep_what_was_set_inside_a_group_that_is_swept():
    r = compose(["parameterization.base_width=32", "parameterization=standard,mup"], "sweep")
    for name in ("standard", "mup"):
        c = r.with_values({"parameterization": r.typed("parameterization", name)})
        assert (c.parameterization.name, c.parameterization.base_width) == (name, 32)


def test_a_swept_group_leaves_relations_alone():
    r = compose(["tau=0.5", "schedule.warmup_tokens=5120", "schedule=linear,cosine"], "sweep")
    c = r.with_values({"schedule": r.typed("schedule", "cosine")})
    assert (c.schedule.name, c.schedule.warmup, c.schedule.warmup_tokens) == ("cosine", None, 5120)
    assert resolve(c, FACTS).tau == pytest.approx(0.5)


def test_values_displace_the_other_side_and_leave_the_base_alone():
    r = compose(["optimizer.weight_decay=0.2"], "sweep")
    c = r.with_values({"tau": 0.5, "model.width": 32})
    assert (c.tau, c.optimizer.weight_decay, c.model.width) == (0.5, None, 32)
    assert (r.config.tau, r.config.optimizer.weight_decay, r.config.model.width) == (None, 0.2, 64)
