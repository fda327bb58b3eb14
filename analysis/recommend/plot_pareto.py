"""The figure of time against compute: runs of one loss, from small batches (slow, cheap) to large ones, for a few ratios of
tokens to parameters; the front that no run beats; where the target lies."""

import os
from collections.abc import Mapping
from typing import Any

from analysis import style


def pareto(path: str | os.PathLike | None, found: Mapping) -> Any:
    """Draws a Recipe's `pareto` (trade.py); writes the figure to `path` (None: nothing) and returns it."""
    hours = found["machine"]["time_unit"] == "seconds"
    scale = 3600.0 if hours else 1.0
    curves = {name: curve for name, curve in found["curves"].items() if name != "front"}
    front = found["curves"]["front"]
    fig = style.figure(style.COLUMN * 1.35, 3.0)
    with style.style():
        ax = fig.subplots()
        for colour, (name, curve) in zip(style.ordered(len(curves)), curves.items(), strict=True):
            seconds = [t / scale for t in curve["seconds"]]
            ax.plot(seconds, curve["flops"], color=colour, lw=1.0, label=f"{name} tokens/param")
        ax.plot([t / scale for t in front["seconds"]], front["flops"], color="black", lw=2.2, alpha=0.55, label="front")
        own = found.get("target")
        if own:
            ax.plot(own["time"] / scale, own["flops"], "*", ms=10, color=style.CATEGORIES[1], mec="white", label="target")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("training time (hours)" if hours else "training time (steps of one micro-batch)")
        ax.set_ylabel(style.label("flops"))
        ax.set_title(f"loss {found['loss']:.3f}", loc="left")
        lows = [min(curve["flops"]) for curve in curves.values()]
        ax.set_xlim(_limits([t / scale for t in front["seconds"]], own and own["time"] / scale))
        ax.set_ylim(_limits([*front["flops"], *(low for low in lows if low < 4 * front["flops"][0])], own and own["flops"]))
        _ticks(ax)
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return style.save(fig, path)


def _limits(values: list[float], own: float | None) -> tuple[float, float]:
    """Round the front and the target, by a sixth of the way each side and at least 10 %."""
    each = [*values, own] if own else values
    margin = max((max(each) / min(each)) ** 0.15, 1.1)
    return min(each) / margin, max(each) * margin


def _ticks(ax: Any) -> None:
    """In digits, closer where an axis spans less than a decade and a half."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        if high / low < 30:
            fine = (1, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
            steps = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 5, 7) if high / low > 2 else fine
            axis.set_major_locator(LogLocator(subs=steps, numticks=15))
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
            axis.set_minor_formatter(NullFormatter())
