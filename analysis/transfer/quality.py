"""Two of the three metrics of transfer: E, how well the tuned value follows a power law, and kappa, how dear it is to be
wrong as scale grows.

The three metrics are those of Kalra and Barkeshli (arXiv 2605.21486): error E of the scaling law fit, transfer
robustness exponent kappa, asymptotic loss penalty R(inf). Their exact estimators were not seen; these are ours.

    E           s.d. of the log2 residuals of  log2 eta*(n) = log2 c + p log2 n,  sqrt(RSS / (m - 2)): octaves by which
                the best value strays from its law. Interval by chi-square (m - 2 degrees of freedom).
    E_noise     what of it the noise of runs explains: sqrt(tr(M W) / (m - 2)), octaves. E near E_noise: no misfit seen.
    E_heldout   r.m.s. log2 error at the held-out largest scales of the law of the others, octaves.
    kappa       of h(n) = h0 n^kappa, where h is the curvature of the loss in log2 eta at the optimum: a value off by a
                factor f costs (h / 2) (log2 f)^2 nats, which grows with scale where kappa > 0. Interval as of every
                power law (analysis/law.py).
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.law import PowerLaw, as_dict, fit_power_law, largest_scales, own_covariance
from analysis.transfer.lines import Line
from analysis.transfer.local import OCTAVE, curvature, own_of_curvature


@dataclass(frozen=True)
class Quality:
    """parameters: {name: {"value":, "low":, "high":}} of c, p, E, E_noise, E_heldout, kappa,
    curvature (at the largest scale); law: eta*(n); held (m,) bool; heldout: that of a LAW."""

    parameters: dict
    law: PowerLaw
    robustness: PowerLaw
    held: np.ndarray
    heldout: dict


def quality(line: Line, scale: str, level: float, heldout: float | None) -> Quality | None:
    """E and kappa of a line of interior slices; None with fewer than two scales."""
    m = len(line.scale)
    if m < 2 or np.ptp(np.log(line.scale)) < 0.02:
        return None
    at = [{scale: n} for n in line.scale]
    y = np.array([o.value[0] for o in line.optima])
    own, dof = own_covariance(line.optima, 0)
    law = fit_power_law(at, y, [scale], own, dof)
    log_h = np.log([curvature(o) for o in line.optima])
    robustness = fit_power_law(at, log_h, [scale], *own_of_curvature(line.optima))
    of_law, of_h = (as_dict(each, level)["parameters"] for each in (law, robustness))
    parameters = {
        "c": of_law["coefficient"],
        "p": of_law[scale],
        "E": _error(law.rss, m - 2, level),
        "E_noise": _point(_noise(law, at, own)),
        "kappa": of_h[scale],
        "curvature": _point(float(np.exp(robustness.log_at(at[-1:])[0]))),
    }
    held = largest_scales(line.scale, heldout) if isinstance(heldout, float) else np.zeros(m, bool)
    score = {"n": 0, "mean_abs_log_error": None, "mean_excess_loss": None}
    if held.any() and (~held).sum() >= 2:
        refit = fit_power_law([a for a, out in zip(at, held, strict=True) if not out], y[~held], [scale])
        predicted = refit.log_at([a for a, out in zip(at, held, strict=True) if out])
        error = predicted - y[held]
        cost = [
            float(o.curve(p[None]) - o.curve(o.value)) for o, p in zip(np.array(line.optima)[held], predicted, strict=True)
        ]
        score = {
            "n": int(held.sum()),
            "mean_abs_log_error": float(np.abs(error).mean()),
            "mean_excess_loss": float(np.mean(cost)),
        }
        parameters["E_heldout"] = _point(float(np.sqrt(np.mean(error**2)) / OCTAVE))
    else:
        held[:] = False
        parameters["E_heldout"] = _point(None)
    return Quality(parameters, law, robustness, held, score)


def _error(rss: float, dof: int, level: float) -> dict:
    if dof < 1:
        return _point(None)
    value = np.sqrt(rss / dof) / OCTAVE
    ends = np.sqrt(dof / stats.chi2.ppf([(1 + level) / 2, (1 - level) / 2], dof))
    return {"value": float(value), "low": float(value * ends[0]), "high": float(value * ends[1])}


def _noise(law: PowerLaw, at: list[dict], own: np.ndarray | None) -> float | None:
    if own is None or len(at) < 3:
        return None
    x = np.array([[1.0, np.log(a[law.predictors[0]])] for a in at])
    maker = np.eye(len(at)) - x @ np.linalg.pinv(x)
    return float(np.sqrt((maker * own).sum() / (len(at) - 2)) / OCTAVE)


def _point(value: float | None) -> dict:
    return {"value": value, "low": None, "high": None}
