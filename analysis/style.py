"""How figures look: sizes for a paper's column, colours that colour-blind readers can tell apart, names of columns.

matplotlib is imported inside functions, so that fitting needs no plotting library in memory.
"""

import os
from pathlib import Path
from typing import Any

COLUMN, PAGE = 3.4, 7.0  # inches: one column and two columns of a paper
DPI = 180
# Okabe and Ito: distinct under all common kinds of colour blindness.
CATEGORIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RC = {
    "font.size": 8,
    "axes.labelsize": 8.5,
    "axes.titlesize": 8.5,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.constrained_layout.use": True,
}
LABELS = {
    "lr": "learning rate (base)",
    "tau": "tau",
    "weight_decay": "weight decay (base)",
    "batch_size": "batch size (sequences)",
    "batch_tokens": "batch size (tokens)",
    "params": "parameters",
    "tokens": "tokens",
    "tpp": "tokens per parameter",
    "flops": "training FLOPs",
    "loss": "validation loss (nats per token)",
    "params_opt": "compute-optimal parameters",
    "tokens_opt": "compute-optimal tokens",
    "loss_opt": "loss at the optimum (nats per token)",
    "critical_batch": "critical batch size",
}


def label(column: str) -> str:
    return LABELS.get(column, column.replace("_", " "))


def short(value: Any) -> str:
    """29400 -> 29.4k, 1.23e9 -> 1.23B, 6e18 as it is; small numbers in three digits; text as it is."""
    if isinstance(value, str | bool) or value is None:
        return str(value)
    if abs(value) >= 1e15:  # FLOPs
        return f"{value:.3g}".replace("e+", "e")
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def ordered(n: int) -> list:
    """`n` colours from dark to light for an ordered quantity, none too pale for white paper."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.05 + 0.8 * i / max(n - 1, 1)) for i in range(n)]


def figure(width: float, height: float) -> Any:
    """A Figure in this style that belongs to no window (no pyplot, so nothing to close)."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC):
        return Figure(figsize=(width, height))


def style() -> Any:
    """Context in which axes are made and figures saved."""
    import matplotlib

    return matplotlib.rc_context(RC)


def save(fig: Any, path: str | os.PathLike | None) -> Any:
    """Writes the figure (the suffix gives the format; temporary, then rename) and returns it; None writes nothing."""
    if path is not None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{os.getpid()}.{path.name}")
        with style():
            fig.savefig(temporary)
        os.replace(temporary, path)
    return fig
