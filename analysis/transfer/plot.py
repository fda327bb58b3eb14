"""The figure of a transfer analysis: best value, cost of a wrong one, and loss, each against scale."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis import style
from analysis.transfer.asymptote import Asymptote
from analysis.transfer.lines import Line
from analysis.transfer.local import OCTAVE, curvature
from analysis.transfer.options import Options
from analysis.transfer.quality import Quality

MOST = 6  # lines in colour; more are grey


def draw(
    path: Any,
    lines: Sequence[Line],
    metrics: Sequence[Quality | None],
    asymptotes: Sequence[Asymptote | None],
    options: Options,
) -> Any:
    """Three panels, one colour a line: eta*(n) with its power law and E, the nats that a factor of 2 costs with kappa, and
    the loss at the optimum with its asymptote (dotted). Lines without metrics are left out. Returns the Figure."""
    shown = [each for each in zip(lines, metrics, asymptotes, strict=True) if each[1] is not None]
    fig = style.figure(style.PAGE, 2.9)
    with style.style():
        best, cost, loss = fig.subplots(1, 3)
        for i, (line, about, limit) in enumerate(shown):
            colour = style.CATEGORIES[i % len(style.CATEGORIES)] if len(shown) <= MOST else "0.6"
            n = np.geomspace(line.scale.min(), line.scale.max() * 2, 60)
            at = [{options.scale: x} for x in n]
            _points(best, line, [np.exp(o.value[0]) for o in line.optima], colour)
            e, k = about.parameters["E"]["value"], about.parameters["kappa"]["value"]
            best.plot(n, np.exp(about.law.log_at(at)), color=colour, label=line.name + ("" if e is None else f": E {e:.2g}"))
            wrong = (np.log(options.factor) / OCTAVE) ** 2 / 2
            _points(cost, line, [curvature(o) * wrong for o in line.optima], colour)
            cost.plot(n, np.exp(about.robustness.log_at(at)) * wrong, color=colour, label=f"kappa {k:.2g}")
            _points(loss, line, [o.loss for o in line.optima], colour)
            found, known = limit.fit() if limit else ({}, False)
            if known:
                loss.plot(n, found["L_inf"] + found["a"] * n ** -found["b"], color=colour)
                loss.axhline(found["L_inf"], color=colour, ls=":", lw=0.9, label=f"L_inf {found['L_inf']:.3f}")
        titles = (
            f"best {style.label(options.tuned)}",
            f"nats lost at x{options.factor:g} or 1/{options.factor:g}",
            "loss at the best",
        )
        for ax, title in zip((best, cost, loss), titles, strict=True):
            ax.set_xscale("log")
            ax.set_yscale("linear" if ax is loss else "log")
            ax.set_xlabel(style.label(options.scale))
            ax.set_ylabel(title)
            if shown and len(shown) <= MOST and ax.get_legend_handles_labels()[0]:
                ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2, handlelength=1.2, fontsize=6.5)
    return style.save(fig, path)


def _points(ax: Any, line: Line, values: Sequence[float], colour: str) -> None:
    ax.plot(line.scale, values, "o", color=colour, ms=4, mec="white", mew=0.5)
