"""How often do the 10-90 % intervals of isoflop and envelope hold the truth?
`python -m benchmarks.coverage_isoflop [--draws 500] [--json F] [--only TEXT]`

Loss surfaces whose optimum is a known power law of compute: a parabola in log N with independent noise, where 80 % is
due, and surfaces that no estimator has as its form: Chinchilla's, Gemstones' (exponents far apart, so the curves lean), a
power of a sum (Kaplan's form), each with grids off-centre, noise that grows with scale, model shapes that keep an
offset of their own at every budget, and true optima that scatter about their law.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.fit import fit
from benchmarks.covering import run, shares


@dataclass(frozen=True)
class Surface:
    """loss = E + (A/N^alpha + B/D^beta)^power, or (bowl) E + 30 C^-0.06 + bend (log N/N_opt)^2 with N_opt of the same
    law."""

    alpha: float = 0.34
    beta: float = 0.37
    A: float = 480.0
    B: float = 2085.0
    E: float = 1.8
    power: float = 1.0
    bowl: bool = False

    @property
    def a(self) -> float:
        return self.beta / (self.alpha + self.beta)

    @property
    def coefficient(self) -> float:
        """N_opt = coefficient * C^a."""
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return g * 6**-self.a

    def best(self, flops):
        return self.coefficient * np.asarray(flops, float) ** self.a

    def loss(self, n, d):
        c = 6 * n * d
        if self.bowl:
            return self.E + 30 * c**-0.06 + 0.03 * np.log(n / self.best(c)) ** 2
        return self.E + (self.A / n**self.alpha + self.B / d**self.beta) ** self.power


@dataclass(frozen=True)
class Plan:
    """IsoFLOP: `budgets` a factor `step` apart, `sizes` models each, `ratio` apart, about the optimum. Envelope: `sizes`
    models, each a curve of 60 checkpoints over `tokens`, its noise correlated along the curve."""

    surface: Surface = Surface()
    kind: str = "isoflop"
    estimator: str = "linex"
    budgets: int = 7
    step: float = 2.5
    first: float = 3e18
    sizes: int = 8
    ratio: float = 1.6
    noise: float = 0.003  # nats
    growth: float = 0.0  # exponent of the noise in C / first
    off_centre: float = 0.0  # octaves, of each budget's grid
    drift: float = 0.0  # octaves, from the first budget to the last
    shape: float = 0.0  # nats, s.d. of what one model size has at all budgets, or one curve all along
    smallest: float = 5e7  # parameters; envelope only, as tokens are
    tokens: tuple[float, float] = (1e9, 1e11)
    points: str = "crossings"
    envelope: str = "bins"
    scatter: float = 0.0  # natural log, s.d. of the true optima


CHINCHILLA, GEMSTONES = Surface(), Surface(alpha=0.29, beta=0.71, A=213.0, B=4.96e6, E=2.1)
KAPLAN = Surface(alpha=0.8, beta=0.95, A=2.2e6, B=6e8, E=1.5, power=0.4)
BOWL = Surface(bowl=True)
HARD = {"off_centre": 1.0, "growth": 0.1, "noise": 0.002}


def _isoflop_cases() -> dict[str, Plan]:
    cases = {}
    for e in ("parabola", "linex", "akima"):
        cases |= {
            f"isoflop {e}: bowl": Plan(BOWL, estimator=e),
            f"isoflop {e}: Chinchilla": Plan(CHINCHILLA, estimator=e),
            f"isoflop {e}: Chinchilla, off-centre, noise grows": Plan(CHINCHILLA, estimator=e, **HARD),
            f"isoflop {e}: Gemstones, off-centre, noise grows": Plan(GEMSTONES, estimator=e, **HARD),
            f"isoflop {e}: Gemstones, grid drifts by 1.5 octaves": Plan(GEMSTONES, estimator=e, drift=1.5),
            f"isoflop {e}: Kaplan, off-centre, optima scatter": Plan(KAPLAN, estimator=e, scatter=0.1, **HARD),
            f"isoflop {e}: Chinchilla, shapes": Plan(CHINCHILLA, estimator=e, shape=0.003, off_centre=0.5),
        }
    return cases


def _envelope_cases() -> dict[str, Plan]:
    base = {"kind": "envelope", "sizes": 14, "ratio": 1.5, "noise": 0.001, "shape": 0.002}
    wide = base | {"sizes": 8, "ratio": 2.0}
    return {
        "envelope: Chinchilla": Plan(CHINCHILLA, **base),
        "envelope: Chinchilla, 8 sizes": Plan(CHINCHILLA, **wide),
        "envelope: bowl": Plan(BOWL, **base),
        "envelope: Gemstones": Plan(GEMSTONES, **base),
        "envelope: Kaplan": Plan(KAPLAN, **base),
        "envelope: Chinchilla, run offsets x 3": Plan(CHINCHILLA, **base | {"shape": 0.006}),
        "envelope: Chinchilla, noise of checkpoints x 4": Plan(CHINCHILLA, **base | {"noise": 0.004}),
        "envelope hull: Chinchilla": Plan(CHINCHILLA, envelope="hull", **base),
        "envelope all bins, runs resampled: Chinchilla": Plan(CHINCHILLA, points="all", **base),
    }


CASES = _isoflop_cases() | _envelope_cases()


def envelope_table(plan: Plan, rng: np.random.Generator) -> pd.DataFrame:
    sizes = plan.smallest * np.exp(rng.uniform(-0.3, 0.3)) * plan.ratio ** np.arange(plan.sizes)
    tokens = np.geomspace(*plan.tokens, 60)
    parts = []
    for i, n in enumerate(sizes):
        noise = rng.standard_normal(len(tokens))
        for k in range(1, len(tokens)):
            noise[k] = 0.8 * noise[k - 1] + 0.6 * noise[k]
        loss = plan.surface.loss(n, tokens) + plan.shape * rng.standard_normal() + plan.noise * noise
        parts.append(pd.DataFrame({"run_id": f"run{i}", "params": n, "tokens": tokens, "loss": loss}))
    return pd.concat(parts, ignore_index=True)


def isoflop_table(plan: Plan, rng: np.random.Generator) -> pd.DataFrame:
    s = plan.surface
    flops = plan.first * plan.step ** np.arange(plan.budgets)
    rows = []
    ladder: dict[int, float] = {}
    for i, c in enumerate(flops):
        shift = plan.off_centre * rng.uniform(-1, 1) + plan.drift * (i / (plan.budgets - 1) - 0.5)
        centre = s.best(c) * 2.0**shift
        k = np.arange(plan.sizes) - (plan.sizes - 1) / 2
        n = centre * plan.ratio**k
        if plan.shape:  # one ladder of sizes for all budgets, each with an offset of its own
            rung = np.unique(np.round(np.log(n) / np.log(plan.ratio)).astype(int))
            n = plan.ratio ** rung.astype(float)
            offset = np.array([ladder.setdefault(int(r), plan.shape * rng.standard_normal()) for r in rung])
        else:
            offset = np.zeros(len(n))
        seen = n * np.exp(plan.scatter * rng.standard_normal())
        sd = plan.noise * (c / plan.first) ** plan.growth
        loss = s.loss(seen, c / (6 * seen)) + offset + sd * rng.standard_normal(len(n))
        rows += list(zip(n, c / (6 * n), np.full(len(n), c), loss, strict=True))
    return pd.DataFrame(rows, columns=["params", "tokens", "flops", "loss"])


def measure(plan: Plan, draws: int, seed: int = 0) -> dict:
    """Shares of draws whose interval holds the truth: exponent and coefficient of N, N at the middle budget and ten times
    beyond the largest (confidence of the law, not of a new optimum); bias and r.m.s. error of the exponent."""
    rng = np.random.default_rng(seed)
    s = plan.surface
    held: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    errors, interior, absent = [], 0, 0
    for draw in range(draws):
        if plan.kind == "isoflop":
            table = isoflop_table(plan, rng)
            options = {"estimator": plan.estimator, "approach3": False}
        else:
            table = envelope_table(plan, rng)
            options = {"envelope": plan.envelope, "points": plan.points}
        result = fit(table, plan.kind, options | {"bootstrap": 100, "seed": draw, "heldout": None})
        law = next((law for law in result.laws if law["name"] == "params_opt"), None)
        if law is None or law["covariance"] is None:
            absent += 1
            continue
        interior += law["n"]
        errors.append(law["parameters"]["flops"]["value"] - s.a)
        for name, truth in {"coefficient": s.coefficient, "flops": s.a}.items():
            p = law["parameters"][name]
            held.setdefault(name, []).append(p["low"] <= truth <= p["high"])
            widths.setdefault(name, []).append(p["high"] - p["low"] if name == "flops" else np.log(p["high"] / p["low"]))
        first, last = law["range"]["flops"]["low"], law["range"]["flops"]["high"]
        for name, c in {"N in the middle": np.sqrt(first * last), "N at 10 C": 10 * last}.items():
            low, high = ends(law, c)
            held.setdefault(name, []).append(low <= s.best(c) <= high)
            widths.setdefault(name, []).append(np.log(high / low))
        if not plan.scatter and plan.kind == "isoflop":
            for o in result.optima:
                if o["target"] == "params_opt" and o["verdict"] == "interior" and o["low"] and o["high"]:
                    held.setdefault("minimum", []).append(o["low"] <= s.best(o["given"]["flops"]) <= o["high"])
    return {
        "coverage": {name: float(np.mean(values)) for name, values in held.items()},
        "width": {name: float(np.median(values)) for name, values in widths.items()},
        "bias": float(np.mean(errors)) if errors else None,
        "rms_error": float(np.sqrt(np.mean(np.square(errors)))) if errors else None,
        "points": interior / draws,
        "no_law": absent,
        "draws": draws,
    }


def ends(law: dict, flops: float) -> tuple[float, float]:
    """The law's confidence interval at `flops`, from its covariance."""
    from scipy import stats

    u = np.array([1.0, np.log(flops)])
    centre = np.log(law["parameters"]["coefficient"]["value"]) + u[1] * law["parameters"]["flops"]["value"]
    half = stats.t.ppf((1 + law["level"]) / 2, law["dof"]) * np.sqrt(u @ np.array(law["covariance"]) @ u)
    return float(np.exp(centre - half)), float(np.exp(centre + half))


def words(r: dict) -> str:
    error = f"exponent off by {r['bias']:+.4f} on average, {r['rms_error']:.4f} r.m.s."
    return f"{shares(r)}; {error}; {r['no_law']} without law"


if __name__ == "__main__":
    run(__doc__, CASES, measure, words)
