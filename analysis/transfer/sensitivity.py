"""LR sensitivity: how dear it is to tune nothing (Wortsman et al., arXiv 2309.14322, section 2.2, from memory):

    mean over log-spaced eta in [a, b] of min(L(eta), L_init)  -  min over eta of L(eta)          (nats per token)

L_init is the loss before training: a diverged run costs no more than not training. Ours: the mean of the piecewise
linear curve through the measured losses (averaged over seeds) in log eta, which a finer grid of eta would not change; the
minimum over the measured values inside [a, b]; [a, b] the same for all slices that are compared, by default what all of
them measured. Works for any tuned hyper-parameter.
"""

import numpy as np

from analysis.codes import cluster
from analysis.slices import SAME_TUNED, Slice


def common_interval(slices: list[Slice]) -> tuple[float, float] | None:
    """[low, high] of the tuned value that every slice measured, or None where there is none."""
    if not slices:
        return None
    low = max(float(np.exp(s.x.min())) for s in slices)
    high = min(float(np.exp(s.x.max())) for s in slices)
    return (low, high) if high > low * (1 + SAME_TUNED) else None


def sensitivity(s: Slice, interval: tuple[float, float], initial: float | None) -> float | None:
    """Nats by which the mean loss over the interval exceeds the lowest in it; None where the slice does not span the
    interval, or runs diverged and no initial loss is known."""
    a, b = np.log(interval)
    x, loss = _curve(s, initial)
    if len(x) < 2 or not np.isfinite(loss).all() or x[0] > a + SAME_TUNED or x[-1] < b - SAME_TUNED:
        return None
    inside = (x > a) & (x < b)
    nodes = np.concatenate([[a], x[inside], [b]])
    values = np.interp(nodes, x, loss)
    return float(np.trapezoid(values, nodes) / (b - a) - values.min())


def _curve(s: Slice, initial: float | None) -> tuple[np.ndarray, np.ndarray]:
    """(log values, mean loss at each): losses cut off at the initial one, which diverged runs are given."""
    top = np.inf if initial is None else initial
    lost = s.diverged | ~np.isfinite(s.loss)
    loss = np.where(lost, top, np.minimum(np.where(lost, 0.0, s.loss), top))
    codes = cluster(np.exp(s.x[:, 0]), tolerance=SAME_TUNED)
    counts = np.bincount(codes)
    return np.bincount(codes, s.x[:, 0]) / counts, np.bincount(codes, loss) / counts
