"""Ranges, crossed and zipped axes, and the conflicts that are named."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from sweeps.axes import build_axes, parse_values


def test_ranges_include_both_ends():
    assert parse_values("optimizer.lr", "log2(-9, -5, 5)") == [2.0**-9, 2.0**-8, 2.0**-7, 2.0**-6, 2.0**-5]
    assert parse_values("optimizer.lr", "log10(-3,-1,3)") == [1e-3, 1e-2, 1e-1]
    assert parse_values("model.width", "geom(32, 256, 4)") == [32, 64, 128, 256]
    assert parse_values("tpp", "linear(0.1, 0.3, 3)") == [0.1, 0.2, 0.3]
    assert parse_values("tpp", ["linear(1, 2, 2)", 7]) == [1, 2, 7]
    assert parse_values("tpp", "geom(5, 80, 1)") == [5]
    assert parse_values("data.path", ["text (1)/a", "notes(old)"]) == ["text (1)/a", "notes(old)"]


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 50))
def test_geom_has_equal_ratios(first, last, n):
    values = parse_values("x", f"geom({first!r}, {last!r}, {n})")
    assert len(values) == n
    assert math.isclose(values[0], first, rel_tol=1e-12) and math.isclose(values[-1], last, rel_tol=1e-12)
    ratio = (last / first) ** (1 / (n - 1))
    assert all(math.isclose(b / a, ratio, rel_tol=1e-9) for a, b in zip(values, values[1:], strict=False))


@pytest.mark.parametrize(
    "raw",
    ["log2(1, 2)", "log2(a, b, 3)", "log2(1, 2, 0)", "log2(1, 2, 2.5)", "geom(-1, 2, 3)", "geom(0, 1, 3)",
     "logspace(1, 2, 3)", "log2(1, 2, 3, 4)", "log2(1, 99999, 3)", "log2()", "log2(1,2,1e9)",
     "linear(nan, 1, 3)", "linear(1, inf, 3)"],
)  # fmt: skip
def test_bad_range_is_one_clear_line(raw):
    with pytest.raises(UserError) as error:
        parse_values("optimizer.lr", raw)
    assert "optimizer.lr" in str(error.value) and len(str(error.value).splitlines()) == 1


def test_command_line_replaces_and_pins_axes_of_the_file(request_of):
    file = {"optimizer.lr": [1e-3, 2e-3], "model.width": [32, 64]}
    axes = {a.keys[0]: [v for (v,) in a.values] for a in build_axes(request_of("optimizer.lr=1e-4,1e-5", axes=file))}
    assert axes == {"optimizer.lr": [1e-4, 1e-5], "model.width": [32, 64]}
    axes = [a.keys for a in build_axes(request_of("optimizer.lr=1e-4", axes=file))]
    assert axes == [("model.width",)]


def test_zip_moves_keys_together(request_of):
    axes = build_axes(request_of(zip=[{"model.width": [32, 64], "model.depth": [1, 2]}], axes={"seed": [0, 1]}))
    assert [(a.keys, a.values) for a in axes] == [
        (("seed",), ((0,), (1,))),
        (("model.width", "model.depth"), ((32, 1), (64, 2))),
    ]
    with pytest.raises(UserError, match="model.width has 2, model.depth has 1"):
        build_axes(request_of(zip=[{"model.width": [32, 64], "model.depth": [1]}]))
    with pytest.raises(UserError, match="seed is on two axes"):
        build_axes(request_of(zip=[{"seed": [1, 2]}], axes={"seed": [0, 1]}))
    with pytest.raises(UserError, match="zipped"):
        build_axes(request_of("seed=3", zip=[{"seed": [1, 2]}]))


def test_values_are_typed_and_unknown_keys_named(request_of):
    axis = build_axes(request_of("batch_size=geom(8, 32, 5)"))[0]
    assert axis.values == ((8,), (11,), (16,), (23,), (32,))  # whole sequences
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        build_axes(request_of(axes={"optimizer.lrr": [1, 2]}))
    with pytest.raises(UserError):
        build_axes(request_of(axes={"model.width": [32, "wide"]}))
    with pytest.raises(UserError):
        build_axes(request_of(axes={"model.width": [32, 33.5]}))
    with pytest.raises(UserError, match="no values"):
        build_axes(request_of(axes={"seed": []}))


@pytest.mark.parametrize(
    ("typed", "axes", "fixed"),
    [
        (["tokens=1e6,2e6"], {"tpp": [5, 20]}, []),  # axis of both
        ([], {"tpp": [5, 20], "tokens": [1e6, 2e6]}, []),
        (["tokens=1000000"], {"tpp": [5, 20]}, []),  # a fixed value displaces no axis
        ([], {"tpp": [5, 20]}, ["tokens"]),  # one file
        (["tokens=1e6,2e6", "tpp=20"], {}, []),  # one command
    ],
)
def test_both_sides_of_a_relation_are_an_error_that_names_both(request_of, typed, axes, fixed):
    with pytest.raises(UserError, match="tpp") as error:
        build_axes(request_of(*typed, axes=axes, file_given=fixed))
    assert "tokens" in str(error.value)


def test_a_default_and_a_fixed_value_of_the_file_yield_to_an_axis_of_the_command_line(request_of):
    assert len(build_axes(request_of("tokens=1e6,2e6"))) == 1  # tpp has a default
    assert len(build_axes(request_of("tokens=1e6,2e6", file_given=["tpp"]))) == 1
    with pytest.raises(UserError, match="fixed value and an axis"):
        build_axes(request_of(axes={"seed": [1, 2]}, file_given=["seed"]))
