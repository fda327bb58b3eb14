"""How often do the intervals of critical-batch laws hold the truth?
`python -m benchmarks.coverage_critical [--draws 500] [--json F] [--only TEXT]`

Planted tables (benchmarks/planted_critical.py), both definitions, from sweeps and from steps: the hyperbola with
independent noise, and forms that the fitter does not have (bend p = 1.15, loss a power of ln D, LR tuned on grids with
an asymmetrical basin that diverges, seeds that shift all their runs, noise that grows with scale, sizes off the law).

80 % intervals of the exponent held the truth in (22 November 2026; 500 draws of steps, 150-200 of sweeps):

    steps      hyperbola 79 %, overhead 79 %; sizes off the law by 10 % 75 %
    sweeps     hyperbola 84 %, overhead 85 %; four tokens per batch 89 % (too wide); sizes off the law 85 %
    misspecified   steps 73 % (hyperbola), 75 % (overhead); sweeps 75 % (hyperbola), 69 % with LR grids, 90 % (overhead)

(That 90 % was measured before its grid began at batch 16, so that a shifted grid still holds the optimal batch of 32.)
Points: 77-80 %, but 62 % of sweeps with definition=overhead, where L_B(D) is no power law at the largest batches.
What under-covers does so by bias: a bend of p = 1.15 is read as an exponent higher by 0.02-0.03, since small sizes are
measured mostly above their B_crit and large ones mostly below.
"""

from dataclasses import replace

import numpy as np

from analysis.fit import fit
from benchmarks.covering import run, shares
from benchmarks.planted_critical import Plan, law, table, tokens_at

SWEEP = Plan()
OVERHEAD = Plan(definition="overhead", coefficient=512.0, optimal_batch=32.0, params=(3e7, 1e8, 3e8),
                batches=(32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0))  # fmt: skip
STEPS = Plan(table="steps", params=(1e8, 2e8, 4e8, 8e8, 1.6e9), noise=0.03,
             batches=(16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0))  # fmt: skip
HARD = {"bend": 1.15, "falling": "log", "noise_growth": 0.2, "off_center": 1.0, "scatter": 0.1}
CASES = {
    "sweep, hyperbola": SWEEP,
    "sweep, overhead": OVERHEAD,
    "sweep, hyperbola, 4 tokens per batch, noise x 3": replace(SWEEP, tpp=(10.0, 25.0, 63.0, 160.0), noise=0.006),
    "sweep, hyperbola, sizes scatter": replace(SWEEP, scatter=0.1),
    "steps, hyperbola": STEPS,
    "steps, overhead": replace(STEPS, definition="overhead"),
    "steps, overhead, sizes scatter": replace(STEPS, definition="overhead", scatter=0.1),
    "sweep, hyperbola, misspecified": replace(SWEEP, **HARD, seeds=2, seed_effect=0.01),
    "sweep, overhead, misspecified": replace(OVERHEAD, **HARD, seeds=2, seed_effect=0.01, batches=(16.0, *OVERHEAD.batches)),
    "sweep, hyperbola, misspecified, LR tuned": replace(SWEEP, **HARD, tuning="grid"),
    "steps, hyperbola, misspecified": replace(STEPS, **HARD),
    "steps, overhead, misspecified": replace(STEPS, definition="overhead", **HARD),
}  # fmt: skip


def measure(case: str | Plan, draws: int, seed: int = 0, bootstrap: int = 100) -> dict:
    """Shares of draws whose interval holds the truth: exponent, coefficient, the law at the middle of the points, and
    the points themselves (where sizes lie on the law)."""
    plan = CASES[case] if isinstance(case, str) else case
    rng = np.random.default_rng(seed)
    truth = {"exponent": plan.exponent, "coefficient": plan.coefficient / 1e9**plan.exponent}
    held: dict[str, list[bool]] = {"exponent": [], "coefficient": []}
    widths: dict[str, list[float]] = {"exponent": [], "coefficient": []}
    errors: list[float] = []
    interior, points, lawless = 0, 0, 0
    options = {"definition": plan.definition, "overhead": plan.overhead, "optimal_batch": plan.optimal_batch,
               "bootstrap": bootstrap, "heldout": None}  # fmt: skip
    for _ in range(draws):
        result = fit(table(plan, rng), "critical_batch", options)
        points += len(result.optima)
        inside = [o for o in result.optima if o["verdict"] == "interior"]
        interior += len(inside)
        if not result.laws or result.laws[0]["covariance"] is None:
            lawless += 1
            continue
        parameters = result.laws[0]["parameters"]
        for name, key in (("exponent", "tokens"), ("coefficient", "coefficient")):
            p = parameters[key]
            held[name].append(p["low"] <= truth[name] <= p["high"])
            widths[name].append(p["high"] - p["low"] if name == "exponent" else np.log(p["high"] / p["low"]))
        errors.append(parameters["tokens"]["value"] - plan.exponent)
        if not plan.scatter:
            for o in inside:
                expected = law(plan, tokens_at(plan, o["given"]["params"], o["given"]["target_loss"]))
                held.setdefault("points", []).append(o["low"] <= expected <= o["high"])
    return {
        "coverage": {name: float(np.mean(values)) for name, values in held.items() if values},
        "width": {name: float(np.median(values)) for name, values in widths.items() if values},
        "rms_error": {"exponent": float(np.sqrt(np.mean(np.square(errors))))} if errors else {},
        "bias": {"exponent": float(np.mean(errors))} if errors else {},
        "interior": interior / max(points, 1),
        "lawless": lawless,
        "draws": draws,
    }


def words(r: dict) -> str:
    more = ", ".join(f"{key} {100 * r[key].get('exponent', np.nan):.2f}" for key in ("rms_error", "bias", "width"))
    return f"{shares(r)}; exponent x 100: {more}; interior {100 * r['interior']:.0f} %, no law {r['lawless']}"


if __name__ == "__main__":
    run(__doc__, CASES, measure, words)
