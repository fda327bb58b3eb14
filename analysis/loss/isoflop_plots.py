"""The figure of an IsoFLOP fit: loss against model size, one curve a budget, with the minima."""

import math
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np

from analysis import style

MOST_PANELS = 6
NAMED = 8  # budgets in a legend
TITLE = 36  # characters a line


def curves(path, found) -> Any:
    """One panel for each group of settings: points, fitted curves, minima (filled) with their intervals; a budget whose
    minimum is not interior has its points only. `found`: see analysis/loss/isoflop.py, Fitted."""
    return _panels(path, found, _draw, counted=True)


def _panels(path, found, draw: Callable[[Any, Any], None], counted: bool) -> Any:
    """The figure of one panel a group, as `draw(ax, group)` fills it; `counted`: says where there are more groups."""
    shown = found[:MOST_PANELS]
    columns = 1 if len(shown) == 1 else 2
    rows = math.ceil(len(shown) / columns)
    fig = style.figure(style.COLUMN * 1.4 if columns == 1 else style.PAGE, 2.9 * rows)
    with style.style():
        axes = fig.subplots(rows, columns, squeeze=False).ravel()
        for ax, f in zip(axes, shown, strict=False):
            draw(ax, f)
            ax.set_title(textwrap.fill(f.label, TITLE), loc="left")
        for ax in axes[len(shown) :]:
            ax.set_visible(False)
        if counted and len(found) > len(shown):
            fig.suptitle(f"{len(shown)} of {len(found)} groups shown", fontsize=9)
    return style.save(fig, path)


def _draw(ax: Any, f) -> None:
    budgets, minima = f.group.budgets, f.minima["params_opt"].each
    colours = style.ordered(len(budgets))
    named = {round(i) for i in np.linspace(0, len(budgets) - 1, NAMED)} if len(budgets) > NAMED else set(range(len(budgets)))
    for i, (b, m, colour) in enumerate(zip(budgets, minima, colours, strict=True)):
        label = f"{b.flops:.2g}" if i in named else None
        ax.plot(b.params, b.loss, "o", ms=2.6, color=colour, alpha=0.7, label=label, gid="points")
        if m.verdict != "interior" or m.curve is None:
            continue
        x = np.linspace(np.log(b.params[0]), np.log(b.params[-1]), 200)
        y = m.curve(x)
        inside = y < b.loss.max() + 0.1 * np.ptp(b.loss)
        ax.plot(np.exp(x[inside]), y[inside], "-", lw=0.9, color=colour, gid="curve")
        if np.isfinite([m.low, m.high]).all():
            ax.plot(np.exp([m.low, m.high]), [m.loss] * 2, "-", lw=2.2, color=style.CATEGORIES[1], zorder=3, gid="interval")
        ax.plot([np.exp(m.fitted)], [m.loss], "o", ms=4.5, color=style.CATEGORIES[1], zorder=4, gid="minimum")
    ax.set_xscale("log")
    ax.set_xlabel(style.label("params"))
    ax.set_ylabel(style.label("loss"))
    if budgets:
        _legend(ax, "flops")


def _legend(ax: Any, column: str) -> None:
    ax.legend(title=style.label(column), title_fontsize=7.5, loc="upper left", bbox_to_anchor=(1, 1), handlelength=1)


def envelopes(path, found) -> Any:
    """Training curves in (FLOPs, loss), coloured by model size, the lower envelope and the crossings of runs on it.
    `found`: see analysis/loss/envelope.py, Fitted."""
    return _panels(path, found, _draw_envelope, counted=False)


def _draw_envelope(ax: Any, f) -> None:
    sizes = np.unique(f.curves.size.round(3))
    colours = dict(zip(sizes.tolist(), style.ordered(len(sizes)), strict=True))
    named = {sizes[round(i)] for i in np.linspace(0, len(sizes) - 1, min(NAMED, len(sizes)))}
    for size, x, y in sorted(zip(f.curves.size.round(3), f.curves.x, f.curves.y, strict=True), key=lambda c: c[0]):
        label = style.short(float(np.exp(size))) if size in named else None
        named.discard(size)
        ax.plot(np.exp(x), np.exp(y), "-", lw=0.8, color=colours[float(size)], label=label, gid="curve")
    ax.plot(np.exp(f.envelope.x), np.exp(f.envelope.y), "-", lw=1.6, color="black", zorder=3, gid="envelope")
    ax.plot(f.points["flops"], f.points["loss"], "o", ms=3 if len(f.points) < 60 else 1, zorder=4,
            color=style.CATEGORIES[1], gid="point")  # fmt: skip
    ax.set(xscale="log", xlabel=style.label("flops"), ylabel=style.label("loss"))
    _legend(ax, "params")
