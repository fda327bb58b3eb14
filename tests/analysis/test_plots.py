"""Figures carry the right data: what is drawn is read back from the axes."""

import math
import subprocess
import sys

import numpy as np
import pytest

from analysis import plots
from analysis.plot_slices import losses


def a_slice(given, best, base=2.0, verdict="interior", target="lr", **extra):
    x = 2.0 ** np.arange(-9, -2)
    optimum = {"analysis": target, "target": target, "given": given, "held": {}, "value": best, "verdict": verdict}
    optimum |= {"low": best / 1.2, "high": best * 1.3, "loss": base, "n": len(x)}
    return {
        "given": given,
        "x": list(x),
        "loss": list(base + 0.02 * np.log2(x / best) ** 2),
        "seed": [0] * len(x),
        "status": ["done"] * len(x),
        "curve": {"x": list(x), "loss": list(base + 0.02 * np.log2(x / best) ** 2)},
        "window": [best / 4, best * 4],
        "optimum": optimum,
        **extra,
    }


def drawn(ax, kind):
    return [line for line in ax.lines if line.get_gid() == kind]


def titles(fig):
    return [ax.get_title(loc="left") for ax in fig.axes if ax.get_visible()]


def labels(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


def test_points_curve_and_optimum_are_where_the_slice_says(tmp_path):
    s = a_slice({"params": 1e6, "tokens": 2e7}, best=2**-6.3)
    path = tmp_path / "figures" / "lr.png"
    fig = losses(path, [s], "lr")
    assert path.stat().st_size > 10_000 and [p.name for p in path.parent.iterdir()] == ["lr.png"]
    (ax,) = fig.axes
    (points,), (optimum,), (interval,) = (drawn(ax, kind) for kind in ("points", "optimum", "interval"))
    assert list(points.get_xdata()) == pytest.approx(s["x"]) and list(points.get_ydata()) == pytest.approx(s["loss"])
    assert optimum.get_xdata()[0] == pytest.approx(2**-6.3) and optimum.get_ydata()[0] == pytest.approx(2.0)
    assert list(interval.get_xdata()) == pytest.approx([2**-6.3 / 1.2, 2**-6.3 * 1.3])
    window = drawn(ax, "window")[0].get_xdata()
    assert window.min() >= 2**-8.3 and window.max() <= 2**-4.3
    assert ax.get_xscale() == "log" and ax.get_ylim()[0] < 2.0


def test_two_parameterizations_get_panels_and_sizes_get_ordered_colours():
    slices = [
        a_slice({"parameterization": p, "params": n, "tokens": t}, best)
        for p in ("standard", "mup")
        for n, t, best in ((1e5, 1e6, 2**-5), (4e5, 1.01e6, 2**-6), (9e5, 0.995e6, 2**-7))
    ]
    fig = losses(None, slices, "lr")
    assert titles(fig) == ["mup", "standard"]
    assert [len(drawn(ax, "optimum")) for ax in fig.axes] == [3, 3]
    assert labels(fig)[:3] == ["parameters 100k", "400k", "900k"]
    mup, standard = ([line.get_color() for line in drawn(ax, "optimum")] for ax in fig.axes)
    assert mup == standard and len(set(mup)) == 3


def test_tau_slices_are_told_apart_by_size_and_tokens_per_parameter():
    slices = [
        a_slice({"params": n, "tokens": n * tpp * wobble}, 2**-5, target="tau")
        for n in (1e5, 4e5)
        for tpp, wobble in ((5, 1.01), (20, 1.0), (80, 0.995))
    ]
    fig = losses(None, slices, "tau")
    assert titles(fig) == ["parameters 100k", "parameters 400k"] and len(labels(fig)) == 4


def test_diverged_points_and_verdicts_are_distinct():
    s = a_slice({"params": 1e6}, best=2**-6)
    s["loss"][-1], s["status"][-1] = None, "diverged"
    s["loss"][-2] = 40.0
    s["loss"][0], s["status"][0] = None, "pruned"
    edge = a_slice({"params": 2e6}, best=2**-11, verdict="edge")
    flat = a_slice({"params": 4e6}, best=2**-6, verdict="flat", curve=None, window=None)
    fig = losses(None, [s, edge, flat], "lr")
    (ax,) = fig.axes
    top = ax.get_ylim()[1]
    assert top < 10 and list(drawn(ax, "diverged")[0].get_xdata()) == [2.0**-3]
    assert drawn(ax, "diverged")[0].get_ydata()[0] == top and list(drawn(ax, "pruned")[0].get_xdata()) == [2.0**-9]
    assert list(drawn(ax, "above the axis")[0].get_xdata()) == [2.0**-4]
    assert len(drawn(ax, "optimum")) == 1
    assert drawn(ax, "edge")[0].get_marker() == "<" and drawn(ax, "edge")[0].get_xdata()[0] == 2.0**-9
    assert "flat" in [text.get_text() for text in ax.texts]
    assert {"diverged", "pruned", "optimum beyond the edge", "above the axis"} <= set(labels(fig))


def test_curves_far_apart_are_drawn_from_their_own_lowest():
    fig = losses(None, [a_slice({"params": n}, 2**-6, base) for n, base in ((1e5, 4.0), (1e6, 3.0), (1e7, 2.0))], "lr")
    assert fig.axes[0].get_ylim()[1] < 1
    assert "above" in fig._supylabel.get_text()
    assert all(line.get_ydata().min() == pytest.approx(0) for line in drawn(fig.axes[0], "points"))


@pytest.mark.parametrize("n", [1, 2, 13, 60])
def test_any_number_of_slices(n, tmp_path):
    slices = [a_slice({"params": 1e5 * 2 ** (i // 4), "tokens": 1e7 * 2 ** (i % 4)}, 2**-6) for i in range(n)]
    fig = losses(tmp_path / "f.png", slices, "lr")
    assert len(titles(fig)) <= 12 and (n < 60 or "12 of 15 panels" in fig._suptitle.get_text())


def test_panels_of_very_long_titles_keep_their_axes(tmp_path, recwarn):
    words = {f"a long setting {i}": "none of the others" for i in range(8)}
    slices = [a_slice({**{k: f"{v} {i}" for k, v in words.items()}, "absent": None, "params": 1e5 * i, "tokens": 1e7}, 2**-6)
              for i in range(1, 61)]  # fmt: skip
    slices = [{**s, "given": {**s["given"], **{k: f"{k} {i >> j & 1}" for j, k in enumerate(words)}}}
              for i, s in enumerate(slices)]  # fmt: skip
    fig = losses(tmp_path / "f.png", slices, "lr")
    assert not [str(w.message) for w in recwarn if "constrained_layout" in str(w.message)]
    assert max(len(line) for title in titles(fig) for line in title.splitlines()) <= 40
    assert all(title.count("\n") <= 2 and "None" not in title for title in titles(fig))


def a_law(given=None, exponents=None, coefficient=0.3, **extra):
    exponents = exponents or {"params": -0.4}
    entries = {k: {"value": v, "low": v - 0.05, "high": v + 0.05} for k, v in exponents.items()}
    parameters = {"coefficient": {"value": coefficient, "low": None, "high": None}, **entries}
    size = 1 + len(exponents)
    quality = {"covariance": np.diag([0.01] + [1e-5] * (size - 1)).tolist(), "scatter": 0.1, "dof": 3, "r2": 0.98}
    law = {"analysis": "lr", "name": "lr", "given": given or {}, "parameters": parameters, **quality}
    return {**law, "heldout": {"n": 1, "mean_abs_log_error": 0.05}, **extra}


def optima(given=None, exponent=-0.4, tokens=1e8):
    return [
        {
            "analysis": "lr",
            "target": "lr",
            "given": {**(given or {}), "params": n, "tokens": tokens},
            "held": {"batch_size": 8},
            "value": 0.3 * n**exponent,
            "low": 0.25 * n**exponent,
            "high": 0.36 * n**exponent,
            "verdict": "interior",
            "heldout": n == 8e6,
        }
        for n in (1e6, 2e6, 4e6, 8e6)
    ]


def test_law_band_and_held_out_points(tmp_path):
    path = tmp_path / "law.png"
    edge = {**optima()[0], "verdict": "edge", "value": 1e-9}
    fig = plots.laws_against_scale(path, [a_law()], [*optima(), edge], "lr")
    (ax,) = fig.axes
    assert path.stat().st_size > 10_000
    (line,) = drawn(ax, "law")
    assert line.get_ydata() == pytest.approx(0.3 * line.get_xdata() ** -0.4)
    assert len(drawn(ax, "optimum")) == 3 and len(drawn(ax, "held out")) == 1
    assert drawn(ax, "held out")[0].get_markerfacecolor() == "white"
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices[:, 1]
    x = line.get_xdata()[0]
    half = 1.6377444 * math.sqrt(0.01 + 1e-5 * math.log(x) ** 2 + 0.01)  # t(0.9, 3)
    assert heights.max() >= 0.3 * x**-0.4 * math.exp(half) * 0.999
    text = ax.get_legend().get_texts()[0].get_text()
    assert "params^-0.400" in text and "[-0.45, -0.35]" in text and "held out 5.1 % off" in text
    assert drawn(ax, "edge")[0].get_marker() == "v" and ax.get_ylim()[0] > 1e-6  # it does not set the axis


def test_parameterizations_share_one_axis_and_keep_their_optima():
    laws = [a_law({"parameterization": p}, {"params": e}) for p, e in (("standard", -0.4), ("mup", -0.1))]
    points = optima({"parameterization": "standard"}) + optima({"parameterization": "mup"}, -0.1)
    fig = plots.laws_against_scale(None, laws, points, "lr")
    (ax,) = fig.axes
    colours = [line.get_color() for line in drawn(ax, "law")]
    assert len(set(colours)) == 2
    for colour, exponent in zip(colours, (-0.4, -0.1), strict=True):
        mine = [line for line in drawn(ax, "optimum") if line.get_color() == colour]
        assert [line.get_ydata()[0] for line in mine] == pytest.approx([0.3 * n**exponent for n in (1e6, 2e6, 4e6)])


def test_two_predictors_give_a_line_for_each_value_of_the_other():
    law = a_law(exponents={"params": -0.4, "tokens": 0.1})
    points = [o for tokens in (1e8, 1e9, 1e10) for o in optima(tokens=tokens)]
    fig = plots.laws_against_scale(None, [law], points, "lr")
    (ax,) = fig.axes
    lines = drawn(ax, "law")
    assert len(lines) == 4 and ax.get_xlabel() == "tokens"
    assert lines[0].get_ydata() == pytest.approx(0.3 * 1e6**-0.4 * lines[0].get_xdata() ** 0.1)
    many = [{**o, "given": {**o["given"], "params": 1e6 * 1.5**i}} for i, o in enumerate(points)]
    assert drawn(plots.laws_against_scale(None, [law], many, "lr").axes[0], "equality")


def test_a_hand_written_law_without_optima_is_drawn_over_its_range():
    law = {"name": "lr", "parameters": {"coefficient": {"value": 1.0}, "params": {"value": -0.5}}}
    assert not drawn(plots.laws_against_scale(None, [law], [], "lr").axes[0], "law")
    fig = plots.laws_against_scale(None, [{**law, "range": {"params": {"low": 1e6, "high": 1e8}}}], [], "lr")
    assert drawn(fig.axes[0], "law")[0].get_ydata()[0] == pytest.approx(1e-3, rel=0.3)


def test_neighbours_show_who_moved_and_the_noise(tmp_path):
    base = {"role": "neighbour", "lr": 0.004, "tau": 0.3}
    runs = [
        {**base, "tau": 0.9, "loss": 1.91},
        {**base, "lr": 0.008, "loss": None},
        {**base, "role": "recipe", "loss": 1.912},
        {**base, "lr": 0.002, "loss": 1.93},
        {**base, "tau": 0.1, "loss": 1.95},
    ]
    path = tmp_path / "n.png"
    fig = plots.neighbours(path, runs, seed_noise=0.004, excess=0.002)
    (ax,) = fig.axes
    words = [label.get_text() for label in ax.get_yticklabels()]
    assert words == ["recipe", "LR x1/2", "LR x2", "tau x1/3", "tau x3"]
    assert drawn(ax, "recipe")[0].get_xdata()[0] == 1.912
    assert [line.get_xdata()[0] for line in drawn(ax, "neighbour")] == [1.93, 1.95, 1.91]
    assert len(drawn(ax, "diverged")) == 1 and path.stat().st_size > 8_000
    (noise,) = (patch for patch in ax.patches if patch.get_gid() == "noise")
    assert noise.get_x() == pytest.approx(1.91) and noise.get_width() == pytest.approx(0.004)


def test_importing_the_plots_loads_no_matplotlib():
    code = "import sys, analysis.plots, analysis.report, analysis.recommend; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
