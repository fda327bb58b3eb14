"""The losses of all slices under laws of their optima: columns and solution of one degree (analysis/joint.py)."""

from dataclasses import dataclass

import numpy as np

from analysis import shape

LEVELS, CURVATURES = ("own", "parametric"), ("own", "power")


@dataclass
class Joint:
    """beta (P,): the laws' parameters, one law after the other; influence (P, R) of the losses; pull (P, n, k): d beta / d
    shift of a slice's basin; between (P, D): effects of the degrees, of unit variance."""

    beta: np.ndarray
    influence: np.ndarray
    pull: np.ndarray
    between: np.ndarray
    rss: float


class Model:
    """The columns of one degree; parameters of all slices are, in order: laws (P,), bend (m,), curvature and level."""

    def __init__(self, b: shape.Basins, designs, degree: int, levels: str, curvature: str, optima):
        self.b, self.designs, self.degree, self.levels, self.curvature = b, designs, degree, levels, curvature
        self.sizes = [x.shape[1] for x in designs]
        flops = np.log([max(o.slice.flops, 1e-300) for o in optima])
        self.scale = (flops - flops.mean())[b.owner]
        if levels == "parametric":
            at = [np.array([o.slice.given[name] for o in optima]) for name in ("params", "tokens")]
            self.n, self.d = ((np.log(v) - np.log(v).mean())[b.owner] for v in at)

    def evaluate(self, local, shared):
        b, p = self.b, sum(self.sizes)
        m = len(shape.exponents(b.k, 3, self.degree)) if self.degree > 2 else 0
        beta, theta, rest = shared[:p], shared[p : p + m], shared[p + m :]
        reach = 2 * (b.high - b.low)
        u = (b.x - np.clip(self.best(beta), b.low - reach, b.high + reach)[b.owner]) / b.scale
        if self.curvature == "own":
            h, growth = local[b.owner], None
        else:
            p2 = len(shape.exponents(b.k, 2, 2))
            growth = np.exp(np.clip(rest[p2] * self.scale, -30, 30))
            h, rest = rest[:p2] * growth[:, None], rest[p2 + 1 :]
        value, slopes, dq, mean, cubic = shape.surface(u, h, theta, self.degree)
        shifts = -slopes / b.scale
        columns = [shifts[:, [t]] * x[b.owner] for t, x in enumerate(self.designs)] + [mean[:, None] * cubic]
        if growth is not None:
            columns += [dq * growth[:, None], ((dq * h).sum(axis=1) * self.scale)[:, None]]
        mine = dq if growth is None else np.zeros((len(u), 0))
        if self.levels == "own":
            everything = b.centred(np.concatenate([(b.loss - value)[:, None], mine, *columns], axis=1))
        else:
            e, a, alpha, c, beta_ = rest
            powers = np.exp(-alpha * self.n), np.exp(-beta_ * self.d)
            slopes_of = powers[0], -a * self.n * powers[0], powers[1], -c * self.d * powers[1]
            columns += [np.stack([np.ones(len(u)), *slopes_of], axis=1)]
            residual = b.loss - value - e - a * powers[0] - c * powers[1]
            everything = np.concatenate([residual[:, None], mine, *columns], axis=1)
        q = mine.shape[1]
        return everything[:, 0], everything[:, 1 : 1 + q], everything[:, 1 + q :]

    def solve(self, h, beta, theta) -> tuple[Joint, np.ndarray, np.ndarray, bool]:
        """(fit, theta, curvatures (n, p2), whether every slice is convex)."""
        b, p, m = self.b, len(beta), len(theta)
        local, extra = h, np.zeros(0)
        if self.curvature == "power":
            local, extra = np.zeros((b.count, 0)), np.concatenate([np.median(h, axis=0), [0.0]])
        if self.levels == "parametric":
            lowest = np.minimum.reduceat(b.loss, b.starts)
            spread = max(float(np.ptp(lowest)), 1e-3)
            extra = np.concatenate([extra, [lowest.mean() - spread, spread / 2, 0.3, spread / 2, 0.3]])
        local, shared, (residual, *columns) = shape.descend(self.evaluate, b, local, np.concatenate([beta, theta, extra]))
        influence = shape.influences(b, *columns)[2][:, :p] if columns[0].shape[1] else _plain(columns[1])[:, :p]
        u = (b.x - self.best(shared)[b.owner]) / b.scale
        p2 = h.shape[1]
        if self.curvature == "power":
            h = shared[p + m : p + m + p2] * np.exp(shared[p + m + p2] * self.scale[b.starts])[:, None]
        else:
            h = local
        slopes = -shape.surface(u, h[b.owner], shared[p : p + m], self.degree)[1] / b.scale
        pull = np.stack([b.sums(slopes * column[:, None]) for column in influence.T])
        convex = bool((np.linalg.eigvalsh(shape.matrices(h, b.k))[:, 0] > 0).all())
        fit = Joint(shared[:p], influence.T, pull, np.zeros((p, 0)), float(residual @ residual))
        return fit, shared[p : p + m], h, convex

    def best(self, shared: np.ndarray) -> np.ndarray:
        """(n, k) log optima of the laws, whose parameters come first."""
        parts = np.split(shared[: sum(self.sizes)], np.cumsum(self.sizes)[:-1])
        return np.stack([x @ part for x, part in zip(self.designs, parts, strict=True)], axis=1)


def _plain(columns: np.ndarray) -> np.ndarray:
    size = 1 / np.sqrt(np.maximum((columns**2).sum(axis=0), 1e-300))
    gram = (columns * size).T @ (columns * size)
    return columns * size @ np.linalg.pinv(gram, rcond=1e-12, hermitian=True) * size
