"""Approach 2 beside approach 3: the exponents of compute-optimal N and D by IsoFLOP minima and by the parametric loss
law on the same points, L = E + A/N^alpha + B/D^beta, where a = beta / (alpha + beta) and b = 1 - a (Chinchilla, arXiv
2203.15556, equation 4). On published tables the two disagree."""

import numpy as np
import pandas as pd
from scipy import stats

from analysis.errors import UserError

TITLE = "approach 2 against approach 3: exponents a of N and b of D, and both optima of N at the largest budget"
ROWS = 8  # fewer points determine no parametric law
RESAMPLES = 200


def add(result, found, telling: list[str], options) -> None:
    """Puts the table of all groups that have both laws into `result`; a line where approach 3 lies outside the interval
    of approach 2."""
    from analysis.fit import MODULES

    rows = []
    for f in found:
        mine = [law for law in result.laws if law["given"] == f.group.settings]
        mine = {law["name"]: law["parameters"]["flops"] for law in mine}
        if "loss" not in MODULES or not {"params_opt", "tokens_opt"} <= set(mine):
            continue
        other = _parametric(f, options)
        if other is None:
            continue
        a, (low, high), best = other
        two, three = f.points["params"].iloc[-1], best(f.points["flops"].iloc[-1])
        label = {name: str(f.group.settings.get(name, "")) for name in telling}
        ends = mine["params_opt"]
        rows.append({**label, "approach": "2 (IsoFLOP)", "a": ends["value"], "a low": ends["low"], "a high": ends["high"],
                     "b": mine["tokens_opt"]["value"], "N": two})  # fmt: skip
        rows.append({**label, "approach": "3 (loss law)", "a": a, "a low": low, "a high": high, "b": 1 - a, "N": three})
        if ends["low"] is not None and np.isfinite(low) and not (ends["low"] <= high and low <= ends["high"]):
            said = f"{f.label}: " if f.label else ""
            result.notes.append(
                f"{said}approach 3 gives a = {a:.3f} on the same points, approach 2 {ends['value']:.3f}, their intervals "
                "apart: one of the two forms does not hold here."
            )
    if rows:
        result.tables[TITLE] = pd.DataFrame(rows)


def _parametric(f, options):
    """(a, its interval, function flops -> N) of the loss law on the points of the IsoFLOP curves, or None."""
    from analysis.fit import fit

    points = pd.concat([pd.DataFrame({"params": b.params, "tokens": b.tokens, "loss": b.loss}) for b in f.group.budgets])
    if len(points) < ROWS or points["params"].nunique() < 3 or points["tokens"].nunique() < 3:
        return None
    asked = {"bootstrap": min(options.bootstrap, RESAMPLES), "heldout": None, "level": options.level, "seed": options.seed}
    try:
        laws = fit(points.reset_index(drop=True), "loss", asked).laws
    except UserError:
        return None
    wanted = {"E", "A", "B", "alpha", "beta"}
    law = next((law for law in laws if law["name"] == "loss" and wanted <= set(law["parameters"])), None)
    if law is None:
        return None
    big_a, big_b, alpha, beta = (law["parameters"][s]["value"] for s in ("A", "B", "alpha", "beta"))
    if None in (big_a, big_b, alpha, beta) or not (alpha > 0 and beta > 0 and big_a > 0 and big_b > 0):
        return None
    a, g = beta / (alpha + beta), (alpha * big_a / (beta * big_b)) ** (1 / (alpha + beta))
    ends = (np.nan, np.nan)
    covariance = np.array(law.get("covariance") or [], float)
    if covariance.shape == (5, 5) and np.isfinite(covariance).all():
        slope = np.array([0, 0, 0, -beta, alpha]) / (alpha + beta) ** 2
        half = stats.norm.ppf((1 + options.level) / 2) * np.sqrt(max(slope @ covariance @ slope, 0.0))
        ends = (a - half, a + half)
    return a, ends, lambda c: g * (c / 6) ** a
