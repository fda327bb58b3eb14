"""Figures for a paper: loss against a hyper-parameter, optima against scale with their laws, a recipe's neighbours.

Each function takes plain dicts (LAW and OPTIMUM as in laws.json, slices as in plot_slices) and a path, writes the
figure there and returns it; path None writes nothing.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis import style
from analysis.plot_slices import losses
from analysis.predict import in_numbers, off, predict, predictors, usable
from analysis.region import same

__all__ = ["laws_against_scale", "losses", "neighbours"]
MOST_LINES = 8  # lines of one law for values of its second predictor; above: predicted against measured


def laws_against_scale(
    path: str | os.PathLike | None, laws: Sequence[Mapping], optima: Sequence[Mapping], name: str, x: str | None = None
) -> Any:
    """The laws of one `name` (several parameterizations, say) with their optima, both axes logarithmic: the law, its
    10-90 % prediction band, optima with intervals, held-out ones hollow, and the law in numbers with the interval of
    its exponent. A law of several predictors gets a panel with a line for each value of the others."""
    laws = [law for law in laws if law["name"] == name and usable(law)]
    single = all(len(predictors(law)) <= 1 for law in laws)
    same_x = len({_abscissa(law, _own(law, optima), x) for law in laws}) <= 1
    panels = [laws] if single and same_x else [[law] for law in laws]
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    legend = 0.3 * max(map(len, panels), default=1) + 0.1
    width = style.PAGE if columns == 2 else style.COLUMN * (1.15 if single else 1.4)
    fig = style.figure(width, (2.4 + legend) * rows)
    with style.style():
        for ax, members in zip(fig.subplots(rows, columns, squeeze=False).ravel(), panels, strict=False):
            for i, law in enumerate(members):
                _draw_law(ax, law, _own(law, optima), x, style.CATEGORIES[i % len(style.CATEGORIES)])
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_ylabel(style.label(name))
            for law in members:
                _draw_outsiders(ax, law, _own(law, optima), x)
            _plain_ticks(ax)
            if ax.get_legend_handles_labels()[0] and ax.get_legend() is None:
                ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2, handlelength=1.5)
        for ax in fig.axes[len(panels) :]:
            ax.set_visible(False)
    return style.save(fig, path)


def _own(law: Mapping, optima: Sequence[Mapping]) -> list[dict]:
    """The optima of the law's analysis that agree with its `given`; each with its scales in one dict under "at"."""
    mine = []
    for optimum in optima:
        at = {**(optimum.get("held") or {}), **(optimum.get("given") or {})}
        if at.get("params") and at.get("tokens"):
            at.setdefault("tpp", at["tokens"] / at["params"])
        given = law.get("given") or {}
        agrees = all(same(at[k], given[k]) for k in at.keys() & given.keys())
        target = optimum.get("target") == law["name"]
        if agrees and target and optimum.get("analysis") == law.get("analysis") and optimum.get("value"):
            mine.append({**optimum, "at": at, "verdict": optimum.get("verdict", "interior")})
    return mine


def _abscissa(law: Mapping, optima: Sequence[Mapping], x: str | None) -> str:
    """The predictor that spreads most; of a constant law the scale that does."""
    names = predictors(law) or ["params", "tokens"]
    if x in names:
        return x
    spread = {n: np.ptp(np.log([o["at"][n] for o in optima if n in o["at"]] or [1.0])) for n in names}
    return max(names, key=lambda n: round(float(spread[n]), 6))


def _draw_law(ax: Any, law: Mapping, optima: list[dict], x: str | None, colour: str) -> None:
    names = predictors(law)
    x = _abscissa(law, optima, x)
    ax.set_xlabel(style.label(x))
    placed = [o for o in optima if o["verdict"] == "interior" and all(n in o["at"] for n in {*names, x})]
    others = [n for n in names if n != x]
    groups: list[dict] = []
    for o in sorted(placed, key=lambda o: [o["at"][n] for n in others]):
        if not (groups and all(same(groups[-1][n], o["at"][n]) for n in others)):
            groups.append({n: o["at"][n] for n in others})
    if others and not 0 < len(groups) <= MOST_LINES:
        return _draw_measured(ax, law, placed, colour)
    colours = style.ordered(len(groups)) if others else [colour]
    for group, tint in zip(groups or [{}], colours, strict=False):
        members = [o for o in placed if all(same(o["at"][n], group[n]) for n in others)]
        _draw_line(ax, law, x, group, members, tint, _in_words(law) if not others else _at(group))
    if others:
        ax.set_title(_in_words(law), loc="left", fontsize=style.RC["legend.fontsize"])
        heading = ", ".join(style.label(n) for n in others)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title=heading, title_fontsize=7.5, handlelength=1.2)


def _draw_line(ax: Any, law: Mapping, x: str, group: Mapping, optima: list[dict], colour: Any, text: str) -> None:
    ends = (law.get("range") or {}).get(x) or {}
    reach = [v for v in (ends.get("low"), ends.get("high"), *(o["at"][x] for o in optima)) if v]
    if reach:
        low, high = min(reach), max(reach)
        margin = max((high / low) ** 0.04, 1.02)
        grid = np.geomspace(low / margin, high * margin, 60)
        band = predict(law, {**group, x: grid})
        value, bottom, top = (np.broadcast_to(v, grid.shape) for v in (band.value, band.low, band.high))
        ax.plot(grid, value, color=colour, label=text, gid="law")
        if not group and np.isfinite(bottom).all():
            ax.fill_between(grid, bottom, top, color=colour, alpha=0.15, lw=0, gid="band")
    for o in optima:
        _draw_point(ax, o["at"][x], o, colour)


def _draw_point(ax: Any, at: float, optimum: Mapping, colour: Any) -> None:
    """Filled: in the fit. Hollow: a held-out scale."""
    if optimum.get("low") is not None and optimum.get("high") is not None:
        ax.plot([at, at], [optimum["low"], optimum["high"]], "-", lw=0.9, color=colour, gid="interval")
    hollow = bool(optimum.get("heldout"))
    ax.plot(
        [at],
        [optimum["value"]],
        "o",
        ms=4.5,
        color=colour,
        mfc="white" if hollow else colour,
        zorder=4,
        gid="held out" if hollow else "optimum",
    )


def _draw_outsiders(ax: Any, law: Mapping, optima: list[dict], x: str | None) -> None:
    """Optima that are not interior enter no law: grey crosses, or carets at the border of an axis they do not set."""
    x = _abscissa(law, optima, x)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high)
    for o in optima:
        if o["verdict"] != "interior" and x in o["at"]:
            value = min(max(o["value"], low), high)
            marker = "x" if value == o["value"] else "v" if value == low else "^"
            ax.plot([o["at"][x]], [value], marker, ms=4.5, color="0.5", mfc="none", clip_on=False, gid=o["verdict"])


def _draw_measured(ax: Any, law: Mapping, optima: list[dict], colour: str) -> None:
    """Too many predictors for lines: what the law says against what was measured, with the line of equality."""
    predicted = [predict(law, o["at"]).value for o in optima]
    for value, o in zip(predicted, optima, strict=True):
        _draw_point(ax, value, o, colour)
    if predicted:
        ends = [min(*predicted, *(o["value"] for o in optima)), max(*predicted, *(o["value"] for o in optima))]
        ax.plot(ends, ends, "-", color="0.4", lw=0.8, gid="equality")
    ax.set_title(_in_words(law), loc="left", fontsize=style.RC["legend.fontsize"])
    ax.set_xlabel(f"{style.label(law['name'])}, from the law")


def _in_words(law: Mapping) -> str:
    """muP: 0.0102 * params^-0.100, then the exponents' intervals and R2."""
    given = law.get("given") or {}
    label = f"{given['parameterization']}: " if given.get("parameterization") else ""
    ends = []
    for n in predictors(law):
        entry = law["parameters"][n]
        if entry.get("low") is not None and entry.get("high") is not None:
            ends.append(f"{n} [{entry['low']:.2f}, {entry['high']:.2f}]")
    if law.get("r2") is not None:
        ends.append(f"R2 {law['r2']:.2f}")
    error = (law.get("heldout") or {}).get("mean_abs_log_error")
    if error is not None:
        ends.append(f"held out {off(error)} off")
    return f"{label}{in_numbers(law)}" + (f"\n  {', '.join(ends)}" if ends else "")


def _at(group: Mapping) -> str:
    return ", ".join(style.short(v) for v in group.values())


def _plain_ticks(ax: Any) -> None:
    """Ticks at 1, 2, 5 where an axis spans less than a decade and a half, where powers of ten alone would leave one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        if high / low < 30:
            axis.set_major_locator(
                LogLocator(subs=(1, 2, 5) if high / low > 10 else (1, 1.5, 2, 3, 4, 5, 7), numticks=15)
            )
            axis.set_major_formatter(FuncFormatter(lambda v, _: style.short(v) if v >= 1e-3 else f"{v:.2g}"))
            axis.set_minor_formatter(NullFormatter())


def neighbours(
    path: str | os.PathLike | None, runs: Sequence[Mapping], seed_noise: float | None, excess: float | None
) -> Any:
    """The recipe's loss and that of its neighbours. runs: {"role": "recipe"|"neighbour", "lr", "tau", "loss"}, loss
    None where the run diverged. seed_noise: standard deviation in nats, drawn as a band above the best loss. excess:
    nats of the recipe above the best."""
    recipe = next((run for run in runs if run["role"] == "recipe"), None)
    rows = sorted(runs, key=lambda run: (run is not recipe, *_step_from(run, recipe)))
    seen = [run["loss"] for run in rows if run.get("loss") is not None and math.isfinite(run["loss"])]
    fig = style.figure(style.COLUMN * 1.15, 0.28 * len(rows) + 0.95)
    with style.style():
        ax = fig.subplots()
        for y, run in enumerate(rows):
            _draw_run(ax, y, run, run is recipe, max(seen, default=1.0))
        if seen and seed_noise:
            ax.axvspan(min(seen), min(seen) + seed_noise, color="0.87", lw=0, zorder=0, gid="noise")
            ax.text(
                min(seen) + seed_noise, -0.75, f" seed noise {seed_noise:.4f}", fontsize=7, color="0.4", va="center"
            )
        ax.set_yticks(range(len(rows)), [_step_in_words(run, recipe) for run in rows])
        ax.set_ylim(len(rows) - 0.5, -1.1)
        ax.margins(x=0.18)
        ax.set_xlabel(style.label("loss"))
        ax.locator_params(axis="x", nbins=4)
        ax.tick_params(axis="y", length=0)
        if excess is not None:
            fig.suptitle(f"recipe: {excess:.4f} nats above the best of {len(rows)}", fontsize=8.5)
    return style.save(fig, path)


def _draw_run(ax: Any, y: int, run: Mapping, is_recipe: bool, worst: float) -> None:
    colour = style.CATEGORIES[1] if is_recipe else style.CATEGORIES[0]
    loss = run.get("loss")
    if loss is None or not math.isfinite(loss):
        ax.plot([worst], [y], "x", color=colour, ms=5, gid="diverged")
        ax.annotate("diverged", (worst, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=7)
        return
    ax.plot([loss], [y], "D" if is_recipe else "o", color=colour, ms=5.5, gid=run["role"])
    ax.annotate(f"{loss:.4f}", (loss, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=7)


def _step_from(run: Mapping, recipe: Mapping | None) -> tuple[bool, float]:
    """Sorts neighbours: learning rates first, each from low to high."""
    if recipe is None:
        return False, 0.0
    lr, tau = (run[k] / recipe[k] if run.get(k) and recipe.get(k) else 1.0 for k in ("lr", "tau"))
    return abs(math.log(lr)) < abs(math.log(tau)), lr * tau


def _step_in_words(run: Mapping, recipe: Mapping | None) -> str:
    if recipe is None or run is recipe:
        return run["role"]
    moved = [
        (k, run[k] / recipe[k]) for k in ("lr", "tau") if run.get(k) and recipe.get(k) and not same(run[k], recipe[k])
    ]
    times = [
        f"{'LR' if k == 'lr' else k} x{r:.3g}" if r >= 1 else f"{'LR' if k == 'lr' else k} x1/{1 / r:.3g}"
        for k, r in moved
    ]
    return ", ".join(times) or "same again"
