"""Power laws of what is compute-optimal, log y = c + a log C, as LAW dicts; shared by isoflop and envelope."""

import numpy as np
import pandas as pd

from analysis.errors import UserError
from analysis.law import PowerLaw, as_dict, finite, fit_power_law, largest_scales
from analysis.query import mask

UNITS = {"params_opt": "parameters", "tokens_opt": "tokens", "loss_opt": "nats per token"}
NOTHING = {"n": 0, "mean_abs_log_error": None, "mean_excess_loss": None}


def scales(flops: np.ndarray) -> list[dict]:
    return [{"flops": float(c)} for c in flops]


def power_law(flops: np.ndarray, y: np.ndarray, own=None, own_dof: float = 0.0, weighted: bool = False) -> PowerLaw:
    """log y (n,) on log flops: ordinary least squares (analysis/law.py), or weighted by 1 / the minimum's own variance
    (Porian et al., arXiv 2406.19146), whose covariance is scaled up where the residuals exceed it, never down."""
    if not weighted or own is None:
        return fit_power_law(scales(flops), y, ["flops"], own, own_dof)
    x = np.stack([np.ones(len(y)), np.log(flops)], axis=1)
    w = 1 / np.diag(own)
    spread = np.linalg.inv(x.T @ (w[:, None] * x))
    beta = spread @ x.T @ (w * y)
    residual = y - x @ beta
    dof, total = len(y) - 2, float(((y - y.mean()) ** 2).sum())
    rss = float(residual @ residual)
    r2 = 1 - rss / total if total > 0 else None
    if dof < 1:
        return PowerLaw(("flops",), beta, None, None, 0.0, rss, r2)
    excess = max(float(w @ residual**2) / dof, 1.0)
    return PowerLaw(("flops",), beta, spread * excess, float(np.sqrt(rss / dof)), float(dof), rss, r2)


def held_out(points: pd.DataFrame, heldout: float | str | None) -> np.ndarray:
    """(n,) bool: the largest budgets, or those where the condition holds."""
    if heldout is None or not len(points):
        return np.zeros(len(points), bool)
    if isinstance(heldout, str):
        held = mask(points.reset_index(drop=True), heldout)
        if held.all():
            raise UserError(f"heldout={heldout} holds out every budget.")
        return held
    return largest_scales(points["flops"].to_numpy(float), heldout)


def score(flops: np.ndarray, y: np.ndarray, held: np.ndarray, curves=None, kept=None) -> dict:
    """`heldout` of a LAW: error of a refit without the held-out budgets, and what using it there costs. curves: of each
    budget a function log y -> loss minus the lowest, or None. kept: (flops, y) of the other budgets, where they are found
    anew without the held-out ones."""
    rest = (flops[~held], y[~held]) if kept is None else kept
    if not held.any() or len(rest[0]) < 2:
        return dict(NOTHING)
    refit = power_law(*rest)
    predicted = refit.log_at(scales(flops[held]))
    costs = []
    if curves is not None:
        costs = [float(c(at)) for c, at in zip([c for c, h in zip(curves, held, strict=True) if h], predicted, strict=True)]
    error = float(np.mean(np.abs(predicted - y[held])))
    excess = finite(float(np.mean(costs))) if costs else None
    return {"n": int(held.sum()), "mean_abs_log_error": error, "mean_excess_loss": excess}


def ranges(points: pd.DataFrame) -> dict:
    """`range` of a LAW: of the optima behind it."""
    return {c: {"low": float(points[c].min()), "high": float(points[c].max())} for c in points}


def law_dict(law: PowerLaw, name: str, points: pd.DataFrame, level: float, **extra) -> dict:
    """points: flops, params, tokens, tpp at the optima behind the law."""
    return {
        "name": name,
        "unit": UNITS[name],
        **as_dict(law, level),
        "n": len(points),
        "behind": {},
        "range": ranges(points),
        "sampled": {c: points[c].tolist() for c in points},
        "held": {},
        **extra,
    }


def with_floor(flops: np.ndarray, loss: np.ndarray, held: np.ndarray) -> pd.DataFrame | None:
    """loss_opt = A C^-g and E + A C^-g side by side, with the error of each on the held-out budgets; None under four
    budgets. E is what least squares of log(loss - E) on log C leaves best in the loss, on a grid below the lowest
    loss."""
    if len(loss) < 4:
        return None
    rows = []
    for form in ("A * C^-g", "E + A * C^-g"):
        e, a, g = _floored(flops, loss, form[0] == "E")
        error = np.nan
        if held.any() and (~held).sum() >= 4:
            parts = _floored(flops[~held], loss[~held], form[0] == "E")
            error = float(np.mean(np.abs(np.log(_at(flops[held], *parts) / loss[held]))))
        off = float(np.sqrt(np.mean(np.log(_at(flops, e, a, g) / loss) ** 2)))
        rows.append({"form": form, "E": e, "A": a, "g": g, "r.m.s. log error": off, "held out, mean log error": error})
    return pd.DataFrame(rows)


def _at(flops, e: float, a: float, g: float) -> np.ndarray:
    return e + a * np.asarray(flops, float) ** -g


def _floored(flops: np.ndarray, loss: np.ndarray, floor: bool) -> tuple[float, float, float]:
    floors = loss.min() * np.r_[0.0, np.linspace(0.02, 0.98, 193)] if floor else np.zeros(1)
    x = np.log(flops) - np.log(flops).mean()
    y = np.log(loss[:, None] - floors)
    slope = (x @ y) / (x @ x)
    line = y.mean(axis=0) + x[:, None] * slope
    e = int(((np.log((floors + np.exp(line)) / loss[:, None])) ** 2).sum(axis=0).argmin())
    return float(floors[e]), float(np.exp(y[:, e].mean() - slope[e] * np.log(flops).mean())), float(-slope[e])

