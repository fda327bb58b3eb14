"""What an IsoFLOP fit says beside its laws: OPTIMUM dicts, the table of allocations, lines on verdicts and exponents. `f` is
Fitted of analysis/loss/isoflop.py."""

import numpy as np
import pandas as pd

from analysis.law import finite

LAWS = ("params_opt", "tokens_opt")


def verdicts(f) -> list[str]:
    verdicts = pd.Series([m.verdict for m in f.minima["params_opt"].each if m.verdict != "interior"], dtype=object)
    if verdicts.empty:
        return []
    words = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.value_counts().items())
    return [f"{len(f.group.budgets)} budgets, of which not interior and in no law of N: {words}."]


def sum_of_exponents(laws: list[dict]) -> list[str]:
    values = {law["name"]: law["parameters"]["flops"]["value"] for law in laws}
    if not set(LAWS) <= set(values):
        return []
    a, b = (values[name] for name in LAWS)
    if abs(a + b - 1) < 0.005:
        return []
    return [f"a + b = {a + b:.3f}, not 1: N and D are optima of their own curves, whose 6ND need not be the budget."]


def asymmetry(f) -> list[str]:
    found = f.minima["params_opt"].asymmetry
    if found is None:
        return []
    return [f"asymmetry of the curves p = {found[0]:.2f} +- {found[1]:.2f} (beta - alpha of a Chinchilla law)."]


def optima(analysis: str, f, held: dict[str, np.ndarray], level: float) -> list[dict]:
    entries = []
    for name in LAWS:
        inside = f.minima[name].interior
        out = np.zeros(len(inside), bool)
        out[inside] = held[name]
        for b, m, heldout in zip(f.group.budgets, f.minima[name].each, out, strict=True):
            interior = m.verdict == "interior"
            with np.errstate(over="ignore"):
                value, low, high = (finite(float(np.exp(v))) for v in (m.fitted, m.low, m.high))
            entries.append(
                {
                    "analysis": analysis,
                    "target": name,
                    "given": {**f.group.settings, "flops": b.flops},
                    "held": {},
                    "value": value if interior else None,
                    "low": low if interior else None,
                    "high": high if interior else None,
                    "verdict": m.verdict,
                    "loss": finite(m.loss) if interior else None,
                    "n": m.n,
                    "fitted": value,
                    "heldout": bool(heldout),
                    "level": level,
                }
            )
    return entries


def labelled(frame: pd.DataFrame, f, telling: list[str]) -> pd.DataFrame:
    for i, name in enumerate(telling):
        frame.insert(i, name, str(f.group.settings.get(name, "")))
    return frame


def allocation(f, telling: list[str]) -> pd.DataFrame:
    frame = f.points.rename(columns={"flops": "FLOPs", "tpp": "tokens per parameter"})
    frame["6ND / C"] = 6 * frame["params"] * frame["tokens"] / frame["FLOPs"]
    return labelled(frame, f, telling)
