"""The law of one tuned hyper-parameter from the optima of its slices: predictors, intervals, held-out error, what else
the same optima could be written in (analysis/compare.py), and how far the runs' luck moves it (analysis/resample.py).
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis import bend
from analysis.columns import CANONICAL
from analysis.compare import SCALES, compare, needed, verdict
from analysis.law import as_dict, choose_predictors, finite, fit_power_law, lookup, own_covariance
from analysis.optimum import Optimum
from analysis.options import Options
from analysis.recommend.penalty import curvature
from analysis.slices import DECAY

SAMPLED = (
    *("params", "tokens", "tpp", "batch_size", "batch_tokens", "lr", "weight_decay", "tau"),
    *("width", "depth", "head_dim", "vocab"),
)
RANGED = ("params", "tokens", "tpp", "batch_size")
UNITS = {"lr": "base peak learning rate", "tau": "share of the training tokens", "weight_decay": "base weight decay"}


@dataclass
class Tuned:
    """law: the parts of a LAW that come from the optima, or None; predicted: natural logs at the held-out slices by the
    refit without them, or None; notes: lines of the law; comparison: predictor sets, and lines about them."""

    law: dict | None = None
    predicted: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)
    comparison: pd.DataFrame | None = None
    lines: list[str] = field(default_factory=list)


def fit_tuned(optima: list[Optimum], held: np.ndarray, target: int, name: str, analysis: str, options: Options) -> Tuned:
    """The law `name` of interior optima, of their hyper-parameter `target`; held (n,) bool: slices held out. A law of
    None says why in its notes."""
    wanted, named = options.predictors_of(analysis, name)
    values = [lookup(o) for o in optima]
    notes = []
    known = [p for p in wanted if optima and all(finite(at.get(p)) for at in values)]
    if missing := [p for p in wanted if p not in known and (named or any(p in at for at in values))]:
        notes.append(f"{', '.join(missing)} is not known in every slice: no predictor.")
    elif not known and optima:
        notes.append(f"{', '.join(wanted)} is not in the table: the law is one number.")
    if len(optima) < 2:
        few = f"{len(optima)} interior optimum, no law." if optima else "no interior optimum, no law."
        return Tuned(notes=[*notes, few])
    chosen = choose_predictors(values, known)
    if chosen.constant:
        notes.append(f"{', '.join(chosen.constant)} does not vary: no exponent.")
    notes += [f"{', '.join(names)} moves with {kept}, which stands for it." for kept, names in chosen.behind.items()]
    if len(optima) < len(chosen.kept) + 1:
        lacking = f"{len(optima)} interior optima do not determine the exponents of {', '.join(chosen.kept)}: no law"
        return Tuned(notes=[*notes, f"{lacking}; measure more scales or name fewer predictors."])
    y = np.array([o.value[target] for o in optima])
    own, own_dof = own_covariance(optima, target)
    law = fit_power_law(values, y, chosen.kept, own, own_dof)
    if law.covariance is None:
        notes.append(f"{len(optima)} optima for {len(law.beta)} parameters: no interval can be given.")
    notes += _unheld(optima, chosen.kept) + _bent(optima, options)
    heldout, predicted, line = _score(values, y, held, chosen.kept)
    notes += [line] if line else []
    parts = {
        **as_dict(law, options.level),
        "n": len(optima),
        "heldout": heldout,
        "method": options.estimator,
        "optima_from": _origin(optima, options.estimator),
        "behind": chosen.behind,
        "range": _ranges(values, {*RANGED, *chosen.kept}),
        "sampled": {c: [at.get(c) for at in values] for c in SAMPLED if any(c in at for at in values)},
        "held": {c: float(np.exp(np.mean(np.log([o.slice.held[c] for o in optima])))) for c in _held_names(optima)},
        "curvature": curvature(optima, target),  # of the basins: analysis/recommend/penalty.py
    }
    tuned = Tuned(parts, predicted, notes)
    if options.compare:
        tuned.comparison = compare(values, y, held, chosen.kept)
        beside = ["tpp" if name == "tau" else "tokens", *(p for p in chosen.kept if p not in SCALES)]
        lines = verdict(tuned.comparison), needed(values, y, held, beside, options.level, own, own_dof)
        tuned.lines = [each for each in lines if each]
    return tuned


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


def given(optima: list[Optimum]) -> dict:
    """Settings, and every scale and held hyper-parameter that is equal in all slices."""
    given = {key: value for key, value in optima[0].slice.settings.items() if value is not None}
    for name in SAMPLED:
        values = [{**o.slice.held, **o.slice.given}.get(name) for o in optima]
        if all(finite(v) is not None for v in values) and max(values) <= min(values) * 1.02 and name != "batch_tokens":
            given.setdefault(name, float(np.median(values)))
    return given


def unit(column: str, optimum: Optimum) -> str:
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
            lines.append(f"{name} differs among the slices ({min(values):.3g} to {max(values):.3g}) and is no predictor.")
    return lines


def _bent(optima: list[Optimum], options: Options) -> list[str]:
    """What bent basins, and single runs, do to these optima (analysis/bend.py)."""
    asked = options.estimator == "shape"
    return bend.note(optima, options.window, asked) if asked or options.estimator == "quadratic" else []


def _origin(optima: list[Optimum], estimator: str) -> str:
    """What found these optima: quadratic, shape (analysis/bend.py takes it where basins are bent) or mixed."""
    if estimator not in ("quadratic", "shape"):
        return estimator
    kinds = {"quadratic" if o.shape is None else "shape" for o in optima}
    return kinds.pop() if len(kinds) == 1 else "mixed"


def lost(optima: list[Optimum]) -> list[str]:
    """A line where slices have nothing but diverged runs: they are too_few for that reason."""
    count = sum(bool((o.slice.diverged | ~np.isfinite(o.slice.loss)).all()) for o in optima)
    return [f"{count} of {len(optima)} slices have diverged runs only."] if count else []


def _ranges(values: list[dict], names: set[str]) -> dict:
    ranges = {}
    for name in [c for c in (*CANONICAL, *sorted(names)) if c in names]:
        known = [at[name] for at in values if finite(at.get(name)) is not None]
        if known:
            ranges[name] = {"low": min(known), "high": max(known)}
    return ranges
