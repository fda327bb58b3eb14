"""Power laws of optima: log y = c + sum_p exponent_p * log x_p, with intervals and the error on held-out scales.

A LAW is a plain dict, ready for laws.json. Beyond the keys of the contract (analysis, name, given, form, unit,
parameters, r2, n, objective, heldout, method) every power law carries what a prediction interval needs
(analysis/predict.py):

    predictors   [names], in the order of the exponents
    covariance   matrix of (log coefficient, exponents...), natural log; null if it is unknown (as many optima as
                 parameters)
    scatter      residual s.d. of the optima about the law, natural log; null if it is unknown
    true_scatter s.d. of the true optima about the law: scatter with the runs' noise taken off, at least 0 (without the F
                 test below); what a prediction adds to the error of the law
    dof          degrees of freedom of covariance and scatter (Student t); 0 where they are unknown
    level        probability content of every interval of this law (0.8: from 10 % to 90 %)
    range        {params, tokens, tpp, batch_size, predictors: {"low":, "high":}} over the slices behind the law
    sampled      {column: [value in each slice]}: scale and held hyper-parameters
    held         {column: geometric mean over the slices of what they held}
    optima_from  what found the optima: quadratic, shape (the slices' shared one), mixed, akima or argmin; `method` is what
                 was asked for
    behind       {kept predictor: [collinear predictors that it stands for]}
    notes        [lines that a reader should see]

Intervals. Least squares weighs every optimum alike: errors of single optima come from few runs, and weights from them
are noisier than the law. With P the solver, M the residual maker, W what the runs' noise leaves in the optima (their
covariance: branches of one trunk are one block), the scatter of the true optima about the law has the variance
s2 = max(0, (RSS - tr MW) / dof), and

    covariance = P V P' * RSS / tr MV,   V = W + s2 I,   Student t, dof = (tr MV)^2 / tr MVMV (Satterthwaite).

Where the runs' noise explains the residuals (F test, 22 %), s2 = 0, both estimate that noise, and are averaged by
degrees of freedom. (Hartung and Knapp's interval of random-effects meta-analysis, for ordinary least squares.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from analysis.optimum import Optimum
from analysis.spread import own_covariance as own_covariance

CONSTANT = 0.02  # a predictor that moves by less does not vary
COLLINEAR = 100.0  # variance inflation above which a predictor is another under a second name
SAME_SCALE = 0.02
ROUNDING = 1e-8  # of a log optimum
NO_SCATTER = 0.22  # significance above which the runs' noise explains the residuals: of three optima 75 to 84 % are covered


@dataclass
class Predictors:
    kept: list[str]
    behind: dict[str, list[str]] = field(default_factory=dict)
    constant: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PowerLaw:
    """log y = beta @ (1, log x...). covariance is None where no degree of freedom is left."""

    predictors: tuple[str, ...]
    beta: np.ndarray
    covariance: np.ndarray | None
    scatter: float | None
    dof: float
    rss: float
    r2: float | None
    true_scatter: float | None = None

    def log_at(self, values: Sequence[Mapping[str, float]]) -> np.ndarray:
        """Natural log of the law at each of `values` ({predictor: value})."""
        return design(values, self.predictors) @ self.beta


def lookup(optimum: Optimum) -> dict[str, float]:
    """What a law of this optimum can be written in: its scale, what it held, FLOPs, its loss."""
    s = optimum.slice
    return {**s.held, **s.given, "flops": s.flops, "loss": optimum.loss}


def design(values: Sequence[Mapping[str, float]], predictors: Sequence[str]) -> np.ndarray:
    return np.array([[1.0, *(np.log(at[name]) for name in predictors)] for at in values]).reshape(len(values), -1)


def choose_predictors(values: Sequence[Mapping[str, float]], wanted: Sequence[str]) -> Predictors:
    """Of `wanted`, in order: those that vary and are no combination of those kept before (variance inflation over
    100)."""
    result = Predictors([])
    for name in wanted:
        column = np.log([at[name] for at in values])
        if np.ptp(column) < np.log1p(CONSTANT):
            result.constant.append(name)
            continue
        centered = column - column.mean()
        base = design(values, result.kept)
        residual = centered - base @ np.linalg.lstsq(base, centered, rcond=None)[0]
        if residual @ residual * COLLINEAR < centered @ centered:
            result.behind.setdefault(_closest(values, column, result.kept), []).append(name)
        else:
            result.kept.append(name)
    return result


def _closest(values, column: np.ndarray, kept: list[str]) -> str:
    return max(kept, key=lambda name: abs(np.corrcoef(column, np.log([at[name] for at in values]))[0, 1]))


def fit_power_law(
    values, y: np.ndarray, predictors: Sequence[str], own: np.ndarray | None = None, own_dof: float = 0.0
) -> PowerLaw:
    """Least squares of log optima y (n,) on the logs of `predictors`; own (n, n): covariance of y from the runs' noise
    alone, known with own_dof degrees of freedom, or None."""
    x = design(values, predictors)
    n, p = x.shape
    solver = np.linalg.pinv(x)
    beta = solver @ y
    residual = y - x @ beta
    rss, total, dof = float(residual @ residual), float(((y - y.mean()) ** 2).sum()), n - p
    r2 = 1 - rss / total if total > 1e-20 and p > 1 else None
    if dof < 1:
        return PowerLaw(tuple(predictors), beta, None, None, 0.0, rss, r2)
    maker = np.eye(n) - x @ solver
    noise = ROUNDING**2 * np.eye(n) + (0.0 if own is None else own)
    scatter = true = max(0.0, (rss - (maker * noise).sum()) / dof)
    if own_dof > 0 and stats.f.sf(rss / (maker * noise).sum(), dof, own_dof) > NO_SCATTER:
        scatter = 0.0
    variance = noise + scatter * np.eye(n)
    spread = maker @ variance
    trace = float(np.trace(spread))
    effective = min(trace**2 / float((spread * spread.T).sum()), dof)
    inflation = rss / trace
    if own is not None and own_dof > 0 and scatter == 0:  # both estimate the runs' noise
        inflation = (inflation * effective + own_dof) / (effective + own_dof)
        effective += own_dof
    covariance = solver @ variance @ solver.T * inflation
    return PowerLaw(tuple(predictors), beta, covariance, float(np.sqrt(rss / dof)), effective, rss, r2, float(np.sqrt(true)))


def largest_scales(flops: np.ndarray, fraction: float = 0.25) -> np.ndarray:
    """Bool mask of the slices held out: all at the largest training FLOPs, never part of a scale, at least one scale
    and as near to `fraction` of the slices as whole scales come; never all."""
    order = np.argsort(-flops, kind="stable")
    starts = [0]
    for i in range(1, len(order)):
        if flops[order[i]] < flops[order[starts[-1]]] / (1 + SAME_SCALE):
            starts.append(i)
    held = np.zeros(len(flops), bool)
    if len(starts) > 1:
        count = min(starts[1:], key=lambda start: abs(start - fraction * len(flops)))
        held[order[:count]] = True
    return held


def as_dict(law: PowerLaw, level: float) -> dict:
    """The parts of a LAW that come from the fit: form, parameters, r2, n's companions, covariance; finite or None."""
    half = np.full(len(law.beta), np.nan)
    if law.covariance is not None:
        half = stats.t.ppf((1 + level) / 2, law.dof) * np.sqrt(np.diag(law.covariance))
    ends = np.stack([law.beta, law.beta - half, law.beta + half], axis=1)
    with np.errstate(over="ignore"):
        ends[0] = np.exp(ends[0])
    named = zip(("coefficient", *law.predictors), ends, strict=True)
    return {
        "form": " * ".join(["coefficient", *(f"{name}^{name}" for name in law.predictors)]),
        "parameters": {key: dict(zip(("value", "low", "high"), map(finite, row), strict=True)) for key, row in named},
        "r2": finite(law.r2),
        "objective": finite(law.rss),
        "predictors": list(law.predictors),
        "covariance": None if law.covariance is None else law.covariance.tolist(),
        "scatter": finite(law.scatter),
        "true_scatter": finite(law.true_scatter),
        "dof": law.dof,
        "level": level,
    }


def finite(value: float | None) -> float | None:
    """A float that JSON can hold, or None."""
    return None if value is None or not np.isfinite(value) else float(value)
