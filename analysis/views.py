"""What a figure needs of a slice: points, fitted curve, window, optimum (the SLICE of analysis/plot_slices.py)."""

import numpy as np

from analysis.optimum import Optimum
from analysis.surface import Surface

POINTS = 80


def slice_views(o: Optimum, entries: list[dict]) -> list[dict]:
    """One SLICE dict for each tuned hyper-parameter. Of several tuned together each is shown with the others at their
    best: the lowest run at each of its values, and the surface minimised over the others."""
    return [_view(o, entry, i) for i, entry in enumerate(entries)]


def _view(o: Optimum, entry: dict, i: int) -> dict:
    s = o.slice
    rows = np.arange(len(s.rows)) if len(s.targets) == 1 else _lowest(s.x[:, i], np.where(s.diverged, np.inf, s.loss))
    lost = s.diverged[rows] | ~np.isfinite(s.loss[rows])
    stopped = np.zeros(len(rows), bool) if s.pruned is None else s.pruned[rows]
    low, high = s.x[:, i].min(), s.x[:, i].max()
    grid = np.linspace(low, high, POINTS)
    loss = _curve(o, grid, i)
    inside = s.x[o.used, i]
    settings = {key: value for key, value in s.settings.items() if value is not None}
    return {
        "target": entry["target"],
        "given": {**settings, **s.held, **s.given},
        "x": np.exp(s.x[rows, i]).tolist(),
        "loss": [None if bad else float(value) for bad, value in zip(lost, s.loss[rows], strict=True)],
        "seed": s.seed[rows].tolist(),
        "status": np.select([stopped, lost], ["pruned", "diverged"], "done").tolist(),
        "curve": None if loss is None else {"x": np.exp(grid).tolist(), "loss": loss.tolist()},
        "window": [float(np.exp(inside.min())), float(np.exp(inside.max()))] if len(inside) else None,
        "optimum": entry,
    }


def _lowest(x: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """For each value of x the row of lowest loss."""
    order = np.lexsort((loss, x.round(9)))
    _, first = np.unique(x[order].round(9), return_index=True)
    return order[first]


def _curve(o: Optimum, grid: np.ndarray, i: int) -> np.ndarray | None:
    """Fitted loss along coordinate i, minimised over the others; None where there is no curve or no such minimum."""
    if o.curve is None:
        return None
    k = o.slice.x.shape[1]
    if k == 1:
        loss = np.asarray(o.curve(grid[:, None]), float)
        return loss if np.isfinite(loss).all() else None
    if not isinstance(o.curve, Surface):
        return _lowest_along(o, grid, i) if k == 2 else None
    if not o.curve.curvature[0] > 0:
        return None
    points = np.stack([o.curve.best(i, value) for value in grid])
    return o.curve(points)


def _lowest_along(o: Optimum, grid: np.ndarray, i: int) -> np.ndarray | None:
    """A curve of two coordinates, minimised over the measured values of the other."""
    other = o.slice.x[o.used, 1 - i]
    values = np.linspace(other.min(), other.max(), 4 * POINTS)
    points = np.empty((len(grid), len(values), 2))
    points[..., i], points[..., 1 - i] = grid[:, None], values
    loss = np.asarray(o.curve(points), float)
    return loss.min(axis=1) if np.isfinite(loss).all() else None
