"""Train-curve collapse (Scaling with Collapse, arXiv 2509.25087) and the final loss of a run from its beginning.

The paper's: the normalised curve l(u) = L(u T) / L(T), u the share of the run; across sizes it collapses where tokens per
parameter, tau and the shape of the LR schedule agree; a run's final loss from its first 10-30 % is the divisor L(T) that
lays its beginning on the normalised curve of finished runs.

Ours: the spread of a collapse is the mean over u of the mean absolute distance of members from the group's mean curve,
relative; the divisor is the median over the later half of what was seen of L(u T) / l_ref(u), l_ref the mean of the
references; its interval comes from the references, each predicted by the others (Student t; none below three).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from analysis.curves import figures
from analysis.curves.options import Options
from analysis.curves.read import Curve
from analysis.errors import UserError
from analysis.result import FitResult

GRID = np.linspace(0.1, 1.0, 91)  # shares of the run at which curves are compared
ENDS = 0.98  # of the run: a curve that reaches so far is finished
SEEN_FROM = 0.5  # of what was seen: the part that is aligned
SAME = 0.02  # tpp and tau within this are equal
SHORTER = 0.9  # of the length that its fellows' imply: a run of unknown length that ends before was stopped
HIGHER = 0.1  # of the peak: a run whose LR ends so much above its fellows', and earlier, was stopped before its cooldown
LEAST = 3  # references from which on there is an interval


def normalised(curve: Curve, smooth: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(share of the run, L / L(T)) of a finished curve."""
    u, loss = _shares(curve, smooth)
    return u, loss / loss[-1]


def finished(curve: Curve) -> bool:
    return len(curve.steps) > 1 and curve.steps[-1] >= ENDS * curve.total


def grouped(curves: Sequence[Curve], groups: Sequence[str]) -> dict[tuple, list[Curve]]:
    """{((column, value), ...): curves}; numbers within 2 % are equal. Columns that no run has are passed over."""
    known = [name for name in groups if any(name in c.given for c in curves)]
    found: dict[tuple, list[Curve]] = {}
    for curve in curves:
        key = tuple((name, curve.given.get(name)) for name in known)
        same = next((k for k in found if all(_same(a, b) for (_, a), (_, b) in zip(k, key, strict=True))), key)
        found.setdefault(same, []).append(curve)
    return found


def collapse(curves: Sequence[Curve], groups: Sequence[str], smooth: float = 0.0) -> pd.DataFrame:
    """One row a group of finished curves: its columns, runs, spread (see above), and `spread_all`, the same about the mean
    of all groups' curves: a collapse is a spread well below it."""
    done = [c for c in curves if finished(c)]
    everything = np.array([_on_grid(c, smooth) for c in done])
    centre = everything.mean(0) if len(done) else None
    rows = []
    for key, members in grouped(done, groups).items():
        own = np.array([_on_grid(c, smooth) for c in members])
        rows.append(
            dict(key)
            | {
                "runs": len(members),
                "spread": float(np.abs(own / own.mean(0) - 1).mean()) if len(members) > 1 else None,
                "spread_all": float(np.abs(own / centre - 1).mean()),
            }
        )
    return pd.DataFrame(rows)


def predict_final(
    partial: Curve, references: Sequence[Curve], fraction: float | None = None, smooth: float = 0.0, level: float = 0.8
) -> dict:
    """Final loss of a run from its beginning: {"value", "low", "high", "seen" (share of the run), "references"}.

    fraction: share of the run that may be seen; None: all that is there. references: finished runs whose normalised
    curves are expected to agree with this one. Raises UserError where nothing can be aligned.
    """
    references = [c for c in references if finished(c) and c is not partial]
    if not references:
        raise UserError(f"run {partial.run_id}: no finished run to align it with.")
    if not len(partial.steps) or partial.steps[0] > (fraction or 1.0) * partial.total:
        raise UserError(f"run {partial.run_id}: no loss in its first {100 * (fraction or 1):.0f} %.")
    seen = min(fraction or 1.0, partial.steps[-1] / partial.total)
    value = _divisor(partial, references, seen, smooth)
    low = high = None
    if len(references) >= LEAST:
        missed = np.array(
            [
                np.log(normal_end(c, smooth) / _divisor(c, [r for r in references if r is not c], seen, smooth))
                for c in references
            ]
        )
        k = len(missed)
        half = stats.t.ppf((1 + level) / 2, k - 1) * np.sqrt((missed**2).mean() * (1 + 1 / k) / (1 + 1 / (k - 1)))
        low, high = float(value * np.exp(-half)), float(value * np.exp(half))
    return {"value": float(value), "low": low, "high": high, "seen": float(seen), "references": len(references)}


def normal_end(curve: Curve, smooth: float) -> float:
    return float(_shares(curve, smooth)[1][-1])


def _divisor(partial: Curve, references: Sequence[Curve], seen: float, smooth: float) -> float:
    count = int((partial.steps <= seen * partial.total * (1 + 1e-9)).sum())
    part = replace(partial, steps=partial.steps[:count], losses=partial.losses[:count])
    u, loss = _shares(part, smooth, partial.total)
    late = u >= SEEN_FROM * u[-1]
    u, loss = u[late], loss[late]
    mean = np.mean([np.interp(u, *normalised(c, smooth)) for c in references], axis=0)
    return float(np.exp(np.median(np.log(loss / mean))))


def _shares(curve: Curve, smooth: float, total: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    u = curve.steps / (total or curve.total)
    if not smooth:
        return u, curve.losses
    low, high = np.searchsorted(u, u - smooth / 2), np.searchsorted(u, u + smooth / 2, side="right")
    sums = np.concatenate([[0.0], np.cumsum(curve.losses)])
    return u, (sums[high] - sums[low]) / (high - low)


def _on_grid(curve: Curve, smooth: float) -> np.ndarray:
    u, loss = normalised(curve, smooth)
    return np.interp(GRID, u / u[-1], loss)


def _same(a: object, b: object) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) <= SAME * max(abs(a), abs(b))
    return str(a) == str(b)


def stopped(curves: Sequence[Curve], groups: Sequence[str]) -> list[Curve]:
    """Runs of unknown length (no total_steps, no steps) that did not reach their end, as far as their group tells: LR ends
    HIGHER above where others end, or the run has less than SHORTER of the steps that tpp, params and batch_tokens
    (batch_size) imply by the run that got farthest."""
    found = []
    for members in grouped(curves, groups).values():
        ends = np.array([c.total for c in members])
        last = np.array([c.history.at(c.total) / c.history.peak if c.history.peak > 0 else 0.0 for c in members])
        early = (ends < ENDS * ends.max()) & (last > last.min() + HIGHER)
        planned = np.array([_planned(c) for c in members])
        if np.isfinite(planned).all():
            early |= ends / planned < SHORTER * (ends / planned).max()
        found += [c for c, is_early in zip(members, early, strict=True) if is_early and not c.known_length]
    return found


def _planned(curve: Curve) -> float:
    """Steps but for a factor that is one for all runs; NaN where the table does not say."""
    given = curve.given
    batch = given.get("batch_tokens") or given.get("batch_size")
    sizes = (given.get("tpp"), given.get("params"), batch)
    if not all(isinstance(v, int | float) and v > 0 for v in sizes):
        return float("nan")
    return sizes[0] * sizes[1] / sizes[2]


def _without_stopped(curves: list[Curve], groups: Sequence[str], notes: list[str]) -> list[Curve]:
    out = stopped(curves, groups)
    if out:
        named = ", ".join(c.run_id for c in out[:8]) + (f" and {len(out) - 8} more" if len(out) > 8 else "")
        notes.append(f"collapse: stopped early by their LR or length, and left out: run {named}; a column total_steps "
                     "would say how long they were to be.")  # fmt: skip
    left = {c.run_id for c in out}
    kept = [c for c in curves if c.run_id not in left]
    unsaid = [[c.total for c in m if not c.known_length] for m in grouped(kept, groups).values()]
    if any(u and min(u) < ENDS * max(u) for u in unsaid):
        notes.append("collapse: the table has no total_steps and its runs differ in length: each counts as finished at its "
                     "last row, so a run that was stopped early would count too.")  # fmt: skip
    return kept


def analyse(curves: list[Curve], options: Options, result: FitResult) -> FitResult:
    """law=collapse of analysis=curves: spreads by group, and the final loss of each run (heldout_runs, or all) from its
    first `fraction`, by the finished runs of its group (fit_runs, or all others)."""
    curves = [c for c in curves if len(c.losses)]
    missing = [name for name in options.groups if not any(name in c.given for c in curves)]
    if missing:
        result.notes.append(f"collapse: the table has no {', '.join(missing)} that is constant within runs: not held.")
    curves = _without_stopped(curves, options.groups, result.notes)
    spreads = collapse(curves, options.groups, options.smooth)
    if not len(spreads):
        result.notes.append(f"collapse: no run reaches {100 * ENDS:.0f} % of its length.")
        return result
    result.tables["collapse: spread of normalised curves"] = spreads
    rows, lonely = [], 0
    for key, members in grouped(curves, options.groups).items():
        references = [c for c in members if finished(c) and (not options.fit_runs or c.run_id in options.fit_runs)]
        for curve in members:
            asked = curve.run_id in options.heldout_runs if options.heldout_runs else curve.run_id not in options.fit_runs
            others = [c for c in references if c is not curve]
            if not asked or not others or curve.steps[0] > options.fraction * curve.total:
                lonely += asked
                continue
            guess = predict_final(curve, others, options.fraction, options.smooth, options.level)
            truth = normal_end(curve, options.smooth) if finished(curve) else None
            rows.append(
                {"run": curve.run_id} | dict(key)
                | {"seen": guess["seen"], "loss": truth, "predicted": guess["value"], "low": guess["low"],
                   "high": guess["high"], "error": None if truth is None else guess["value"] - truth}  # fmt: skip
            )
    if lonely:
        result.notes.append(f"collapse: {lonely} runs have no finished run of their group, or no early loss: not predicted.")
    if rows:
        table = pd.DataFrame(rows)
        seen = f"first {100 * options.fraction:.0f} %"
        result.tables[f"collapse: final losses from the {seen} of each run"] = table
        known = table.dropna(subset=["error"])
        if len(known):
            relative = np.abs(np.log((known["predicted"] / known["loss"]).astype(float)))
            result.notes.append(
                f"collapse: from the {seen}, the final losses of {len(known)} runs are predicted within "
                f"{known['error'].astype(float).abs().mean():.4f} nats on average ({100 * relative.mean():.2f} %)."
            )
    result.figures["curves_collapse"] = lambda path: figures.collapse(path, curves, options)
    return result
