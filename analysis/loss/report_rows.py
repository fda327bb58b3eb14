"""Notes and figures of a fitted loss law."""

from functools import partial

import numpy as np

from analysis import style
from analysis.loss import lack

MOST_POINTS = 20_000
MOST_LINES = 8
WIDE = 1.5  # high over low of E above which far extrapolation rests on a guess
OPPOSED = 0.05  # share of resamples at a bound that is worth a line


def lines(fitted, group, options) -> list[str]:
    """What a reader should know of the fit."""
    found = []
    if fitted.one_step:
        found.append(f"intervals of {len(group)} rows by one Newton step for each resample.")
    place = {"E": 0, "A": 1, "B": 2, "alpha": 3, "beta": 4, "R_D": 5, "R_N": 6}
    at_centre = [s for s in fitted.free if s in ("E", "A", "B") and not np.isfinite(fitted.centre[place[s]])]
    found += [f"{symbol} is fitted as 0: the rows call for no such term." for symbol in at_centre]
    for symbol in fitted.free:
        share = fitted.ended[:, place[symbol]].mean()
        if share > OPPOSED and symbol not in at_centre:
            found.append(f"{symbol} is not bounded by the rows: {100 * share:.0f} % of resamples end at a bound.")
    if "E" in fitted.free and "E" not in at_centre:
        entry = fitted.parameters(options.level)["E"]
        if entry["low"] is None or entry["high"] is None or entry["high"] > WIDE * entry["low"]:
            found.append("E is not identified: quite other floors fit the rows as well, and far extrapolation rests on it.")
    held = [f"{symbol} = {value:g}" for symbol, value in options.fixed.items()]
    found += [f"not fitted: {', '.join(held)}."] if held else []
    blocks = int(group.block.max()) + 1
    if blocks == len(group) and group.epochs is None and not options.fixed:  # a shared shift is no bend
        chance = lack.bend(fitted.centre, group.params, group.tokens, fitted.residual)
        if chance is not None and chance < lack.SIGNIFICANT:
            found.append(
                f"the residuals bend (p = {chance:.1g}): the form does not hold here, the intervals assume it, and "
                "compute-optimal params beyond the rows may lie far outside theirs."
            )
    if blocks < 12:
        found.append(f"{blocks} independent blocks of rows: intervals are rough.")
    return found


def figures(name: str, law: dict, group, fitted) -> dict:
    """{file stem: function of a path}."""
    return {
        f"{name}_against_tokens": partial(_losses, law=law, group=group),
        f"{name}_residuals": partial(_residuals, group=group, residual=fitted.residual),
    }


def _losses(path, law: dict, group):
    """Loss against D (against N where D does not vary), coloured by N; at most 8 N carry lines."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    from analysis.loss.predict import loss_at

    along_n = "B" not in law["parameters"]
    x, other = (group.params, group.tokens) if along_n else (group.tokens, group.params)
    lined = _levels(other)
    shown = slice(None, None, max(1, len(x) // MOST_POINTS))
    fig = style.figure(style.COLUMN * 1.5, 3.0)
    with style.style():
        ax = fig.subplots()
        dots = {"s": 7, "linewidths": 0, "alpha": 0.75}
        if len(lined) > 1:
            map_, norm = colormaps["viridis"], LogNorm(lined[0], lined[-1] ** 1.18 / lined[0] ** 0.18)  # no pale yellow
            colours = [map_(norm(value)) for value in lined]
            ax.scatter(x[shown], group.loss[shown], c=other[shown], cmap=map_, norm=norm, **dots)
        else:
            colours = style.CATEGORIES[:1]
            ax.scatter(x[shown], group.loss[shown], color=colours[0], **dots)
        for value, colour in zip(lined, colours, strict=True):
            near = np.abs(np.log(other / value)) <= np.abs(np.log(other[:, None] / lined)).min(axis=1) + 1e-9
            reach = np.geomspace(x[near].min(), x[near].max(), 60) if near.any() else x[:1]
            at = [(v, value) if along_n else (value, v) for v in reach]
            label = style.short(float(value)) if "A" in law["parameters"] and not along_n else None
            ax.plot(reach, [loss_at(law, *each).value for each in at], color=colour, label=label)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel(style.label(law["predictors"][0] if along_n else "tokens"))
        ax.set_ylabel(style.label("loss"))
        _plain_ticks(ax.yaxis)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(title=style.label(law["predictors"][0]), loc="center left", bbox_to_anchor=(1.0, 0.5))
    return style.save(fig, path)


def _levels(values: np.ndarray) -> np.ndarray:
    """The values that carry lines: those there are where they are few, else as many in equal ratios."""
    levels = np.unique(values)
    levels = levels[np.r_[True, np.diff(np.log(levels)) > 0.02]]
    return levels if len(levels) <= MOST_LINES else np.geomspace(levels[0], levels[-1], MOST_LINES)


def _residuals(path, group, residual: np.ndarray):
    """Measured over predicted in per cent, against the prediction and against FLOPs; the largest FLOPs tell most."""
    fig = style.figure(style.PAGE, 2.6)
    shown = slice(None, None, max(1, len(residual) // MOST_POINTS))
    percent = 100 * np.expm1(-residual)
    with style.style():
        axes = fig.subplots(1, 2, sharey=True)
        predicted, flops = group.loss * np.exp(residual), 6 * group.params * group.tokens
        panels = ((predicted, "predicted loss (nats per token)"), (flops, "6 N D (FLOPs)"))
        for ax, (x, label) in zip(axes, panels, strict=True):
            ax.axhline(0, color="0.6", linewidth=0.7)
            ax.scatter(x[shown], percent[shown], s=7, color=style.CATEGORIES[0], linewidths=0, alpha=0.7)
            ax.set_xscale("log")
            ax.set_xlabel(label)
        _plain_ticks(axes[0].xaxis)
        axes[0].set_ylabel("measured above predicted (%)")
    return style.save(fig, path)


def _plain_ticks(axis) -> None:
    """2, 2.5, 3 rather than powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 2.2, 2.5, 2.8, 3.0, 3.5, 4.0, 5.0, 7.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
