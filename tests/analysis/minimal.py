"""For each analysis a small table that it fits in well under a second, what it needs of it, and what must not change."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from benchmarks.planted import Plan, sweep


@dataclass(frozen=True)
class Minimal:
    """needs: columns without which there is no law. scale: the rows of one scale. constant: the table with a predictor
    that does not vary. units: {column: factor} of other units, under which the parameters in `same` stay."""

    make: Callable[[], pd.DataFrame]
    needs: tuple[str, ...]
    scale: Callable[[pd.DataFrame], pd.Series]
    constant: Callable[[pd.DataFrame], pd.DataFrame]
    units: dict[str, float]
    same: tuple[str, ...]
    options: dict = field(default_factory=dict)


def hyper(target: str) -> Callable[[], pd.DataFrame]:
    return lambda: sweep(Plan(target=target, noise=0.001, values=6), np.random.default_rng(0))


def _batch() -> pd.DataFrame:
    """LR and batch swept together at six scales."""
    rng, rows = np.random.default_rng(0), []
    for n in (1e6, 4e6, 16e6):
        for tokens in (1e8, 8e8):
            for i in range(-3, 4):
                for k in range(-3, 4):
                    batch, lr = 2 * tokens**0.3 * 2.0**i, 3 * n**-0.4 * 2.0**k
                    loss = 2 + 10 / n**0.2 + 0.01 * (i - 0.2) ** 2 + 0.01 * (k + 0.3 - 0.3 * i) ** 2
                    rows.append((n, tokens, batch, lr, loss + 1e-3 * rng.standard_normal()))
    df = pd.DataFrame(rows, columns=["params", "tokens", "batch_size", "lr", "loss"])
    return df.assign(context=1024.0, weight_decay=0.1, run_id=[f"r{i}" for i in range(len(df))], status="done")


def _grid() -> pd.DataFrame:
    """Chinchilla's form over sizes and tokens."""
    rng = np.random.default_rng(0)
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 6)))
    loss = 1.7 + 400 / n**0.34 + 1000 / d**0.36
    df = pd.DataFrame({"params": n, "tokens": d, "loss": loss * np.exp(2e-3 * rng.standard_normal(len(n)))})
    return df.assign(run_id=[f"r{i}" for i in range(len(df))], status="done")


def _budgets() -> pd.DataFrame:
    """IsoFLOP curves: seven sizes at each of five budgets."""
    rng, rows = np.random.default_rng(0), []
    for budget in np.geomspace(1e18, 1e20, 5):
        best = 0.1 * budget**0.5
        for n in best * 2.0 ** np.arange(-3, 4):
            d = budget / 6 / n
            rows.append((n, d, 1.7 + 400 / n**0.34 + 1000 / d**0.36 + 1e-3 * rng.standard_normal()))
    df = pd.DataFrame(rows, columns=["params", "tokens", "loss"])
    return df.assign(run_id=[f"r{i}" for i in range(len(df))], status="done")


def _checkpoints() -> pd.DataFrame:
    """Checkpoints of eight runs, each of its own size."""
    rng, rows = np.random.default_rng(0), []
    for i, n in enumerate(np.geomspace(1e7, 1e9, 8)):
        for d in np.geomspace(1e8, 1e11, 40):
            rows.append((f"r{i}", n, d, 1.7 + 400 / n**0.34 + 1000 / d**0.36 + 5e-4 * rng.standard_normal()))
    return pd.DataFrame(rows, columns=["run_id", "params", "tokens", "loss"]).assign(status="done", schedule="constant")


def _batches() -> pd.DataFrame:
    """Loss over batch and tokens at three sizes: the hyperbola with B_crit = 10 tokens^0.2 sequences."""
    rng, rows = np.random.default_rng(0), []
    for n in (3e7, 1e8, 3e8):
        for least in n * np.array([10, 20, 40, 80, 160.0]):
            for batch in 2.0 ** np.arange(5, 11):
                tokens = least * (1 + batch / (4 * least**0.2))
                loss = 1.7 + 400 / n**0.34 + 1000 / least**0.36 + 5e-4 * rng.standard_normal()
                rows.append((n, tokens, batch, loss))
    df = pd.DataFrame(rows, columns=["params", "tokens", "batch_size", "loss"])
    return df.assign(context=1024.0, run_id=[f"r{i}" for i in range(len(df))], status="done")


def _transfer() -> pd.DataFrame:
    frames = []
    for name, exponents in (("mup", (("params", 0.0),)), ("standard", (("params", -0.4),))):
        plan = Plan(noise=0.001, exponents=exponents, coefficient=0.01, params=(1e6, 4e6, 16e6, 64e6), tpp=(20.0,), values=7)
        frames.append(sweep(plan, np.random.default_rng(len(frames))).assign(parameterization=name))
    return pd.concat(frames, ignore_index=True).assign(run_id=lambda t: [f"r{i}" for i in range(len(t))])


def _curves() -> pd.DataFrame:
    """Loss along training under four schedules, L = 2 + 0.5 S1^-0.4 - 0.4 S2, every tenth step."""
    frames = []
    rng = np.random.default_rng(0)
    for name, total in (("cosine", 1500), ("wsd", 1500), ("constant", 1500), ("long", 2500)):
        step = np.arange(total)
        if name == "constant":
            lr = np.full(total, 1e-3)
        elif name == "wsd":
            lr = 1e-3 * np.minimum(1, (total - step) / (0.3 * total))
        else:
            lr = 1e-3 * (0.1 + 0.45 * (1 + np.cos(np.pi * step / total)))
        drop = np.concatenate([[0], lr[:-1] - lr[1:]])
        area = np.cumsum(np.convolve(drop, 0.999 ** np.arange(total))[:total])
        loss = 2 + 0.5 / (np.cumsum(lr) + 1e-3) ** 0.4 - 0.4 * area + 2e-3 * rng.standard_normal(total)
        keep = np.where(step % 10 == 9, loss, np.nan)
        frames.append(pd.DataFrame({"run_id": name, "step": step + 1, "lr": lr, "loss": keep}))
    return pd.concat(frames, ignore_index=True)


def _first(*names: str) -> Callable[[pd.DataFrame], pd.Series]:
    return lambda t: (t[list(names)] == t.iloc[0][list(names)]).all(axis=1)


def _one(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Only the rows at one value of a predictor."""
    return lambda t: t[t[column] == t[column].iloc[0]]


QUICK = {"bootstrap": 20}
COUNTS = {"params": 1e-6, "tokens": 1e-6}
PLAIN = {**QUICK, "parameterization": "standard"}

MINIMAL: dict[str, Minimal] = {
    "lr": Minimal(hyper("lr"), ("lr", "loss"), _first("params", "tpp"), _one("params"),
                  COUNTS, ("params", "tokens"), QUICK),
    "tau": Minimal(hyper("tau"), ("tau", "loss"), _first("params", "tpp"), _one("tpp"), COUNTS, ("tpp",), PLAIN),
    "weight_decay": Minimal(hyper("weight_decay"), ("weight_decay", "loss"), _first("params", "tpp"), _one("params"),
                            COUNTS, ("params", "tokens"), QUICK),
    "batch": Minimal(_batch, ("batch_size", "loss", "tokens"), _first("params", "tokens"), _one("tokens"),
                     {"params": 1e-6, "lr": 10.0}, ("tokens", "coefficient"), QUICK),
    "lr_batch": Minimal(_batch, ("batch_size", "loss", "lr"), _first("params", "tokens"), _one("tokens"),
                        {"params": 1e-6}, ("params", "tokens"), QUICK),
    "critical_batch": Minimal(_batches, ("batch_size", "loss", "tokens"), _first("params", "batch_size"), _one("params"),
                              {"context": 2.0}, ("tokens", "coefficient"), {**QUICK, "tuned": "assume"}),
    "isoflop": Minimal(_budgets, ("loss", "params"), lambda t: t.index < 7, lambda t: t[t.index < 7],
                       COUNTS, ("flops",), QUICK),
    "envelope": Minimal(_checkpoints, ("loss", "params", "tokens", "run_id"), _first("params"), _one("params"), COUNTS,
                        ("flops",), QUICK),
    "transfer": Minimal(_transfer, ("lr", "loss"), _first("params"), _one("params"), COUNTS, ("p", "E"), QUICK),
    "loss": Minimal(_grid, ("loss", "params", "tokens"), _first("params", "tokens"), _one("params"),
                    COUNTS, ("E", "alpha", "beta"), QUICK),
    "curves": Minimal(_curves, ("run_id", "step", "lr", "loss"), lambda t: t["step"] == 10, _one("step"),
                      {"lr": 10.0}, ("L0", "alpha"), QUICK),
}  # fmt: skip
