"""Loss against a hyper-parameter: one curve a slice, with its fit, its optimum and its verdict."""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis import style
from analysis.columns import CENSORED
from analysis.region import same

MOST_PANELS = 12
TITLE, TITLE_LINES = 96, 3  # characters across the figure, and lines, of panel titles
FAR = 1.5  # curves whose lowest losses differ by more basins than this are each drawn from their own
MOST_COLOURS = 8  # in a legend; of more, evenly spaced ones are named
SCALES = ("params", "tpp", "tokens", "batch_size", "width", "depth")


def losses(path: str | os.PathLike | None, slices: Sequence[Mapping], target: str, title: str | None = None) -> Any:
    """Loss against the hyper-parameter `target`, one colour a slice: points of all seeds, the fitted curve (solid in
    its window), the optimum with its interval. At the top crosses are diverged points, plus signs pruned ones (stopped as
    worse than others: no loss, drawn in no curve), triangles losses above the axis. An optimum at the edge of the measured
    range is an open triangle pointing outwards; other verdicts stand in words. The fewest columns that tell the slices
    apart make the panels, the last of them the colours.

    SLICE: {"given": {...}, "x": [...], "loss": [... None or NaN: diverged or pruned, as "status" says], "seed": [...],
    "status": [...], "curve": {"x": [...], "loss": [...]} or None, "window": [low, high] or None, "optimum": OPTIMUM}.
    """
    slices = [s for s in slices if len(s.get("x", ()))]
    described = _describe(slices)
    panels, keys, colour_key = _arrange(described)
    shown = dict(list(panels.items())[:MOST_PANELS])
    columns = 1 if len(shown) == 1 else 2 if len(shown) in (2, 4) else 3
    rows = max(1, math.ceil(len(shown) / columns))
    fig = style.figure(style.COLUMN if columns == 1 else style.PAGE, 2.4 * rows + 0.3)
    colours = _colours([d.get(colour_key) for d in described])
    shifts = _shifts(slices, panels)
    used: set[str] = set()
    together = len(shown) <= 3  # one loss axis; of many scales each has its own
    with style.style():
        axes = fig.subplots(rows, columns, squeeze=False, sharex=True, sharey=together).ravel()
        for ax, (panel, members) in zip(axes, shown.items(), strict=False):
            bottom, top = _limits(slices, shifts, range(len(slices)) if together else members)
            for i in members:
                used |= _draw_slice(ax, slices[i], colours[described[i].get(colour_key)], shifts[i], top)
            ax.set_ylim(bottom, top)
            ax.set_title(_panel_title(keys, panel, columns), loc="left")
            ax.set_xscale("log", base=2)
        for i, ax in enumerate(axes):
            ax.set_visible(i < len(shown))
            if i >= len(shown) - columns:
                ax.set_xlabel(style.label(target))
                ax.tick_params(labelbottom=True)
        words = "loss above the curve's lowest (nats)" if any(shifts) else style.label("loss")
        fig.supylabel(words, fontsize=style.RC["axes.labelsize"])
        hidden = f"{len(shown)} of {len(panels)} panels shown" if len(panels) > len(shown) else None
        if title or hidden:
            fig.suptitle("; ".join(filter(None, (title, hidden))), fontsize=9)
        _legend(fig, colours, colour_key, used, columns)
    return style.save(fig, path)


def _describe(slices: Sequence[Mapping]) -> list[dict]:
    """What each slice is at, tokens per parameter among it; numbers within 2 % of each other become one number."""
    described = [{k: v for k, v in (s.get("given") or {}).items() if v is not None} for s in slices]
    for d in described:
        if {"params", "tokens"} <= d.keys():
            d.setdefault("tpp", d["tokens"] / d["params"])
    for column in {k for d in described for k in d}:
        names: list = []
        for value in sorted((d[column] for d in described if column in d), key=_rank):
            if not (names and same(names[-1], value)):
                names.append(value)
        for d in described:
            if column in d:
                d[column] = next(name for name in names if same(name, d[column]))
    return described


def _arrange(described: Sequence[Mapping]) -> tuple[dict[tuple, list[int]], list[str], str | None]:
    """Fewest columns that tell the slices apart: ({panel values: indices of slices}, panel columns, colour column)."""
    count = {k: len({d.get(k) for d in described}) for k in dict.fromkeys(k for d in described for k in d)}
    words = [k for k in count if any(isinstance(d.get(k), str | bool) for d in described)]
    order = [*words, *(k for k in SCALES if k in count), *(k for k in count if k not in words and k not in SCALES)]
    if count.get("tpp", 0) >= count.get("tokens", math.inf):
        order.remove("tpp")
    chosen: list[str] = []
    for column in order:
        before, after = (
            len({tuple(d.get(k) for k in keys) for d in described}) for keys in (chosen, [*chosen, column])
        )
        if after > before:
            chosen.append(column)
    panels: dict[tuple, list[int]] = {}
    for i in sorted(range(len(described)), key=lambda i: [_rank(described[i].get(k)) for k in chosen]):
        panels.setdefault(tuple(described[i].get(k) for k in chosen[:-1]), []).append(i)
    return panels, chosen[:-1], chosen[-1] if chosen else None


def _rank(value: Any) -> tuple:
    """Sorts words after numbers, so that both may stand in one column."""
    return (1, 0.0, value) if isinstance(value, str) else (0, float(value or 0), "")


def _colours(values: Sequence[Any]) -> dict:
    keys = sorted(set(values), key=_rank)
    if any(isinstance(k, str) for k in keys):
        return {k: style.CATEGORIES[i % len(style.CATEGORIES)] for i, k in enumerate(keys)}
    return dict(zip(keys, style.ordered(len(keys)), strict=True))


def _name(column: str, value: Any) -> str:
    return value if isinstance(value, str) else f"{style.label(column)} {style.short(value)}"


def _panel_title(keys: Sequence[str], panel: Sequence[Any], columns: int) -> str:
    """What the panel is at, as far as it fits its width: longer titles would leave the axes no room."""
    words = ", ".join(_name(k, v) for k, v in zip(keys, panel, strict=True) if v is not None)
    lines = textwrap.wrap(words, TITLE // columns)
    return "\n".join(lines[:TITLE_LINES]) + (" ..." if len(lines) > TITLE_LINES else "")


def _basins(slices: Sequence[Mapping]) -> list[tuple[float, float]]:
    """Lowest loss of each slice, and how far up its basin is worth showing: what a too high learning rate does far
    above is marked at the top of the axis, not drawn."""
    result = []
    for s in slices:
        y = _finite(s["loss"])
        low = float(y.min()) if len(y) else math.nan
        result.append(
            (low, float(min(np.ptp(y), 4.5 * max(np.median(y) - low, 0.005 * abs(low)))) if len(y) else math.nan)
        )
    return result


def _shifts(slices: Sequence[Mapping], panels: Mapping[tuple, Sequence[int]]) -> list[float]:
    """What to subtract from each slice's losses: nothing, unless the curves of one panel lie so far apart that their
    basins would look flat; then every curve starts at its own lowest loss."""
    basins = _basins(slices)
    for members in panels.values():
        lows = [basins[i][0] for i in members if math.isfinite(basins[i][0])]
        heights = [basins[i][1] for i in members if math.isfinite(basins[i][1])]
        if len(lows) > 1 and np.ptp(lows) > FAR * np.median(heights):
            return [low if math.isfinite(low) else 0.0 for low, _ in basins]
    return [0.0] * len(slices)


def _limits(slices: Sequence[Mapping], shifts: Sequence[float], members: Sequence[int]) -> tuple[float, float]:
    """Bottom and top of the loss axis over the slices `members`."""
    basins = _basins(slices)
    ends = [(basins[i][0] - shifts[i], basins[i][0] - shifts[i] + basins[i][1]) for i in members]
    ends = [end for end in ends if math.isfinite(end[1])] or [(0.0, 1.0)]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    # A parabola that misses its points dips below them: the reader shall see that, and where its optimum lies.
    curves = [_finite((slices[i].get("curve") or {}).get("loss") or []) - shifts[i] for i in members]
    low = min([low, *(max(float(c.min()), low - (high - low)) for c in curves if len(c))])
    span = high - low or 0.01
    return low - 0.09 * span, high + 0.06 * span


def _finite(values: Sequence) -> np.ndarray:
    y = np.array([math.nan if v is None else v for v in values], dtype=float)
    return y[np.isfinite(y)]


def _draw_slice(ax: Any, s: Mapping, colour: Any, shift: float, top: float) -> set[str]:
    """Draws one slice, lowered by `shift`, below `top`; returns which kinds of mark it needed."""
    used = set()
    x = np.asarray(s["x"], dtype=float)
    y = np.array([math.nan if v is None else v for v in s["loss"]], dtype=float) - shift
    status = s.get("status") or ["done"] * len(x)
    stopped = np.array([word == "pruned" for word in status])
    lost = np.isin(status, CENSORED) | ~np.isfinite(y)
    high = ~lost & (y > top)
    seen = ~lost & ~high
    ax.plot(x[seen], y[seen], "o", ms=3.2, color=colour, mec="white", mew=0.3, alpha=0.85, gid="points")
    marks = ((lost & ~stopped, "x", "diverged"), (stopped, "+", "pruned"), (high, "^", "above the axis"))
    for mask, marker, kind in marks:
        if mask.any():
            ax.plot(x[mask], np.full(mask.sum(), top), marker, ms=4, color=colour, mfc="none", clip_on=False, gid=kind)
            used.add(kind)
    if s.get("curve"):
        cx, cy = np.asarray(s["curve"]["x"], float), np.asarray(s["curve"]["loss"], float) - shift
        low, upper = s.get("window") or (cx.min(), cx.max())
        inside = (cx >= low * (1 - 1e-9)) & (cx <= upper * (1 + 1e-9))
        ax.plot(cx[cy <= top], cy[cy <= top], ":", lw=0.8, color=colour, gid="curve")
        ax.plot(cx[inside & (cy <= top)], cy[inside & (cy <= top)], "-", color=colour, gid="window")
    return used | _draw_optimum(ax, s, x[~lost], y[~lost], colour, shift)


def _draw_optimum(ax: Any, s: Mapping, x: np.ndarray, y: np.ndarray, colour: Any, shift: float) -> set[str]:
    optimum = s.get("optimum") or {}
    verdict, value = optimum.get("verdict"), optimum.get("value")
    if not len(x):
        return set()
    lowest = (x[y.argmin()], y.min())
    if verdict == "interior" and value is not None:
        loss = lowest[1] if optimum.get("loss") is None else optimum["loss"] - shift
        low, high = (optimum.get(end) if optimum.get(end) is not None else value for end in ("low", "high"))
        ax.plot([low, high], [loss, loss], "|-", lw=0.9, ms=5, color="black", zorder=4, gid="interval")
        ax.plot([value], [loss], "D", ms=4.5, color=colour, mec="black", mew=0.8, zorder=5, gid="optimum")
        return {"optimum, 10-90 %"}
    if verdict == "edge":
        below = value < x.min() if value is not None else lowest[0] <= np.median(x)
        end = x.min() if below else x.max()
        height = y[x == end].min()
        ax.plot([end], [height], "<" if below else ">", ms=7, mfc="white", mec=colour, mew=1.2, zorder=5, gid="edge")
        return {"optimum beyond the edge"}
    if verdict:
        words = verdict.replace("_", " ")
        ax.annotate(words, lowest, xytext=(0, -9), textcoords="offset points", ha="center", color=colour, fontsize=7)
    return set()


def _legend(fig: Any, colours: Mapping, colour_key: str | None, used: set[str], columns: int) -> None:
    from matplotlib.lines import Line2D

    marks = {
        "optimum, 10-90 %": {"marker": "D", "ms": 4, "mec": "black", "mfc": "0.6"},
        "optimum beyond the edge": {"marker": ">", "ms": 6, "mfc": "white", "mec": "0.3"},
        "diverged": {"marker": "x", "ms": 4, "mec": "0.3"},
        "pruned": {"marker": "+", "ms": 4, "mec": "0.3"},
        "above the axis": {"marker": "^", "ms": 4, "mfc": "none", "mec": "0.3"},
    }
    handles = []
    if colour_key and len(colours) > 1:
        keys = [k for k in colours if k is not None]
        if len(keys) > MOST_COLOURS:
            keys = [keys[round(i)] for i in np.linspace(0, len(keys) - 1, MOST_COLOURS)]
        handles = [Line2D([], [], color=colours[k], lw=2, label=_entry(colour_key, k, i)) for i, k in enumerate(keys)]
    handles += [Line2D([], [], ls="none", label=kind, **marks[kind]) for kind in marks if kind in used]
    if handles:
        lines = math.ceil(len(handles) / (2 if columns == 1 else 6))
        fig.set_figheight(fig.get_figheight() + 0.16 * lines)
        fig.legend(
            handles=handles,
            loc="outside lower center",
            ncol=math.ceil(len(handles) / lines),
            columnspacing=1.2,
            handlelength=1.4,
        )


def _entry(column: str, value: Any, i: int) -> str:
    return (
        f"{style.label(column)} {style.short(value)}" if i == 0 and not isinstance(value, str) else style.short(value)
    )
