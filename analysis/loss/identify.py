"""Which terms of a loss law the rows determine."""

from dataclasses import dataclass, field

import numpy as np

from analysis.law import choose_predictors
from analysis.loss.rows import Group

CELLS = 2_000  # looked at for collinearity
LEVELS = 3  # values of N (or D) that an exponent needs beside E
SAME = 1.02


@dataclass(frozen=True)
class Terms:
    """varying: whether the terms of N and of D are in the law; behind: {kept: [collinear columns it stands for]}."""

    varying: tuple[bool, bool]
    behind: dict[str, list[str]] = field(default_factory=dict)


def terms(group: Group, options) -> tuple[Terms, list[str], bool]:
    """(terms, notes, whether the rows determine them)."""
    size, data = options.predictors
    fixed = set(options.fixed)
    first = np.unique(group.cell, return_index=True)[1]
    first = first[:: max(1, len(first) // CELLS)]
    values = [{size: group.params[i], data: group.tokens[i]} for i in first]
    chosen = choose_predictors(values, [size, data])
    varying = size in chosen.kept, data in chosen.kept
    notes = [f"{name} does not vary: its term is part of E." for name in chosen.constant]
    for kept, others in chosen.behind.items():
        notes.append(f"{', '.join(others)} moves with {kept}, which stands for it: one term for both.")
    if not any(varying):
        return Terms(varying), [*notes, "neither N nor D varies: no law."], False
    found = Terms(varying, chosen.behind)
    needed = len({"E"} - fixed)
    for here, name, values, symbols in zip(varying, (size, data), (group.params, group.tokens), ("A alpha", "B beta"),
                                           strict=True):  # fmt: skip
        if not here:
            continue
        free = len(set(symbols.split()) - fixed)
        needed += free
        levels = distinct(values)
        if levels < min(LEVELS, free + 1):
            return found, [*notes, f"{name} has {levels} values, and its exponent needs {LEVELS}: no law."], False
    needed += len({"R_D", "R_N"} - fixed) if group.epochs is not None else 0
    if group.epochs is not None and not (group.epochs > SAME).any() and not {"R_D", "R_N"} <= fixed:
        return found, [*notes, "no row repeats data: form=chinchilla is the law."], False
    cells = int(group.cell.max()) + 1
    if min(cells, len(group)) <= needed:
        return found, [*notes, f"{len(group)} rows at {cells} (N, D) do not determine {needed} parameters: no law."], False
    return found, notes, True


def distinct(values: np.ndarray) -> int:
    """How many values lie more than 2 % apart."""
    count, last = 0, -np.inf
    for value in np.unique(values):
        if value > last * SAME:
            count, last = count + 1, value
    return count
