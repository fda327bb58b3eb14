"""One fit of either form, in the words of a LAW: parameters with intervals, covariance, resamples."""

from dataclasses import dataclass, replace

import numpy as np

from analysis.law import finite
from analysis.loss import repeats
from analysis.loss.huber import Rows, natural
from analysis.loss.point import fit_point
from analysis.loss.resample import LARGE, at_bound, interval, resample

TERM = {"A": 0, "alpha": 0, "B": 1, "beta": 1}
OF = {"E": 0, "A": 1, "B": 2, "alpha": 3, "beta": 4, "R_D": 5, "R_N": 6}
LOGS = ("E", "A", "B", "R_D", "R_N")
NIL = 1e-5  # of the loss: what is below is no term
MOST_BOUND = 0.02  # share of resamples at a bound above which there is no covariance
WITHOUT_BOOTSTRAP = 1000


@dataclass
class Fit:
    """centre (5 or 7,): ln E, ln A, ln B, alpha, beta (, ln R_D, ln R_N), -inf for a term that is nil; draws (B, 5 or 7)
    likewise; ended (B, 5 or 7): which lie at a bound; residual (n,) ln predicted - ln measured."""

    centre: np.ndarray
    draws: np.ndarray
    ended: np.ndarray
    residual: np.ndarray
    objective: float
    symbols: list[str]
    free: list[str]
    form: str
    one_step: bool = False

    def parameters(self, level: float) -> dict:
        found = {}
        for symbol in self.symbols:
            k, to = OF[symbol], np.exp if symbol in LOGS else float
            value = finite(to(self.centre[k]))
            if symbol not in self.free:
                found[symbol] = {"value": value, "low": value, "high": value}
                continue
            ends = interval(self.centre[k], self.draws[:, k], level)
            at = [self._reached(k, end) for end in ends]
            low, high = (None if lost else finite(to(end)) for end, lost in zip(ends, at, strict=True))
            found[symbol] = {"value": value, "low": low, "high": high}
        return found

    def _reached(self, k: int, end: float) -> bool:
        """Whether an end of an interval is a bound of the search: nothing in the rows stops it there."""
        same = self.draws[:, k] == end
        return not np.isfinite(end) or bool(self.ended[same, k].any())

    def covariance_of(self) -> list[str]:
        return [f"ln {symbol}" if symbol in LOGS else symbol for symbol in self.symbols]

    def covariance(self) -> list[list[float]] | None:
        columns = [OF[symbol] for symbol in self.symbols]
        if len(self.draws) < 50 or self.ended[:, columns].any(axis=1).mean() > MOST_BOUND:
            return None
        draws = self.draws[~self.ended[:, columns].any(axis=1)][:, columns]
        low, high = np.quantile(draws, [0.005, 0.995], axis=0)
        return np.atleast_2d(np.cov(np.clip(draws, low, high), rowvar=False)).tolist()

    def drawn(self, most: int) -> dict:
        rows = [[None if not np.isfinite(cell) else float(f"{cell:.7g}") for cell in row] for row in self.draws[:most]]
        names = [f"ln {symbol}" if symbol in LOGS else symbol for symbol in list(OF)[: len(self.centre)]]
        return {"of": names, "values": rows}


def fit_form(group, options, kept) -> Fit:
    """The fit of options.form to a Group with the terms that `kept` (identify.Terms) names."""
    rng = np.random.default_rng(options.seed)
    if group.epochs is not None:
        return _repeats(group, options, rng)
    rows = chinchilla_rows(group, options, kept)
    point = fit_point(rows, options.seed)
    count = options.bootstrap or WITHOUT_BOOTSTRAP
    draws = resample(rows, point.theta, group.block, count, rng, one_step=not options.bootstrap)
    symbols = [s for s in ("E", "A", "B", "alpha", "beta") if s not in TERM or kept.varying[TERM[s]]]
    names = (name if here else None for name, here in zip(options.predictors, kept.varying, strict=True))
    return Fit(
        _plain(point.theta[None], rows, kept)[0],
        _plain(draws, rows, kept),
        at_bound(draws, rows)[:, [0, 1, 3, 2, 4]],
        point.residual,
        point.value,
        symbols,
        [s for s in symbols if s not in options.fixed],
        _form(*names),
        len(rows) > LARGE or not options.bootstrap,
    )


def chinchilla_rows(group, options, kept) -> Rows:
    rows = Rows.of(group.params, group.tokens, group.loss, options.delta)
    return replace(rows, varying=kept.varying).holding(options.fixed)


def _plain(theta: np.ndarray, rows: Rows, kept) -> np.ndarray:
    """theta (S, 5) as (ln E, ln A, ln B, alpha, beta), -inf where a term is nil at the centre; alpha or beta of a
    dropped term 1."""
    found = natural(theta, rows)
    least = np.log(NIL) + rows.y.min()
    found[..., :3] = np.where(theta[..., [0, 1, 3]] < least, -np.inf, found[..., :3])
    for k, here in enumerate(kept.varying):
        if not here:
            found[..., 1 + k], found[..., 3 + k] = -np.inf, 1.0
    return found


def _form(size: str | None, data: str | None) -> str:
    return " + ".join(["E", *([f"A / {size}^alpha"] if size else []), *([f"B / {data}^beta"] if data else [])])


def _repeats(group, options, rng) -> Fit:
    problem = repeats.Problem(group.params, group.tokens, group.epochs, group.loss, options.delta, options.fixed)
    theta, value = problem.fit()
    draws = problem.resample(theta, group.block, min(options.bootstrap or WITHOUT_BOOTSTRAP, 1000), rng)
    ended = ((draws <= problem.low + 1e-9) | (draws >= problem.high - 1e-9)) & problem.free
    symbols = list(OF)
    return Fit(
        theta, draws, ended, problem.residual(theta[None])[0], value, symbols,
        [s for s in symbols if s not in options.fixed],
        "E + A / N'^alpha + B / D'^beta, D' = U_D (1 + R_D (1 - exp(-(epochs - 1) / R_D))), N' likewise with R_N",
    )  # fmt: skip


