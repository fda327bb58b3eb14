"""A width and a depth for a target size, along the sweep's own ladder of models.

Depth follows width on a line in logs through the sampled models, kept within their aspect ratios (width / depth): a
sweep of one depth leaves that depth when the model would become wider for its depth than any that was sampled.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

Count = Callable[[int, int], float]
COARSEST = 64  # no width is rounded more coarsely where the head size is not known
DRIFT = 0.3  # leaving the ladder by a factor costs as much as missing the count by 0.3 of it, in log


def count_blocks(width: int, depth: int) -> float:
    """12 * depth * width^2: attention and feed-forward matrices of a Llama block, without the head."""
    return 12.0 * depth * width**2


def choose_shape(
    params: float,
    widths: Sequence[float],
    depths: Sequence[float],
    count: Count | None = None,
    head_dim: int | None = None,
) -> tuple[int, int]:
    """(width, depth) on the ladder of the sampled `widths` and `depths` (parallel) with params nearest to `params`.

    Widths are multiples of `head_dim`; not known: of the power of two that divides all sampled widths, at most 64. The
    depth is rounded up or down, whichever brings the count nearer. `count(width, depth)` counts params.
    """
    count = count or count_blocks
    depth = _ladder(widths, depths)
    step = int(head_dim) if head_dim else _common_step(widths)
    width = _solve(params, lambda w: count(w, max(1, round(depth(w)))), step)
    candidates = set()
    for w in range(max(width - step, step), width + step + 1, step):
        for d in {max(1, math.floor(depth(w))), math.ceil(depth(w))}:
            candidates |= {(w, d), (_solve(params, lambda w, d=d: count(w, d), step), d)}

    def cost(shape: tuple[int, int]) -> float:
        w, d = shape
        return abs(math.log(count(w, d) / params)) + DRIFT * abs(math.log(d / depth(w)))

    return min(sorted(candidates), key=cost)


def _ladder(widths: Sequence[float], depths: Sequence[float]) -> Callable[[float], float]:
    """Depth (a real number) of a width: the line of ln depth on ln width, within the sampled aspect ratios."""
    x, y = np.log(np.asarray(widths, float)), np.log(np.asarray(depths, float))
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 1e-6 else 1.0
    intercept = float(y.mean() - slope * x.mean())
    narrow, wide = float(np.exp(x - y).min()), float(np.exp(x - y).max())
    return lambda width: min(max(math.exp(intercept + slope * math.log(width)), width / wide), width / narrow)


def _common_step(widths: Sequence[float]) -> int:
    common = math.gcd(*(round(w) for w in widths))
    return min(common & -common, COARSEST) if common else 1


def _solve(params: float, size: Callable[[int], float], step: int) -> int:
    """The multiple of `step` whose size, growing with width, is nearest to `params` in log."""
    high = 1
    while size(high * step) < params and high < 1 << 24:
        high *= 2
    low = max(high // 2, 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle * step) < params else (low, middle)
    return step * min((low, high), key=lambda k: abs(math.log(size(k * step) / params)))
