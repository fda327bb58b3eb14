"""Steps to each target loss against the batch, with the hyperbolas through them: one panel a model size."""

import math
import os
from typing import Any

import numpy as np

from analysis import style
from analysis.critical import hyperbola
from analysis.critical.points import Point

MOST_PANELS = 8


def hyperbolas(path: str | os.PathLike | None, points: list[Point], column: str) -> Any:
    """Log-log; per point the measured steps, S_min (1 + B_crit/B), and a diamond at the critical batch where it is
    interior. More than eight model sizes: the eight with most points."""
    drawn = [p for p in points if np.isfinite(p.log_d_min)]
    panels: dict[tuple, list[Point]] = {}
    for p in drawn:
        panels.setdefault((p.size, repr(p.settings)), []).append(p)
    chosen = sorted(sorted(panels.values(), key=len, reverse=True)[:MOST_PANELS], key=lambda m: m[0].given.get("params", 0))
    columns = min(len(chosen), 3)
    lines = math.ceil(len(chosen) / columns)
    fig = style.figure(style.COLUMN * 1.15 if columns == 1 else style.PAGE, 2.6 * lines)
    with style.style():
        axes = fig.subplots(lines, columns, squeeze=False)
        for ax, members in zip(axes.ravel(), chosen, strict=False):
            _panel(ax, members, column)
        for ax in axes.ravel()[len(chosen) :]:
            ax.set_visible(False)
        for ax in axes[:, 0]:
            ax.set_ylabel("steps to the target loss")
        for ax in axes[-1]:
            ax.set_xlabel(style.label(column))
    return style.save(fig, path)


def _panel(ax: Any, points: list[Point], column: str) -> None:
    points = sorted(points, key=lambda p: -(p.target or 0))
    for p, colour in zip(points, style.ordered(len(points)), strict=True):
        per_step = math.log(p.settings.get("context") or 1.0) if column == "batch_size" else 0.0
        steps = np.exp(p.log_d - p.log_batch - per_step)
        ax.plot(np.exp(p.log_batch), steps, "o", ms=3.2, color=colour, gid="steps")
        span = [p.log_batch.min() - 0.3, p.log_batch.max() + 0.3]
        grid = np.linspace(min(span), max(span), 80)
        fitted = np.exp(hyperbola.at(grid, p.log_d_min, p.log_b_crit) - grid - per_step)
        name = "" if p.target is None else f"loss {p.target:.3f}"
        ax.plot(np.exp(grid), fitted, color=colour, lw=1.0, label=name, gid="hyperbola")
        if p.verdict == "interior":
            height = hyperbola.at(np.array([p.log_value]), p.log_d_min, p.log_b_crit)[0] - p.log_value - per_step
            ax.plot([np.exp(p.log_value)], [np.exp(height)], "D", ms=4.5, mfc="white", color=colour, gid="critical")
    ax.set_xscale("log")
    ax.set_yscale("log")
    n = points[0].given.get("params")
    ax.set_title(f"{style.short(n)} parameters" if n else "", loc="left")
    if any(p.target is not None for p in points):
        ax.legend(loc="upper right", handlelength=1.0)
