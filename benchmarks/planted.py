"""Synthetic sweeps with a known law, to see whether a fit recovers it. Only `bowl` has the fitter's own form.

Loss = floor(N, D) + basin(octaves from the optimum) + what the seed does to every run of its own + noise. The optimum
of a slice is a power law of N and D, with scatter of its own; grids lie off the optimum by up to an octave.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

CONTEXT = 1024


def bowl(z: np.ndarray) -> np.ndarray:
    """A parabola: the fitter's own form."""
    return 0.010 * z**2


def blow_up(z: np.ndarray) -> np.ndarray:
    """A learning rate: mild when too low, steep when too high. Above 3.2 octaves runs diverge (see `sweep`)."""
    return 0.012 * (np.log1p(np.exp(-1.1 * z)) + 0.45 * np.expm1(0.75 * np.maximum(z + 2.5, 0)) / 7.0) - 0.0117


def plateau(z: np.ndarray) -> np.ndarray:
    """A timescale: too long a one costs what no weight decay costs, too short a one ever more."""
    return np.where(z > 0, 0.03 * -np.expm1(-(np.abs(z) ** 2) / 5.0), 0.008 * np.abs(z) ** 2.2)


BASINS: dict[str, Callable] = {"bowl": bowl, "blow_up": blow_up, "plateau": plateau}


def center(basin: Callable) -> float:
    """Where the basin is lowest, octaves."""
    z = np.linspace(-3, 3, 60_001)
    return float(z[basin(z).argmin()])


@dataclass(frozen=True)
class Plan:
    """A sweep: one slice for each of `params` x `tpp`, `values` of the tuned hyper-parameter an octave apart."""

    target: str = "lr"
    basin: str = "bowl"
    coefficient: float = 3.0
    exponents: tuple[tuple[str, float], ...] = (("params", -0.4), ("tokens", -0.15))
    params: tuple[float, ...] = (1e6, 4e6, 16e6)
    tpp: tuple[float, ...] = (5.0, 20.0, 80.0)
    values: int = 8
    seeds: int = 1
    noise: float = 0.002  # nats
    noise_growth: float = 0.0  # exponent of noise in params / params[0]
    seed_effect: float = 0.0  # nats, shared by all runs of a seed
    scatter: float = 0.0  # s.d. of the true optima about the law, octaves
    off_center: float = 1.0  # octaves
    diverge_above: float = np.inf  # octaves above the optimum


def truth(plan: Plan, params: float, tokens: float) -> float:
    at = {"params": params, "tokens": tokens, "tpp": tokens / params}
    return plan.coefficient * float(np.prod([at[name] ** exponent for name, exponent in plan.exponents]))


def sweep(plan: Plan, rng: np.random.Generator) -> pd.DataFrame:
    """The table of one sweep, shuffled: canonical columns, diverged runs without loss."""
    basin, rows = BASINS[plan.basin], []
    bottom = center(basin)
    effects = plan.seed_effect * rng.standard_normal(plan.seeds)
    for n in plan.params:
        for tpp in plan.tpp:
            best = truth(plan, n, n * tpp) * 2.0 ** (plan.scatter * rng.standard_normal())
            start = -(plan.values - 1) / 2 + rng.uniform(-plan.off_center, plan.off_center)
            for z in start + np.arange(plan.values):
                for seed in range(plan.seeds):
                    sd = plan.noise * (n / plan.params[0]) ** plan.noise_growth
                    loss = 1.5 + 300.0 / n**0.4 + 400.0 / (n * tpp) ** 0.35 + float(basin(z + bottom) - basin(bottom))
                    loss += effects[seed] + sd * rng.standard_normal()
                    rows.append((n, n * tpp, best * 2.0**z, loss, seed, z > plan.diverge_above))
    df = pd.DataFrame(rows, columns=["params", "tokens", plan.target, "loss", "seed", "lost"])
    df["status"] = np.where(df["lost"], "diverged", "done")
    df.loc[df["lost"], "loss"] = np.nan
    df["tpp"] = df["tokens"] / df["params"]
    df["batch_size"], df["context"] = 64.0, float(CONTEXT)
    if plan.target == "lr":
        df["weight_decay"] = 0.1
    else:
        df["lr"] = 0.004
    df["run_id"] = [f"run{i}" for i in range(len(df))]
    return df.drop(columns="lost").sample(frac=1.0, random_state=int(rng.integers(2**31))).reset_index(drop=True)
