"""Tables for the notebooks, from laws that are known: a reader sees what a fit makes of a truth. No training, no files.

Every table: canonical columns (analysis/columns.py), one row a run, or one a step in `curves`.
"""

import numpy as np
import pandas as pd

E, A, B, ALPHA, BETA = 1.75, 420.0, 900.0, 0.34, 0.34  # the loss law
LR = (1.3, -0.38, -0.02)  # base LR = 1.3 N^-0.38 (D / 1e9)^-0.02
TAU = (0.9, -0.45)  # tau = 0.9 TPP^-0.45
CRITICAL = (250.0, 0.45)  # B_crit = 250 (D / 1e9)^0.45 sequences of 2048 tokens
CONTEXT = 2048.0
SETTINGS = {"parameterization": "standard", "optimizer": "adamw", "schedule": "linear", "context": CONTEXT}


def floor(n, d):
    """Loss of a tuned run, nats per token: Chinchilla's form (arXiv 2203.15556)."""
    return E + A / n**ALPHA + B / d**BETA


def best_lr(n, d):
    return LR[0] * n ** LR[1] * (d / 1e9) ** LR[2]


def _table(rows, columns, **settings) -> pd.DataFrame:
    df = pd.DataFrame(rows, columns=columns)
    df["status"] = np.where(df["loss"].isna(), "diverged", "done")
    return df.assign(**{**SETTINGS, **settings}, run_id=[f"run{i}" for i in range(len(df))])


def lr_sweep(seed: int = 0) -> pd.DataFrame:
    """LR in factors of 2 at 4 sizes and 3 horizons, 2 seeds. The basin is flat on the left, steep on the right; runs at more
    than 3 octaves above the best diverge."""
    rng, rows = np.random.default_rng(seed), []
    for n in (2e7, 6e7, 2e8, 6e8):
        for tpp in (10.0, 20.0, 80.0):
            d, off = n * tpp, rng.uniform(-0.5, 0.5)
            for k in range(-4, 4):
                z = k + off + 0.25
                basin = 0.011 * z**2 * (0.8 + 0.25 * np.tanh(z))
                for s in (0, 1):
                    loss = floor(n, d) + basin + 0.003 * rng.standard_normal()
                    rows.append((n, d, tpp, 128.0, best_lr(n, d) * 2.0**z, 0.1, s, np.nan if z > 3 else loss))
    return _table(rows, ["params", "tokens", "tpp", "batch_size", "lr", "weight_decay", "seed", "loss"])


def tau_sweep(seed: int = 1) -> pd.DataFrame:
    """The AdamW timescale in factors of 2 at 3 sizes and 4 horizons: steep below the best, a plateau above it."""
    rng, rows = np.random.default_rng(seed), []
    for n in (2e7, 6e7, 2e8):
        for tpp in (10.0, 20.0, 80.0, 320.0):
            d, off = n * tpp, rng.uniform(-0.5, 0.5)
            for k in range(-3, 4):
                z = k + off
                basin = 0.008 * z**2 / (1 + 0.12 * max(z, 0) ** 2)
                loss = floor(n, d) + basin + 0.002 * rng.standard_normal()
                rows.append((n, d, tpp, 128.0, best_lr(n, d), TAU[0] * tpp ** TAU[1] * 2.0**z, 0, loss))
    return _table(rows, ["params", "tokens", "tpp", "batch_size", "lr", "tau", "seed", "loss"])


def grid(seed: int = 2) -> pd.DataFrame:
    """Tuned runs over sizes and tokens, for the loss law."""
    rng = np.random.default_rng(seed)
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(2e7, 2e9, 7), np.geomspace(1e9, 1e11, 7)))
    loss = floor(n, d) * np.exp(0.002 * rng.standard_normal(len(n)))
    return _table(zip(n, d, loss, strict=True), ["params", "tokens", "loss"])


def isoflop(seed: int = 3) -> pd.DataFrame:
    """Nine sizes at each of five training budgets."""
    rng, rows = np.random.default_rng(seed), []
    for budget in np.geomspace(3e18, 3e20, 5):
        middle = np.sqrt(budget / 6 / 20) * 2.0 ** rng.uniform(-0.5, 0.5)
        for n in middle * 2.0 ** np.linspace(-2.5, 2.5, 9):
            d = budget / 6 / n
            rows.append((n, d, floor(n, d) + 0.002 * rng.standard_normal()))
    return _table(rows, ["params", "tokens", "loss"])


def batches(seed: int = 4) -> pd.DataFrame:
    """Loss over batch and tokens at three sizes, each cell tuned: tokens = D_min (1 + batch / B_crit(D_min))."""
    rng, rows = np.random.default_rng(seed), []
    for n in (3e7, 1e8, 3e8):
        for least in n * np.array([10, 20, 40, 80, 160.0]):
            for batch in 2.0 ** np.arange(5, 12):
                tokens = least * (1 + batch / (CRITICAL[0] * (least / 1e9) ** CRITICAL[1]))
                rows.append((n, tokens, batch, floor(n, least) + 0.001 * rng.standard_normal()))
    return _table(rows, ["params", "tokens", "batch_size", "loss"])


def curves(seed: int = 5) -> pd.DataFrame:
    """Loss along training of one model under five LR schedules: L = 2.2 + 0.55 S1^-0.45 - 0.5 S2, where S1 sums the LR and
    S2 is the annealing momentum (Tissue et al., arXiv 2408.11029)."""
    rng, frames = np.random.default_rng(seed), []
    shapes = {
        "cosine 8k": (8000, lambda u: 0.1 + 0.45 * (1 + np.cos(np.pi * u))),
        "constant 8k": (8000, lambda u: np.ones_like(u)),
        "wsd 8k": (8000, lambda u: np.minimum(1, (1 - u) / 0.2)),
        "linear 12k": (12000, lambda u: 1 - u),
        "wsd 16k": (16000, lambda u: np.minimum(1, (1 - u) / 0.15)),
    }
    for name, (total, shape) in shapes.items():
        step = np.arange(1, total + 1)
        lr = 1e-3 * np.minimum(1, step / 200) * shape(step / total)
        drop = np.maximum(np.concatenate([[0.0], lr[:-1] - lr[1:]]), 0)
        momentum = np.zeros(total)
        for i in range(1, total):
            momentum[i] = 0.999 * momentum[i - 1] + drop[i]
        loss = 2.2 + 0.55 / np.cumsum(lr) ** 0.45 - 0.5 * np.cumsum(momentum)
        loss += 0.004 * rng.standard_normal(total)
        frames.append(pd.DataFrame({"run_id": name, "step": step, "lr": lr, "loss": np.where(step % 20 == 0, loss, np.nan)}))
    return pd.concat(frames, ignore_index=True)


def dense(seed: int = 6) -> pd.DataFrame:
    """LR and batch swept together, as in Step Law (arXiv 2503.04715), whose own law it follows but for a batch that grows
    with tokens^0.45 instead of 0.571; basins steeper on the side of high LR."""
    rng, rows = np.random.default_rng(seed), []
    for n, d in ((6e7, 2e9), (6e7, 8e9), (2.2e8, 4e9), (2.2e8, 1.1e10), (4.3e8, 4e9), (4.3e8, 4e10), (1.1e9, 2e10)):
        lr, batch = 1.79 * n**-0.713 * d**0.307, 9.5 * d**0.45
        for i in range(-3, 4):
            for k in range(-3, 4):
                x, y = k + rng.uniform(-0.1, 0.1), i + 0.3
                z = x - 0.4 * y
                loss = floor(n, d) + 0.006 * z**2 * (1 + 0.12 * np.tanh(z)) + 0.005 * y**2
                rows.append((n, d, lr * 2.0**x, round(batch * 2.0**y / CONTEXT), loss + 0.001 * rng.standard_normal()))
    return _table(rows, ["params", "tokens", "lr", "batch_size", "loss"], weight_decay=0.1, schedule="cosine")
