"""Does the form hold? Residuals of a true law bend neither along N and D nor across them.

F test of (ln N)^2, ln N ln D and (ln D)^2, freed of what the law's own parameters can take up, in the residuals (cut at
three robust standard deviations). Intervals assume the form: where terms interact and the misfit is 0.3 % of the loss,
80 % intervals of compute-optimal N at 10 times the largest budget held the truth in none of 40 draws, and N was 4 times
too large (benchmarks/coverage_loss.py, "terms interact").
"""

import numpy as np
from scipy import stats

from analysis.loss.allocation import log_loss_at

LEAST = 16  # rows
SIGNIFICANT = 0.01
STEP = 1e-5


def bend(centre: np.ndarray, params: np.ndarray, tokens: np.ndarray, residual: np.ndarray) -> float | None:
    """Significance of bent residuals; None where the rows are too few, or a term of the law is nil. centre (5,): ln E,
    ln A, ln B, alpha, beta."""
    x, z = np.log(params), np.log(tokens)
    if len(x) < LEAST or not np.isfinite(centre[:5]).all():
        return None
    ends = [[log_loss_at(centre[:5] + sign * step, x, z) for sign in (1, -1)] for step in STEP * np.eye(5)]
    own = np.stack([(up - down) / (2 * STEP) for up, down in ends], axis=1)
    x, z = x - x.mean(), z - z.mean()
    bent = np.stack([x * x, x * z, z * z], axis=1)
    spread = 1.4826 * np.median(np.abs(residual))
    cut = np.clip(residual, -3 * spread, 3 * spread)
    bent, cut = bent - own @ np.linalg.lstsq(own, bent, rcond=None)[0], cut - own @ np.linalg.lstsq(own, cut, rcond=None)[0]
    rest = cut - bent @ np.linalg.lstsq(bent, cut, rcond=None)[0]
    left, dof = float(rest @ rest), len(x) - 8
    if left <= 0 or np.linalg.matrix_rank(bent, tol=1e-6 * np.abs(bent).max()) < 3:
        return None
    return float(stats.f.sf((float(cut @ cut) - left) / 3 / (left / dof), 3, dof))
