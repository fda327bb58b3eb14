"""Hyper-parameter laws from a table: tau, weight_decay, lr, batch, lr_batch.

Rows become slices (analysis/slices.py), slices optima (analysis/optimum.py), interior optima laws (analysis/law.py):
one law for each tuned hyper-parameter and each combination of settings (parameterization, optimizer, schedule, ...).
"""

import numpy as np
import pandas as pd

from analysis import profile
from analysis.columns import CANONICAL
from analysis.errors import UserError, nearest
from analysis.law import (
    as_dict,
    choose_predictors,
    finite,
    fit_power_law,
    largest_scales,
    lookup,
    own_covariance,
)
from analysis.optimum import Optimum, find_optima
from analysis.options import PREDICTORS, Options
from analysis.prepare import prepare
from analysis.query import mask
from analysis.result import FitResult
from analysis.slices import DECAY, Partition, partition
from analysis.surface import censored
from analysis.views import slice_views

SAMPLED = (
    *("params", "tokens", "tpp", "batch_size", "batch_tokens", "lr", "weight_decay", "tau"),
    *("width", "depth", "head_dim", "vocab"),
)
RANGED = ("params", "tokens", "tpp", "batch_size")
UNITS = {"lr": "base peak learning rate", "tau": "share of the training tokens", "weight_decay": "base weight decay"}


def fit(table: pd.DataFrame, options: Options, analysis: str) -> FitResult:
    """The laws of one hyper-parameter analysis; a table whose slices have no interior optimum gives verdicts and no
    law. Raises UserError where the request or the table cannot be used."""
    df = prepare(table, options)
    _check_predictors(df, analysis, options)
    found = _partition(df, analysis, options)
    optima = find_optima(
        found.slices, options.estimator, options.window, options.bootstrap, options.level, options.seed
    )
    result = FitResult(analysis, notes=df.attrs.get("notes", []) + found.notes)
    groups = _groups(optima)
    for members in groups:
        _fit_group(result, members, _what_tells(members, groups), analysis, options)
    verdicts = pd.Series([o.verdict for o in optima if o.verdict != "interior"], dtype=object).value_counts()
    if len(verdicts):
        words = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())
        result.notes.append(f"{len(optima)} slices, of which not interior and in no law: {words}.")
    return result


def _check_predictors(df: pd.DataFrame, analysis: str, options: Options) -> None:
    if isinstance(options.predictors, dict):
        for law in options.predictors:
            if law not in PREDICTORS[analysis]:
                raise UserError(
                    f"predictors.{law}: analysis={analysis} has no such law{nearest(law, PREDICTORS[analysis])}"
                )
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
    return profile.reduce(df, found, names) if names else found


def _groups(optima: list[Optimum]) -> list[list[Optimum]]:
    groups: dict[str, list[Optimum]] = {}
    for optimum in optima:
        groups.setdefault(repr(optimum.slice.settings), []).append(optimum)
    return list(groups.values())


def _fit_group(result: FitResult, optima: list[Optimum], settings: str, analysis: str, options: Options) -> None:
    """Appends laws, optima, notes and slices of one combination of settings."""
    inside = [o for o in optima if o.verdict == "interior"]
    held = _held_out(inside, options)
    predictions = {}
    for i, column in enumerate(optima[0].slice.targets):
        name = "batch_size" if column == "batch_tokens" else column
        law, log_values, notes = _fit_law(inside, held, i, name, analysis, options)
        result.notes += [f"{name}{f' ({settings})' if settings else ''}: {line}" for line in notes]
        if log_values is not None:
            predictions[i] = log_values
        if law is not None:
            law |= {"name": name, "given": _given(optima), "unit": _unit(column, optima[0]), "notes": notes}
            result.laws.append({"analysis": analysis, **law})
    if len(predictions) == len(optima[0].slice.targets):
        excess = _excess(inside, held, np.stack([predictions[i] for i in sorted(predictions)], axis=1))
        for law in result.laws[-len(predictions) :]:
            law["heldout"]["mean_excess_loss"] = excess
    out = {id(o) for o, heldout in zip(inside, held, strict=True) if heldout}
    for o in optima:
        entries = _as_optima(o, analysis, id(o) in out)
        result.optima += entries
        result.slices += slice_views(o, entries)


def _fit_law(optima, held, target: int, name: str, analysis: str, options: Options):
    """(law or None, log predictions at the held-out slices by the refit without them or None, notes)."""
    wanted, named = options.predictors_of(analysis, name)
    values = [lookup(o) for o in optima]
    notes = []
    known = [p for p in wanted if optima and all(finite(at.get(p)) for at in values)]
    if missing := [p for p in wanted if p not in known and (named or any(p in at for at in values))]:
        notes.append(f"{', '.join(missing)} is not known in every slice: no predictor.")
    if len(optima) < 2:
        return (
            None,
            None,
            [*notes, f"{len(optima)} interior optimum, no law." if optima else "no interior optimum, no law."],
        )
    chosen = choose_predictors(values, known)
    if chosen.constant:
        notes.append(f"{', '.join(chosen.constant)} does not vary: no exponent.")
    notes += [f"{', '.join(names)} moves with {kept}, which stands for it." for kept, names in chosen.behind.items()]
    if len(optima) < len(chosen.kept) + 1:
        lacking = f"{len(optima)} interior optima do not determine the exponents of {', '.join(chosen.kept)}: no law"
        return None, None, [*notes, f"{lacking}; measure more scales or name fewer predictors."]
    y = np.array([o.value[target] for o in optima])
    own, own_dof = own_covariance(optima, target)
    law = fit_power_law(values, y, chosen.kept, own, own_dof)
    if law.covariance is None:
        notes.append(f"{len(optima)} optima for {len(law.beta)} parameters: no interval can be given.")
    notes += _unheld(optima, chosen.kept) + _bent(optima, options)
    heldout, predictions, line = _score(values, y, held, chosen.kept)
    notes += [line] if line else []
    return (
        {
            **as_dict(law, options.level),
            "n": len(optima),
            "heldout": heldout,
            "method": options.estimator,
            "behind": chosen.behind,
            "range": _ranges(values, {*RANGED, *chosen.kept}),
            "sampled": {c: [at.get(c) for at in values] for c in SAMPLED if any(c in at for at in values)},
            "held": {c: float(np.exp(np.mean(np.log([o.slice.held[c] for o in optima])))) for c in _held_names(optima)},
        },
        predictions,
        notes,
    )


def _score(values, y, held, predictors) -> tuple[dict, np.ndarray | None, str | None]:
    """Error of a refit without the held-out slices, in natural log."""
    nothing = {"n": 0, "mean_abs_log_error": None, "mean_excess_loss": None}
    if not held.any():
        return nothing, None, None
    rest = [at for at, out in zip(values, held, strict=True) if not out]
    if len(rest) < len(predictors) + 1 or choose_predictors(rest, predictors).kept != predictors:
        return nothing, None, "nothing held out: without the largest scales the exponents are not determined."
    refit = fit_power_law(rest, y[~held], predictors)
    predicted = refit.log_at([at for at, out in zip(values, held, strict=True) if out])
    error = float(np.mean(np.abs(predicted - y[held])))
    return {**nothing, "n": int(held.sum()), "mean_abs_log_error": error}, predicted, None


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


def _given(optima: list[Optimum]) -> dict:
    """Settings, and every scale and held hyper-parameter that is equal in all slices."""
    given = {key: value for key, value in optima[0].slice.settings.items() if value is not None}
    for name in SAMPLED:
        values = [{**o.slice.held, **o.slice.given}.get(name) for o in optima]
        if all(finite(v) is not None for v in values) and max(values) <= min(values) * 1.02 and name != "batch_tokens":
            given.setdefault(name, float(np.median(values)))
    return given


def _unit(column: str, optimum: Optimum) -> str:
    if column == "batch_size":
        context = optimum.slice.settings.get("context")
        return f"sequences of {context:g} tokens" if finite(context) else "sequences"
    return "tokens" if column == "batch_tokens" else UNITS[column]


def _held_names(optima: list[Optimum]) -> list[str]:
    return [name for name in optima[0].slice.held if all((o.slice.held.get(name) or 0) > 0 for o in optima)]


def _unheld(optima: list[Optimum], predictors: list[str]) -> list[str]:
    """A hyper-parameter held at different values that no exponent accounts for; tau and weight decay differ by
    nature."""
    lines = []
    for name in _held_names(optima):
        values = [o.slice.held[name] for o in optima]
        alike = [{k: o.slice.given.get(k) for k in ("params", "tokens")} for o in optima]
        repeated = len({str(a) for a in alike}) < len(alike)
        if name not in predictors and name not in DECAY and max(values) > 1.02 * min(values) and repeated:
            lines.append(
                f"{name} differs among the slices ({min(values):.3g} to {max(values):.3g}) and is no predictor."
            )
    return lines


def _bent(optima: list[Optimum], options: Options) -> list[str]:
    """Where the window (analysis/window.py) left rows out, it did so for cubic terms."""
    if options.window != "auto" or options.estimator != "quadratic":
        return []
    bent = sum(int(o.used.sum()) < int((~censored(o.slice.loss, o.slice.diverged)).sum()) for o in optima)
    if not bent:
        return []
    return [
        f"the basin is bent in {bent} of {len(optima)} slices, whose outer values are left out: optima and coefficient may "
        "be off by up to 1/4 octave, exponents less."
    ]


def _ranges(values: list[dict], names: set[str]) -> dict:
    ranges = {}
    for name in [c for c in (*CANONICAL, *sorted(names)) if c in names]:
        known = [at[name] for at in values if finite(at.get(name)) is not None]
        if known:
            ranges[name] = {"low": min(known), "high": max(known)}
    return ranges


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
