"""How often do the 10-90 % intervals of the loss law hold the truth?

`python -m benchmarks.coverage_loss [--draws 500] [--json F]`

Tables are made here, from a surface written for this file alone. In `plain` cases it is E + A / N^alpha + B / D^beta
and 80 % is due, whatever the noise: independent, heavy-tailed and growing with N, shared by checkpoints of a run, by
seeds of a configuration. The others follow no such law (two terms that interact, the best of an LR grid that is off
its centre): there no parameter is true, so the loss and the compute-optimal parameters at 10 times the largest
budget are what is asked for (`loss_at_10x`, `params_at_10x`), with the floor E.

Measured: 500 draws of the grids give 75 to 85 % for every parameter and exponent (8 x 8: 81 to 83, 5 x 6: 82 to 85,
4 x 3: 75 to 77, loss and params at 10x 74); 300 draws of the other plain cases with nearly this correction gave 75 to
84 %. Of those that are not of the form, 40 draws each gave, for E, loss_at_10x and params_at_10x: outliers on one side
70, 72, 82 %; best of an LR grid 72, 72, 78 %; terms interact 85, 72, 0 % (params 4 times too large), with little noise
95, 50, 0 %. `fit` tests for that bend (analysis/loss/lack.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.fit import fit
from analysis.loss.predict import loss_at, optimal_at
from benchmarks.covering import run

FLOOR, OF_N, OF_D, POWER_N, POWER_D = 1.8, 480.0, 2000.0, 0.35, 0.37


def separable(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return FLOOR + OF_N * n**-POWER_N + OF_D * d**-POWER_D


def interacting(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Both terms under one exponent, as in Skaling (arXiv 2608.07222, k 0.31 to 0.45)."""
    return FLOOR + (3e5 * n**-0.8 + 4e6 * d**-0.85) ** 0.42


@dataclass(frozen=True)
class Case:
    """surface(N, D); table(rng, surface) -> DataFrame; plain: the law is of the fitted form."""

    table: Callable
    surface: Callable = separable
    plain: bool = True
    options: tuple = ()


def _grid(sizes: int, horizons: int, low: float = 2e7, high: float = 2e9) -> tuple[np.ndarray, np.ndarray]:
    n, ratio = np.meshgrid(np.geomspace(low, high, sizes), np.geomspace(5, 160, horizons), indexing="ij")
    return n.ravel(), (n * ratio).ravel()


def _frame(n, d, loss, **columns) -> pd.DataFrame:
    return pd.DataFrame({"params": n, "tokens": d, "loss": loss, **columns})


def grid(sizes: int, horizons: int, noise: float, high: float = 2e9) -> Callable:
    def table(rng, surface):
        n, d = _grid(sizes, horizons, high=high)
        return _frame(n, d, surface(n, d) * np.exp(noise * rng.standard_normal(len(n))))

    return table


def scattered(rng, surface) -> pd.DataFrame:
    n, d = 10 ** rng.uniform(7.7, 10, 240), 10 ** rng.uniform(8.7, 11.5, 240)
    return _frame(n, d, surface(n, d) * np.exp(0.01 * rng.standard_normal(240)))


def heavy(rng, surface) -> pd.DataFrame:
    n, d = _grid(8, 8)
    return _frame(n, d, surface(n, d) * np.exp(0.003 * (n / 2e8) ** 0.2 * rng.standard_t(3, len(n))))


def outliers(rng, surface) -> pd.DataFrame:
    """One run in twelve ended early or hit a spike: up to 5 % too high."""
    n, d = _grid(8, 8)
    bad = rng.random(len(n)) < 1 / 12
    return _frame(n, d, surface(n, d) * np.exp(0.004 * rng.standard_normal(len(n)) + bad * rng.uniform(0.01, 0.05, len(n))))


def checkpoints(runs: int) -> Callable:
    def table(rng, surface):
        n, d = np.repeat(np.geomspace(2e7, 2e9, runs), 10), np.tile(np.geomspace(1e9, 1e11, 10), runs)
        shift = np.repeat(0.004 * rng.standard_normal(runs), 10) + 0.002 * rng.standard_normal(10 * runs)
        return _frame(n, d, surface(n, d) * np.exp(shift), run_id=np.repeat([f"run {i}" for i in range(runs)], 10))

    return table


def seeds(rng, surface) -> pd.DataFrame:
    """Three seeds of each configuration; configurations scatter about the law, and a seed shifts all its runs."""
    n, d = (np.repeat(column, 3) for column in _grid(6, 6))
    seed = np.tile(np.arange(3), 36)
    shift = np.repeat(0.003 * rng.standard_normal(36), 3) + 0.001 * rng.standard_normal(3)[seed]
    return _frame(n, d, surface(n, d) * np.exp(shift + 0.002 * rng.standard_normal(108)), seed=seed)


def tuned(rng, surface) -> pd.DataFrame:
    """Seven LRs by octaves about the optimum, off its centre by up to one: steep and diverging above, flat below."""
    n, d = (np.repeat(column, 7) for column in _grid(7, 7))
    off = np.tile(np.arange(-3.0, 4.0), 49) + np.repeat(rng.uniform(-1, 1, 49), 7)
    basin = 0.004 * np.where(off < 0, off**2 / (1 + 0.15 * off**2), off**2 + 0.4 * off**3)
    loss = surface(n, d) * np.exp(basin + 0.003 * rng.standard_normal(len(n)))
    return _frame(n, d, np.where(off > 3.2, np.nan, loss), lr=2.0**off * 1e-3)


CASES: dict[str, Case] = {
    "grid 8 x 8": Case(grid(8, 8, 0.004)),
    "grid 5 x 6": Case(grid(5, 6, 0.002)),
    "grid 4 x 3": Case(grid(4, 3, 0.001, 5e8)),
    "240 scattered runs": Case(scattered),
    "heavy tails, noise grows with N": Case(heavy),
    "20 runs of 10 checkpoints": Case(checkpoints(20)),
    "8 runs of 10 checkpoints": Case(checkpoints(8)),
    "configurations scatter, 3 seeds share a shift": Case(seeds),
    "outliers on one side": Case(outliers, plain=False),
    "terms interact": Case(grid(8, 8, 0.004), interacting, plain=False),
    "terms interact, little noise": Case(grid(8, 8, 0.001), interacting, plain=False),
    "best of an LR grid off its centre": Case(tuned, plain=False, options=(("select", "best"),)),
}
TRUTH = {"E": FLOOR, "A": OF_N, "B": OF_D, "alpha": POWER_N, "beta": POWER_D}


def cheapest(surface, flops: float) -> tuple[float, float]:
    """(params, loss) where `surface` is lowest at 6 N D = flops, by search."""
    n = np.geomspace(1e5, 1e14, 400_001)
    loss = surface(n, flops / (6 * n))
    return float(n[loss.argmin()]), float(loss.min())


def measure(case: str | Case, draws: int, seed: int = 0, bootstrap: int = 250) -> dict:
    """Shares of draws whose interval holds the truth, median widths, and mean errors (bias) of what is asked for."""
    plan = CASES[case] if isinstance(case, str) else case
    rng = np.random.default_rng(seed)
    held: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    errors: dict[str, list[float]] = {}
    for _ in range(draws):
        table = plan.table(rng, plan.surface)
        result = fit(table, "loss", {"bootstrap": bootstrap, "heldout": None, **dict(plan.options)})
        law = next(law for law in result.laws if law["name"] == "loss")
        flops = 60 * float((table["params"] * table["tokens"]).max())
        params, loss = cheapest(plan.surface, flops)
        asked = {"E": (FLOOR, law["parameters"]["E"])}
        if plan.plain:
            asked |= {symbol: (value, law["parameters"][symbol]) for symbol, value in TRUTH.items()}
            exponent = next(each for each in result.laws if each["name"] == "params_opt")["parameters"]["flops"]
            asked["params_opt exponent"] = POWER_D / (POWER_N + POWER_D), exponent
        at = loss_at(law, params, flops / (6 * params))
        best = optimal_at(law, flops)["params"]
        for name, truth, found in (("loss_at_10x", loss, at), ("params_at_10x", params, best)):
            asked[name] = truth, {"value": found.value, "low": found.low, "high": found.high}
        for name, (truth, entry) in asked.items():
            low = -np.inf if entry["low"] is None else entry["low"]
            high = np.inf if entry["high"] is None else entry["high"]
            held.setdefault(name, []).append(low <= truth <= high)
            widths.setdefault(name, []).append(high - low)
            errors.setdefault(name, []).append(entry["value"] / truth - 1)
    return {
        "coverage": {name: float(np.mean(each)) for name, each in held.items()},
        "width": {name: float(np.median(each)) for name, each in widths.items()},
        "bias": {name: float(np.median(each)) for name, each in errors.items()},
        "draws": draws,
    }


if __name__ == "__main__":
    run(__doc__, CASES, measure)
