"""The loss of each compared value at each scale, for compute multipliers: fitted optima, or the lowest runs."""

import numpy as np
import pandas as pd

from analysis.codes import cluster
from analysis.transfer.lines import Line
from analysis.transfer.local import own_of_loss
from analysis.transfer.multiplier import Frontier, floor_of, multipliers
from analysis.transfer.options import Options

USUAL = ("adamw", "adam")


def reference_of(lines: list[Line], options: Options) -> str | None:
    """The compared value that the others are measured against; None with fewer than two."""
    labels = sorted({line.label for line in lines})
    if len(labels) < 2:
        return None
    usual = next((label for label in labels if label.lower() in USUAL), labels[0])
    return options.reference or usual


def table_of_multipliers(
    df: pd.DataFrame, lines: list[Line], column: str, reference: str, options: Options
) -> tuple[pd.DataFrame, list[str]]:
    """(one row for each scale of every compared value but the reference: what stays, scale, compute, loss, multiplier,
    low, high, reference_compute, extrapolated, loss_is, floor: L_inf that log losses are taken above; notes)."""
    if not any(line.optima and line.optima[0].slice.flops for line in lines) or "flops" not in df:
        return pd.DataFrame(), ["compute multipliers need flops (or params and tokens): the table has none."]
    whole = all(o.verdict == "interior" for line in lines for o in line.optima)
    kind = options.best if options.best != "auto" else "fitted" if whole else "lowest"
    frontiers = _fitted(lines) if kind == "fitted" else _lowest(df, lines, column, options)
    rows, alone = [], set()
    for (label, fixed), (points, scale) in frontiers.items():
        if label == reference:
            continue
        against = frontiers.get((reference, fixed))
        floor = floor_of(against[0], options.level) if against and options.interpolate == "auto" else (0.0, 0.0)
        found = multipliers(points, against[0], options.level, floor) if against else []
        if not found:
            alone.add(label)
        for each, c, loss, n in zip(found, points.compute, points.loss, scale, strict=False):
            row = {
                column: label,
                **dict(fixed),
                options.scale: n,
                "compute": c,
                "loss": loss,
                **each,
                "loss_is": kind,
                "floor": floor[0],
            }
            rows.append(row)
    notes = [f"{', '.join(sorted(alone))}: {reference} has fewer than two scales to compare with."] if alone else []
    if kind == "lowest" and rows:
        notes.append(
            "compute multipliers compare the lowest run at each scale, whose noise is unknown and which more runs lower: "
            "no interval."
        )
    return pd.DataFrame(rows), notes


def _key(label: str, fixed: dict, known: list[dict]) -> tuple:
    """Lines whose fixed values agree within 2 % share a key."""
    for other in known:
        if other.keys() == fixed.keys() and all(abs(np.log(other[k] / fixed[k])) < 0.02 for k in fixed):
            return label, tuple(other.items())
    known.append(fixed)
    return label, tuple(fixed.items())


def _fitted(lines: list[Line]) -> dict[tuple, tuple[Frontier, np.ndarray]]:
    found, known = {}, []
    for line in (each.interior() for each in lines):
        if not line.optima:
            continue
        own, dof = own_of_loss(line.optima)
        sd = np.full(len(line.optima), np.nan) if own is None else np.sqrt(np.diag(own))
        compute = np.array([o.slice.flops for o in line.optima])
        frontier = Frontier(compute, np.array([o.loss for o in line.optima]), sd, dof)
        found[_key(line.label, line.fixed, known)] = frontier, line.scale
    return found


def _lowest(df: pd.DataFrame, lines: list[Line], column: str, options: Options) -> dict[tuple, tuple[Frontier, np.ndarray]]:
    """The lowest run at each scale and at each value of what stays along the lines, whatever else it holds."""
    stays = [name for name in ("tpp", "tokens", "params") if any(name in line.fixed for line in lines)]
    good = df[(df["status"] == "done") & np.isfinite(df["loss"]) & (df["loss"] > 0) & (df["flops"] > 0)]
    good = good.dropna(subset=[*stays, options.scale, column])
    codes = np.zeros(len(good), int)
    for name in stays:
        codes = cluster(good[name], codes)
    found, known = {}, []
    for (label, code), rows in good.groupby([good[column].astype(str), codes], sort=True):
        fixed = {name: float(good[name].to_numpy()[codes == code].min()) for name in stays}
        best = rows.loc[rows.groupby(cluster(rows[options.scale]))["loss"].idxmin()]
        frontier = Frontier(best["flops"].to_numpy(), best["loss"].to_numpy(), np.full(len(best), np.nan))
        found[_key(str(label), fixed, known)] = frontier, best[options.scale].to_numpy()
    return found
