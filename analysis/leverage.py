"""Optima that hang on one run: without it the slice shows no minimum, or one far off.

Leaving run j out moves the coefficients by -solver_j residual_j / (1 - leverage_j) and adds solver_j solver_j' / (1 -
leverage_j) to their spread, exactly. A run decides alone where without it the curvature does not stand out of the noise
(as the verdict asks, analysis/optimum.py), or the vertex lies beyond FAR times the half-width of the optimum's interval:
of planted parabolas with normal noise that happens in fewer than 1 slice of 50. Such an optimum stands; a line names
the run.
"""

from collections.abc import Sequence

import numpy as np
from scipy import special

from analysis.surface import centred, hessians, monomials, pairs, told, vertices

FAR = 2.5
RESOLVED = 0.9  # quantile of the noise


def decisive(o) -> int | None:
    """Row of the slice whose run the optimum hangs on; None: none, or no interval to measure it by."""
    s, surface = o.slice, o.surface
    if o.verdict != "interior" or surface is None or surface.dof < 1 or o.shape is not None or not np.isfinite(o.se).all():
        return None
    base = monomials((s.x[surface.used] - surface.center) / surface.scale, 2)
    codes = told(base, s.seed[surface.used])
    columns, y = centred(base[:, 1:], codes), centred(s.loss[surface.used][:, None], codes)[:, 0]
    residual = y - columns @ surface.beta[1:]
    free = 1 - np.einsum("ij,ji->i", columns, np.linalg.pinv(columns)) - 1 / np.bincount(codes)[codes]
    undetermined = free < 1e-9
    free = np.where(undetermined, 1.0, free)
    betas = surface.beta - (surface.solver * (residual / free)).T
    points, minimum = vertices(betas, surface.k)
    shifts = np.abs(surface.center + surface.scale * points - surface.vertex)
    half = np.maximum(np.nan_to_num((o.high - o.low) / 2, nan=np.inf), 1e-9)
    far = np.where(minimum & ~undetermined, np.max(shifts / half, axis=1), np.inf)
    direction = np.linalg.eigh(hessians(surface.beta[None], surface.k)[0])[1][:, 0]
    to_curvature = np.zeros(len(surface.beta))
    for column, (i, j) in enumerate(pairs(surface.k), start=1 + surface.k):
        to_curvature[column] = 2 * direction[i] * direction[j]
    error = o.noise * np.sqrt(to_curvature @ surface.spread @ to_curvature + (to_curvature @ surface.solver) ** 2 / free)
    unseen = betas @ to_curvature < special.stdtrit(o.dof, RESOLVED) * error
    worst = int(np.where(unseen, np.inf, far).argmax())
    return int(np.flatnonzero(surface.used)[worst]) if unseen[worst] or far[worst] > FAR else None


def note(optima: Sequence) -> list[str]:
    """A line that names the runs that optima hang on."""
    found = [(o, row) for o in optima if (row := decisive(o)) is not None]
    if not found:
        return []
    o, row = found[0]
    at = ", ".join(f"{name}={np.exp(value):.3g}" for name, value in zip(o.slice.targets, o.slice.x[row], strict=True))
    where = ", ".join(f"{name}={o.slice.given[name]:.3g}" for name in ("params", "tokens") if name in o.slice.given)
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    run = f"the run at {at} of the slice at {where}{more}"
    return [f"{len(found)} of {len(optima)} optima hang on one run ({run}): repeat it."]
