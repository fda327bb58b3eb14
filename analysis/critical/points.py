"""Points (D_min, B_crit): the hyperbola through the D_B of one model size and target loss, with interval and verdict.

Noise of the runs reaches a point through d ln D_B / d row (of the loss curves, or 1 for steps that were measured) and
the hyperbola's own derivative: `influence`, (ln tokens, ln value) by blocks of runs. Several target losses of one model
size come from the same runs: their influences overlap, and the law (analysis/critical/law.py) takes them as one.

Verdicts: interior; edge (the critical batch, or the optimal batch of definition=overhead, lies outside the batches
measured); flat (noise leaves it open by more than the measured batches span); too_few (less than three batches reach the
target inside their trained tokens).
"""

from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from analysis.critical import hyperbola
from analysis.critical.options import Options
from analysis.critical.rows import SAME_BATCH

LEAST_BATCHES = 3


@dataclass
class Point:
    """One model size and target loss. Natural logs; tokens in tokens where known (else in batch units x steps)."""

    settings: dict
    size: int  # code of the model size
    given: dict  # params, width, depth, ...
    target: float | None
    n: int  # rows behind it
    verdict: str = "too_few"
    log_batch: np.ndarray = field(default_factory=lambda: np.empty(0))
    log_d: np.ndarray = field(default_factory=lambda: np.empty(0))
    log_d_min: float = np.nan
    log_b_crit: float = np.nan
    start: float = np.nan  # the optimal batch, in the unit of the batch
    log_tokens: float = np.nan  # predictor: D_min, or D at the optimal batch
    log_value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    influence: np.ndarray | None = None  # (2, rows): of (ln tokens, ln value), times the noise
    block: np.ndarray | None = None  # (rows,)
    dof: float = 0.0
    misfit: float = np.nan  # r.m.s. of ln D about the hyperbola

    def starts_outside(self) -> bool:
        """Whether the optimal batch lies outside the batches measured, by more than one batch's own tolerance."""
        return not self.log_batch.min() - SAME_BATCH <= np.log(self.start) <= self.log_batch.max() + SAME_BATCH


def place(point: Point, options: Options, log_tokens: float | None = None) -> Point:
    """Fills in the hyperbola and what the definition makes of it. log_tokens: of the table, where it says."""
    if len(np.unique(point.log_batch.round(6))) < LEAST_BATCHES:
        return point
    fitted = hyperbola.fit(point.log_batch, point.log_d)
    point.log_d_min, point.log_b_crit = float(fitted.log_d_min[0]), float(fitted.log_b_crit[0])
    point.misfit = float(np.sqrt(fitted.rss[0] / max(len(point.log_batch) - 2, 1)))
    point.log_value = float(_value(fitted.log_b_crit, point.start, options)[0])
    point.log_tokens = log_tokens if log_tokens is not None else float(_tokens(fitted, point.start, options)[0])
    inside = point.log_batch.min() <= point.log_value <= point.log_batch.max()
    if options.definition == "overhead" and point.starts_outside():
        inside = False
    point.verdict = "interior" if inside and np.isfinite(point.log_b_crit) else "edge"
    return point


def _value(log_b_crit: np.ndarray, start: float, options: Options) -> np.ndarray:
    if options.definition == "hyperbola":
        return log_b_crit
    return hyperbola.critical(log_b_crit, options.overhead, start)


def _tokens(fitted: hyperbola.Hyperbola, start: float, options: Options) -> np.ndarray:
    if options.definition == "hyperbola":
        return fitted.log_d_min
    return fitted.log_d_min + np.logaddexp(0.0, np.log(start) - fitted.log_b_crit)


def spread(point: Point, log_d_by_row: np.ndarray, block: np.ndarray, dof: float, options: Options, known: bool) -> None:
    """Influence from log_d_by_row (batches, rows) = d ln D_B / d row times the row's noise; flat where that leaves the
    critical batch open. known: tokens come from the table, without noise."""
    if not np.isfinite(point.log_b_crit):
        return
    d_min, b_crit = hyperbola.sensitivity(point.log_batch, point.log_b_crit) @ log_d_by_row
    slope, tokens = 1.0, d_min
    if options.definition == "overhead":
        slope = hyperbola.critical_slope(point.log_b_crit, options.overhead, point.start)
        share = 1.0 / (1.0 + np.exp(point.log_b_crit - np.log(point.start)))
        tokens = d_min - share * b_crit
    point.influence = np.stack([0.0 * tokens if known else tokens, slope * b_crit])
    point.block, point.dof = block, dof
    if dof <= 0:
        return
    half = stats.t.ppf((1 + options.level) / 2, dof) * np.sqrt((_by_block(point.influence[1], block) ** 2).sum())
    if point.verdict == "interior" and half > np.ptp(point.log_batch):
        point.verdict = "flat"
    point.low, point.high = point.log_value - half, point.log_value + half


def bounds(point: Point, draws: np.ndarray, options: Options) -> None:
    """Interval from the hyperbolas of draws of ln D_B (K, batches)."""
    values = _value(hyperbola.fit(point.log_batch, draws).log_b_crit, point.start, options)
    values = values[~np.isnan(values)]
    if len(values):
        low, high = np.quantile(values, [(1 - options.level) / 2, (1 + options.level) / 2], method="nearest")
        point.low, point.high = float(low), float(high)


def _by_block(amounts: np.ndarray, block: np.ndarray) -> np.ndarray:
    return np.bincount(block, amounts)


def noise_draws(block: np.ndarray, variance: float, dof: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, rows) draws of the rows' noise; the variance is known with dof degrees of freedom; a block moves as
    one."""
    codes = np.unique(block, return_inverse=True)[1].ravel()
    scale = np.sqrt(variance * dof / rng.chisquare(dof, count))
    return scale[:, None] * rng.standard_normal((count, codes.max() + 1))[:, codes]
