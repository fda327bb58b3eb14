"""What a fit returns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd


@dataclass
class FitResult:
    """laws and optima: LAW and OPTIMUM dicts as laws.json holds them, an optimum with `heldout` (bool) and `fitted`
    beside. notes: lines on what was left out, held or assumed. slices: what the figures of optima draw
    (analysis/plots.py). tables: {title: DataFrame} that are printed and stand in --json (forecasts, comparisons).
    figures: {file name without suffix: function of a path (None: write nothing) that draws it and returns the
    Figure}."""

    analysis: str
    laws: list[dict] = field(default_factory=list)
    optima: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    slices: list[dict] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Callable[[Any], Any]] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """Optima as a table, one row each."""
        rows = [
            {**o["given"], **o["held"], **{k: v for k, v in o.items() if k not in ("given", "held")}}
            for o in self.optima
        ]
        return pd.DataFrame(rows)
