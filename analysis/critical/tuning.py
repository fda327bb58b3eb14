"""Is each (N, B, D) tuned? Where it is not, D_B(L) measures the tuning and not the batch.

A cell holds the runs of one model size, batch and tokens. The rule, `tuned=check`:

1. Of three values or more of LR, or of weight decay (or tau), the best is taken: the parabola in the log through the
   lowest and its neighbours gives the loss at its vertex (a grid off the optimum by half a step would cost more than
   the batch does). Diverged runs bound the grid. Best at an end of its grid: not tuned.
2. Other cells are set by a rule if tau = B/(lr * wd * D) does not depend on the batch and is a power of D at one model
   size (a constant tau, or tau(TPP) of Power Lines), within a factor of 1.25: those off the rule are not tuned.
3. Without tau (no weight decay, or not in the table) an LR that is the same at all batches is not tuned; one that moves
   with the batch is taken as tuned, and a note says so. A table without LR too: taken as tuned, with a note.

Cells that are not tuned are left out and named. `tuned=assume`: the best of each cell, none left out.
"""

import numpy as np
import pandas as pd

from analysis.codes import cluster

OFF_RULE = np.log(1.25)
SAME = 0.01


def tuned_cells(df: pd.DataFrame, check: bool, notes: list[str]) -> pd.DataFrame:
    """The rows of analysis.critical.rows (one model size or several) to those of tuned cells: one row a seed where a
    cell has one setting, else one row. Columns loss, tokens, params, _batch, _batch_code, _block, seed, _settings,
    _size."""
    df = df.assign(_tokens_code=cluster(df["tokens"], df["_size"].to_numpy()))
    keys = ["_size", "_batch_code", "_tokens_code"]
    settled, singles, edges, lost = [], [], [], 0
    for _, cell in df.groupby(keys, sort=True):
        if cell["_lost"].all():
            lost += 1
            continue
        best, state = _best(cell)
        (settled if state == "interior" else edges if state == "edge" else singles).append(best)
    if lost:
        notes.append(f"{lost} of the (params, batch, tokens) have diverged runs only: not used.")
    if not check:
        return _stack([*settled, *singles, *edges], df)
    if edges:
        notes.append(f"{len(edges)} of the (params, batch, tokens) are best at an end of their LR or weight decay grid, so "
                     f"not tuned: not used ({_named(edges)}); tuned=assume uses them.")  # fmt: skip
    kept = _by_rule(singles, notes)
    return _stack([*settled, *kept], df)


def _stack(cells: list[pd.DataFrame], like: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(cells, ignore_index=True) if cells else like.iloc[:0]


def _axes(cell: pd.DataFrame) -> list[np.ndarray]:
    """Codes of what varies in a cell: LR, and weight decay (or tau) where it does not follow from LR."""
    axes: list[np.ndarray] = []
    for name in ("lr", "weight_decay", "tau"):
        if name not in cell or cell[name].isna().any() or (cell[name] <= 0).any():
            continue
        codes = cluster(cell[name], tolerance=SAME)
        if codes.max() == 0:
            continue
        if not axes:
            axes.append(codes)
        elif len(axes) == 1 and name == "weight_decay":
            pairs = len({*zip(axes[0].tolist(), codes.tolist(), strict=True)})
            if pairs > axes[0].max() + 1:
                axes.append(codes)
    return axes


def _best(cell: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """(one row at the tuned loss, "interior" or "edge"), or (its rows, "single") where nothing was swept."""
    axes = _axes(cell)
    if not axes or max(a.max() for a in axes) < 2:
        done = cell[~cell["_lost"]]
        if axes:
            codes = axes[0][~cell["_lost"].to_numpy()]
            means = {code: done["loss"][codes == code].mean() for code in np.unique(codes)}
            done = done[codes == min(means, key=means.get)]
        return done, "single"
    loss = np.where(cell["_lost"], np.inf, cell["loss"].to_numpy(float))
    names = [name for name in ("lr", "weight_decay", "tau") if name in cell]
    value, inside = _lowest(cell, loss, axes, names)
    row = cell.iloc[[int(loss.argmin())]].assign(loss=value)
    if "seed" in row:
        row["seed"] = None
    return row, "interior" if inside else "edge"


def _lowest(cell: pd.DataFrame, loss: np.ndarray, axes: list[np.ndarray], names: list[str]) -> tuple[float, bool]:
    """(loss, whether inside the grid) at the best of the first axis, the others profiled out."""
    codes = axes[0]
    name = next(n for n in names if cluster(cell[n], tolerance=SAME).max() > 0 and _follows(cell[n], codes))
    nodes, values, inner = [], [], []
    for code in np.unique(codes):
        mine = codes == code
        if len(axes) > 1:
            value, inside = _lowest(cell[mine], loss[mine], [axes[1][mine]], [n for n in names if n != name])
        else:
            value, inside = (np.inf if np.isinf(loss[mine]).any() else float(loss[mine].mean())), True
        nodes.append(float(np.log(cell[name][mine].median())))
        values.append(value)
        inner.append(inside)
    order = np.argsort(nodes)
    x, y = np.array(nodes)[order], np.array(values)[order]
    i = int(y.argmin())
    if len(x) < 3:
        return float(y[i]), inner[order[i]] and len(x) == 1
    if i in (0, len(x) - 1):
        return float(y[i]), False
    return _vertex(x[i - 1 : i + 2], y[i - 1 : i + 2]), inner[order[i]]


def _follows(column: pd.Series, codes: np.ndarray) -> bool:
    return all(np.ptp(np.log(column[codes == code])) < 2 * SAME for code in np.unique(codes))


def _vertex(x: np.ndarray, y: np.ndarray) -> float:
    """Lowest value of the parabola through three points of which the middle one is lowest."""
    if not np.isfinite(y).all() or (y[0] == y[1] and y[1] == y[2]):
        return float(y[1])
    a, b, c = np.polyfit(x - x[1], y - y[1], 2)
    return float(y[1] + c - b * b / (4 * a)) if a > 0 else float(y[1])


def _by_rule(cells: list[pd.DataFrame], notes: list[str]) -> list[pd.DataFrame]:
    """Cells with one setting that follow a rule in tau, or whose LR moves with the batch."""
    kept: list[pd.DataFrame] = []
    sizes: dict[int, list[pd.DataFrame]] = {}
    for cell in cells:
        sizes.setdefault(int(cell["_size"].iloc[0]), []).append(cell)
    off, same_lr, unknown, by_lr = [], [], 0, 0
    for members in sizes.values():
        log_tau = np.array([_log_tau(cell) for cell in members])
        if np.isfinite(log_tau).all():
            on = _on_rule(members, log_tau)
            off += [cell for cell, good in zip(members, on, strict=True) if not good]
            kept += [cell for cell, good in zip(members, on, strict=True) if good]
            continue
        lr = np.array([cell["lr"].median() if "lr" in cell else np.nan for cell in members])
        if not np.isfinite(lr).all():
            unknown += len(members)
            kept += members
        elif len({cell["_batch_code"].iloc[0] for cell in members}) > 1 and lr.max() < lr.min() * (1 + SAME):
            same_lr += members
        else:
            by_lr += len(members)
            kept += members
    if off:
        notes.append(f"{len(off)} of the (params, batch, tokens) have one LR and weight decay, off any tau(tokens) that "
                     f"holds for all batches, so not tuned: not used ({_named(off)}); tuned=assume uses them.")  # fmt: skip
    if same_lr:
        notes.append(f"{len(same_lr)} of the (params, batch, tokens) have one LR, the same at all batches, and no tau, so "
                     f"not tuned: not used ({_named(same_lr)}); tuned=assume uses them.")  # fmt: skip
    if by_lr:
        notes.append(f"{by_lr} of the (params, batch, tokens) have one LR and no tau: taken as tuned, as LR moves.")
    if unknown:
        notes.append("no column says how LR and weight decay were set: taken as tuned at each batch and tokens.")
    return kept


def _log_tau(cell: pd.DataFrame) -> float:
    """ln tau, up to a constant of the model size where the LR of the hidden matrices is not known."""
    if "tau" in cell and cell["tau"].notna().all():
        return float(np.log(cell["tau"].median()))
    if not {"lr", "weight_decay"} <= set(cell) or not (cell["weight_decay"] > 0).all() or cell["lr"].isna().any():
        return np.nan
    independent = "weight_decay_mode" in cell and (cell["weight_decay_mode"] == "independent").all()
    shrink = cell["weight_decay"] * (1.0 if independent else cell["lr"])
    share = cell["_batch"] / cell["tokens"]
    return float(np.log((share / shrink).median()))


def _on_rule(cells: list[pd.DataFrame], log_tau: np.ndarray) -> np.ndarray:
    """Whether each cell lies on ln tau = a + b ln D, the line of least absolute deviations over the model size."""
    x = np.log([float(cell["tokens"].median()) for cell in cells])
    i, j = np.triu_indices(len(x), 1)
    apart = np.abs(x[i] - x[j]) > 0.02
    slopes = np.unique(np.r_[0.0, ((log_tau[i] - log_tau[j])[apart] / (x[i] - x[j])[apart]).round(6)])
    slopes = slopes[np.linspace(0, len(slopes) - 1, min(len(slopes), 2000)).astype(int)]
    rest = log_tau - slopes[:, None] * x
    deviation = np.abs(rest - np.median(rest, axis=1, keepdims=True)).sum(axis=1)
    best = rest[deviation.argmin()]
    return np.abs(best - np.median(best)) <= OFF_RULE


def _named(cells: list[pd.DataFrame]) -> str:
    said = [f"{c['params'].iloc[0]:.3g}, {c['_batch'].iloc[0]:.4g}, {c['tokens'].iloc[0]:.3g}" for c in cells[:3]]
    return "; ".join(said) + ("; ..." if len(cells) > 3 else "")
