"""Compute-optimal N and D by IsoFLOP curves (approach 2): the minimum of loss at each training budget, then power laws

    params_opt = k C^a,   tokens_opt = k C^b,   loss_opt = k C^-g      (predictor flops)

of those minima (analysis/loss/isoflop_minima.py). Hoffmann et al., Chinchilla, arXiv 2203.15556, section 3.2; akima and
weights after Porian et al., arXiv 2406.19146. D at the minimum is that of a curve in log D where the table has tokens
(they differ from C/6N where budgets count attention), else C/6N.

A parabola's minimum is biased where curves are not symmetric or grids not centred (arXiv 2603.22339), an Akima minimum
scatters with the noise of two or three runs; linex, the default, is ours.

How often 10-90 % intervals hold the truth (python -m benchmarks.coverage_isoflop, 500 draws, 100 where ~): the exponent
79-85 % by linex on all surfaces but ~76 % where model shapes have offsets of their own; N at the middle budget 75-81 %, but
56 % on Gemstones' lopsided curves with off-centre grids (there by parabola: 0 %). r.m.s. error of the exponent: linex 0.002
to 0.003, parabola the same but 0.005 on lopsided curves, akima ~0.02 to 0.03.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from analysis.keys import COMMON, Check, Keys, between, one_of
from analysis.loss import isoflop_compare, isoflop_plots
from analysis.loss.isoflop_laws import held_out, law_dict, power_law, score, with_floor
from analysis.loss.isoflop_minima import ESTIMATORS, Minima, Minimum, find_minima
from analysis.loss.isoflop_report import LAWS, allocation, asymmetry, labelled, optima, sum_of_exponents, verdicts
from analysis.loss.isoflop_rows import SAME_SIZE, Group, budgets, setting_groups, usable
from analysis.prepare import prepare
from analysis.result import FitResult


def _estimator(value: Any) -> str:
    return one_of("estimator", *ESTIMATORS)[0]("parabola" if value == "quadratic" else value)


def _window(value: Any) -> int | str | None:
    if value in (None, "none"):
        return None
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or int(value) != float(value) or not 3 <= int(value) <= 10_000:
        raise ValueError
    return int(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


@dataclass(frozen=True)
class Options(Keys):
    """Keys of an IsoFLOP fit, beyond those of every analysis (analysis/keys.py).

    estimator   linex, parabola (quadratic is its other name), akima, argmin (analysis/loss/isoflop_minima.py)
    window      points of a curve that are fitted: auto, none (all) or how many round the lowest
    tolerance   by how much FLOPs may differ within a budget
    select      best (of each size the lowest loss over other hyper-parameters, seeds averaged) or all (the mean)
    weights     of the minima in the laws: none, or std (1 / their own variance)
    approach3   set beside it what the parametric loss law gives on the same rows
    """

    CHECKS: ClassVar[dict[str, Check]] = COMMON | {
        "estimator": (_estimator, f"give one of {', '.join(ESTIMATORS)}"),
        "window": (_window, "give auto, none or a whole number of at least 3"),
        "tolerance": (between(0.0, 1.0), "give a share such as 0.05"),
        "select": one_of("select", "best", "all"),
        "weights": one_of("weights", "none", "std"),
        "approach3": (_truth, "give true or false"),
    }
    NULLABLE: ClassVar[tuple[str, ...]] = ("heldout", "window")

    estimator: str = "linex"
    window: int | str | None = "auto"
    tolerance: float = 0.05
    select: str = "best"
    weights: str = "none"
    approach3: bool = True


@dataclass
class Fitted:
    """One group with its minima in log N and log D."""

    group: Group
    minima: dict[str, Minima]  # by law name
    label: str
    points: pd.DataFrame | None = None  # flops, params, tokens, tpp, loss of budgets interior in both


def fit(table: pd.DataFrame, options: Options, analysis: str = "isoflop") -> FitResult:
    """The laws of compute-optimal N, D and loss; fewer than two interior budgets give verdicts and no law. Raises UserError
    where the request or the table cannot be used."""
    df = prepare(table, options)
    measured = "tokens" in df and df["tokens"].notna().any()
    notes = list(df.attrs.get("notes", []))
    df = usable(df, notes)
    result = FitResult(analysis, notes=notes)
    parts = setting_groups(df, options.by)
    telling = _telling([settings for settings, _ in parts])
    found = []
    for settings, rows in parts:
        group = budgets(settings, rows, options.select, options.tolerance, measured)
        label = ", ".join(f"{name}={settings[name]}" for name in telling if name in settings)
        found.append(_fit_group(result, Fitted(group, _minima(group, options), label), options))
    tables = [allocation(f, telling) for f in found if f.points is not None and len(f.points)]
    if tables:
        result.tables["compute-optimal allocation of each budget"] = pd.concat(tables, ignore_index=True)
    floors = [(f, with_floor(f.points["flops"].to_numpy(), f.points["loss"].to_numpy(), held_out(f.points, options.heldout)))
              for f in found if f.points is not None]  # fmt: skip
    floors = [labelled(frame, f, telling) for f, frame in floors if frame is not None]
    if floors:
        result.tables["loss at the optimum, with and without a floor"] = pd.concat(floors, ignore_index=True)
    if options.approach3:
        isoflop_compare.add(result, found, telling, options)
    result.figures["isoflop_curves"] = lambda path: isoflop_plots.curves(path, found)
    return result


def _telling(settings: list[dict]) -> list[str]:
    names = dict.fromkeys(name for each in settings for name in each)
    return [name for name in names if len({str(each.get(name)) for each in settings}) > 1]


def _minima(group: Group, options: Options) -> dict[str, Minima]:
    """Of each law's quantity, the minima of all budgets of the group."""
    keys = (options.estimator, options.window, options.bootstrap, options.level, options.seed)
    logs = [np.log(b.params) for b in group.budgets]
    codes = [np.round(x / SAME_SIZE).astype(int) for x in logs]
    params = find_minima(logs, [b.loss for b in group.budgets], *keys, codes)
    sixth = [np.log(b.flops / 6) for b in group.budgets]
    if group.measured and any(
        np.abs(x + np.log(b.tokens) - c).max() > 1e-6 for x, b, c in zip(logs, group.budgets, sixth, strict=True)
    ):
        along = [_along_tokens(b.tokens, b.loss, code) for b, code in zip(group.budgets, codes, strict=True)]
        xs, losses, codes = ([each[i] for each in along] for i in range(3))
        tokens = find_minima(xs, losses, *keys, codes)
    else:  # the same curve seen from the other side
        tokens = replace(params, each=[_mirrored(m, c) for m, c in zip(params.each, sixth, strict=True)])
    return {"params_opt": params, "tokens_opt": tokens}


def _mirrored(m: Minimum, c: float) -> Minimum:
    curve = None if m.curve is None else lambda at: m.curve(c - np.asarray(at, float))
    return replace(m, fitted=c - m.fitted, low=c - m.high, high=c - m.low, curve=curve)


def _along_tokens(tokens: np.ndarray, loss: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(log D ascending, loss, code of the size): of equal D the lowest loss."""
    order = np.lexsort((loss, tokens))
    x, y = np.log(tokens[order]), loss[order]
    first = np.r_[True, np.diff(x) > SAME_SIZE] if len(x) else np.zeros(0, bool)
    return x[first], y[first], code[order][first]


def _fit_group(result: FitResult, f: Fitted, options: Options) -> Fitted:
    group, said = f.group, f"{f.label}: " if f.label else ""
    lines = list(group.notes)
    flops = np.array([b.flops for b in group.budgets])
    points = {name: _points(group, f.minima, name) for name in LAWS}
    held = {name: held_out(points[name], options.heldout) for name in LAWS}
    both = f.minima["params_opt"].interior & f.minima["tokens_opt"].interior
    f.points = _frame(group, f.minima, both)
    laws = []
    for name in LAWS:
        m = f.minima[name]
        inside = m.interior
        if inside.sum() < 2:
            lines.append(f"{name}: {int(inside.sum())} interior minima of {len(flops)} budgets, no law.")
            continue
        own = None if m.own is None else m.own[np.ix_(inside, inside)]
        y = np.array([e.fitted for e in m.each])[inside]
        law = power_law(flops[inside], y, own, m.dof, options.weights == "std")
        if law.covariance is None:
            lines.append(f"{name}: two budgets for two parameters: no interval can be given.")
        curves = [_cost(e) for e in np.array(m.each, object)[inside]] if all(e.curve for e in m.each) else None
        kept = _without(group, inside, held[name], name, options) if m.asymmetry else None
        scored = score(flops[inside], y, held[name], curves, kept)
        laws.append(law_dict(law, name, points[name].drop(columns="loss"), options.level, heldout=scored))
    if len(f.points) >= 2:
        c, y = f.points["flops"].to_numpy(), np.log(f.points["loss"].to_numpy())
        scored = score(c, y, held_out(f.points, options.heldout))
        laws.append(law_dict(power_law(c, y), "loss_opt", f.points.drop(columns="loss"), options.level, heldout=scored))
    lines += verdicts(f) + sum_of_exponents(laws) + asymmetry(f)
    shared = {"given": group.settings, "method": options.estimator, "counts": "budgets", "notes": lines}
    result.laws += [{"analysis": result.analysis, **law, **shared} for law in laws]
    result.notes += [f"{said}{line}" for line in lines]
    result.optima += optima(result.analysis, f, held, options.level)
    return f


def _without(group: Group, inside: np.ndarray, held: np.ndarray, name: str, options: Options):
    """(flops, log minima) of the budgets that are not held out, from a fit that has not seen those that are (linex shares
    its asymmetry among budgets)."""
    out = np.zeros(len(inside), bool)
    out[inside] = held
    rest = replace(group, budgets=[b for b, gone in zip(group.budgets, out, strict=True) if not gone])
    m = _minima(rest, options)[name]
    flops, y = (np.array(values) for values in ([b.flops for b in rest.budgets], [e.fitted for e in m.each]))
    return flops[m.interior], y[m.interior]


def _cost(m):
    return lambda at: m.curve(at) - m.curve(m.fitted)


def _points(group: Group, minima: dict[str, Minima], name: str) -> pd.DataFrame:
    return _frame(group, minima, minima[name].interior)


def _frame(group: Group, minima: dict[str, Minima], chosen: np.ndarray) -> pd.DataFrame:
    flops = np.array([b.flops for b in group.budgets])
    logs = {name: np.array([m.fitted for m in minima[name].each]) for name in LAWS}
    loss = np.array([m.loss for m in minima["params_opt"].each])
    with np.errstate(over="ignore"):
        n, d = np.exp(logs["params_opt"]), np.exp(logs["tokens_opt"])
    frame = pd.DataFrame({"flops": flops, "params": n, "tokens": d, "tpp": d / n, "loss": loss})
    return frame[chosen].reset_index(drop=True)
