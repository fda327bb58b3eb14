"""How often do the 10-90 % intervals of curve laws hold the truth? `python -m benchmarks.coverage_curves [--draws 500]`

Three runs (constant, cosine to 0, cosine to 10 %) are fitted, a WSD run is predicted. Generators, none of which shares code
with the fitter:
    annealing law, per-step recursion, noise of each loss independent, or AR(1) with 0.8 from loss to loss, or AR(1) and a
    shift of each run (with six runs of two lengths): parameters, and the final loss that the unseen run measures
    multi-power law, per-step double sum, AR(1) noise: the final loss
    a noisy quadratic with a power-law spectrum under SGD: no law of this form, the final loss only
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.curves.fit import fit
from analysis.curves.options import Options
from benchmarks.covering import run, shares

WARMUP, GRID, EVERY = 100, 20, 40  # steps
PEAK, MOMENTUM = 1e-3, 0.997


@dataclass(frozen=True)
class Case:
    dynamics: str = "annealing"
    law: str = "annealing"
    noise: float = 0.003  # relative
    rho: float = 0.0
    shift: float = 0.0  # relative, of a whole run
    lengths: tuple[int, ...] = (4000,)


CASES = {
    "annealing law, independent noise": Case(),
    "annealing law, AR(1) noise": Case(rho=0.8),
    "annealing law, AR(1) noise, runs shifted, 6 runs": Case(rho=0.8, shift=0.003, lengths=(4000, 2500)),
    "multi-power law, AR(1) noise": Case(dynamics="multi_power", law="multi_power", rho=0.8),
    "noisy quadratic, fitted by the annealing law": Case(dynamics="quadratic", rho=0.5, noise=0.001),
    "noisy quadratic, fitted by the multi-power law": Case(dynamics="quadratic", law="multi_power", rho=0.5, noise=0.001),
}
TRUTH = {"L0": 2.6, "A": 0.85, "alpha": 0.5, "C": 0.45}
SHAPES = {
    "constant": lambda u: np.ones_like(u),
    "cosine to 0": lambda u: (1 + np.cos(np.pi * u)) / 2,
    "cosine to 10 %": lambda u: 0.1 + 0.45 * (1 + np.cos(np.pi * u)),
    "wsd": lambda u: np.clip((1 - u) / 0.3, 0, 1),
}


def schedule(shape: str, steps: int) -> np.ndarray:
    """LR at steps 1..steps."""
    t = np.arange(1, steps + 1)
    return PEAK * np.where(t < WARMUP, t / WARMUP, SHAPES[shape](np.clip((t - WARMUP) / (steps - WARMUP), 0, 1)))


def annealing(lr: np.ndarray) -> np.ndarray:
    total = smoothed = gained = 0.0
    losses = np.empty(len(lr))
    for i, eta in enumerate(lr):
        total += eta
        if i >= WARMUP:
            smoothed = MOMENTUM * smoothed + lr[i - 1] - eta
            gained += smoothed
        losses[i] = TRUTH["L0"] + TRUTH["A"] * total ** -TRUTH["alpha"] - TRUTH["C"] * gained
    return losses


def multi_power(lr: np.ndarray) -> np.ndarray:
    sums = np.cumsum(lr)
    losses = 2.6 + 0.85 * sums**-0.5
    for k in np.flatnonzero(np.diff(lr) < 0) + 1:
        if lr[k] > 0:
            x = lr[k] ** -0.6 * (sums[k:] - sums[k - 1])
            losses[k:] -= 400.0 * (lr[k - 1] - lr[k]) * (1 - (1 + 2.0 * x) ** -0.6)
    return losses


def quadratic(lr: np.ndarray) -> np.ndarray:
    """Expected loss of 400 modes of curvature h = i^-1.3 under SGD with gradient noise: 2.5 + sum h E[x^2] / 2."""
    h = 400.0 * np.arange(1, 401.0) ** -1.3
    square = 2.0 * np.arange(1, 401.0) ** -0.2 / 400
    losses = np.empty(len(lr))
    for i, eta in enumerate(lr):
        square = (1 - eta * h) ** 2 * square + eta**2 * h * 0.3
        losses[i] = 2.5 + 0.5 * (h * square).sum()
    return losses


def planted(case: Case) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{run: (lr, expected loss)} by step; the unseen run is called unseen."""
    dynamics = {"annealing": annealing, "multi_power": multi_power, "quadratic": quadratic}[case.dynamics]
    runs = {f"{shape}/{n}": schedule(shape, n) for n in case.lengths for shape in list(SHAPES)[:3]}
    runs["unseen"] = schedule("wsd", 3000)
    return {name: (lr, dynamics(lr)) for name, lr in runs.items()}


def draw(case: Case, runs: dict, rng: np.random.Generator) -> pd.DataFrame:
    frames = []
    for name, (lr, loss) in runs.items():
        step = np.arange(GRID, len(lr) + 1, GRID)
        noise = rng.standard_normal(len(step))
        for i in range(2, len(step)):  # losses stand at every second row
            noise[i] = case.rho * noise[i - 2] + np.sqrt(1 - case.rho**2) * noise[i]
        measured = loss[step - 1] * np.exp(case.noise * noise + case.shift * rng.standard_normal())
        frames.append(
            pd.DataFrame(
                {"run_id": name, "step": step, "lr": lr[step - 1], "loss": np.where(step % EVERY == 0, measured, np.nan)}
            )
        )
    return pd.concat(frames, ignore_index=True)


def measure(case: Case, draws: int, seed: int = 0) -> dict:
    """Shares of draws whose interval holds the truth: parameters (annealing law), final loss measured by the unseen run,
    and the mean absolute error of its prediction."""
    rng, runs = np.random.default_rng(seed), planted(case)
    held: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    errors = []
    for i in range(draws):
        table = draw(case, runs, rng)
        options = Options.from_dict({"law": case.law, "heldout_runs": ["unseen"], "momentum": MOMENTUM, "bootstrap": 300,
                                     "seed": i})  # fmt: skip
        result = fit(table, options)
        law, scored = result.laws[0], next(iter(result.tables.values())).iloc[0]
        known = TRUTH if case.dynamics == case.law == "annealing" else {}
        for name, value in known.items():
            p = law["parameters"][name]
            held.setdefault(name, []).append(p["low"] <= value <= p["high"])
            widths.setdefault(name, []).append(p["high"] - p["low"])
        held.setdefault("final loss", []).append(scored["low"] <= scored["loss"] <= scored["high"])
        widths.setdefault("final loss", []).append(scored["high"] - scored["low"])
        errors.append(abs(scored["error"]))
    return {
        "coverage": {name: float(np.mean(values)) for name, values in held.items()},
        "width": {name: float(np.median(values)) for name, values in widths.items()},
        "error": float(np.mean(errors)),
        "draws": draws,
    }


def words(r: dict) -> str:
    return f"{shares(r, 1)}; error {r['error']:.4f} nats, width {r['width']['final loss']:.4f}"


if __name__ == "__main__":
    run(__doc__, CASES, measure, words)
