"""Points from a table of steps to a target loss: one curve of steps for each model size and target."""

import numpy as np
import pandas as pd

from analysis.codes import cluster
from analysis.critical import hyperbola
from analysis.critical.options import Options
from analysis.critical.points import Point, bounds, noise_draws, place, spread
from analysis.noise import moderated


def points(df: pd.DataFrame, settings_of, given_of, options: Options, rng: np.random.Generator) -> list[Point]:
    """df: rows of analysis.critical.rows with steps_to_target. settings_of, given_of: functions of the rows of one
    curve. Rows of several LRs at one batch: the fewest steps count."""
    target = df["target_loss"] if "target_loss" in df else pd.Series(np.nan, index=df.index)
    df = df.assign(_curve=cluster(target, df["_size"].to_numpy(), 1e-6))
    found, squares, dof, used = [], [], [], []
    for _, curve in df.groupby("_curve", sort=True):
        rows = _fewest(curve)
        per_batch = rows["batch_tokens"] / rows["_batch"] if "batch_tokens" in rows else pd.Series(1.0, index=rows.index)
        log_d = np.log(rows["steps_to_target"] * rows["_batch"] * per_batch.fillna(1.0)).to_numpy(float)
        loss = float(rows["target_loss"].iloc[0]) if "target_loss" in rows else np.nan
        point = Point(settings_of(rows), int(rows["_size"].iloc[0]), given_of(rows), loss if np.isfinite(loss) else None,
                      len(rows), log_batch=np.log(rows["_batch"].to_numpy(float)), log_d=log_d,
                      start=float(rows["_start"].iloc[0]))  # fmt: skip
        tokens = _tokens(rows) if options.definition == "overhead" else None
        place(point, options, tokens)
        found.append(point)
        used.append((rows["_block"].to_numpy(), tokens is not None))
        free = len(rows) - 2 if np.isfinite(point.misfit) else 0
        dof.append(free)
        squares.append(max(point.misfit**2, 1e-18) * free if free else 0.0)
    variance, known = moderated(np.array(squares), np.array(dof))
    for point, (block, fixed), v, d in zip(found, used, variance, known, strict=True):
        if d <= 0 or not np.isfinite(point.log_b_crit):
            continue
        spread(point, np.sqrt(v) * np.eye(point.n), block, float(d), options, fixed)
        if options.bootstrap:
            fitted = hyperbola.at(point.log_batch, point.log_d_min, point.log_b_crit)
            bounds(point, fitted + noise_draws(block, float(v), float(d), options.bootstrap, rng), options)
    return found


def _fewest(curve: pd.DataFrame) -> pd.DataFrame:
    """One LR for each batch (and its seeds): that of the fewest steps."""
    if "lr" not in curve or curve["lr"].isna().any():
        return curve
    lr = cluster(curve["lr"], tolerance=0.01)
    means = curve.groupby([curve["_batch_code"], lr])["steps_to_target"].transform("mean")
    return curve[means <= means.groupby(curve["_batch_code"]).transform("min") * (1 + 1e-12)]


def _tokens(rows: pd.DataFrame) -> float | None:
    """ln of the tokens that the table gives for the whole curve (not one for each batch), or None."""
    if "tokens" not in rows or rows["tokens"].isna().any() or rows["tokens"].max() > 1.02 * rows["tokens"].min():
        return None
    return float(np.log(rows["tokens"].median()))
