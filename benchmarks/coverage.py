"""How often do the 10-90 % intervals of a fit hold the truth? `python -m benchmarks.coverage [--draws 500] [--json F]`

Planted sweeps (benchmarks/planted.py): parabolas with independent noise, where 80 % is due, and basins that no
parabola fits, where what is reached is what the reader must know. Beside it the error of the exponent by quadratic and
by argmin.
"""

import argparse
import json
import time
from dataclasses import replace

import numpy as np

from analysis.fit import fit
from benchmarks.planted import Plan, sweep, truth

TAU = Plan(
    target="tau", basin="plateau", coefficient=1.1, exponents=(("tpp", -0.5),), params=(1e6, 4e6, 16e6), tpp=(5, 20, 80)
)
CASES = {
    "bowl": Plan(),
    "bowl, noise x 3": Plan(noise=0.006),
    "bowl, 3 seeds that shift the loss": Plan(seeds=3, values=6, seed_effect=0.01),
    "bowl, noise grows with scale, optima scatter": Plan(noise=0.001, noise_growth=0.3, scatter=0.15),
    "bowl, 3 slices": Plan(tpp=(20.0,), exponents=(("params", -0.4),)),
    "LR blows up and diverges": Plan(basin="blow_up", diverge_above=3.2),
    "LR blows up, noise x 3, optima scatter, 2 seeds": Plan(
        basin="blow_up", diverge_above=3.2, noise=0.006, scatter=0.15, seeds=2, seed_effect=0.01
    ),
    "tau has a plateau": TAU,
    "tau has a plateau, noise grows, optima scatter, 2 seeds": replace(
        TAU, noise=0.002, noise_growth=0.2, scatter=0.15, seeds=2, seed_effect=0.01
    ),
}


def measure(plan: Plan, draws: int, seed: int = 0) -> dict:
    """Shares of draws whose interval holds the truth, for each parameter and the slices' optima; r.m.s. errors of the
    exponents by quadratic and (every fourth draw) by argmin."""
    rng = np.random.default_rng(seed)
    held: dict[str, list[bool]] = {}
    errors: dict[str, list[float]] = {"quadratic": [], "argmin": []}
    widths: dict[str, list[float]] = {}
    interior = 0
    for draw in range(draws):
        table = sweep(plan, rng)
        for estimator in errors if draw % 4 == 0 else ["quadratic"]:
            result = fit(table, plan.target, {"estimator": estimator, "bootstrap": 200, "heldout": None})
            law = result.laws[0]
            errors[estimator].append(law["parameters"][plan.exponents[0][0]]["value"] - plan.exponents[0][1])
            if estimator == "argmin":
                continue
            names = [name for name, _ in plan.exponents if name in law["predictors"]]
            known = dict(plan.exponents) if len(names) == len(plan.exponents) else {}
            for name, expected in {"coefficient": plan.coefficient, **known}.items():
                p = law["parameters"][name]
                held.setdefault(name, []).append(p["low"] <= expected <= p["high"])
                widths.setdefault(name, []).append(p["high"] - p["low"])
            interior += len([o for o in result.optima if o["verdict"] == "interior"])
            if not plan.scatter:
                for o in result.optima:
                    if o["verdict"] == "interior":
                        expected = truth(plan, o["given"]["params"], o["given"]["tokens"])
                        low, high = o["low"] or 0.0, o["high"] or np.inf
                        held.setdefault("optimum", []).append(low <= expected <= high)
    return {
        "coverage": {name: float(np.mean(values)) for name, values in held.items()},
        "width": {name: float(np.median(values)) for name, values in widths.items()},
        "rms_error": {name: float(np.sqrt(np.mean(np.square(values)))) for name, values in errors.items()},
        "interior": interior / draws / (len(plan.params) * len(plan.tpp)),
        "draws": draws,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--json")
    parser.add_argument("--only", help="cases whose name holds this text")
    arguments = parser.parse_args()
    results = {}
    for name, plan in CASES.items():
        if arguments.only and arguments.only not in name:
            continue
        start = time.perf_counter()
        results[name] = measure(plan, arguments.draws)
        r = results[name]
        shares = ", ".join(f"{key} {100 * share:.0f} %" for key, share in r["coverage"].items())
        errors = ", ".join(f"{key} {error:.3f}" for key, error in r["rms_error"].items())
        print(f"{name}: {shares}; r.m.s. error of the exponent: {errors}; interior {100 * r['interior']:.0f} %", end="")
        print(f" ({arguments.draws} draws, {time.perf_counter() - start:.0f} s)", flush=True)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
