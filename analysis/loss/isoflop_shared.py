"""Noise that one model size has at every budget (its shape, its seed): minima of neighbouring budgets then err together.

With u the residuals in units of the noise, M their maker, S = 1 where two points are of one size, K = S - 1 (the pairs),
the correlation rho of such a pair follows from E u'Ku = (1 - rho) tr KM + rho tr KMSM (moments), and the minima have the
covariance J R J', R = (1 - rho) 1 + rho S, J what unit noise of each point does to each. Taken as 0 where u'Ku does not
stand out of the noise (CLEAR standard errors), or sizes are not repeated."""

import numpy as np

CLEAR = 1.28
MOST, STRONGEST = 1500, 0.95  # points; more are not looked at


def covariance(influence: np.ndarray, maker: np.ndarray, u: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, float]:
    """((budgets, budgets) covariance of the minima, rho). influence (budgets, n), maker (n, n), u (n,), codes (n,) of the
    model sizes, -1 for none."""
    plain = influence @ influence.T
    if len(u) > MOST or not len(u):
        return plain, 0.0
    pairs = ((codes[:, None] == codes) & (codes >= 0)).astype(float)
    np.fill_diagonal(pairs, 0.0)
    moved = pairs @ maker
    base, spread = float(np.trace(moved)), float((moved * moved.T).sum())
    gain = float((moved * (pairs @ maker).T).sum())  # tr KMSM - tr KM = tr KMKM, as M is idempotent
    excess = float(u @ pairs @ u) - base
    if gain <= 0 or excess <= CLEAR * np.sqrt(2 * max(spread, 1e-300)):
        return plain, 0.0
    rho = min(excess / gain, STRONGEST)
    return plain + rho * influence @ pairs @ influence.T, rho
