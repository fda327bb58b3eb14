"""analysis=loss: L(N, D) from a table, by Huber's loss of log loss (approach 3 of Hoffmann et al., arXiv 2203.15556).

    chinchilla         L = E + A / N^alpha + B / D^beta
    data_constrained   the same of N' and D', which repeats make worth less (analysis/loss/repeats.py)

One law for each combination of settings; beside it the compute-optimal N and D that follow from it, laws `params_opt`
and `tokens_opt` of flops = 6 N D, and a table at a few budgets. A term whose N (or D) does not vary is dropped.
Intervals from resampled blocks (analysis/loss/resample.py).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from analysis.errors import UserError, nearest
from analysis.keys import COMMON, Check, Keys, between, names, one_of
from analysis.law import finite
from analysis.loss import budgets, report_rows
from analysis.loss.forms import Fit, fit_form
from analysis.loss.heldout import score
from analysis.loss.identify import terms
from analysis.loss.rows import Group, groups
from analysis.prepare import prepare
from analysis.result import FitResult

FORMS = ("chinchilla", "data_constrained")
SYMBOLS = ("E", "A", "B", "alpha", "beta", "R_D", "R_N")
DRAWN = 200  # resamples that the law carries


def _fixed(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise TypeError
    for symbol in value:
        if symbol not in SYMBOLS:
            raise UserError(f"fixed={{{symbol}: ...}}: no parameter of the law{nearest(symbol, SYMBOLS)}")
    return {symbol: between(0.0, math.inf)(number) for symbol, number in value.items()}


def _budgets(value: Any) -> list[float]:
    values = [value] if isinstance(value, int | float) else list(value)
    return [between(0.0, math.inf)(each) for each in values]


def _columns(value: Any) -> list[str]:
    if len(names(value)) != 2:
        raise ValueError
    return names(value)


@dataclass(frozen=True)
class Options(Keys):
    """Keys of `analysis=loss`, beyond those of every analysis (analysis/keys.py).

    predictors   columns that count as N and D
    form         chinchilla or data_constrained (needs epochs or unique_tokens)
    select       rows: as given; best: the lowest of each (N, D)
    delta        where Huber's loss of the log residual turns linear
    fixed        {parameter: value} that are not fitted, such as {R_D: 15.4}
    flops        budgets of the table of compute-optimal N and D; none: the largest of the rows, and 10 and 100 times
                 that
    """

    CHECKS: ClassVar[dict[str, Check]] = COMMON | {
        "predictors": (_columns, "give the columns of N and D, such as predictors=[params_non_embedding,tokens]"),
        "form": one_of("form", *FORMS),
        "select": one_of("select", "rows", "best"),
        "delta": (between(0.0, math.inf), "give a number above 0, such as 0.001"),
        "fixed": (_fixed, "give numbers above 0, such as fixed={E:1.7,alpha:0.34}"),
        "flops": (_budgets, "give FLOPs, such as flops=[1e20,1e21]"),
    }

    bootstrap: int = 4000
    predictors: list[str] = field(default_factory=lambda: ["params", "tokens"])
    form: str = "chinchilla"
    select: str = "rows"
    delta: float = 1e-3
    fixed: dict[str, float] = field(default_factory=dict)
    flops: list[float] = field(default_factory=list)


def fit(table: pd.DataFrame, options: Options, analysis: str) -> FitResult:
    """The loss laws of a table; rows that determine no law give a note and none. Raises UserError where the request or
    the table cannot be used."""
    df = prepare(table, options)
    if options.form == "chinchilla" and (extra := {"R_D", "R_N"} & set(options.fixed)):
        raise UserError(f"fixed: {sorted(extra)[0]} belongs to form=data_constrained.")
    size, data = options.predictors
    found = groups(df, size, data, options.select, options.by, options.form == "data_constrained")
    result = FitResult(analysis, notes=list(df.attrs.get("notes", [])))
    telling = [k for k in found[0].settings if len({str(g.settings.get(k)) for g in found}) > 1]
    for group in found:
        label = ", ".join(f"{k}={group.settings[k]}" for k in telling)
        lines = _fit_group(result, group, label, options, analysis)
        result.notes += [f"{label}: {line}" if label else line for line in lines]
    return result


def _fit_group(result: FitResult, group: Group, label: str, options: Options, analysis: str) -> list[str]:
    """Appends laws, tables and figures of one group; returns its notes."""
    notes = list(group.notes)
    kept, lines, possible = terms(group, options)
    notes += lines
    if not possible:
        return notes
    fitted = fit_form(group, options, kept)
    heldout, lines = score(group, options, kept)
    notes += lines + report_rows.lines(fitted, group, options)
    law = _law(fitted, group, options, heldout, kept)
    derived, table = budgets.derive(fitted, group, options)
    result.laws += [{"analysis": analysis, **law, "notes": notes}, *({"analysis": analysis, **each} for each in derived)]
    suffix = f" ({label})" if label else ""
    if table is not None:
        result.tables[f"compute-optimal params and tokens, flops = 6 params tokens{suffix}"] = table
    name = "loss" if not label else f"loss_{len(result.figures) // 2 + 1}"
    result.figures |= report_rows.figures(name, law, group, fitted)
    return notes


def _law(fitted: Fit, group: Group, options: Options, heldout: dict, kept) -> dict:
    total = float(((np.log(group.loss) - np.log(group.loss).mean()) ** 2).sum())
    rss = float(fitted.residual @ fitted.residual)
    spare = len(group) - len(fitted.free)
    return {
        "name": "loss",
        "given": _given(group, options),
        "form": fitted.form,
        "unit": "nats per token",
        "parameters": fitted.parameters(options.level),
        "r2": finite(1 - rss / total) if total > 0 else None,
        "n": len(group),
        "counts": "rows",
        "objective": finite(fitted.objective),
        "heldout": heldout,
        "method": f"huber {options.delta:g}, summed",
        "variant": options.form,
        "select": options.select,
        "delta": options.delta,
        "predictors": [name for name, here in zip(options.predictors, kept.varying, strict=True) if here],
        "behind": kept.behind,
        "fixed": options.fixed,
        "covariance": fitted.covariance(),
        "covariance_of": fitted.covariance_of(),
        "draws": fitted.drawn(DRAWN),
        "scatter": finite(math.sqrt(rss / spare)) if spare > 0 else None,
        "blocks": int(group.block.max()) + 1,
        "level": options.level,
        "range": {name: {"low": float(v.min()), "high": float(v.max())} for name, v in _scales(group, options)},
        "sampled": _sampled(group, options),
    }


def _scales(group: Group, options: Options) -> list[tuple[str, np.ndarray]]:
    found = dict(zip(options.predictors, (group.params, group.tokens), strict=True))
    found |= {"params": group.params, "tokens": group.tokens, "tpp": group.tokens / group.params}
    return list(found.items()) + ([("epochs", group.epochs)] if group.epochs is not None else [])


def _sampled(group: Group, options: Options) -> dict:
    """N and D of each cell, at most 1,000 of them."""
    first = np.unique(group.cell, return_index=True)[1]
    first = first[:: max(1, math.ceil(len(first) / 1000))]
    return {name: values[first].tolist() for name, values in _scales(group, options)}


def _given(group: Group, options: Options) -> dict:
    given = {key: value for key, value in group.settings.items() if value is not None}
    for name, values in _scales(group, options)[:2]:
        if values.max() <= values.min() * 1.02:
            given[name] = float(np.median(values))
    return given
