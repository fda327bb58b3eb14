"""What an envelope fit says beside its laws: OPTIMUM dicts of the crossings, which run is lowest where, and a warning of
schedules. `f` is Fitted of analysis/loss/envelope.py."""

import numpy as np
import pandas as pd

CONSTANT_LR = ("constant", "const", "wsd", "hot")


def schedule(df: pd.DataFrame) -> list[str]:
    """Whether checkpoints are worth what they seem."""
    trap = "a checkpoint in mid-schedule is worse than a run that ends there, so the envelope is biased"
    if "lr" in df and (df.groupby("run_id")["lr"].agg(lambda lr: lr.max() / lr.min() if len(lr) else 1.0) > 1.02).any():
        return [f"LR moves along the runs: {trap} unless it is warm-up."]
    if "schedule" in df and df["schedule"].notna().any():
        words = sorted({str(s) for s in df["schedule"].dropna()} - set(CONSTANT_LR))
        return [f"schedule {', '.join(words)}: {trap}."] if words else []
    return [f"the table names no schedule; if LR decays, {trap}."]


def optima(analysis: str, points: pd.DataFrame, settings: dict, held: np.ndarray, level: float) -> list[dict]:
    shared = {"held": {}, "low": None, "high": None, "verdict": "interior", "n": 2, "level": level}
    return [
        {
            **shared,
            "analysis": analysis,
            "target": name,
            "given": {**settings, "flops": row["flops"]},
            "value": row[name.removesuffix("_opt")],
            "fitted": row[name.removesuffix("_opt")],
            "loss": row["loss"],
            "heldout": bool(out),
        }
        for name in ("params_opt", "tokens_opt")
        for row, out in zip(points.to_dict("records"), held, strict=True)
    ]


def stretches(f, telling: list[str]) -> pd.DataFrame:
    """From which to which FLOPs each run is the lowest."""
    e = f.envelope
    starts = np.flatnonzero(np.r_[True, e.run[1:] != e.run[:-1]])
    stops = np.r_[starts[1:], len(e.run)] - 1
    frame = pd.DataFrame(
        {
            "run_id": [f.curves.names[r] for r in e.run[starts]],
            "params": np.exp(f.curves.size[e.run[starts]]),
            "from FLOPs": np.exp(e.x[starts]),
            "to FLOPs": np.exp(e.x[stops]),
            "loss there": np.exp(e.y[stops]),
            "edge": ["all" if e.edge[a : b + 1].all() else "partly" if e.edge[a : b + 1].any() else ""
                     for a, b in zip(starts, stops, strict=True)],
        }
    )  # fmt: skip
    for i, name in enumerate(telling):
        frame.insert(i, name, str(f.settings.get(name, "")))
    return frame
