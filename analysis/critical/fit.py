"""analysis=critical_batch: the batch up to which twice as many devices nearly halve the steps, against tokens.

    definition=hyperbola   B_crit of D_B = D_min (1 + B/B_crit) (McCandlish, arXiv 1812.06162; protocol of Power Lines,
                           arXiv 2505.13738): at B_crit a target loss costs 2 D_min tokens and 2 S_min steps
    definition=overhead    the batch whose steps exceed those of perfect scaling from an optimal batch by `overhead`
                           (Zhang, arXiv 2410.21676), read off the same hyperbola (analysis/critical/hyperbola.py)

Rows (analysis/critical/rows.py) that are tuned (tuning.py) give curves of loss, inverted at target losses (sweep.py), or
steps to a target as they stand (steps.py); a hyperbola for each model size and target is a point (points.py); points
give the law (law.py). `tokens` in the law is D_min of the point; with definition=overhead D at the optimal batch, or the
table's own where it holds one for each model size and target.
"""

import numpy as np
import pandas as pd

from analysis.columns import CANONICAL, SCALE, SETTINGS
from analysis.critical import law as laws
from analysis.critical import rows, steps, sweep
from analysis.critical.figures import hyperbolas
from analysis.critical.options import Options
from analysis.critical.points import Point
from analysis.critical.tuning import tuned_cells
from analysis.errors import UserError
from analysis.law import as_dict, choose_predictors, finite
from analysis.prepare import prepare
from analysis.result import FitResult
from analysis.slices import plain

NAME = "critical_batch"
RANGED = ("params", "tokens", "tpp", "loss")


def fit(table: pd.DataFrame, options: Options, analysis: str = NAME) -> FitResult:
    """Laws of the critical batch, one for each combination of settings. Points without a verdict of interior are in
    `optima` and in no law. Raises UserError where the request or the table cannot be used."""
    for name in options.predictors or []:
        if name not in ("tokens", "params", "loss"):
            raise UserError(f"predictors=[{name}] must name tokens, params or loss.")
    df = prepare(_reached(table, options), options)
    result = FitResult(analysis, notes=list(df.attrs.get("notes", [])))
    df, column = rows.usable(df, options.unit, options.by, result.notes)
    df["_start"] = _optimal_batch(df, column, options)
    known = "batch_tokens" in df and df["batch_tokens"].notna().all()
    of_steps = "steps_to_target" in df and df["steps_to_target"].notna().any()
    rng = np.random.default_rng(options.seed)
    of = _settings_of(df, options), _given_of(df)
    if of_steps:
        found = steps.points(df, *of, options, rng)
    else:
        cells = tuned_cells(df, options.tuned == "check", result.notes)
        found, errors = sweep.points(cells, *of, options, rng, result.notes)
        if len(errors) and errors["rms_error_left_out"].notna().any():
            result.tables["L_B(D) = E + c D^-beta: r.m.s. error in nats at tokens left out, by what batches share"] = errors
    if options.definition == "overhead":
        _starts(found, column, options, result.notes)
    groups: dict[str, list[Point]] = {}
    for point in found:
        groups.setdefault(repr(point.settings), []).append(point)
    for members in groups.values():
        mine = members[0].settings
        telling = [k for k in mine if len({str(m[0].settings.get(k)) for m in groups.values()}) > 1]
        what = ", ".join(f"{k}={mine[k]}" for k in telling)
        _group(result, members, what, (column, known or not of_steps, of_steps), options)
    result.tables["points"] = _table(found, column, options)
    if any(len(p.log_batch) >= 2 and np.isfinite(p.log_d_min) for p in found):
        result.figures["critical_batch_steps"] = lambda path: hyperbolas(path, found, column)
    bad = pd.Series([p.verdict for p in found if p.verdict != "interior"], dtype=object).value_counts()
    if len(bad):
        words = ", ".join(f"{n} {verdict}" for verdict, n in bad.items())
        result.notes.append(f"{len(found)} points, of which not interior and in no law: {words}.")
    return result


def _reached(table: pd.DataFrame, options: Options) -> pd.DataFrame:
    """A table of steps without status: every run reached its target, whether or not it has a loss."""
    known = {*table.columns, *options.columns}
    theirs = options.columns.get("steps_to_target", "steps_to_target")
    if known & {"status", "diverged"} or theirs not in table or table[theirs].isna().all():
        return table
    return table.assign(status="done")


def _optimal_batch(df: pd.DataFrame, column: str, options: Options) -> pd.Series | float:
    """The optimal batch of each row in the unit of the batch: given in sequences, or in tokens where no context is
    known. Raises UserError where its unit cannot be told."""
    if options.definition != "overhead" or column == "batch_size":
        return options.optimal_batch
    known = df["context"].notna() if "context" in df else pd.Series(False, df.index)
    if known.all():
        return options.optimal_batch * df["context"]
    if known.any():
        raise UserError(
            f"definition=overhead: {int((~known).sum())} of {len(df)} rows have no context, so optimal_batch cannot be in "
            "one unit; map columns.context (or columns.batch_size), or filter with where=."
        )
    if options.optimal_batch == Options.optimal_batch:
        raise UserError(
            "definition=overhead: the batch is in tokens and no context is known, so optimal_batch has no default; give it "
            "in tokens (optimal_batch=131072), or map columns.batch_size or columns.context."
        )
    return options.optimal_batch


def _starts(found: list[Point], column: str, options: Options, notes: list[str]) -> None:
    """A note on points whose optimal batch was not among the batches measured. Raises UserError where all are."""
    placed = [p for p in found if p.verdict != "too_few"]
    outside = [p for p in placed if p.starts_outside()]
    if not outside:
        return
    unit = "sequences" if column == "batch_size" else "tokens"
    low, high = (np.exp(f(np.concatenate([p.log_batch for p in outside]))) for f in (np.min, np.max))
    start = f"optimal_batch={options.optimal_batch:g}"
    if outside[0].start != options.optimal_batch:
        start += f" sequences, {outside[0].start:.6g} tokens,"
    where = f"outside the batches measured ({low:.4g} to {high:.4g} {unit})"
    if len(outside) == len(placed):
        raise UserError(f"definition=overhead: {start} lies {where} at every point; give one among them.")
    notes.append(f"{start} lies {where} at {len(outside)} of {len(placed)} points: edge.")


def _settings_of(df: pd.DataFrame, options: Options):
    names = [name for name in (*SETTINGS, *options.by) if name in df and df[name].notna().any()]

    def settings(part: pd.DataFrame) -> dict:
        return {name: plain(part[name].iloc[0]) for name in names if plain(part[name].iloc[0]) is not None}

    return settings


def _given_of(df: pd.DataFrame):
    names = [name for name in SCALE if name in df and df[name].notna().any()]

    def given(part: pd.DataFrame) -> dict:
        values = {name: float(part[name].median()) for name in names}
        return {name: value for name, value in values.items() if np.isfinite(value)}

    return given


def _group(result: FitResult, points: list[Point], what: str, kind: tuple[str, bool, bool], options: Options) -> None:
    """Appends law, optima, comparison and notes of one combination of settings, which `what` tells from the others."""
    column, in_tokens, of_steps = kind
    inside = [p for p in points if p.verdict == "interior"]
    held = laws.held_out(inside, options.heldout)
    if len(inside) and held.all():
        raise UserError(f"heldout={options.heldout} holds out every point.")
    lines: list[str] = []
    law = _law(inside, held, column, in_tokens, of_steps, options, lines)
    result.notes += [f"{NAME}{f' ({what})' if what else ''}: {line}" for line in lines]
    if law is not None:
        result.laws.append({"analysis": result.analysis, "name": NAME, **law, "notes": lines})
        compared = laws.comparison(inside, held) if in_tokens else pd.DataFrame()
        if len(compared) > 1:
            among = f" among {what}" if what else ""
            result.tables[f"what the critical batch follows{among}: exponents, and errors in natural log"] = compared
    out = {id(p) for p, o in zip(inside, held, strict=True) if o}
    result.optima += [_optimum(p, result.analysis, column, in_tokens, id(p) in out) for p in points]


def _law(inside, held, column, in_tokens, of_steps, options, lines) -> dict | None:
    wanted = list(options.predictors or ["tokens"])
    values = [laws.lookup(p) for p in inside]
    if "tokens" in wanted and not in_tokens:
        lines.append("tokens are not known (no context or batch_tokens): the law is written in params.")
        wanted = [name for name in wanted if name != "tokens"] or ["params"]
    if missing := [name for name in wanted if any(name not in at for at in values)]:
        lines.append(f"{', '.join(missing)} is not known at every point: no predictor.")
        wanted = [name for name in wanted if name not in missing]
    if len(inside) < 2:
        lines.append(f"{len(inside)} interior point, no law." if inside else "no interior point, no law.")
        return None
    chosen = choose_predictors(values, wanted)
    lines += [f"{name} does not vary: no predictor." for name in chosen.constant]
    if not chosen.kept:
        lines.append("nothing that could predict the critical batch varies, no law.")
        return None
    if len(inside) < len(chosen.kept) + 1:
        lines.append(f"{len(inside)} interior points do not determine {len(chosen.kept)} exponents, no law.")
        return None
    law = laws.fit(inside, chosen.kept)
    sizes = len({p.size for p in inside})
    if sizes == 1:
        lines.append("one model size: scatter among sizes is not known, intervals hold for this size alone.")
    elif law.covariance is None:
        lines.append(f"{len(inside)} points leave no residual: no interval.")
    lines += _moving_together(values, chosen.kept)
    names = [c for c in (*CANONICAL, *RANGED) if any(c in at for at in values)]
    names = [c for c in dict.fromkeys(names) if c in RANGED]
    known = {c: [at[c] for at in values if c in at] for c in names}
    if not in_tokens:
        known = {c: v for c, v in known.items() if c not in ("tokens", "tpp")}
    given = dict(inside[0].settings)
    given |= {c: float(np.median(v)) for c, v in known.items() if c == "params" and max(v) <= min(v) * 1.02}
    given["definition"] = options.definition
    if options.definition == "overhead":
        given |= {"overhead": options.overhead, "optimal_batch": inside[0].start}
    context = given.get("context")
    body = as_dict(law, options.level)
    error = laws.score(inside, held, chosen.kept)
    scale = context if column == "batch_size" and context else 1.0
    return {
        "given": given,
        **body,
        "unit": _unit(column, context),
        "coefficient_in_tokens": finite(body["parameters"]["coefficient"]["value"] * scale)
        if column == "batch_tokens" or context else None,
        "n": len(inside),
        "counts": "points" if of_steps else f"points of {sizes} model size{'s' if sizes > 1 else ''}",
        "heldout": {"n": int(held.sum()), "mean_abs_log_error": error, "mean_excess_loss": None},
        "method": "log hyperbola" if of_steps else "hyperbola through inverted L_B(D)",
        "behind": chosen.behind,
        "range": {c: {"low": min(v), "high": max(v)} for c, v in known.items()},
        "sampled": known,
        "held": {},
    }  # fmt: skip


def _moving_together(values: list[dict], kept: list[str]) -> list[str]:
    """A line where params and tokens cannot be told apart."""
    logs = np.log([[at["params"], at["tokens"]] for at in values])
    if np.ptp(logs[:, 0]) < 0.02 or np.ptp(logs[:, 1]) < 0.02 or {"params", "tokens"} <= set(kept):
        return []
    r = float(np.corrcoef(logs.T)[0, 1])
    if r * r < 0.9:
        return []
    return [f"params and tokens move together (correlation of logs {r:.3f}): the law cannot tell which of them it follows."]


def _unit(column: str, context: float | None) -> str:
    if column == "batch_tokens":
        return "tokens"
    return f"sequences of {context:g} tokens" if context else "sequences"


def _optimum(p: Point, analysis: str, column: str, in_tokens: bool, heldout: bool) -> dict:
    with np.errstate(over="ignore"):
        value, low, high, tokens = (float(np.exp(v)) for v in (p.log_value, p.low, p.high, p.log_tokens))
    interior = p.verdict == "interior"
    given = {**p.given, "tokens": finite(tokens) if in_tokens else None, "target_loss": p.target}
    context = p.settings.get("context")
    scale = 1.0 if column == "batch_tokens" else context if context else np.nan
    return {
        "analysis": analysis,
        "target": NAME,
        "given": {k: v for k, v in {**given, **p.settings}.items() if v is not None},
        "held": {},
        "value": finite(value) if interior else None,
        "low": finite(low) if interior else None,
        "high": finite(high) if interior else None,
        "verdict": p.verdict,
        "loss": p.target,
        "n": p.n,
        "fitted": finite(value),
        "batch_tokens": finite(value * scale) if interior else None,
        "heldout": heldout,
    }


def _table(points: list[Point], column: str, options: Options) -> pd.DataFrame:
    """D_min and D in tokens where known, batches in their unit; S_min in steps."""
    out = []
    for p in points:
        with np.errstate(over="ignore"):
            context = p.settings.get("context") if column == "batch_size" else 1.0
            b_crit, d_min = np.exp(p.log_b_crit), np.exp(p.log_d_min)
            row = {"params": p.given.get("params"), "target_loss": p.target, "batches": len(np.unique(p.log_batch.round(6))),
                   "D_min": d_min, "B_crit": b_crit, "S_min": d_min / b_crit / context if context else np.nan}  # fmt: skip
            if options.definition == "overhead":
                row["critical_batch"] = np.exp(p.log_value)
            if column == "batch_size" and context:
                row["in_tokens"] = np.exp(p.log_value) * context
        out.append({**row, "misfit": p.misfit, "verdict": p.verdict})
    frame = pd.DataFrame(out)
    return frame.replace([np.inf, -np.inf], np.nan)
