"""Compute-optimal N and D of a fitted loss law: power laws of FLOPs, and a table at a few budgets."""

import numpy as np
import pandas as pd

from analysis.law import finite
from analysis.loss.allocation import exponents, log_coefficients, log_loss_at, log_optimal
from analysis.loss.resample import interval

BEYOND = (1.0, 10.0, 100.0)  # times the largest budget of the rows


def derive(fitted, group, options) -> tuple[list[dict], pd.DataFrame | None]:
    """([law of params_opt, law of tokens_opt], table); nothing for a law of N or D alone."""
    centre, draws = fitted.centre[:5], fitted.draws[:, :5]
    if not {"A", "B"} <= set(fitted.symbols) or not np.isfinite(centre[1:3]).all() or (centre[3:] <= 0).any():
        return [], None
    draws = draws[np.isfinite(draws[:, 1:3]).all(axis=1) & (draws[:, 3:] > 0).all(axis=1)]
    budgets = sorted(set(options.flops)) or [float((6 * group.params * group.tokens).max()) * b for b in BEYOND]
    laws = [
        _law(name, k, centre, draws, fitted, group, options) for k, name in enumerate(("params_opt", "tokens_opt"))
    ]
    return laws, pd.DataFrame([_row(flops, centre, draws, options.level) for flops in budgets])


def _law(name: str, k: int, centre, draws, fitted, group, options) -> dict:
    own = np.array([log_coefficients(centre)[k], exponents(centre)[k]])
    drawn = np.stack([log_coefficients(draws)[k], exponents(draws)[k]], axis=1)
    ends = [interval(value, column, options.level) for value, column in zip(own, drawn.T, strict=True)]
    with np.errstate(over="ignore"):
        coefficient = dict(zip(("value", "low", "high"), np.exp([own[0], *ends[0]]).tolist(), strict=True))
    exponent = dict(zip(("value", "low", "high"), (own[1], *ends[1]), strict=True))
    flops = 6.0 * group.params * group.tokens
    clipped = np.clip(drawn, *np.quantile(drawn, [0.005, 0.995], axis=0)) if len(drawn) else drawn
    return {
        "name": name,
        "given": {key: value for key, value in group.settings.items() if value is not None},
        "form": "coefficient * flops^flops",
        "unit": "tokens" if name == "tokens_opt" else options.predictors[0],
        "parameters": {"coefficient": {key: finite(v) for key, v in coefficient.items()},
                       "flops": {key: finite(v) for key, v in exponent.items()}},
        "r2": None,
        "n": len(group),
        "counts": "rows",
        "objective": finite(fitted.objective),
        "heldout": {"n": 0, "mean_abs_log_error": None, "mean_excess_loss": None},
        "method": "derived from the loss law, flops = 6 params tokens",
        "predictors": ["flops"],
        "covariance": np.cov(clipped, rowvar=False).tolist() if len(drawn) >= 50 else None,
        "scatter": 0.0,
        "level": options.level,
        "range": {"flops": {"low": float(flops.min()), "high": float(flops.max())}},
        "notes": ["derived from the loss law, not fitted to optima."],
    }  # fmt: skip


def _row(flops: float, centre, draws, level: float) -> dict:
    at, drawn = log_optimal(centre, flops), log_optimal(draws, flops)
    shown = {
        "params": (at[0], drawn[0]),
        "tokens": (at[1], drawn[1]),
        "tpp": (at[1] - at[0], drawn[1] - drawn[0]),
        "loss": (log_loss_at(centre, *at), log_loss_at(draws, *drawn)),
    }
    row = {"flops": flops}
    for name, (value, values) in shown.items():
        ends = interval(float(value), values, level)
        with np.errstate(over="ignore"):
            row[name] = np.exp(value)
            if name in ("params", "tokens"):  # as many as a page is wide; predict.optimal_at has the others
                row |= {f"{name} low": np.exp(ends[0]), f"{name} high": np.exp(ends[1])}
    return {key: finite(value) for key, value in row.items()}
