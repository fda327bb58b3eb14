"""Which predictors does a law need? The same optima, written as power laws of several sets of them.

Is N needed at all? Power Lines (arXiv 2505.13738) and Step Law (arXiv 2503.04715) write the best batch in tokens alone,
others in the loss or in compute. Along one ray (all runs at 20 tokens per parameter, say) these are one law under
several names, and only runs off the ray can tell them apart: sets that span the same are one row, the others named in
it.

Each set is fitted to the same n log optima by least squares with p coefficients, and compared by

    AICc    n ln(RSS / n) + 2k + 2k (k + 1) / (n - k - 1), k = p + 1 (the variance counts); blank where n < k + 2.
            Differences below 2 are no evidence (Burnham and Anderson 2002, sections 2.4 and 2.6); weight is
            exp(-delta / 2) over the sum of all sets. Where one set has no AICc the others' say nothing of it (the
            smallest would win by default): no delta and no weight, and sets are ranked by leave_one_out.
    held_out, leave_one_out
            mean |error| of log optima, by refits without the held-out scales (those of the law) and without each slice
            in turn (residual / (1 - leverage)).

`loss` is the slice's own fitted lowest loss: it is known only after training, and shares the slice's noise. The sets
and the rule of `needed` are ours.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.law import as_dict, choose_predictors, design, finite, fit_power_law
from analysis.predict import off
from analysis.style import label

SCALES = ("tokens", "params", "tpp", "flops", "loss")
PAIRS = (("params", "tokens"), ("tokens", "loss"), ("params", "loss"))  # tpp and flops are of params and tokens
EVIDENCE = 2.0  # of AICc
ROUNDING = 1e-10  # of a log optimum: residuals below it are none

Values = Sequence[Mapping[str, float]]


def predictor_sets(values: Values, kept: Sequence[str]) -> dict[tuple[str, ...], list[tuple[str, ...]]]:
    """{set: [sets that span the same]}: none, each scale, pairs of them, and what the law itself uses; where that holds
    hyper-parameters that differ among the slices (the batch, say), with them and without."""
    known = [name for name in SCALES if all(finite(at.get(name)) and at[name] > 0 for at in values)]
    others = tuple(name for name in kept if name not in SCALES)
    scales = [(), *((name,) for name in known)]
    scales += [tuple(name for name in kept if name in SCALES), *(pair for pair in PAIRS if set(pair) <= set(known))]
    wanted = [(*names, *part) for part in ((), others) for names in scales]
    found: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for names in dict.fromkeys(wanted):
        if choose_predictors(values, names).kept != list(names):
            continue  # constant, or collinear among themselves
        same = [f for f in found if len(f) == len(names) and choose_predictors(values, [*f, *names]).kept == list(f)]
        if same:
            found[same[0]].append(names)
        else:
            found[names] = []
    return found


def compare(values: Values, y: np.ndarray, held: np.ndarray, kept: Sequence[str]) -> pd.DataFrame:
    """One row for each set of predictors, the best AICc first; the best leave-one-out error first where any has none.

    values: {predictor: value} of each of n slices; y (n,) natural logs of their optima; held (n,) bool: slices held
    out; kept: what the law uses. Columns: predictors, exponents, AICc, delta, weight, R2, residual (s.d.), held_out,
    leave_one_out; all errors in natural log. Sets with as many coefficients as optima are left out.
    """
    rows = []
    for names, same in predictor_sets(values, kept).items():
        if len(y) > len(names) + 1:
            shown = " + ".join(names) or "none"
            if alike := [" + ".join(s) for s in same]:
                shown += f" (= {', '.join(alike)})"
            rows.append({"predictors": shown, **_scores(values, y, held, names)})
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    every = bool(table["AICc"].notna().all())
    delta = table["AICc"] - table["AICc"].min() if every else pd.Series(np.nan, index=table.index)
    weight = np.exp(-delta / 2)
    table.insert(3, "delta", delta)
    table.insert(4, "weight", weight / weight.sum() if every else np.nan)
    order = ["AICc", "leave_one_out"] if every else "leave_one_out"
    return table.sort_values(order, kind="stable").reset_index(drop=True)


def _scores(values: Values, y: np.ndarray, held: np.ndarray, names: tuple[str, ...]) -> dict:
    x = design(values, names)
    n, p = x.shape
    solver = np.linalg.pinv(x)
    residual = y - x @ (solver @ y)
    rss, total = float(residual @ residual), float(((y - y.mean()) ** 2).sum())
    k = p + 1
    penalty = 2 * k + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.nan
    left = np.maximum(1 - np.einsum("ij,ji->i", x, solver), 1e-12)
    exponents = (solver @ y)[1:]
    return {
        "exponents": ", ".join(f"{value:.3g}" for value in exponents),
        "AICc": n * np.log(max(rss / n, ROUNDING**2)) + penalty,
        "R2": 1 - rss / total if total > 1e-20 and p > 1 else np.nan,
        "residual": np.sqrt(rss / (n - p)),
        "held_out": _held_out_error(values, y, held, names),
        "leave_one_out": float(np.mean(np.abs(residual / left))),
    }


def _held_out_error(values: Values, y: np.ndarray, held: np.ndarray, names: tuple[str, ...]) -> float:
    rest = [at for at, out in zip(values, held, strict=True) if not out]
    if not held.any() or len(rest) < len(names) + 1 or choose_predictors(rest, names).kept != list(names):
        return np.nan
    law = fit_power_law(rest, y[~held], names)
    predicted = law.log_at([at for at, out in zip(values, held, strict=True) if out])
    return float(np.mean(np.abs(predicted - y[held])))


def verdict(table: pd.DataFrame) -> str:
    """A line: the set that the data prefer, and those that they do not tell from it; where optima are too few for AICc,
    the sets by leave-one-out error."""
    if len(table) < 2:
        return ""
    if table["AICc"].isna().any():
        errors = zip(table["predictors"], table["leave_one_out"], strict=True)
        ranked = ", ".join(f"{text.split(' (= ')[0]} {off(float(error))} off" for text, error in errors)
        return f"too few optima for AICc to compare {len(table)} sets of predictors; each left out in turn: {ranked}."
    near = table[table["delta"] < EVIDENCE]
    names = [text.split(" (= ")[0] for text in near["predictors"]]
    line = f"of {len(table)} sets of predictors the optima prefer {names[0]} (AICc weight {near['weight'].iloc[0]:.2f}"
    if (error := near["held_out"].iloc[0]) == error:
        line += f", held out {off(float(error))} off"
    rest = f"; {', '.join(names[1:])} within {EVIDENCE:g} of it, no evidence between them" if len(names) > 1 else ""
    return f"{line}){rest}."


def needed(
    values: Values,
    y: np.ndarray,
    held: np.ndarray,
    beside: Sequence[str],
    level: float,
    own: np.ndarray | None = None,
    own_dof: float = 0.0,
) -> str:
    """A line: is N needed beside `beside` (tokens or tpp, and what the slices hold)?

    Needed: AICc falls by 2 or more when it is added, and the interval of its exponent (analysis/law.py, with the runs'
    noise `own`) leaves 0 out. Else the interval says how large an exponent the optima allow. Empty where N does not
    vary."""
    names = [*beside, "params"]
    if not all(finite(at.get(name)) for at in values for name in names) or len(y) < 4:
        return ""
    chosen = choose_predictors(values, names)
    if chosen.constant:
        return ""
    words = " and ".join(map(label, beside))
    if chosen.kept != names:
        return f"N cannot be told from {words} here, as they move together: measure scales off this ray."
    law = fit_power_law(values, y, names, own, own_dof)
    exponent = as_dict(law, level)["parameters"]["params"]
    if exponent["low"] is None:
        return ""
    with_, without = (_scores(values, y, held, tuple(s)) for s in (names, names[:-1]))
    gain = without["AICc"] - with_["AICc"]
    clear = exponent["low"] > 0 or exponent["high"] < 0
    word = "is needed" if clear and gain > EVIDENCE else "is not needed" if not clear else "is not shown to be needed"
    text = f"params^{exponent['value']:.3g} [{exponent['low']:.3g} .. {exponent['high']:.3g}]"
    change = f", AICc {'better' if gain > 0 else 'worse'} by {abs(gain):.1f}" if np.isfinite(gain) else ""
    errors = [s["held_out"] for s in (without, with_)]
    if np.isfinite(errors).all():
        change += f", held-out scales {off(errors[0])} off without and {off(errors[1])} with it"
    return f"N {word} beside {words}: added, {text}{change}."
