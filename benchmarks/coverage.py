"""How often do the 10-90 % intervals of a fit hold the truth? `python -m benchmarks.coverage [--draws 500] [--json F]`

Planted sweeps (benchmarks/planted.py): parabolas with independent noise, where 80 % is due, and basins that share no
form with the fitter. Laws in two stages (optima, then their law) and in one (analysis/joint.py) side by side: shares
of draws whose interval holds the truth, median width, bias and r.m.s. error; beside them the error by argmin.
"""

from dataclasses import replace

import numpy as np

from analysis.joint import fit_joint
from analysis.law import as_dict, fit_power_law, lookup
from analysis.optimum import find_optima
from analysis.spread import own_covariance
from benchmarks.covering import run
from benchmarks.planted import Plan, cut, sweep

LEVEL = 0.8
MESSY = {"noise": 0.003, "noise_growth": 0.2, "scatter": 0.15, "seeds": 2, "seed_effect": 0.01}
LR = Plan(basin="blow_up", diverge_above=3.2)
TAU = Plan(
    target="tau", basin="plateau", coefficient=1.1, exponents=(("tpp", -0.5),), params=(1e6, 4e6, 16e6), tpp=(5, 20, 80)
)
DECAY = Plan(target="weight_decay", basin="shelf", coefficient=0.02, exponents=(("params", 0.2), ("tokens", -0.1)))
BATCH = Plan(target="batch", basin="stairs", coefficient=0.002, exponents=(("tokens", 0.55),))
BOTH = Plan(target="lr_batch", basin="tilted", values=6, batches=5)
THREE = {"tpp": (20.0,), "exponents": (("params", -0.4),)}
CASES = {
    "bowl": Plan(),
    "bowl, noise x 3": Plan(noise=0.006),
    "bowl, 3 seeds that shift the loss": Plan(seeds=3, values=6, seed_effect=0.01),
    "bowl, noise grows with scale, optima scatter": Plan(noise=0.001, noise_growth=0.3, scatter=0.15),
    "bowl, 3 slices": Plan(**THREE),
    "bowl, 3 slices, optima scatter": Plan(**THREE, scatter=0.15),
    "LR blows up and diverges": LR,
    "LR blows up, noise x 3, optima scatter, 2 seeds": replace(LR, noise=0.006, scatter=0.15, seeds=2, seed_effect=0.01),
    "LR blows up, 3 slices": replace(LR, **THREE),
    "tau has a plateau": TAU,
    "tau has a plateau, noise grows, optima scatter, 2 seeds": replace(TAU, **MESSY | {"noise": 0.002}),
    "weight decay has a shelf": DECAY,
    "weight decay has a shelf, noise grows, optima scatter, 2 seeds": replace(DECAY, **MESSY),
    "batch is dear above the critical one": BATCH,
    "batch is dear above the critical one, noise grows, optima scatter, 2 seeds": replace(BATCH, **MESSY),
    "LR and batch, tilted bowl": BOTH,
    "LR and batch, tilted bowl, noise grows, optima scatter": replace(BOTH, **MESSY | {"seeds": 1, "seed_effect": 0.0}),
    "LR and batch, bent valley": replace(BOTH, basin="valley", diverge_above=3.2),
    "LR and batch, bent valley, noise grows, optima scatter": replace(
        BOTH, basin="valley", diverge_above=3.2, **MESSY | {"seeds": 1, "seed_effect": 0.0}
    ),
}


def measure(case: str | Plan, draws: int, seed: int = 0, estimator: str | None = None, window="auto") -> dict:
    """Shares of draws whose interval holds the truth, median widths, biases and r.m.s. errors of the laws' parameters
    (of the coefficient: in natural log) in two stages and in one ("joint ..."), and of the slices' optima. estimator:
    of the optima; by default quadratic, and shape for bent basins of several hyper-parameters."""
    plan = CASES[case] if isinstance(case, str) else case
    estimator = estimator or ("shape" if plan.basin == "valley" else "quadratic")
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, float, float]]] = {}  # (error, low, high) about the truth
    interior = 0
    for draw in range(draws):
        table = sweep(plan, rng)
        slices = cut(table, plan)
        optima = find_optima(slices, estimator, window, bootstrap=0, level=LEVEL)
        laws = {"": two_stages(optima, plan), "joint ": one_stage(slices, optima, plan)}
        if draw % 4 == 0:
            laws["argmin "] = two_stages(find_optima(slices, "argmin", bootstrap=0), plan)
        for way, group in laws.items():
            for name, law in group.items():
                _note(found, way, plan, name, law)
        interior += sum(o.verdict == "interior" for o in optima)
        for o in optima:
            if o.verdict == "interior":
                known = table.attrs["optima"][o.slice.given["params"], o.slice.given["tokens"]]
                for i, expected in enumerate(np.log(known)):
                    low, high = np.nan_to_num(o.low[i], nan=-np.inf), np.nan_to_num(o.high[i], nan=np.inf)  # an open side
                    key = "optimum" + f" {slices[0].targets[i]}" * (len(known) > 1)
                    found.setdefault(key, []).append((o.value[i] - expected, low - expected, high - expected))
    return _summary(found) | {"interior": interior / draws / (len(plan.params) * len(plan.tpp)), "draws": draws}


def two_stages(optima, plan: Plan) -> dict[str, dict]:
    """{name: parts of a LAW} of the interior optima."""
    inside = [o for o in optima if o.verdict == "interior"]
    if len(inside) < 2:
        return {}
    values, laws = [lookup(o) for o in inside], {}
    for i, (name, (_, exponents)) in enumerate(plan.laws.items()):
        own, y = own_covariance(inside, i), np.array([o.value[i] for o in inside])
        if len(inside) > len(exponents):
            laws[name] = as_dict(fit_power_law(values, y, [p for p, _ in exponents], *own), LEVEL)
    return laws


def one_stage(slices, optima, plan: Plan) -> dict[str, dict]:
    """{name: parts of a LAW} of the joint fit."""
    wanted = {name: [p for p, _ in exponents] for name, (_, exponents) in plan.laws.items()}
    return dict(zip(plan.laws, fit_joint(slices, wanted, LEVEL, optima=optima, heldout=None), strict=False))


def _note(found, way: str, plan: Plan, name: str, law: dict) -> None:
    coefficient, exponents = plan.laws[name]
    for symbol, expected in {"coefficient": coefficient, **dict(exponents)}.items():
        p = law["parameters"].get(symbol)
        if p is None:
            continue
        ends = [np.nan if p[end] is None else p[end] for end in ("value", "low", "high")]
        logs = np.log(ends) - np.log(expected) if symbol == "coefficient" else np.array(ends) - expected
        key = f"{way}{name}.{symbol}" if len(plan.laws) > 1 else f"{way}{symbol}"
        found.setdefault(key, []).append(tuple(logs))


def _summary(found: dict) -> dict:
    result: dict[str, dict] = {"coverage": {}, "width": {}, "bias": {}, "rms_error": {}}
    for name, rows in found.items():
        error, low, high = np.array(rows).T
        result["bias"][name], result["rms_error"][name] = float(error.mean()), float(np.sqrt((error**2).mean()))
        if not name.startswith("argmin ") and (np.isfinite(low + high).any() or name.startswith("optimum")):
            result["coverage"][name] = float(((low <= 0) & (high >= 0)).mean())
            result["width"][name] = float(np.median(high - low))
    return result


def words(r: dict) -> str:
    """A table of two stages / joint / argmin, the coefficient in natural log."""
    lines = [f"{100 * r['interior']:.0f} % of the slices interior"]
    lines.append(f"  {'':24}{'covered':>16}{'width':>18}{'bias':>18}{'r.m.s. error':>26}")
    for key in r["bias"]:
        if key.startswith(("joint ", "argmin ")):
            continue
        sides = ["", "joint "] if f"joint {key}" in r["bias"] else [""]
        shares = [100 * r["coverage"].get(side + key, np.nan) for side in sides]
        cells = [f"{' / '.join(f'{share:.0f} %' for share in shares):>16}"]
        for what, width in (("width", 18), ("bias", 18), ("rms_error", 26)):
            ways = [*sides, "argmin "] if what == "rms_error" and f"argmin {key}" in r["bias"] else sides
            numbers = [r[what].get(side + key, np.nan) for side in ways]
            cells.append(f"{' / '.join(f'{number:.3f}' for number in numbers):>{width}}")
        lines.append(f"  {key:24}{''.join(cells)}")
    return "\n".join(lines) + "\n "


if __name__ == "__main__":
    run(__doc__, CASES, measure, words)
