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

Measured on planted laws (benchmarks/coverage.py): of one hyper-parameter the errors are those of two stages within 7 %,
since slices there tell much alike; of LR and batch the exponent of LR in params errs by half as much in a bent valley, but
by 13 to 26 % more where optima scatter (losses weigh slices too unequally); coverage is alike. On hyperball_lr_horizon one
stage errs more on held-out scales (0.21 against 0.13). So two stages are the default; one stage adds slices whose optimum
lies at their edge.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from analysis import bend, degrees, shape
from analysis.joint_model import CURVATURES, LEVELS, Joint, Model
from analysis.law import NO_SCATTER, PowerLaw, as_dict, choose_predictors, design, finite, largest_scales, lookup
from analysis.optimum import Optimum, find_optima, is_inside
from analysis.slices import Slice
from analysis.spread import own_covariance
from analysis.window import share_bend


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
    Where basins of several hyper-parameters are bent, optima become those of estimator=shape. Returns parts of LAW dicts
    (analysis/law.py) with method "joint", n counting slices; objective is the sum of squares of the losses about the fit,
    r2 that of the slices' own optima about the law. Intervals are linear propagation: bootstrap and seed are taken for a
    common signature and change nothing.
    """
    if levels not in LEVELS or curvature not in CURVATURES:
        raise ValueError(f"levels must be one of {LEVELS}, curvature of {CURVATURES}")
    optima = list(optima) if optima is not None else find_optima(list(slices), bootstrap=0, level=level)
    able = [i for i, o in enumerate(optima) if o.resolved and o.verdict in ("interior", "edge")]
    if _bent([optima[i] for i in able]):  # what this fit is held against must know of the bend too
        optima = bend.refine(optima, level, is_inside, always=True)
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
    highest = degrees.highest_degree(b.k) if _bent(optima) else 2
    beta, theta, fits, criteria = np.concatenate(start), np.zeros(0), [], []
    room = len(b.loss) - b.cells - h.size - len(beta)
    for degree in range(2, highest + 1):
        m = len(shape.exponents(b.k, 3, degree)) if degree > 2 else 0
        if fits and (m * degrees.PER_TERM > room):
            break
        model = Model(b, designs, degree, levels, curvature, optima)
        fit = model.solve(h, beta, np.concatenate([theta, np.zeros(m - len(theta))]))
        if fits and not fit[3]:
            continue
        fits.append(fit[0])
        beta, theta, h = fit[0].beta, fit[1], fit[2]
        criteria.append(max(room, 1) * np.log(max(fit[0].rss, 1e-300)) + 2 * m)
    weights = degrees.weigh(criteria)
    mean = [sum(w * getattr(f, name) for w, f in zip(weights, fits, strict=True)) for name in ("beta", "influence", "pull")]
    between = np.stack([np.sqrt(w) * (f.beta - mean[0]) for w, f in zip(weights, fits, strict=True)], axis=1)
    noise = np.array([o.noise for o in optima])[b.owner]
    codes = np.concatenate([o.slice.block[r.keep] for o, r in zip(optima, rows, strict=True)])
    codes = np.unique(codes, return_inverse=True)[1]
    blocks = np.stack([np.bincount(codes, row) for row in mean[1] * noise])
    return Joint(mean[0], blocks, mean[2], between, float(fits[int(weights.argmax())].rss))


def _bent(optima: Sequence[Optimum]) -> bool:
    rows = [bend.window_rows(o.slice) for o in optima]
    telling = [r for r in rows if r.shrinkable]
    return 2 * len(telling) > len(rows) and share_bend(telling)


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
