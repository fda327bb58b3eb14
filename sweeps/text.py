"""Numbers and tables as text, under 100 columns."""

from __future__ import annotations

import textwrap

WIDTH = 99


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `5.2 h`, `12 days`, `3,400 years`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    hours = seconds / 3600
    value, unit = (hours, "h") if hours < 48 else (hours / 24, "days") if hours < 24_000 else (hours / 8766, "years")
    return f"{value:,.1f} {unit}" if value < 100 else f"{value:,.0f} {unit}"


def quantity(value: float, unit: str = "") -> str:
    """`1.2 k`, `4.6 M`, `3.1e+20`, with the unit after it."""
    if value >= 1e18:
        return f"{value:.3g} {unit}".rstrip()
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def count_noun(n: int, noun: str) -> str:
    """`1 point`, `2 points`, `10,000 points`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def table(header: list[str], rows: list[list], width: int = WIDTH, wrap: bool = False) -> list[str]:
    """Aligned lines, the first column and texts to the left; a line that would be too long is cut, or goes on in the next
    one (`wrap`)."""
    cells = [header] + [[str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [i > 0 and all(_numeric(row[i]) for row in cells[1:]) for i in range(len(header))]
    lines = []
    for row in cells:
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        line = "  " + "  ".join(parts).rstrip()
        if wrap:
            lines += textwrap.wrap(line, width, subsequent_indent=" " * 6)
        else:
            lines.append(line if len(line) <= width else line[: width - 1] + "…")
    return lines


def _numeric(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in "-+."
