"""Points from a sweep of batch and tokens: curves L_B(D) of each model size, inverted at target losses.

A target counts at a batch only inside the tokens trained there (no extrapolation); batches with less than four tokens
are left out. Targets of a model size are spread evenly, in ln D of one batch, over the losses that all batches but one
(at least three) reach inside; or they are given.

Misfit. Where the D_B scatter about their hyperbolas by more than the runs' noise explains, the rest, m2 = (sum RSS -
sum tr MW) / sum (batches - 2) over all points, is an error of each batch of a size, the same for all its targets: it
widens points and law.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.codes import cluster
from analysis.critical import curves, hyperbola
from analysis.critical.options import Options
from analysis.critical.points import LEAST_BATCHES, Point, bounds, noise_draws, place, spread
from analysis.noise import choose, moderated, seed_noise

LEAST_TOKENS = 4
MOST_ROWS = 600  # of one model size; above, means over seeds


@dataclass
class Size:
    """Rows of one model size: n losses at b batches."""

    rows: pd.DataFrame
    log_batch: np.ndarray  # (b,)
    batch: np.ndarray  # (n,) codes
    log_d: np.ndarray
    loss: np.ndarray  # without what a seed adds to all its runs
    block: np.ndarray
    seeds: tuple[float, int]  # sum of squares and degrees of freedom between seeds

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """(b,) least and most ln D of each batch."""
        codes = range(len(self.log_batch))
        return tuple(np.array([f(self.log_d[self.batch == j]) for j in codes]) for f in (np.min, np.max))


def points(df: pd.DataFrame, settings_of, given_of, options: Options, rng: np.random.Generator, notes: list[str]
           ) -> tuple[list[Point], pd.DataFrame]:  # fmt: skip
    """(points, error on tokens left out for each choice of `share`). df: tuned cells (analysis/critical/tuning.py)."""
    sizes = [_size(rows, notes) for _, rows in df.groupby("_size", sort=True)]
    usable = [s for s in sizes if len(s.log_batch) >= LEAST_BATCHES]
    fits, errors = _fit_best(usable, options)
    noise = [choose((fit.rss, fit.dof), s.seeds) for s, fit in zip(usable, fits, strict=True)]
    found = [Point(settings_of(s.rows), int(s.rows["_size"].iloc[0]), given_of(s.rows), None, len(s.rows))
             for s in sizes if len(s.log_batch) < LEAST_BATCHES]  # fmt: skip
    if not usable:
        return found, errors
    variances = moderated(np.array([n[0] for n in noise]), np.array([n[1] for n in noise]))
    placed = []
    for s, fit, variance, dof in zip(usable, fits, *variances, strict=True):
        points_of = _place(s, fit, (settings_of, given_of), options, notes)
        placed.append((s, fit, float(variance), float(dof), points_of))
        found += [point for point, _, _ in points_of]
    misfit = _misfit(placed)
    for i, (s, fit, variance, dof, points_of) in enumerate(placed):
        if dof > 0:
            own = int(df["_block"].max()) + 1 + sum(len(other.log_batch) for other in usable[:i])
            _spread(s, fit, variance, dof, points_of, (misfit, own), options, rng)
    return found, errors


def _size(rows: pd.DataFrame, notes: list[str]) -> Size:
    """Batches with four tokens or more; seeds' common offsets removed."""
    tokens = cluster(rows["tokens"])
    many = rows.assign(_t=tokens).groupby("_batch_code")["_t"].transform("nunique") >= LEAST_TOKENS
    if not many.all():
        batches = ", ".join(f"{b:.4g}" for b in sorted(rows["_batch"][~many].groupby(rows["_batch_code"]).median()))
        notes.append(f"params {rows['params'].iloc[0]:.4g}: less than four tokens at batch {batches}: not used.")
    kept = rows[many]
    if kept.empty:
        nothing = np.empty(0)
        return Size(rows, nothing, nothing.astype(int), nothing, nothing, nothing, (0.0, 0))
    codes = np.unique(kept["_batch_code"], return_inverse=True)[1].ravel()
    log_batch = np.array([np.log(kept["_batch"][codes == j].median()) for j in range(codes.max() + 1)])
    log_d, loss = np.log(kept["tokens"].to_numpy(float)), kept["loss"].to_numpy(float)
    seeds = (0.0, 0)
    if "seed" in kept and kept["seed"].notna().all() and kept["seed"].nunique() > 1:
        seed = pd.factorize(kept["seed"])[0]
        cells = np.column_stack([log_batch[codes], log_d.round(6)])
        if len(kept) <= MOST_ROWS:
            seeds = seed_noise(cells, loss, seed)
            loss = loss - _offsets(cells, loss, seed)
        else:  # what a seed does to all its runs stays in the noise
            cell = np.unique(cells, axis=0, return_inverse=True)[1].ravel()
            within = loss - (np.bincount(cell, loss) / np.bincount(cell))[cell]
            seeds = (float(within @ within), len(loss) - int(cell.max()) - 1)
    if len(kept) > MOST_ROWS:
        return _means(Size(kept, log_batch, codes, log_d, loss, kept["_block"].to_numpy(), seeds))
    return Size(kept, log_batch, codes, log_d, loss, kept["_block"].to_numpy(), seeds)


def _means(s: Size) -> Size:
    """Means over the seeds of each batch and tokens: residuals of a million rows are not needed."""
    tokens = cluster(np.exp(s.log_d), s.batch)
    first, cell, count = np.unique(tokens, return_index=True, return_inverse=True, return_counts=True)[1:]
    mean = np.bincount(cell.ravel(), s.loss) / count
    seeds = (s.seeds[0] / float(np.median(count)), s.seeds[1])
    return Size(s.rows, s.log_batch, s.batch[first], s.log_d[first], mean, s.block[first], seeds)


def _offsets(cells: np.ndarray, loss: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """(n,) what each row's seed adds to all its runs, mean 0; seeds that no cell has beside another add nothing."""
    cell = np.unique(cells, axis=0, return_inverse=True)[1].ravel()
    design = np.column_stack([np.eye(cell.max() + 1)[cell], np.eye(seed.max() + 1)[seed]])
    effect = np.linalg.lstsq(design, loss, rcond=None)[0][cell.max() + 1 :]
    return effect[seed] - effect[seed].mean() if (np.bincount(cell) > 1).any() else np.zeros(len(loss))


def _fit_best(sizes: list[Size], options: Options) -> tuple[list[curves.Curves], pd.DataFrame]:
    """(fits with the chosen `share`, table of r.m.s. errors on tokens left out, nats)."""
    fits = {share: [curves.fit(s.log_d, s.batch, s.loss, share) for s in sizes] for share in curves.SHARES}
    missed: dict[str, float | None] = {}
    for share, members in fits.items():
        errors = [curves.left_out(fit, s.loss) for fit, s in zip(members, sizes, strict=True)]
        known = bool(errors) and all(e is not None for e in errors)
        missed[share] = float(np.sqrt(np.mean(np.concatenate(errors) ** 2))) if known else None
    best = min((share for share in missed if missed[share] is not None), key=missed.get, default="E")
    chosen = best if options.share == "auto" else options.share
    rows = [{"share": k, "rms_error_left_out": v, "used": "yes" if k == chosen else ""} for k, v in missed.items()]
    return fits[chosen], pd.DataFrame(rows)


def _place(s: Size, fit: curves.Curves, of, options: Options, notes: list[str]) -> list[tuple]:
    """(point, its batches, d ln D_B / d loss of each row) at each target."""
    settings, given = of[0](s.rows), of[1](s.rows)
    low, high = s.ends()
    found = []
    every = np.arange(len(s.log_batch))
    for target in _targets(s, fit, options):
        log_d = curves.invert(fit, fit.theta[None], every, target)[0]
        inside = np.flatnonzero((log_d >= low - 1e-9) & (log_d <= high + 1e-9))
        n = int(np.isin(s.batch, inside).sum())
        point = Point(settings, int(s.rows["_size"].iloc[0]), given, float(target), n,
                      log_batch=s.log_batch[inside], log_d=log_d[inside], start=float(s.rows["_start"].iloc[0]))  # fmt: skip
        found.append((place(point, options), inside, curves.influence(fit, inside, target)))
        if len(inside) == 0:
            reached = curves.at(fit, 0, np.r_[low[0], high[0]])
            notes.append(f"params {given['params']:.4g}: target {target:.4g} lies outside what was trained at any batch "
                         f"(batch {np.exp(s.log_batch[0]):.4g}: {reached[1]:.4g} to {reached[0]:.4g}).")  # fmt: skip
    return found


def _misfit(placed) -> float:
    """s.d. of ln D_B about the hyperbolas beyond the noise of the runs."""
    rss = explained = free = 0.0
    for _, _, variance, dof, points_of in placed:
        for point, _, slopes in points_of:
            if dof > 0 and np.isfinite(point.log_b_crit) and len(point.log_batch) > 2:
                x = hyperbola.design(point.log_batch, point.log_b_crit)
                maker = np.eye(len(x)) - x @ np.linalg.pinv(x)
                rss += float(point.misfit**2 * (len(x) - 2))
                explained += float(variance * ((maker @ slopes) ** 2).sum())
                free += len(x) - 2
    return float(np.sqrt(max(0.0, rss - explained) / free)) if free else 0.0


def _spread(s: Size, fit: curves.Curves, variance: float, dof: float, points_of, misfit, options: Options, rng) -> None:
    """Influence and interval of each point; misfit: (s.d., first block code of this size's batches)."""
    noise, own = misfit
    count = options.bootstrap
    draws = offsets = None
    if count:
        draws = curves.refit(fit, fit.fitted + noise_draws(s.block, variance, dof, count, rng))
        offsets = noise * rng.standard_normal((count, len(s.log_batch)))
    for point, inside, slopes in points_of:
        if point.verdict == "too_few":
            continue
        by_row = np.hstack([np.sqrt(variance) * slopes, noise * np.eye(len(inside))])
        spread(point, by_row, np.r_[s.block, own + inside], dof, options, False)
        if count:
            bounds(point, curves.invert(fit, draws, inside, point.target) + offsets[:, inside], options)


def _targets(s: Size, fit: curves.Curves, options: Options) -> list[float]:
    if isinstance(options.targets, list):
        return options.targets
    low, high = s.ends()
    top = np.array([curves.at(fit, j, low[j]) for j in range(len(low))])
    bottom = np.array([curves.at(fit, j, high[j]) for j in range(len(low))])
    middle = int(np.argsort(top - bottom)[-1])
    losses = curves.at(fit, middle, np.linspace(low[middle], high[middle], 401))
    inside = ((losses[:, None] <= top) & (losses[:, None] >= bottom)).sum(axis=1)
    enough = np.flatnonzero(inside >= max(LEAST_BATCHES, inside.max() - 1))
    if len(enough) == 0:
        return [float(losses[200])]
    spots = enough[0] + (np.arange(options.targets) + 0.5) / options.targets * (enough[-1] - enough[0])
    return [float(losses[round(spot)]) for spot in spots]
