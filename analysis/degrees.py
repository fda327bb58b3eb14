"""How flexible the shape that slices share must be (analysis/shape.py).

The degree is not known, so degrees 2 to 7 (5 of several hyper-parameters) are averaged by their Akaike weights w_d
(Burnham and Anderson 2002, ch. 4), and the spread between them is part of the error:

    x = sum_d w_d x_d,    covariance = sum_d w_d (x_d - x)(x_d - x)' + that of sum_d w_d x_d from the runs' noise.

The weight of each degree goes to the next: a bend too small to be seen in the losses can move an optimum by its whole
interval, and only a fit more flexible than the losses ask for has less bias than noise (undersmoothing).

In 200 to 300 draws of planted basins (benchmarks/coverage.py) exponents and coefficients are covered in 76 to 88 % so,
single optima in 75 to 82 %, but in 68 % where the bend hides (a batch's kink just above the critical one) or three slices
must tell it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.shape import Basins, Fit, exponents, fit_degree

HIGHEST = {1: 7}  # degree, by the number of hyper-parameters
OTHERWISE = 5
BEYOND = 1
PER_TERM = 5  # degrees of freedom that a shared term takes


@dataclass
class Average:
    """Degrees averaged: best (n, k); own (R, k), loading (n, k, M), shared (R, M) as in Fit, all degrees side by side;
    models (n, k, D): what the degrees differ by, as effects of unit variance; weights (D,)."""

    best: np.ndarray
    own: np.ndarray
    loading: np.ndarray
    shared: np.ndarray
    models: np.ndarray
    weights: np.ndarray
    fits: list[Fit]

    @property
    def residual(self) -> np.ndarray:
        """(R,) of the averaged curve, near enough: the averaged residual."""
        return sum(w * fit.residual for w, fit in zip(self.weights, self.fits, strict=True))

    @property
    def terms(self) -> float:
        """Shared terms, on average."""
        return float(sum(w * len(fit.theta) for w, fit in zip(self.weights, self.fits, strict=True)))


def highest_degree(k: int) -> int:
    return HIGHEST.get(k, OTHERWISE)


def fit_degrees(b: Basins, curvature: np.ndarray, best: np.ndarray, highest: int | None = None) -> list[Fit]:
    """Each degree from 2 on that keeps every slice convex and PER_TERM degrees of freedom for each shared term; starts
    at curvature (n, p2) and best (n, k), in units of Basins.scale and natural logs."""
    fits: list[Fit] = []
    theta = np.zeros(0)
    room = len(b.loss) - b.cells - b.count * (curvature.shape[1] + b.k)
    for degree in range(2, (highest or highest_degree(b.k)) + 1):
        terms = len(exponents(b.k, 3, degree)) if degree > 2 else 0
        if room < 1 or terms * PER_TERM > room:
            break
        fit = fit_degree(b, degree, curvature, best, theta)
        if fit.convex:
            fits.append(fit)
            curvature, best, theta = fit.curvature, fit.best, fit.theta
    return fits


def weigh(criteria: Sequence[float]) -> np.ndarray:
    """Akaike weights of degrees in order, each moved up to one that is BEYOND higher (or the highest)."""
    criteria = np.asarray(criteria)
    weights = np.exp(-(criteria - criteria.min()) / 2)
    result = np.zeros(len(weights))
    np.add.at(result, np.minimum(np.arange(len(weights)) + (BEYOND), len(weights) - 1), weights)
    return result / result.sum()


def average(fits: list[Fit]) -> Average:
    """The fits, weighted by AIC with the slices' own parameters profiled out: v log rss + 2 m of m shared terms, v the
    degrees of freedom of degree 2."""
    room = fits[0].dof + len(fits[0].theta)
    criteria = [room * np.log(max(fit.rss, 1e-300)) + 2 * len(fit.theta) for fit in fits]
    weights = weigh(criteria)
    both = list(zip(weights, fits, strict=True))
    best = sum(w * fit.best for w, fit in both)
    return Average(
        best,
        sum(w * fit.own for w, fit in both),
        np.concatenate([w * fit.loading for w, fit in both], axis=2),
        np.concatenate([fit.shared for fit in fits], axis=1),
        np.stack([np.sqrt(w) * (fit.best - best) for w, fit in both], axis=2),
        weights,
        fits,
    )
