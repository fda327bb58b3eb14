"""Synthetic sweeps with a known law, to see whether a fit recovers it. Only `bowl` and `tilted` have the fitter's form.

Loss = floor(N, D) + basin(octaves from the optimum) + what the seed does to every run of its own + noise. The optimum
of a slice is a power law of N and D, with scatter of its own; grids lie off the optimum by up to an octave.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from analysis.slices import Slice

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


def shelf(z: np.ndarray) -> np.ndarray:
    """Weight decay: none costs a fixed amount, too much is steep."""
    return 0.025 / (1 + np.exp(1.2 * (z + 1.5))) + 0.004 * np.sinh(0.7 * np.maximum(z + 1, 0)) ** 1.5


def stairs(z: np.ndarray) -> np.ndarray:
    """A batch at fixed tokens: nearly free below the critical one, dear above it, noisy gradients far below."""
    return 0.016 * np.log1p(np.exp(1.3 * (z - 1.0))) + 0.012 * np.exp2(-0.8 * (z + 1.0))


BASINS: dict[str, Callable] = {"bowl": bowl, "blow_up": blow_up, "plateau": plateau, "shelf": shelf, "stairs": stairs}


@cache
def center(basin: Callable) -> float:
    """Where the basin is lowest, octaves."""
    z = np.linspace(-3, 3, 60_001)
    return float(z[basin(z).argmin()])


def tilted(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """LR and batch: a quadratic with interaction, the fitter's own form."""
    return 0.010 * z**2 - 0.008 * z * w + 0.008 * w**2


def valley(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """LR and batch: half an octave of LR for each of batch, steep at high LR, dear at large batch."""
    slope, bottom, step = z - 0.5 * w, center(blow_up), center(stairs)
    return blow_up(slope + bottom) - blow_up(bottom) + 0.7 * (stairs(w + step) - stairs(step))


@dataclass(frozen=True)
class Plan:
    """A sweep: one slice for each of `params` x `tpp`, `values` of the tuned hyper-parameter an octave apart; of target
    lr_batch a grid of values x batches."""

    target: str = "lr"
    basin: str = "bowl"
    coefficient: float = 3.0
    exponents: tuple[tuple[str, float], ...] = (("params", -0.4), ("tokens", -0.15))
    batch: tuple[float, tuple[tuple[str, float], ...]] = (0.002, (("tokens", 0.55),))  # the batch's law in lr_batch
    params: tuple[float, ...] = (1e6, 4e6, 16e6)
    tpp: tuple[float, ...] = (5.0, 20.0, 80.0)
    values: int = 8
    batches: int = 5
    seeds: int = 1
    noise: float = 0.002  # nats
    noise_growth: float = 0.0  # exponent of noise in params / params[0]
    seed_effect: float = 0.0  # nats, shared by all runs of a seed
    scatter: float = 0.0  # s.d. of the true optima about the law, octaves
    off_center: float = 1.0  # octaves
    diverge_above: float = np.inf  # octaves of the (first) hyper-parameter above the optimum

    @property
    def laws(self) -> dict[str, tuple[float, tuple[tuple[str, float], ...]]]:
        """{tuned column: (coefficient, exponents)}."""
        own = self.coefficient, self.exponents
        if self.target == "lr_batch":
            return {"lr": own, "batch_size": self.batch}
        return {"batch_size" if self.target == "batch" else self.target: own}


def power(law: tuple[float, tuple[tuple[str, float], ...]], params: float, tokens: float) -> float:
    at = {"params": params, "tokens": tokens, "tpp": tokens / params}
    return law[0] * float(np.prod([at[name] ** exponent for name, exponent in law[1]]))


def truth(plan: Plan, params: float, tokens: float) -> float:
    """The law of the first tuned hyper-parameter."""
    return power((plan.coefficient, plan.exponents), params, tokens)


def sweep(plan: Plan, rng: np.random.Generator) -> pd.DataFrame:
    """The table of one sweep, shuffled: canonical columns, diverged runs without loss. attrs["optima"]: {(params,
    tokens): true optima with their scatter}."""
    effects = plan.seed_effect * rng.standard_normal(plan.seeds)
    parts, optima = [], {}
    for n in plan.params:
        for tpp in plan.tpp:
            best = [power(law, n, n * tpp) * 2.0 ** (plan.scatter * rng.standard_normal()) for law in plan.laws.values()]
            optima[n, n * tpp] = best
            z = _octaves(plan, rng)
            seed = np.tile(np.arange(plan.seeds), len(z))
            z = np.repeat(z, plan.seeds, axis=0)
            sd = plan.noise * (n / plan.params[0]) ** plan.noise_growth
            loss = 1.5 + 300.0 / n**0.4 + 400.0 / (n * tpp) ** 0.35 + _basin(plan, z)
            loss = loss + effects[seed] + sd * rng.standard_normal(len(z))
            tuned = {name: best[i] * 2.0 ** z[:, i] for i, name in enumerate(plan.laws)}
            parts.append({"params": np.full(len(z), n), "tokens": np.full(len(z), n * tpp), **tuned, "loss": loss})
            parts[-1] |= {"seed": seed, "lost": z[:, 0] > plan.diverge_above}
    order = rng.permutation(sum(len(part["loss"]) for part in parts))
    df = pd.DataFrame({name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]})
    df["status"] = np.where(df["lost"], "diverged", "done")
    df["loss"] = df["loss"].where(~df["lost"])
    df["tpp"] = df["tokens"] / df["params"]
    for name, value in {"batch_size": 64.0, "context": float(CONTEXT), "lr": 0.004}.items():
        df[name] = df[name] if name in df else value
    if plan.target in ("lr", "batch", "lr_batch"):
        df["weight_decay"] = 0.1
    df["run_id"] = [f"run{i}" for i in range(len(df))]
    df = df.drop(columns="lost")
    df.attrs["optima"] = optima
    return df


def _octaves(plan: Plan, rng: np.random.Generator) -> np.ndarray:
    """(values, k) octaves from the optimum."""
    grids = [
        np.arange(count) - (count - 1) / 2 + rng.uniform(-plan.off_center, plan.off_center)
        for count in (plan.values, plan.batches)[: len(plan.laws)]
    ]
    return np.stack([each.ravel() for each in np.meshgrid(*grids, indexing="ij")], axis=1)


def _basin(plan: Plan, z: np.ndarray) -> np.ndarray:
    if plan.target == "lr_batch":
        return {"tilted": tilted, "valley": valley}[plan.basin](*z.T)
    basin = BASINS[plan.basin]
    bottom = center(basin)
    return basin(z[:, 0] + bottom) - basin(bottom)


def cut(df: pd.DataFrame, plan: Plan) -> list[Slice]:
    """The slices of a sweep, as analysis.slices.partition cuts them, without its price of a table that may be anyone's."""
    code = np.unique(df[["params", "tokens"]].to_numpy(), axis=0, return_inverse=True)[1].ravel()
    columns = {name: df[name].to_numpy() for name in df}
    slices = []
    for each in range(code.max() + 1):
        rows = np.flatnonzero(code == each)
        n, d = float(columns["params"][rows[0]]), float(columns["tokens"][rows[0]])
        slices.append(
            Slice(
                tuple(plan.laws),
                {},
                {"params": n, "tokens": d, "tpp": d / n},
                {},
                6 * n * d,
                np.log(np.stack([columns[name][rows] for name in plan.laws], axis=1)),
                columns["loss"][rows],
                columns["status"][rows] == "diverged",
                columns["seed"][rows],
                rows,
                rows,
            )
        )
    return slices
