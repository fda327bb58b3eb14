"""The transfer analysis: lines of scales, their metrics, tables and laws."""

from functools import partial

import numpy as np
import pandas as pd
from scipy import interpolate

from analysis.errors import UserError, nearest
from analysis.law import finite
from analysis.optimum import Optimum
from analysis.prepare import prepare
from analysis.result import FitResult
from analysis.transfer.asymptote import Asymptote, asymptote, penalty
from analysis.transfer.best import reference_of, table_of_multipliers
from analysis.transfer.lines import Line, compared_column, find_lines
from analysis.transfer.local import OCTAVE, curvature, own_of_loss
from analysis.transfer.options import Options
from analysis.transfer.plot import draw
from analysis.transfer.quality import Quality, quality
from analysis.transfer.sensitivity import common_interval, sensitivity
from analysis.tuned import given, lost

NONE = {"value": None, "low": None, "high": None}
NOTHING = {"n": 0, "mean_abs_log_error": None, "mean_excess_loss": None}
FORM = "{tuned} = c * {scale}^p, loss = L_inf + a * {scale}^-b"


def fit(table: pd.DataFrame, options: Options, analysis: str) -> FitResult:
    """Metrics of every line of scales, and compute multipliers; what too few scales determine is null, with a note.
    Raises UserError where the request or the table cannot be used."""
    df = prepare(table, options)
    column = compared_column(df, options)
    if column and options.reference is not None and options.reference not in set(map(str, df[column])):
        raise UserError(
            f"reference={options.reference}: {column} has no such value{nearest(options.reference, map(str, df[column]))}"
        )
    if options.reference is not None and not column:
        raise UserError(f"reference={options.reference}: nothing is compared here; say compare=COLUMN.")
    lines, notes = find_lines(df, column, options)
    result = FitResult(analysis, notes=df.attrs.get("notes", []) + notes)
    initial = options.initial_loss or (
        float(np.log(df["vocab"].median())) if "vocab" in df and df["vocab"].notna().any() else None
    )
    interval = tuple(options.interval or ()) or common_interval(
        [o.slice for line in lines for o in line.optima if o.slice.distinct > 2]
    )
    inside = [line.interior() for line in lines]
    asymptotes = [asymptote(x.scale, np.array([o.loss for o in x.optima]), *own_of_loss(x.optima)) for x in inside]
    metrics = [quality(x, options.scale, options.level, options.heldout) for x in inside]
    rows, summary, without = [], [], 0
    for line, good, about, limit in zip(lines, inside, metrics, asymptotes, strict=True):
        rows += [_row(line, o, n, options, interval, initial) for o, n in zip(line.optima, line.scale, strict=True)]
        if about is None:
            without += len(line.optima) > 1
            continue
        reference = _reference(line, inside, asymptotes, options)
        law, lines_of_law = _law(good, about, limit, reference, options, rows)
        result.notes += [f"{line.name}: {text}" for text in lines_of_law]
        about_line = {**given(good.optima), **({column: line.label} if column else {}), **line.fixed}
        result.laws.append({"analysis": analysis, "name": "transfer", **law, "given": about_line, "notes": lines_of_law})
        summary.append({"line": line.name, "scales": len(good.optima), **{k: _short(law["parameters"][k]) for k in SHOWN}})
    result.notes += lost([o for line in lines for o in line.optima])
    if without:
        result.notes.append(f"{without} lines of two scales or more have fewer than two interior optima: no metrics.")
    if not result.laws and not without:
        result.notes.append(f"no line of two scales along {options.scale}: no metrics.")
    if summary:
        result.tables[f"transfer of {options.tuned} along {options.scale} (value, interval)"] = pd.DataFrame(summary)
    if rows:
        span = "" if interval is None else f"; sensitivity over {interval[0]:.3g} .. {interval[1]:.3g}"
        result.tables[f"each scale: cost of {options.tuned} off by x{options.factor:g}, nats{span}"] = pd.DataFrame(rows)
    if column:
        _multipliers(result, df, lines, column, options, analysis)
    result.figures["transfer"] = partial(draw, lines=inside, metrics=metrics, asymptotes=asymptotes, options=options)
    return result


SHOWN = ("E", "E_noise", "kappa", "R_inf")  # all are in the laws


def _law(
    line: Line, about: Quality, limit: Asymptote | None, reference: Asymptote | None, options: Options, rows
) -> tuple[dict, list[str]]:
    """The parts of a LAW of one line, and lines for the reader."""
    notes = []
    parameters = dict(about.parameters)
    if parameters["E"]["value"] is None:
        notes.append(f"{len(line.optima)} scales leave no residual: no E.")
    found, known = limit.fit() if limit else ({}, False)
    parameters |= {key: NONE | {"value": found[key] if known else None} for key in ("L_inf", "a", "b")}
    if known:
        parameters["L_inf"] = penalty(limit, None, options.level)
    parameters["R_inf"] = dict(NONE)
    if limit is None:
        notes.append(f"{len(line.optima)} scales: L_inf and R_inf need three, and four for residuals.")
    elif not known:
        notes.append("the loss has no asymptote that these scales identify: no L_inf and no R_inf.")
    elif reference is limit:
        parameters["R_inf"] = NONE | {"value": 0.0}
    elif reference is not None:
        parameters["R_inf"] = penalty(limit, reference, options.level, options.exponent == "shared")
        if parameters["R_inf"]["value"] is not None and None in (parameters["R_inf"]["low"], parameters["R_inf"]["high"]):
            notes.append("R_inf is not bounded on both sides: these scales allow a loss without an asymptote.")
    last = [row["sensitivity"] for row in rows if row["line"] == line.name and row["sensitivity"] is not None]
    parameters["sensitivity"] = NONE | {"value": last[-1] if last else None}
    if not last:
        notes.append("no sensitivity: no interval was measured by this slice and all others (interval=[low,high] names "
                     "one), or runs diverged and initial_loss= is not known.")  # fmt: skip
    n = line.scale
    return {
        "form": FORM.format(tuned=options.tuned, scale=options.scale),
        "unit": f"E in octaves of {options.tuned}, curvature in nats per octave squared, losses in nats",
        "parameters": parameters,
        "r2": finite(about.law.r2),
        "n": len(n),
        "counts": "scales",
        "objective": finite(about.law.rss),
        "heldout": about.heldout,
        "method": "quadratic",
        "level": options.level,
        "range": {options.scale: {"low": float(n.min()), "high": float(n.max())}},
    }, notes


def _reference(line: Line, lines: list[Line], asymptotes: list[Asymptote | None], options: Options) -> Asymptote | None:
    """The asymptote that R_inf of a line is measured from: of the named reference, or the lowest, among lines that hold
    the same."""
    rivals = [
        (x, a) for x, a in zip(lines, asymptotes, strict=True) if a is not None and x.fixed.keys() == line.fixed.keys()
    ]
    rivals = [(x, a) for x, a in rivals if all(abs(np.log(x.fixed[k] / line.fixed[k])) < 0.02 for k in x.fixed)]
    if options.reference is not None:
        return next((a for x, a in rivals if x.label == options.reference), None)
    fits = [(a.fit(), a) for _, a in rivals]
    return min((each for each in fits if each[0][1]), key=lambda each: each[0][0]["L_inf"], default=(None, None))[1]


def _row(line: Line, o: Optimum, n: float, options: Options, interval, initial: float | None) -> dict:
    """One scale: its optimum, curvature, what a value off by the factor costs, sensitivity."""
    interior = o.verdict == "interior"
    best = (float(o.value[0]), o.loss) if interior else None
    measured = sensitivity(o.slice, interval, initial, best) if interval else None
    row = {"line": line.name, options.scale: float(n), "verdict": o.verdict, "best": None, "loss": None, "curvature": None}
    row |= {"by_curvature": None, "above": None, "below": None, "sensitivity": measured}
    if interior:
        h = curvature(o)
        row |= {"best": float(np.exp(o.value[0])), "loss": finite(o.loss), "curvature": h}
        row["by_curvature"] = h / 2 * (np.log(options.factor) / OCTAVE) ** 2
        for key, sign in (("above", 1), ("below", -1)):
            row[key] = _measured_cost(o, sign * np.log(options.factor))
    return row


def _measured_cost(o: Optimum, step: float) -> float | None:
    """Loss at the optimum times e^step over that at the optimum; None beyond the measured values. Between those that
    the fit used, what they leave of the fitted curve is interpolated (chords of the losses themselves lie above a
    basin: 25 % too dear an octave off), beyond, the losses by Akima's rule."""
    good = ~o.slice.diverged & np.isfinite(o.slice.loss)
    x, inverse = np.unique(o.slice.x[good, 0].round(6), return_inverse=True)
    loss = np.bincount(inverse, o.slice.loss[good]) / np.bincount(inverse)
    at = o.value[0] + step
    if not x[0] <= at <= x[-1]:
        return None
    used = o.slice.x[o.used, 0]
    if used.min() - 1e-6 <= at <= used.max() + 1e-6:
        rest = np.interp(at, x, loss - o.curve(x[:, None]))
        return float(o.curve(np.array([at])) + rest - o.loss)
    return float(interpolate.Akima1DInterpolator(x, loss)(at) - o.loss)


def _multipliers(result: FitResult, df, lines: list[Line], column: str, options: Options, analysis: str) -> None:
    reference = reference_of(lines, options)
    if reference is None:
        return
    table, notes = table_of_multipliers(df, lines, column, reference, options)
    result.notes += notes
    if table.empty:
        return
    result.tables[f"compute multiplier over {reference} at equal loss"] = table
    fixed = [name for name in table.columns if name in ("tpp", "tokens", "params") and name != options.scale]
    for label, rows in table.groupby(column, sort=False):
        inside = rows[~rows["extrapolated"] & rows["multiplier"].notna()]
        last = (inside if len(inside) else rows).sort_values("compute").iloc[-1]
        about = {column: label, **{name: last[name] for name in (*fixed, options.scale)}, "reference": reference}
        ends = {"value": "multiplier", "low": "low", "high": "high"}
        law = {"analysis": analysis, "name": "compute_multiplier", "form": "C_reference(loss) / C"}
        law["given"] = {k: v if isinstance(v, str) else float(v) for k, v in about.items()}
        law["unit"] = "at the largest scale within the reference's" if len(inside) else "extrapolated"
        law["parameters"] = {"multiplier": {key: finite(last[name]) for key, name in ends.items()}}
        law |= {"r2": None, "n": len(rows), "counts": "scales", "objective": None, "method": last["loss_is"], "notes": []}
        result.laws.append(law | {"heldout": dict(NOTHING), "level": options.level})


def _short(p: dict) -> str:
    if p["value"] is None:
        return ""
    text = f"{p['value']:.3g}"
    ends = ["?" if p[end] is None else f"{p[end]:.3g}" for end in ("low", "high")]
    return text if ends == ["?", "?"] else f"{text} [{ends[0]} .. {ends[1]}]"
