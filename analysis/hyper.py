"""Hyper-parameter laws from a table: tau, weight_decay, lr, batch, lr_batch.

Rows become slices (analysis/slices.py), slices optima (analysis/optimum.py), interior optima laws (analysis/law.py):
one law for each tuned hyper-parameter and each combination of settings (parameterization, optimizer, schedule, ...).
"""

import numpy as np
import pandas as pd

from analysis import profile
from analysis.errors import UserError, nearest
from analysis.law import finite, largest_scales, lookup
from analysis.optimum import Optimum, find_optima
from analysis.options import PREDICTORS, Options
from analysis.prepare import prepare
from analysis.query import mask
from analysis.result import FitResult
from analysis.slices import Partition, partition
from analysis.stages import drawn_law, draws, joint_laws, side_by_side, undrawn
from analysis.thin import thin
from analysis.tuned import fit_tuned, given, lost, unit
from analysis.views import slice_views


def fit(table: pd.DataFrame, options: Options, analysis: str) -> FitResult:
    """The laws of one hyper-parameter analysis; a table whose slices have no interior optimum gives verdicts and no
    law. Raises UserError where the request or the table cannot be used."""
    df = prepare(table, options)
    _check_predictors(df, analysis, options)
    found = _partition(df, analysis, options)
    optima = find_optima(found.slices, options.estimator, options.window, options.bootstrap, options.level, options.seed)
    result = FitResult(analysis, notes=df.attrs.get("notes", []) + found.notes)
    groups = _groups(optima)
    for members in groups:
        _fit_group(result, members, _what_tells(members, groups), analysis, options)
    result.notes += lost(optima)
    verdicts = pd.Series([o.verdict for o in optima if o.verdict != "interior"], dtype=object).value_counts()
    if len(verdicts):
        words = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())
        result.notes.append(f"{len(optima)} slices, of which not interior and in no law: {words}.")
    return result


def _check_predictors(df: pd.DataFrame, analysis: str, options: Options) -> None:
    if isinstance(options.predictors, dict):
        for law in options.predictors:
            if law not in PREDICTORS[analysis]:
                raise UserError(f"predictors.{law}: analysis={analysis} has no such law{nearest(law, PREDICTORS[analysis])}")
    for law in PREDICTORS[analysis]:
        columns, named = options.predictors_of(analysis, law)
        for name in columns if named else ():
            if name == "loss":
                continue
            if name not in df:
                known = [column for column in df if pd.api.types.is_numeric_dtype(df[column])]
                raise UserError(f"predictors=[{name}]: the table has no column {name}{nearest(name, known)}")
            if not pd.api.types.is_numeric_dtype(df[name]) or not (df[name].dropna() > 0).all():
                raise UserError(f"predictors=[{name}]: a power law needs numbers above 0, {name} holds others.")


def _partition(df: pd.DataFrame, analysis: str, options: Options) -> Partition:
    extra = {name for law in PREDICTORS[analysis] for name in options.predictors_of(analysis, law)[0]}
    keys = {"hold": options.hold, "by": options.by, "unit": options.unit, "extra": sorted(extra & set(df))}
    names = options.profile
    if names == "auto":
        names = profile.retuned(df, analysis, **keys) if analysis == "batch" else []
    for name in names:
        if name not in df:
            raise UserError(f"profile=[{name}]: the table has no column {name}{nearest(name, df.columns)}")
        if name in PREDICTORS[analysis]:
            raise UserError(f"profile=[{name}]: analysis={analysis} tunes {name} itself.")
    found = partition(df, analysis, profile=names, **keys)
    return profile.reduce(df, found, names) if names else thin(found)


def _groups(optima: list[Optimum]) -> list[list[Optimum]]:
    groups: dict[str, list[Optimum]] = {}
    for optimum in optima:
        groups.setdefault(repr(optimum.slice.settings), []).append(optimum)
    return list(groups.values())


def _fit_group(result: FitResult, optima: list[Optimum], settings: str, analysis: str, options: Options) -> None:
    """Appends laws, optima, notes, tables and slices of one combination of settings."""
    inside = [o for o in optima if o.verdict == "interior"]
    held = _held_out(inside, options)
    joint = joint_laws(optima, held, analysis, options) if options.stage != "two" else {}
    points = draws(inside, options) if options.stage == "both" else None
    predictions, own = {}, []
    for i, column in enumerate(optima[0].slice.targets):
        name = "batch_size" if column == "batch_tokens" else column
        what = f"{name} ({settings})" if settings else name
        tuned = fit_tuned(inside, held, i, name, analysis, options)
        result.notes += [f"{what}: {line}" for line in (*tuned.notes, *tuned.lines)]
        if tuned.comparison is not None and not tuned.comparison.empty:
            result.tables[f"{what}: predictors, each set on the same {len(inside)} optima"] = tuned.comparison
        if options.stage == "both" and name in joint and tuned.law is not None:
            drawn = drawn_law(points, inside, i, tuned.law)
            beside = side_by_side(tuned.law, joint[name], drawn, options.level)
            if drawn is None and (why := undrawn(points, inside, options)):
                result.notes.append(f"{what}: {why}")
            if len(beside):
                result.tables[f"{what}: two-stage (the law), joint and resampled"] = beside
        if tuned.predicted is not None:
            predictions[i] = tuned.predicted
        if tuned.law is not None:
            about = {"name": name, "given": given(optima), "unit": unit(column, optima[0]), "notes": tuned.notes}
            own.append({"analysis": analysis, **tuned.law, **about})
    if len(predictions) == len(optima[0].slice.targets):
        excess = _excess(inside, held, np.stack([predictions[i] for i in sorted(predictions)], axis=1))
        for law in own:
            law["heldout"]["mean_excess_loss"] = excess
    if options.stage == "joint":
        if own and not joint:
            result.notes.append(f"{settings or analysis}: no joint fit of these slices; the laws are those of two stages.")
        own = [law | joint.get(law["name"], {}) for law in own]
    result.laws += own
    out = {id(o) for o, heldout in zip(inside, held, strict=True) if heldout}
    for o in optima:
        entries = _as_optima(o, analysis, id(o) in out)
        result.optima += entries
        result.slices += slice_views(o, entries)


def _what_tells(members: list[Optimum], groups: list[list[Optimum]]) -> str:
    """The settings by which this group differs from the others: `parameterization=mup`."""
    mine = members[0].slice.settings
    telling = [k for k in mine if len({str(g[0].slice.settings.get(k)) for g in groups}) > 1]
    return ", ".join(f"{k}={mine[k]}" for k in telling)


def _held_out(optima: list[Optimum], options: Options) -> np.ndarray:
    if options.heldout is None or not optima:
        return np.zeros(len(optima), bool)
    if isinstance(options.heldout, str):
        held = mask(pd.DataFrame([lookup(o) | o.slice.settings for o in optima]), options.heldout)
        if held.all():
            raise UserError(f"heldout={options.heldout} holds out every slice.")
        return held
    return largest_scales(np.array([o.slice.flops for o in optima]), options.heldout)


def _excess(optima: list[Optimum], held: np.ndarray, log_values: np.ndarray) -> float | None:
    """Mean over held-out slices of the fitted loss at the laws' values (n held, k) minus that at the slice's own
    optimum."""
    costs = []
    for o, at in zip([o for o, out in zip(optima, held, strict=True) if out], log_values, strict=True):
        if o.curve is None:
            return None
        costs.append(float(o.curve(at)) - float(o.curve(o.value)))
    return finite(float(np.mean(costs))) if costs else None


def _as_optima(o: Optimum, analysis: str, heldout: bool) -> list[dict]:
    with np.errstate(over="ignore"):
        value, low, high, fitted = (np.exp(each) for each in (o.value, o.low, o.high, o.fitted))
    given = {**o.slice.given, **{k: v for k, v in o.slice.settings.items() if v is not None}}
    return [
        {
            "analysis": analysis,
            "target": "batch_size" if name == "batch_tokens" else name,
            "given": given,
            "held": {key: held for key, held in o.slice.held.items() if held is not None},
            "value": finite(value[i]),
            "low": finite(low[i]),
            "high": finite(high[i]),
            "verdict": o.verdict,
            "loss": finite(o.loss),
            "n": int(o.used.sum()),
            "fitted": finite(fitted[i]),
            "heldout": heldout,
        }
        for i, name in enumerate(o.slice.targets)
    ]
