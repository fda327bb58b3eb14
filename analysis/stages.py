"""The roads from runs to a law, side by side: two stages, one, and the runs resampled.

two-stage        optima of slices, then a law of them (analysis/optimum.py, analysis/law.py): the default law
joint            the law from the losses of all slices at once (analysis/joint.py); the law of stage=joint
runs resampled   the two stages again and again on reweighted runs (analysis/resample.py): quantiles of what the runs'
                 noise alone does to the law, free of the model of that noise. Where it is about as wide as the two-stage
                 interval, noise is what limits the law; where it is much narrower, optima scatter about the law for
                 other reasons, and more seeds will not help.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.joint import fit_joint
from analysis.law import finite, lookup
from analysis.optimum import Optimum
from analysis.options import PREDICTORS, Options
from analysis.resample import resample_law, resample_optima

ESTIMATORS = ("quadratic", "shape")  # of which there is a joint fit
FEWEST = 0.5  # share of draws with a minimum in every slice: below, quantiles would tell of the others


def joint_laws(optima: Sequence[Optimum], held: np.ndarray, analysis: str, options: Options) -> dict[str, dict]:
    """{name: parts of a LAW by the joint fit} of one combination of settings; {} where it has none. held: (number of
    interior optima,) bool."""
    if options.estimator not in ESTIMATORS:
        return {}
    out = np.zeros(len(optima), bool)
    out[[i for i, o in enumerate(optima) if o.verdict == "interior"]] = held
    wanted = {name: options.predictors_of(analysis, name)[0] for name in PREDICTORS[analysis]}
    names = ["batch_size" if name == "batch_tokens" else name for name in optima[0].slice.targets]
    slices = [o.slice for o in optima]
    found = fit_joint(slices, wanted, options.level, options.bootstrap, options.seed, optima=optima, held=out)
    return dict(zip(names, found, strict=False))


def side_by_side(two: Mapping | None, joint: Mapping | None, drawn: np.ndarray | None, level: float) -> pd.DataFrame:
    """One row for each exponent and stage: parameter, stage, value, low, high, width, held_out (mean |log error| of the
    law at the held-out scales). two, joint: LAWs or None; drawn (draws, 1 + p): resamples of the two-stage law."""
    rows = []
    for stage, law in (("two-stage", two), ("joint", joint)):
        for name in law["predictors"] if law else ():
            p = law["parameters"][name]
            error = law["heldout"]["mean_abs_log_error"]
            rows.append({"parameter": name, "stage": stage, **p, "held_out": error})
    for i, name in enumerate(two["predictors"] if two and drawn is not None else (), start=1):
        low, value, high = map(float, np.quantile(drawn[:, i], [(1 - level) / 2, 0.5, (1 + level) / 2]))
        rows.append({"parameter": name, "stage": "runs resampled", "value": value, "low": low, "high": high})
    table = pd.DataFrame(rows, columns=["parameter", "stage", "value", "low", "high", "held_out"])
    table.insert(5, "width", table["high"].astype(float) - table["low"].astype(float))
    order = {name: i for i, name in enumerate(dict.fromkeys(table["parameter"]))}
    return table.sort_values("parameter", key=lambda c: c.map(order), kind="stable").reset_index(drop=True)


def draws(inside: Sequence[Optimum], options: Options) -> np.ndarray | None:
    """(bootstrap, n, k) log optima of reweighted runs, or None where the optima are no minima of quadratics."""
    if not inside or not options.bootstrap or not all(hasattr(o.curve, "solver") for o in inside):
        return None
    return resample_optima(inside, options.bootstrap, options.seed)


def undrawn(points: np.ndarray | None, inside: Sequence[Optimum], options: Options) -> str:
    """Why a law has no row of resampled runs; empty where none was wanted (bootstrap=0)."""
    if not options.bootstrap:
        return ""
    if points is not None:
        return f"runs are not resampled: in less than {FEWEST * 100:.0f} % of draws has every slice a minimum."
    shaped = sum(o.shape is not None for o in inside)
    return f"runs are not resampled: {shaped} of {len(inside)} optima come from the shared shape, not from quadratics."


def drawn_law(points: np.ndarray | None, inside: Sequence[Optimum], target: int, law: Mapping | None) -> np.ndarray | None:
    """(draws, 1 + p) of one law, or None; exponents of the two-stage fit."""
    if points is None or not law or finite(law["parameters"]["coefficient"]["value"]) is None:
        return None
    found, share = resample_law(points[:, :, target], [lookup(o) for o in inside], law["predictors"])
    return found if share >= FEWEST else None
