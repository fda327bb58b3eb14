"""LR sensitivity: how dear it is to tune nothing (Wortsman et al., arXiv 2309.14322, section 2.2, from memory):

    mean over log-spaced eta in [a, b] of min(L(eta), L_init)  -  min over eta of L(eta)          (nats per token)

L_init is the loss before training: a diverged run costs no more than not training. Ours: the mean of an Akima curve
through the measured losses (averaged over seeds) in log eta, straight beside values whose losses were cut off; the
minimum is the fitted one where it lies inside [a, b], else that of the curve. Chords and the lowest measured value
instead are off both ways: 0.00625 nats for 0.00667 of a parabola at octaves. [a, b] is the same for all slices that are
compared, by default what all of them measured. Works for any tuned hyper-parameter.
"""

import numpy as np
from scipy import interpolate

from analysis.codes import cluster
from analysis.slices import SAME_TUNED, Slice

FINE = 2001  # points of the curve


def common_interval(slices: list[Slice]) -> tuple[float, float] | None:
    """[low, high] of the tuned value that every slice measured, or None where there is none."""
    if not slices:
        return None
    low = max(float(np.exp(s.x.min())) for s in slices)
    high = min(float(np.exp(s.x.max())) for s in slices)
    return (low, high) if high > low * (1 + SAME_TUNED) else None


def sensitivity(
    s: Slice, interval: tuple[float, float], initial: float | None, best: tuple[float, float] | None = None
) -> float | None:
    """Nats by which the mean loss over the interval exceeds the lowest in it; None where the slice does not span the
    interval, or runs diverged and no initial loss is known. best: (log value, loss) of the fitted optimum, if any."""
    a, b = np.log(interval)
    x, loss, cut = _curve(s, initial)
    if len(x) < 2 or not np.isfinite(loss).all() or x[0] > a + SAME_TUNED or x[-1] < b - SAME_TUNED:
        return None
    nodes = np.union1d(np.linspace(a, b, FINE), x[(x > a) & (x < b)])
    values = np.interp(nodes, x, loss)
    if (~cut).sum() > 2:
        at = np.clip(np.searchsorted(x, nodes), 1, len(x) - 1)
        smooth = ~cut[at] & ~cut[at - 1]
        values[smooth] = interpolate.Akima1DInterpolator(x[~cut], loss[~cut])(np.clip(nodes, x[0], x[-1])[smooth])
    lowest = best[1] if best is not None and a <= best[0] <= b else values.min()
    return float(np.trapezoid(values, nodes) / (b - a) - lowest)


def _curve(s: Slice, initial: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(log values, mean loss at each, whether any was cut off there): losses are cut off at the initial one, which
    diverged runs are given."""
    top = np.inf if initial is None else initial
    lost = s.diverged | ~np.isfinite(s.loss)
    loss = np.where(lost, top, np.minimum(np.where(lost, 0.0, s.loss), top))
    codes = cluster(np.exp(s.x[:, 0]), tolerance=SAME_TUNED)
    counts = np.bincount(codes)
    return np.bincount(codes, s.x[:, 0]) / counts, np.bincount(codes, loss) / counts, np.bincount(codes, loss >= top) > 0
