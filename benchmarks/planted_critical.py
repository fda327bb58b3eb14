"""Synthetic sweeps and tables of steps with a known law of the critical batch, to see whether a fit recovers it.

Forward model: at N parameters a run of D tokens at batch B does as well as D_min(D, B) tokens at a tiny batch,

    D = D_min (1 + (B / B_c)^p)^(1/p),   B_c a power of the law's own tokens,

so that S_min B_c = D_min in both limits for every p; p = 1 is the fitter's hyperbola, others it cannot follow. Loss is
floor(N) + a falling function of D_min (a power, or a power of the logarithm, which no E + c D^-beta is), plus what LR,
the seed and noise add. The law of definition=hyperbola is of D_min; that of definition=overhead of D at the optimal
batch, and the batch where D has grown by the overhead is exact for every p.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.planted import blow_up, center

CONTEXT = 1024


@dataclass(frozen=True)
class Plan:
    definition: str = "hyperbola"
    table: str = "sweep"  # or "steps"
    coefficient: float = 256.0  # critical batch, sequences, at 1e9 tokens
    exponent: float = 0.46
    params: tuple[float, ...] = (3e7, 1e8, 3e8, 1e9)
    tpp: tuple[float, ...] = (10.0, 20.0, 40.0, 80.0, 160.0)
    batches: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)
    bend: float = 1.0  # p
    falling: str = "power"  # or "log"
    noise: float = 0.002  # nats; of ln steps in a table of steps
    noise_growth: float = 0.0  # exponent of noise in params / params[0]
    seeds: int = 1
    seed_effect: float = 0.0  # nats, shared by all runs of a seed
    scatter: float = 0.0  # s.d. of ln B_crit of a model size about the law
    off_center: float = 0.0  # octaves by which the grids of tokens and batch are shifted
    tuning: str = "tau"  # set by tau(TPP); or "grid": LR swept, one blow-up basin in each cell
    overhead: float = 0.2
    optimal_batch: float = 64.0


def law(plan: Plan, tokens: np.ndarray) -> np.ndarray:
    """The critical batch in sequences at the law's own tokens."""
    return plan.coefficient * (np.asarray(tokens, float) / 1e9) ** plan.exponent


def bend(plan: Plan, tokens: np.ndarray, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(ln D_min, ln B_c) at the law's own tokens; shift: of a model size about the law."""
    value, tokens = law(plan, tokens) * np.exp(shift), np.asarray(tokens, float)
    if plan.definition == "hyperbola":
        return np.log(tokens), np.log(value)
    p, more = plan.bend, 1 + plan.overhead
    b_c = ((value**p - (more * plan.optimal_batch) ** p) / (more**p - 1)) ** (1 / p)
    return np.log(tokens) - np.log1p((plan.optimal_batch / b_c) ** p) / p, np.log(b_c)


def needed(plan: Plan, tokens: np.ndarray, batch: np.ndarray, shift: float = 0.0) -> np.ndarray:
    """ln D at `batch` that does as well as the law's own tokens."""
    d_min, b_c = bend(plan, tokens, shift)
    return d_min + np.log1p(np.exp(plan.bend * (np.log(batch) - b_c))) / plan.bend


def _own_tokens(plan: Plan, d: np.ndarray, batch: np.ndarray, shift: float) -> np.ndarray:
    """The law's own tokens of runs of d tokens at `batch`: bisection."""
    lowest = ((1.01 + plan.overhead) * plan.optimal_batch * np.exp(-shift) / plan.coefficient) ** (1 / plan.exponent) * 1e9
    low = np.log(np.full(len(d), lowest if plan.definition == "overhead" else d.min() * 1e-5))
    high = np.maximum(np.log(d) + 1.0, low + 1.0)
    for _ in range(60):
        middle = (low + high) / 2
        over = needed(plan, np.exp(middle), batch, shift) > np.log(d)
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    return np.exp(low)


def falls(plan: Plan, params: float, log_d_min: np.ndarray) -> np.ndarray:
    """Loss in nats at D_min tokens at a tiny batch."""
    floor = 1.5 + 180.0 / params**0.34
    if plan.falling == "power":
        return floor + 400.0 * np.exp(-0.3 * log_d_min)
    return floor + 30.0 / (log_d_min - 9.0) ** 1.4


def tokens_at(plan: Plan, params: float, target: float, shift: float = 0.0) -> float:
    """The law's own tokens at which a model size reaches a loss."""
    low, high = np.log(1e6), np.log(1e15)
    if plan.definition == "overhead":
        low = np.log(_own_tokens(plan, np.array([1e6]), np.array([1.0]), shift)[0])
    for _ in range(80):
        middle = (low + high) / 2
        above = falls(plan, params, bend(plan, np.exp(middle), shift)[0]) > target
        low, high = (middle, high) if above else (low, middle)
    return float(np.exp(low))


def table(plan: Plan, rng: np.random.Generator) -> pd.DataFrame:
    """A planted table, shuffled, canonical columns."""
    frame = (_steps if plan.table == "steps" else _sweep)(plan, rng)
    return frame.sample(frac=1.0, random_state=int(rng.integers(2**31))).reset_index(drop=True)


def _steps(plan: Plan, rng: np.random.Generator) -> pd.DataFrame:
    """One target for each model size, 20 tokens per parameter at the optimal batch, say."""
    rows = []
    for n in plan.params:
        shift = plan.scatter * rng.standard_normal()
        batch = np.array(plan.batches) * 2.0 ** (plan.off_center * rng.uniform(-0.5, 0.5))
        sd = plan.noise * (n / plan.params[0]) ** plan.noise_growth
        log_d = needed(plan, np.full(len(batch), 20.0 * n), batch, shift)
        steps = np.exp(log_d + sd * rng.standard_normal(len(batch))) / batch / CONTEXT
        target = float(falls(plan, n, bend(plan, 20.0 * n, shift)[0]))
        rows += [(n, b, s, target) for b, s in zip(batch, steps, strict=True)]
    return pd.DataFrame(rows, columns=["params", "batch_size", "steps_to_target", "target_loss"]).assign(context=CONTEXT)


def _sweep(plan: Plan, rng: np.random.Generator) -> pd.DataFrame:
    effects, bottom, parts = plan.seed_effect * rng.standard_normal(plan.seeds), center(blow_up), []
    z = np.arange(-3, 4) if plan.tuning == "grid" else np.zeros(1)
    for n in plan.params:
        shift = plan.scatter * rng.standard_normal()
        moved = 2.0 ** (plan.off_center * rng.uniform(-0.5, 0.5, 2))
        d, b, z_, seed = (v.ravel() for v in np.meshgrid(
            n * np.array(plan.tpp) * moved[0], np.array(plan.batches) * moved[1], z, np.arange(plan.seeds), indexing="ij"
        ))  # fmt: skip
        loss = falls(plan, n, bend(plan, _own_tokens(plan, d, b, shift), shift)[0])
        off = z_ + (np.sin(17.0 * np.log(d * b)) * plan.off_center if plan.tuning == "grid" else 0.0)
        if plan.tuning == "grid":
            loss = loss + blow_up(off + bottom) - blow_up(np.array(bottom))
        sd = plan.noise * (n / plan.params[0]) ** plan.noise_growth
        loss = loss + effects[seed] + sd * rng.standard_normal(len(loss))
        frame = pd.DataFrame({"params": n, "tokens": d, "batch_size": b, "loss": loss, "seed": seed, "off": off})
        frame["lr"] = 0.01 * 2.0**z_ if plan.tuning == "grid" else 0.01
        tau = 1.1 * (d / n) ** -0.5
        frame["weight_decay"] = 0.0 if plan.tuning == "grid" else b * CONTEXT / (0.01 * tau * d)
        parts.append(frame)
    df = pd.concat(parts, ignore_index=True).assign(context=CONTEXT, parameterization="standard")
    df["status"] = np.where(df["off"] > 3.2, "diverged", "done")
    df.loc[df["off"] > 3.2, "loss"] = np.nan
    df["run_id"] = [f"run{i}" for i in range(len(df))]
    return df.drop(columns="off")
