"""Lines of scales: slices of one parameterization (or optimizer) that differ in scale alone, smallest first."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.codes import cluster
from analysis.errors import UserError, nearest
from analysis.law import lookup
from analysis.optimum import Optimum, find_optima
from analysis.slices import DECAY, partition
from analysis.thin import thin
from analysis.transfer.options import Options

FEWEST = 3  # scales that make a line


@dataclass(frozen=True)
class Line:
    """Slices along one line: label (the value of the compared column), fixed (what stays along it), scale (m,) and
    their optima, of any verdict."""

    label: str
    fixed: dict
    settings: dict
    scale: np.ndarray
    optima: list[Optimum]

    def interior(self) -> "Line":
        good = [o.verdict == "interior" for o in self.optima]
        return replace(self, scale=self.scale[good], optima=[o for o, g in zip(self.optima, good, strict=True) if g])

    @property
    def values(self) -> list[dict[str, float]]:
        """What a law of each slice can be written in."""
        return [lookup(o) for o in self.optima]

    @property
    def name(self) -> str:
        return ", ".join([self.label, *(f"{k} {v:.4g}" for k, v in self.fixed.items())])


def compared_column(df: pd.DataFrame, options: Options) -> str | None:
    """The column whose values are compared, or None where nothing is. Raises UserError for one that is not there."""
    if options.compare != "auto":
        if options.compare not in df:
            raise UserError(f"compare={options.compare}: the table has no such column{nearest(options.compare, df.columns)}")
        return options.compare
    return next((c for c in ("parameterization", "optimizer") if c in df and df[c].nunique() > 1), None)


def find_lines(df: pd.DataFrame, column: str | None, options: Options) -> tuple[list[Line], list[str]]:
    """Lines of a canonical table, also those of one scale, and notes. Raises UserError where a column is missing."""
    if options.scale not in df:
        raise UserError(f"scale={options.scale}: the table has no such column{nearest(options.scale, df.columns)}")
    by = list(dict.fromkeys([*options.by, *([column] if column else [])]))
    # What a pruned run would have cost is not known, only that others were better.
    ended = df[df["status"] != "pruned"] if "status" in df else df
    found = thin(partition(ended, options.tuned, hold=options.hold, by=by, extra=[options.scale]))
    optima = find_optima(found.slices, "quadratic", options.window, options.bootstrap, options.level, options.seed)
    groups: dict[str, list[Optimum]] = {}
    for o in optima:
        if options.scale in lookup(o):
            groups.setdefault(repr(o.slice.settings), []).append(o)
    fixed = options.fixed if options.fixed != "auto" else _fixed(list(groups.values()), options.scale)
    lines = [line for members in groups.values() for line in _cut(members, fixed, column, options.scale)]
    return sorted(lines, key=lambda line: (line.label, *line.fixed.values())), found.notes


def _fixed(groups: list[list[Optimum]], scale: str) -> str:
    """Of tpp, tokens and params what puts more slices in lines of three scales or more."""
    known = [n for n in ("tpp", "tokens", "params") if n != scale and all(n in lookup(o) for g in groups for o in g)]
    if not known or not groups:
        return "none"

    def lined(name: str) -> int:
        return sum(len(x.optima) for g in groups for x in _cut(g, name, None, scale) if len(x.optima) >= FEWEST)

    return max(known, key=lined)


def _cut(optima: list[Optimum], fixed: str, column: str | None, scale: str) -> list[Line]:
    """One line for each value of `fixed`; where several slices share a scale, for what they hold too."""
    values = [lookup(o) for o in optima]
    codes = np.zeros(len(optima), int)
    names = [] if fixed == "none" else [fixed]
    if names:
        codes = cluster([at.get(fixed, np.nan) for at in values], codes)
    for name in optima[0].slice.held:
        if name not in (scale, *DECAY) and _crowded(values, codes, scale):
            finer = cluster([at.get(name) or np.nan for at in values], codes)
            names, codes = ([*names, name], finer) if finer.max() > codes.max() else (names, codes)
    lines = []
    for code in np.unique(codes):
        here = sorted(np.flatnonzero(codes == code), key=lambda i: values[i][scale])
        some = [values[i] for i in here]
        stays = {n: float(np.median([at[n] for at in some])) for n in names if all(at.get(n) for at in some)}
        settings = optima[0].slice.settings
        label = str(settings.get(column)) if column else "all"
        lines.append(Line(label, stays, settings, np.array([at[scale] for at in some]), [optima[i] for i in here]))
    return lines


def _crowded(values: list[dict], codes: np.ndarray, scale: str) -> bool:
    at = cluster([v[scale] for v in values], codes)
    return len(np.unique(at)) < len(at)
