"""R_inf: what a parameterization costs at infinite scale, against the best one or a named one.

    L*(n) = L_inf + a n^-b,     R_inf = L_inf - L_inf of the reference        (nats per token)

L* is the fitted loss at the optimum of each slice along a line of scales. Third metric of Kalra and Barkeshli (arXiv
2605.21486: "asymptotic loss penalty due to choice of parameterization"); the estimator was not seen, this one is ours.

Given b the law is linear: generalised least squares with V, the covariance of L* from the noise of runs, gives L_inf(b),
its s.d. s(b) at unit noise and the misfit Q(b); b runs over a grid. The interval is the profile-likelihood set of the
difference over both exponents,

    union over (b, b_ref) of  R(b, b_ref) +- sqrt((s^2 + s_ref^2) (phi t^2 + Qmin - Q(b) - Q(b_ref))),

phi the misfit per degree of freedom (averaged with V's own where that explains it, as in analysis/law.py), t Student's.
With exponent=shared both lines have one b. Where the set reaches the flattest power law of the grid the asymptote has no
bound below, and where the best b itself does it is not identified: null, and a note, never a number. The reference that
has the lowest of several fitted asymptotes is chosen by the same noise: name one (reference=) for an interval that holds
what it says.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.law import NO_SCATTER

EXPONENTS = np.geomspace(0.01, 4.0, 160)  # of n; below the first a power law is a logarithm, without an asymptote
FINE, ROUNDS = 161, 5  # exponents of the grid within the grid
FEWEST = 3  # scales: as many as coefficients
TINY = 1e-18


@dataclass(frozen=True)
class Profile:
    """For each of some exponents (k,): the asymptote, its s.d. at unit noise, the slope a and the misfit Q."""

    exponents: np.ndarray
    level: np.ndarray
    sd: np.ndarray
    slope: np.ndarray
    misfit: np.ndarray

    @property
    def best(self) -> int:
        return int(np.where(self.slope > 0, self.misfit, np.inf).argmin())


@dataclass(frozen=True)
class Asymptote:
    """A line's losses (m,) at scales n (m,), whitened by `root` (m, m); own_dof: degrees of freedom of the runs' noise,
    0 where it is unknown and misfits are in nats squared."""

    n: np.ndarray
    loss: np.ndarray
    root: np.ndarray
    own_dof: float

    def profile(self, exponents: np.ndarray = EXPONENTS) -> Profile:
        middle = np.exp(np.log(self.n).mean())
        x = np.stack([np.ones((len(exponents), len(self.n))), (self.n / middle) ** -exponents[:, None]], axis=2)
        xw, yw = self.root @ x, self.root @ self.loss
        inverse = np.linalg.inv(np.swapaxes(xw, 1, 2) @ xw)
        beta = (inverse @ np.swapaxes(xw, 1, 2) @ yw[:, None])[..., 0]
        misfit = ((yw - (xw @ beta[..., None])[..., 0]) ** 2).sum(axis=1)
        return Profile(exponents, beta[:, 0], np.sqrt(inverse[:, 0, 0]), beta[:, 1] * middle**exponents, misfit)

    def fit(self) -> tuple[dict, bool]:
        """({L_inf, a, b: value}, whether the best exponent lies inside the grid and the asymptote above 0)."""
        grid = _zoom([self])
        best = self.profile(grid)
        i = best.best
        found = {"L_inf": best.level[i], "a": best.slope[i], "b": grid[i]}
        inside = 0 < self.profile().best < len(EXPONENTS) - 1 and best.slope[i] > 0 and best.level[i] > 0
        return {key: float(value) for key, value in found.items()}, bool(inside)


def asymptote(n: np.ndarray, loss: np.ndarray, own: np.ndarray | None, own_dof: float) -> Asymptote | None:
    """The law of losses (m,) at scales n (m,); own (m, m): their covariance. None with fewer than three scales."""
    if len(np.unique(np.log(n).round(6))) < FEWEST:
        return None
    known = own is not None and own_dof > 0
    floor = (1e-9 * np.abs(loss).mean()) ** 2 * np.eye(len(n))
    root = np.linalg.inv(np.linalg.cholesky(own + floor)) if known else np.eye(len(n))
    return Asymptote(n, loss, root, own_dof if known else 0.0)


ZERO = Profile(np.ones(1), np.zeros(1), np.zeros(1), np.ones(1), np.zeros(1))  # an asymptote known to be 0


def penalty(line: Asymptote, reference: Asymptote | None, level: float, shared: bool = False) -> dict:
    """{"value":, "low":, "high":} of R_inf, nats; null where not identified, or not bounded on a side. reference None:
    of L_inf itself."""
    result: dict = {"value": None, "low": None, "high": None}
    both = (line,) if reference is None else (line, reference)
    groups = [list(both)] if shared else [[each] for each in both]  # lines of one exponent
    fits = [each.fit() for each in both]
    if not all(known for _, known in fits):
        return result
    least = [float(_total(group, _zoom(group)).min()) for group in groups]
    phi, dof = _scale(sum(least), sum(len(each.n) - 2 for each in both) - len(groups), both)
    allowed = (phi or 0.0) * (stats.t.ppf((1 + level) / 2, dof) ** 2 if dof else 0.0)
    grids = [_zoom(group, allowed) for group in groups] * (2 if shared else 1)
    flat = [grid[0] <= EXPONENTS[0] and _total(group, grid[:1])[0] - q <= allowed
            for group, grid, q in zip(groups, grids, least, strict=False)]  # fmt: skip
    # A flattest law of the line has no lower bound of its own asymptote; one of the reference none of the other's.
    open_below, open_above = flat[0], flat[-1] and reference is not None
    profiles = [each.profile(grid) for each, grid in zip(both, grids, strict=False)]
    q = _misfit(profiles, shared)
    above, below = (*profiles, ZERO)[:2]
    difference = above.level[:, None] - below.level[None, :]
    result["value"] = float(difference.ravel()[q.argmin()])
    if phi is None:
        return result
    room = allowed + q.min() - q
    half = np.sqrt(np.where(room >= 0, room, 0.0) * (above.sd[:, None] ** 2 + below.sd[None, :] ** 2))
    if not open_below:
        result["low"] = float(np.where(room >= 0, difference - half, np.inf).min())
    if not open_above:
        result["high"] = float(np.where(room >= 0, difference + half, -np.inf).max())
    return result


def _misfit(profiles: list[Profile], shared: bool) -> np.ndarray:
    """(k, k) Q of both lines, or (k, 1) of one; infinite where a loss rises with scale, and off the diagonal of a shared
    exponent."""
    line, reference = (*profiles, ZERO)[:2]
    q = line.misfit[:, None] + reference.misfit[None, :]
    allowed = (line.slope > 0)[:, None] & (reference.slope > 0)[None, :]
    return np.where(allowed & np.eye(len(q), dtype=bool) if shared else allowed, q, np.inf)


def _total(lines: list[Asymptote], exponents: np.ndarray) -> np.ndarray:
    """Q of lines of one exponent, at each; infinite where a loss rises with scale."""
    profiles = [each.profile(exponents) for each in lines]
    return sum(np.where(p.slope > 0, p.misfit, np.inf) for p in profiles)


def _zoom(lines: list[Asymptote], allowed: float = 0.0) -> np.ndarray:
    """Exponents (FINE,) that span those whose Q is within `allowed` of the least: the grid, narrowed again and again."""
    grid = EXPONENTS
    for _ in range(ROUNDS):
        q = _total(lines, grid)
        spots = np.flatnonzero(q <= q.min() + (allowed if np.isfinite(q.min()) else 0.0))
        low, high = max(spots[0] - 1, 0), min(spots[-1] + 1, len(grid) - 1)
        grid = np.geomspace(grid[low], grid[high], FINE)
    return grid


def _scale(misfit: float, dof: int, both: tuple[Asymptote, ...]) -> tuple[float | None, float]:
    """(noise variance in units of V, degrees of freedom); None where neither runs nor residuals tell."""
    own_dof = min(each.own_dof for each in both)
    if dof < 1:
        return (1.0, own_dof) if own_dof > 0 else (None, 0.0)
    phi = max(misfit, TINY) / dof
    if own_dof > 0 and stats.f.sf(phi, dof, own_dof) > NO_SCATTER:
        return (phi * dof + own_dof) / (dof + own_dof), dof + own_dof
    return phi, float(dof)
