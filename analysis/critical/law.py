"""Law of the critical batch: ln B_crit = c + e ln D_min (or params, or the target loss), with honest intervals.

Least squares through the points, each alike (Power Lines, arXiv 2505.13738; Zhang, arXiv 2410.21676). The points are
not independent: several target losses of one model size come from the same runs, and a size that lies off the law does
so at all its targets. So, after analysis/law.py, with W the covariance that the runs' noise gives to ln B_crit - e ln D_min
(both come from the same hyperbola; blocks of runs are shared between points) and Z what points belong to which size,

    V = W + s2 Z Z',   s2 = max(0, (RSS - tr MW) / tr MZZ'),   covariance = P V P' * RSS / tr MV,

Student t with Satterthwaite's (tr MV)^2 / tr MVMV degrees of freedom; where the runs' noise explains the residuals
(F test, 10 %; at the 30 % of analysis/law.py intervals from four sizes cover 88 %) s2 = 0 and both estimates of that
noise are averaged by degrees of freedom. `scatter`, for a new model size, is sqrt(RSS / tr MZZ').

How often 80 % intervals hold the truth: benchmarks/coverage_critical.py.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse, stats

from analysis.critical.points import Point
from analysis.law import PowerLaw, choose_predictors, design, largest_scales
from analysis.query import mask

NO_SCATTER = 0.1
ROUNDING = 1e-8


def lookup(point: Point) -> dict[str, float]:
    """What a law of this point can be written in."""
    at = {**point.given, "tokens": float(np.exp(point.log_tokens))}
    at["tpp"] = at["tokens"] / at["params"]
    at["flops"] = 6.0 * at["params"] * at["tokens"]
    return at if point.target is None else {**at, "loss": point.target}


def fit(points: Sequence[Point], predictors: Sequence[str]) -> PowerLaw:
    """The law through interior points; predictors vary and are not collinear (analysis.law.choose_predictors)."""
    values, y = [lookup(p) for p in points], np.array([p.log_value for p in points])
    x = design(values, predictors)
    n, p = x.shape
    solver = np.linalg.pinv(x)
    beta = solver @ y
    residual = y - x @ beta
    rss, total = float(residual @ residual), float(((y - y.mean()) ** 2).sum())
    r2 = 1 - rss / total if total > 1e-20 and p > 1 else None
    if n <= p:
        return PowerLaw(tuple(predictors), beta, None, None, 0.0, rss, r2)
    maker = np.eye(n) - x @ solver
    exponent = float(beta[1 + list(predictors).index("tokens")]) if "tokens" in predictors else 0.0
    own, own_dof = own_covariance(points, exponent)
    noise = ROUNDING**2 * np.eye(n) + (0.0 if own is None else own)
    together = _together([point.size for point in points])
    apart = float((maker * together).sum())
    identified = apart > 1e-6 * n  # one model size: its own offset is the coefficient
    explained = float((maker * noise).sum())
    s2 = max(0.0, (rss - explained) / apart) if identified else 0.0
    if own_dof > 0 and stats.f.sf(rss / explained, _effective(maker, noise), own_dof) > NO_SCATTER:
        s2 = 0.0
    variance = noise + s2 * together
    effective, trace = _effective(maker, variance), float(np.trace(maker @ variance))
    inflation = rss / trace
    if own is not None and own_dof > 0 and s2 == 0:  # both estimate the runs' noise
        inflation = (inflation * effective + own_dof) / (effective + own_dof)
        effective += own_dof
    covariance = solver @ variance @ solver.T * inflation
    scatter = np.sqrt(rss / apart) if identified else np.sqrt(rss / (n - p))
    return PowerLaw(tuple(predictors), beta, covariance, float(scatter), float(effective), rss, r2)


def own_covariance(points: Sequence[Point], exponent: float) -> tuple[np.ndarray | None, float]:
    """((n, n) covariance of ln value - exponent * ln tokens from the runs' noise, degrees of freedom), or (None, 0)
    where a point has none."""
    if any(p.influence is None or p.dof <= 0 for p in points) or not points:
        return None, 0.0
    owners = np.repeat(np.arange(len(points)), [len(p.block) for p in points])
    amounts = np.concatenate([p.influence[1] - exponent * p.influence[0] for p in points])
    blocks = np.concatenate([p.block for p in points])
    shares = sparse.csr_array((amounts, (owners, blocks)))
    return (shares @ shares.T).toarray(), float(np.mean([p.dof for p in points]))


def _together(sizes: Sequence[int]) -> np.ndarray:
    sizes = np.asarray(sizes)
    return (sizes[:, None] == sizes[None, :]).astype(float)


def _effective(maker: np.ndarray, variance: np.ndarray) -> float:
    spread = maker @ variance
    return float(np.trace(spread)) ** 2 / max(float((spread * spread.T).sum()), 1e-300)


def held_out(points: Sequence[Point], heldout: float | str | None) -> np.ndarray:
    """Bool mask: the largest model sizes (one size: the largest tokens), never part of a size; or a condition."""
    if heldout is None or not points:
        return np.zeros(len(points), bool)
    values = [lookup(p) for p in points]
    if isinstance(heldout, str):
        return mask(pd.DataFrame(values), heldout)
    scale = "params" if len({p.size for p in points}) > 1 else "flops"
    return largest_scales(np.array([at[scale] for at in values]), heldout)


def score(points: Sequence[Point], held: np.ndarray, predictors: Sequence[str]) -> float | None:
    """Mean absolute error in natural log at the held-out points of a refit without them; None where that is
    undetermined."""
    rest = [p for p, out in zip(points, held, strict=True) if not out]
    if not held.any() or len(rest) < len(predictors) + 1:
        return None
    if choose_predictors([lookup(p) for p in rest], predictors).kept != list(predictors):
        return None
    out = [p for p, o in zip(points, held, strict=True) if o]
    predicted = fit(rest, predictors).log_at([lookup(p) for p in out])
    return float(np.mean(np.abs(predicted - [p.log_value for p in out])))


def comparison(points: Sequence[Point], held: np.ndarray) -> pd.DataFrame:
    """What B_crit follows: predictor sets side by side, one row each: exponents, R2, r.m.s. residual (natural log),
    held-out error. Only sets that these points determine.

    Not analysis.compare: its AICc and its error of each point left out take errors as independent, but points of one
    model size err together (see above), and one left out would leave the others of its size in."""
    values, rows = [lookup(p) for p in points], []
    for names in (["tokens"], ["params"], ["loss"], ["tokens", "params"]):
        if any(name not in at for at in values for name in names) or len(points) < len(names) + 1:
            continue
        if choose_predictors(values, names).kept != names:
            continue
        law = fit(points, names)
        error = score(points, held, names)
        rows.append({
            "predictors": " ".join(names),
            **{name: law.beta[1 + names.index(name)] if name in names else None for name in ("tokens", "params", "loss")},
            "r2": law.r2,
            "rms_residual": float(np.sqrt(law.rss / len(points))),
            "heldout_error": error,
        })  # fmt: skip
    frame = pd.DataFrame(rows)
    return frame.drop(columns=[c for c in frame if frame[c].isna().all()]) if len(frame) else frame
