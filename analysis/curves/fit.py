"""analysis=curves: loss along training across LR schedules, fitted on few runs and scored on unseen ones."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.columns import SETTINGS
from analysis.curves import figures, normalised
from analysis.curves.history import Points
from analysis.curves.law import CurveLaw, fit_law, used
from analysis.curves.options import Options
from analysis.curves.read import Curve, curves
from analysis.curves.schedule import search
from analysis.errors import UserError, nearest
from analysis.law import largest_scales
from analysis.result import FitResult

__all__ = ["Options", "fit"]
SCORED = 250  # losses of an unseen run behind the error of its whole curve
MOST = 300  # runs that a law is fitted to, and runs that it is scored on; of more, these many evenly by their order
PARTS = ("params", "batch_tokens", *(name for name in SETTINGS if name not in ("schedule", "cooldown_shape", "final_ratio")))


def fit(table: pd.DataFrame, options: Options, analysis: str = "curves") -> FitResult:
    """Laws of one model's curves (runs that differ in `by`, parameters, batch or settings get laws of their own), with
    tables of held-out final losses, whole curves and, where `optimise_steps` asks, schedules. Raises UserError where the
    table or the ids cannot be used."""
    found, notes = curves(table, options.columns, options.where, options.run_by)
    for name in options.by:
        if not any(name in curve.given for curve in found):
            raise UserError(f"by=[{name}]: no such column that is constant within runs{nearest(name, table.columns)}")
    check_ids(found, options)
    result = FitResult(analysis, notes=notes)
    if options.law == "collapse":
        found = few(found, "runs", result.notes)
        return normalised.analyse(found, options, result)
    for key, members in parts(found, options.by).items():
        for name in ("annealing", "multi_power") if options.law == "both" else (options.law,):
            _fit_part(members, dict(key), name, options, result)
    return result


def few(found: list[Curve], what: str, notes: list[str]) -> list[Curve]:
    """At most MOST of them, evenly by their order; a note where there are more."""
    if len(found) <= MOST:
        return found
    notes.append(f"{MOST} of {len(found)} {what} are taken, evenly by their order; where= takes others.")
    return [found[i] for i in np.round(np.linspace(0, len(found) - 1, MOST)).astype(int)]


def check_ids(found: Sequence[Curve], options: Options) -> None:
    """Raises UserError for ids that no run has, and for runs that would be both fitted and held out."""
    ids = [curve.run_id for curve in found]
    for option in ("fit_runs", "heldout_runs"):
        for run in getattr(options, option):
            if run not in ids:
                raise UserError(f"{option}: there is no run {run}{nearest(run, ids)}")
    if both := [run for run in options.fit_runs if run in options.heldout_runs]:
        raise UserError(f"run {both[0]} is in fit_runs and in heldout_runs; a run that is fitted is not unseen.")


def parts(found: Sequence[Curve], by: Sequence[str]) -> dict[tuple, list[Curve]]:
    """{((column, value), ...): runs}: the columns of `by`, and of PARTS, that differ between runs."""
    def value(curve: Curve, name: str) -> object:
        return curve.given.get(name)

    names = [n for n in dict.fromkeys((*by, *PARTS)) if n in by or len({str(value(c, n)) for c in found}) > 1]
    groups: dict[tuple, list[Curve]] = {}
    for curve in found:
        groups.setdefault(tuple((n, value(curve, n)) for n in names), []).append(curve)
    return groups


def split(members: Sequence[Curve], options: Options) -> tuple[list[Curve], list[Curve], bool]:
    """(runs of the parameters, runs that are predicted, whether a second fit without the latter predicts them)."""
    with_loss = [c for c in members if len(c.losses)]
    asked, held = set(options.fit_runs), set(options.heldout_runs)
    if asked or held:
        chosen = [c for c in with_loss if (c.run_id in asked if asked else c.run_id not in held)]
        unseen = [c for c in with_loss if (c.run_id in held if held else c.run_id not in asked)]
        return chosen, unseen, False
    mask = largest_scales(np.array([c.total for c in with_loss])) if with_loss else np.zeros(0, bool)
    if not mask.any() and len(with_loss) > 2:
        mask[-1] = True
    if (~mask).sum() < 1 or len(with_loss) < 2:
        mask[:] = False
    return with_loss, [c for c, m in zip(with_loss, mask, strict=True) if m], True


def _fit_part(members: list[Curve], key: dict, name: str, options: Options, result: FitResult) -> None:
    chosen, unseen, second = split(members, options)
    label = ", ".join(f"{k} {v}" for k, v in key.items())
    if not chosen:
        if unseen and not (options.fit_runs or options.heldout_runs):
            result.notes.append(f"{name}{f' ({label})' if label else ''}: no run with a loss to fit.")
        return
    chosen = few(chosen, f"runs{f' ({label})' if label else ''} to fit", result.notes)
    unseen = few(unseen, f"runs{f' ({label})' if label else ''} to predict", result.notes)
    law = fit_law(chosen, name, options)
    if isinstance(law, str):
        result.notes.append(f"{law}{f' ({label})' if label else ''}")
        return
    judge = law
    if second and unseen:
        out = {c.run_id for c in unseen}
        rest = [c for c in chosen if c.run_id not in out]
        judge = fit_law(rest, name, options)
        judge = None if isinstance(judge, str) or judge.name != law.name else judge
    given = key | _given(chosen) | ({"momentum": options.momentum} if _fixed_momentum(law, options) else {})
    scored = score(judge, unseen) if judge is not None else pd.DataFrame()
    entry = law.as_dict(given) | {"heldout": heldout(scored), "runs": [c.run_id for c in law.curves]}
    result.laws.append(entry)
    result.notes += [f"{note}{f' ({label})' if label else ''}" for note in law.notes]
    suffix = f" ({label})" if label else ""
    if len(scored):
        how = " (parameters of a second fit without these runs)" if second else ""
        result.tables[f"{law.name}: final losses of unseen runs{how}{suffix}"] = scored
    elif judge is not None:
        result.notes.append(f"{law.name}: no run is held out, so its error on unseen schedules is unknown{suffix}.")
    stem = "_".join(["curves", law.name, *(str(v) for v in key.values())]).replace("/", "-").replace(" ", "-")
    result.figures[stem] = lambda path, j=judge or law, u=unseen: figures.fits(path, j, u)
    if options.optimise_steps:
        plan = search(law, options)
        result.tables[f"{law.name}: schedules of {options.optimise_steps} steps{suffix}"] = plan.compared
        result.tables[f"{law.name}: the schedule of lowest predicted final loss{suffix}"] = plan.schedule
        result.notes += [f"{note}{suffix}" for note in plan.notes]
        result.figures[stem.replace("curves", "schedule", 1)] = lambda path, p=plan: figures.schedules(path, p)


def _fixed_momentum(law: CurveLaw, options: Options) -> bool:
    return law.name == "annealing" and options.kernel == "exponential" and options.momentum != "fit"


def _given(chosen: Sequence[Curve]) -> dict:
    """What all runs behind the law share."""
    first = chosen[0].given
    return {k: v for k, v in first.items() if all(c.given.get(k) == v for c in chosen)}


def score(law: CurveLaw, unseen: Sequence[Curve]) -> pd.DataFrame:
    """One row an unseen run: its last loss, the prediction with interval, the error, and the mean absolute error over its
    losses after from_step (nats)."""
    rows = []
    for curve in unseen:
        later = used(curve, law.from_step, SCORED)
        if not later.any():
            continue
        loss, low, high = law.predict(curve.history, curve.steps[later][-1:])
        whole = np.exp(law.fit.model.log_loss(law.fit.theta, Points.of(curve.history, curve.steps[later]))[0][0])
        last = float(curve.losses[-1])
        rows.append(
            {"run": curve.run_id}
            | ({"schedule": curve.given["schedule"]} if "schedule" in curve.given else {})
            | {"step": int(curve.steps[-1]), "loss": last, "predicted": float(loss[0]), "low": _none(low[0]),
               "high": _none(high[0]), "error": float(loss[0]) - last,
               "curve_error": float(np.abs(whole - curve.losses[later]).mean())}  # fmt: skip
        )
    return pd.DataFrame(rows)


def heldout(scored: pd.DataFrame) -> dict:
    if not len(scored):
        return {"n": 0, "mean_abs_log_error": None, "mean_excess_loss": None, "mean_abs_error": None}
    return {
        "n": len(scored),
        "mean_abs_log_error": float(np.abs(np.log(scored["predicted"] / scored["loss"])).mean()),
        "mean_excess_loss": None,
        "mean_abs_error": float(scored["error"].abs().mean()),
    }


def _none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
