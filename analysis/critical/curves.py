"""Loss against tokens at each batch of one model size, thousands of noise draws at once, inverted at target losses.

    L_B(D) = E + c_B D^-beta_B,   D_B(L) = (c_B / (L - E))^(1/beta_B)

The protocol is Power Lines' (arXiv 2505.13738): E for the model size. What the batches of one size share is an option,
`share`: `none` (three parameters per batch, as four tokens or more allow), `E` (one E), `E_beta` (one E and one beta),
or `auto`, which takes what predicts best the losses of tokens left out (`left_out`), over all model sizes.

Why not always E and beta: where B_crit grows as D^e, D_B goes as D_min at small batches and as D_min^(1-e) at large
ones, so that beta rises with the batch by 1/(1-e), about twofold. On a planted hyperbola (B_crit ~ D^0.46, 7 batches,
4-6 tokens an octave apart, noise 0.002) the r.m.s. error of ln B_crit is 0.012-0.013 with `none`, 0.012-0.037 with `E`
and 0.17-0.43 with `E_beta`; the error on tokens left out ranks them alike.
Least squares of the loss by damped Gauss-Newton (Levenberg) on (ln E, ln c_B, ln beta_B), batched over draws.
"""

from dataclasses import dataclass

import numpy as np

SHARES = ("none", "E", "E_beta")
FLOOR = -12.0  # of ln E: what is below does not differ from none
LIMITS = (-4.0, 1.5)  # of ln beta
CHUNK = 250  # draws at once
MOST_LEFT_OUT = 500


@dataclass(frozen=True)
class Layout:
    """Where each of n rows finds ln E, ln c and ln beta in the p parameters."""

    rows: np.ndarray  # (3, n)
    batches: np.ndarray  # (3, batches)
    p: int
    bounds: np.ndarray  # (2, p)


@dataclass(frozen=True)
class Curves:
    """Fit of one model size: theta (p,) at x = ln D - origin."""

    layout: Layout
    theta: np.ndarray
    x: np.ndarray
    origin: float
    fitted: np.ndarray
    rss: float

    @property
    def dof(self) -> int:
        return len(self.x) - self.layout.p


def layout(batch: np.ndarray, share: str) -> Layout:
    """batch: (n,) codes 0..b-1."""
    b = int(batch.max()) + 1
    own = np.arange(b)
    e = own if share == "none" else np.zeros(b, int)
    c = e.max() + 1 + own
    k = c.max() + 1 + (own if share != "E_beta" else np.zeros(b, int))
    batches = np.stack([e, c, k])
    p = int(k.max()) + 1
    bounds = np.tile([[-60.0], [60.0]], p)
    bounds[0, e] = FLOOR
    bounds[:, k] = np.array(LIMITS)[:, None]
    return Layout(batches[:, batch], batches, p, bounds)


def model(where: Layout, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses (K, n) and derivatives (K, n, p) at theta (K, p)."""
    e, c, k = where.rows
    floor, beta = np.exp(theta[:, e]), np.exp(theta[:, k])
    power = np.exp(np.minimum(theta[:, c] - beta * x, 50.0))
    jacobian = np.zeros((*power.shape, where.p))
    n = np.arange(len(x))
    jacobian[:, n, e] = floor
    jacobian[:, n, c] = power
    jacobian[:, n, k] = -power * beta * x
    return floor + power, jacobian


def refine(
    where: Layout, x: np.ndarray, y: np.ndarray, theta: np.ndarray, steps: int, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg from theta (K, p) for losses y (K, n), weights (K, n) or all alike: (theta, rss)."""
    theta = np.clip(theta, *where.bounds)
    weights = np.ones_like(y) if weights is None else weights
    damping = np.full(len(theta), 1e-3)
    value, jacobian = model(where, theta, x)
    rss = (weights * (y - value) ** 2).sum(axis=1)
    for _ in range(steps):
        weighted = (jacobian * weights[..., None]).transpose(0, 2, 1)
        hessian = weighted @ jacobian
        gradient = (weighted @ (y - value)[..., None])[..., 0]
        diagonal = np.einsum("kpp->kp", hessian)
        diagonal += damping[:, None] * diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
        move = np.clip(np.linalg.solve(hessian, gradient[..., None])[..., 0], -1.0, 1.0)
        trial = np.clip(theta + move, *where.bounds)
        tried, slopes = model(where, trial, x)
        new = (weights * (y - tried) ** 2).sum(axis=1)
        better = new <= rss
        theta = np.where(better[:, None], trial, theta)
        value = np.where(better[:, None], tried, value)
        jacobian[better] = slopes[better]
        settled = np.abs(rss - new) <= 1e-12 * rss
        rss = np.where(better, new, rss)
        damping = np.where(better, damping / 5, damping * 7)
        if settled.all():
            break
    return theta, rss


def fit(log_d: np.ndarray, batch: np.ndarray, loss: np.ndarray, share: str = "none") -> Curves:
    """One model size: log_d, batch (codes 0..b-1), loss of n rows. Starts at 8 values of E, each with straight lines
    of ln(L - E); the best is taken."""
    origin = float(log_d.mean())
    x = log_d - origin
    where = layout(batch, share)
    b = where.batches.shape[1]
    floors = loss.min() * (1 - np.geomspace(1e-3, 1 - 1e-4, 8))
    starts = np.zeros((len(floors), where.p))
    for j, (e, c, k) in enumerate(where.batches.T):
        mine = batch == j
        line = np.polyfit(x[mine], np.log(loss[mine][:, None] - floors), 1)  # (2, starts)
        starts[:, e], starts[:, c] = np.log(floors), line[1]
        starts[:, k] += np.log(np.maximum(-line[0], 0.02)) / (b if share == "E_beta" else 1)
    theta, rss = refine(where, x, np.broadcast_to(loss, (len(starts), len(loss))), starts, 40)
    if share == "none":  # each batch its own best start
        misses = (loss - model(where, theta, x)[0]) ** 2
        best = np.stack([misses[:, batch == j].sum(axis=1) for j in range(b)]).argmin(axis=1)
        chosen = theta[0].copy()
        for j in range(b):
            chosen[where.batches[:, j]] = theta[best[j], where.batches[:, j]]
    else:
        chosen = theta[rss.argmin()]
    theta, rss = refine(where, x, loss[None], chosen[None], 100)
    return Curves(where, theta[0], x, origin, model(where, theta, x)[0][0], float(rss[0]))


def refit(curves: Curves, losses: np.ndarray) -> np.ndarray:
    """theta (K, p) of K draws of the losses (K, n), from the fit's own."""
    parts = []
    for some in np.array_split(losses, 1 + len(losses) // CHUNK):
        start = np.broadcast_to(curves.theta, (len(some), len(curves.theta)))
        parts.append(refine(curves.layout, curves.x, some, start, 12)[0])
    return np.concatenate(parts)


def invert(curves: Curves, theta: np.ndarray, batches: np.ndarray, target: float) -> np.ndarray:
    """ln D (K, batches) at which each batch reaches the target; nan where it never does."""
    e, c, k = curves.layout.batches[:, batches]
    above = target - np.exp(theta[:, e])
    with np.errstate(invalid="ignore", divide="ignore"):
        return curves.origin + (theta[:, c] - np.log(np.where(above > 0, above, np.nan))) / np.exp(theta[:, k])


def at(curves: Curves, batch: int, log_d: np.ndarray) -> np.ndarray:
    """Fitted loss of one batch."""
    e, c, k = curves.theta[curves.layout.batches[:, batch]]
    return np.exp(e) + np.exp(c - np.exp(k) * (np.asarray(log_d, float) - curves.origin))


def influence(curves: Curves, batches: np.ndarray, target: float) -> np.ndarray:
    """(batches, n): d ln D_B(target) / d loss of each row, Gauss-Newton."""
    _, jacobian = model(curves.layout, curves.theta[None], curves.x)
    solver = np.linalg.pinv(jacobian[0], rcond=1e-9)  # (p, n)
    e, c, k = curves.layout.batches[:, batches]
    beta, above = np.exp(curves.theta[k]), target - np.exp(curves.theta[e])
    log_d = (curves.theta[c] - np.log(above)) / beta
    through_e = (np.exp(curves.theta[e]) / above / beta)[:, None] * solver[e]
    return through_e + solver[c] / beta[:, None] - log_d[:, None] * solver[k]


def left_out(curves: Curves, loss: np.ndarray) -> np.ndarray | None:
    """Errors in nats at each batch's inner tokens, each (with all its seeds) left out of a refit: what inversion inside
    the trained range relies on. None where a batch has less than four tokens or no degree of freedom is left."""
    where, x = curves.layout, curves.x
    batch = np.unique(where.rows[1], return_inverse=True)[1].ravel()
    cells, code = np.unique(np.c_[batch, x.round(9)], axis=0, return_inverse=True)
    code = code.ravel()
    ends = np.r_[True, cells[1:, 0] != cells[:-1, 0]]
    inner = np.flatnonzero(~ends & ~np.r_[ends[1:], True])[:MOST_LEFT_OUT]
    if len(inner) == 0 or len(cells) - 1 < where.p or np.bincount(cells[:, 0].astype(int)).min() < 4:
        return None
    errors = []
    for some in np.array_split(inner, 1 + len(inner) // CHUNK):
        weights = (code != some[:, None]).astype(float)
        start = np.broadcast_to(curves.theta, (len(some), where.p))
        theta, _ = refine(where, x, np.broadcast_to(loss, weights.shape), start, 15, weights)
        missed = loss - model(where, theta, x)[0]
        errors += [missed[k, code == cell].mean() for k, cell in enumerate(some)]
    return np.array(errors)
