"""Laws of optima straight from the losses of all slices, in one stage.

    loss = L0_i + h_i . q(u) + bend,     u = ln x - ln x_opt(N, D),     ln x_opt = c + sum_p exponent_p ln predictor_p

x holds one tuned hyper-parameter or several (q: their squares and products), with a law each. The level L0_i is free for
each slice (and seed), or with level=parametric L0 = E + A / params^a + B / tokens^b; the curvature h_i is free for each
slice, or with curvature=power h_i = h FLOPs_i^g; the bend is that of analysis/shape.py, its degrees averaged, where cubic
terms show. Every slice counts whose own quadratic is convex beyond noise, one whose optimum lies at the edge too; rows as
in analysis/bend.py: diverged ones and those far up the walls are left out.

Against the two stages (optima, then a law of them) the losses weigh each slice by what it tells. What least squares of
losses does not know is that true optima scatter about the law. Shifting slice i by e_i moves the parameters by Q e, so

    covariance = S' Sigma S + s2 Q Q',

S the derivative of the parameters to the losses, Sigma the runs' noise (runs of one trunk one block), s2 the variance
of the slices' own optima about this law beyond their noise, with Student t and small-sample inflation as in
analysis/law.py: a slice is a cluster. (A one-stage mixed model, linearised; ours.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis import bend, shape
from analysis.law import NO_SCATTER, PowerLaw, as_dict, choose_predictors, design, finite, largest_scales, lookup
from analysis.optimum import Optimum, find_optima
from analysis.slices import Slice
from analysis.spread import own_covariance
from analysis.window import share_bend

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


def fit_joint(
    slices: Sequence[Slice],
    predictors: Mapping[str, Sequence[str]],
    level: float = 0.8,
    bootstrap: int = 0,
    seed: int = 0,
    *,
    optima: Sequence[Optimum] | None = None,
    held: np.ndarray | None = None,
    heldout: float | None = 0.25,
    levels: str = "own",
    curvature: str = "own",
) -> list[dict]:
    """The law of each tuned hyper-parameter of the slices of one law (equal settings); [] where too few slices tell.

    predictors: {name of the law: columns}, of which those that vary and are not collinear are kept. optima: those of
    find_optima, where they are known. held (n,) bool: slices to hold out, else the share `heldout` at the largest FLOPs.
    Returns parts of LAW dicts (analysis/law.py) with method "joint", n counting slices; objective is the sum of squares
    of the losses about the fit, r2 that of the slices' own optima about the law. Intervals are linear propagation: bootstrap
    and seed are taken for a common signature and change nothing.
    """
    if levels not in LEVELS or curvature not in CURVATURES:
        raise ValueError(f"levels must be one of {LEVELS}, curvature of {CURVATURES}")
    optima = list(optima) if optima is not None else find_optima(list(slices), bootstrap=0, level=level)
    able = [i for i, o in enumerate(optima) if o.resolved and o.verdict in ("interior", "edge")]
    held = np.zeros(len(optima), bool) if held is None and not heldout else held
    if held is not None:
        held = np.asarray(held, bool)[able]
    optima = [optima[i] for i in able]
    if sum(o.verdict == "interior" for o in optima) < 2:
        return []
    held = largest_scales(np.array([o.slice.flops for o in optima]), heldout) if held is None else held
    values = [lookup(o) for o in optima]
    names = ["batch_size" if name == "batch_tokens" else name for name in optima[0].slice.targets]
    chosen = []
    for name in names:
        wanted = [p for p in predictors.get(name, ()) if all((finite(at.get(p)) or 0) > 0 for at in values)]
        chosen.append(choose_predictors(values, wanted))
    kept = [c.kept for c in chosen]
    fitted = _fit(optima, values, kept, levels, curvature)
    if fitted is None:
        return []
    errors, excess, left_out = _score(optima, values, kept, held, levels, curvature)
    laws, at = [], 0
    for t, c in enumerate(chosen):
        law = _law(optima, values, c.kept, t, fitted, at)
        at += 1 + len(c.kept)
        laws.append(
            {
                **as_dict(law, level),
                "objective": finite(fitted.rss),
                "n": len(optima),
                "counts": "slices",
                "heldout": {"n": left_out, "mean_abs_log_error": errors[t], "mean_excess_loss": excess},
                "method": "joint",
                "behind": c.behind,
            }
        )
    return laws


def _fit(optima, values, kept, levels, curvature) -> Joint | None:
    """All degrees that the bend needs, averaged; None where the interior optima do not give a start."""
    inside = np.array([o.verdict == "interior" for o in optima])
    designs = [design(values, names) for names in kept]
    y = np.array([o.fitted for o in optima])
    start = []
    for t, x in enumerate(designs):
        if inside.sum() < x.shape[1] or np.linalg.matrix_rank(x[inside]) < x.shape[1]:
            return None
        start.append(np.linalg.lstsq(x[inside], y[inside, t], rcond=None)[0])
    rows = [bend.window_rows(o.slice) for o in optima]
    b = bend.gather([o.slice for o in optima], rows)
    h = bend.curvatures(b, [o.surface for o in optima])
    telling = [r for r in rows if r.shrinkable]
    bent = 2 * len(telling) > len(rows) and share_bend(telling)
    highest = shape.HIGHEST.get(b.k, shape.OTHERWISE) if bent else 2
    beta, theta, fits, criteria = np.concatenate(start), np.zeros(0), [], []
    room = len(b.loss) - b.cells - h.size - len(beta)
    for degree in range(2, highest + 1):
        m = len(shape.exponents(b.k, 3, degree)) if degree > 2 else 0
        if fits and (m * shape.PER_TERM > room):
            break
        model = Model(b, designs, degree, levels, curvature, optima)
        fit = model.solve(h, beta, np.concatenate([theta, np.zeros(m - len(theta))]))
        if fits and not fit[3]:
            continue
        fits.append(fit[0])
        beta, theta, h = fit[0].beta, fit[1], fit[2]
        criteria.append(max(room, 1) * np.log(max(fit[0].rss, 1e-300)) + 2 * m)
    weights = shape.weigh(criteria)
    mean = [sum(w * getattr(f, name) for w, f in zip(weights, fits, strict=True)) for name in ("beta", "influence", "pull")]
    between = np.stack([np.sqrt(w) * (f.beta - mean[0]) for w, f in zip(weights, fits, strict=True)], axis=1)
    noise = np.array([o.noise for o in optima])[b.owner]
    codes = np.concatenate([o.slice.block[r.keep] for o, r in zip(optima, rows, strict=True)])
    codes = np.unique(codes, return_inverse=True)[1]
    blocks = np.stack([np.bincount(codes, row) for row in mean[1] * noise])
    return Joint(mean[0], blocks, mean[2], between, float(fits[int(weights.argmax())].rss))


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


def _law(optima, values, names, t: int, fitted: Joint, at: int) -> PowerLaw:
    """The law of hyper-parameter t, whose parameters start at `at`."""
    x, mine = design(values, names), slice(at, at + 1 + len(names))
    inside = np.array([o.verdict == "interior" and o.influence is not None for o in optima])
    beta, pull = fitted.beta[mine], fitted.pull[mine]
    known = [o for o, good in zip(optima, inside, strict=True) if good]
    y = np.array([o.fitted[t] for o in known])
    residual = y - x[inside] @ beta
    rss, dof = float(residual @ residual), int(inside.sum()) - x.shape[1]
    total = float(((y - y.mean()) ** 2).sum()) if len(y) else 0.0
    r2 = 1 - rss / total if total > 1e-20 and x.shape[1] > 1 else None
    if dof < 1:
        return PowerLaw(tuple(names), beta, None, None, 0.0, rss, r2)
    own, own_dof = own_covariance(known, t)
    maker = np.eye(len(y)) - x[inside] @ pull[:, inside, t]
    noise = maker @ own @ maker.T
    shift = maker @ maker.T
    scatter = max(0.0, (rss - np.trace(noise)) / np.trace(shift))
    if stats.f.sf(rss / max(np.trace(noise), 1e-300), dof, own_dof) > NO_SCATTER:
        scatter = 0.0
    spread = noise + scatter * shift
    trace = float(np.trace(spread))
    effective = min(trace**2 / float((spread**2).sum()), dof)
    inflation = rss / trace
    if scatter == 0:
        inflation, effective = (inflation * effective + own_dof) / (effective + own_dof), effective + own_dof
    runs, between = fitted.influence[mine], fitted.between[mine]
    covariance = runs @ runs.T + between @ between.T
    covariance = (covariance + scatter * np.einsum("ank,bnk->ab", pull, pull)) * inflation
    return PowerLaw(tuple(names), beta, covariance, float(np.sqrt(rss / dof)), effective, rss, r2)


def _score(optima, values, kept, held, levels, curvature):
    """(mean |log error| of each law, mean excess loss, slices) at the held-out slices' own optima, by a refit without."""
    nothing = [None] * len(kept), None, 0
    judged = [i for i, o in enumerate(optima) if held[i] and o.verdict == "interior"]
    rest = [i for i in range(len(optima)) if not held[i]]
    if not judged or any(choose_predictors([values[i] for i in rest], names).kept != names for names in kept):
        return nothing
    refit = _fit([optima[i] for i in rest], [values[i] for i in rest], kept, levels, curvature)
    if refit is None:
        return nothing
    parts = np.split(refit.beta, np.cumsum([1 + len(names) for names in kept])[:-1])
    where = [values[i] for i in judged]
    predicted = np.stack([design(where, names) @ part for names, part in zip(kept, parts, strict=True)], axis=1)
    own = np.array([optima[i].fitted for i in judged])
    errors = [float(e) for e in np.abs(predicted - own).mean(axis=0)]
    costs = [float(optima[i].curve(at)) - float(optima[i].curve(o)) for i, at, o in zip(judged, predicted, own, strict=True)]
    return errors, finite(float(np.mean(costs))), len(judged)
