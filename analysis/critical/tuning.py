"""Is each (N, B, D) tuned? Where it is not, D_B(L) measures the tuning and not the batch.

A cell holds the runs of one model size, batch and tokens. The rule, `tuned=check`:

1. Of three values or more of LR, or of weight decay (or tau), the best is taken: the parabola in the log through the
   lowest and its neighbours gives the loss at its vertex (a grid off the optimum by half a step would cost more than
   the batch does). Diverged runs bound the grid. Best at an end of its grid: not tuned; of two values one is always.
2. Other cells are set by a rule if tau = B/(lr * wd * D) does not depend on the batch and is a power of D at one model
   size (a constant tau, or tau(TPP) of Power Lines), within a factor of 1.25: those off the rule are not tuned. A cell
   of two values is read at the better.
3. Without tau (no weight decay, or not in the table) an LR that batches more than a factor of two apart share at equal
   tokens is not tuned, nor one that follows tokens alone; one that moves with the batch is taken as tuned, and a note
   says so. A table without LR too: taken as tuned, with a note.

Cells that are not tuned are left out and named. `tuned=assume`: the best of each cell, none left out.
"""

import numpy as np
import pandas as pd

from analysis.codes import cluster, combine, distinct

OFF_RULE = np.log(1.25)
SAME = 0.01
APART = 2.1  # batches a factor of two apart may share the LR of a coarse grid
SWEPT = ("lr", "weight_decay", "tau")


def tuned_cells(df: pd.DataFrame, check: bool, notes: list[str]) -> pd.DataFrame:
    """The rows of analysis.critical.rows down to those of tuned cells: a row for each run where a cell has one setting,
    else one at the tuned loss (its seed empty)."""
    df = df.reset_index(drop=True)
    cell = combine(df["_size"], df["_batch_code"], cluster(df["tokens"], df["_size"].to_numpy()))
    lost, loss = df["_lost"].to_numpy(bool), df["loss"].to_numpy(float).copy()
    values = {name: np.where(df[name] > 0, df[name], np.nan) for name in SWEPT if name in df}
    codes = {name: cluster(v, cell, SAME) for name, v in values.items()}
    several = np.zeros(len(df), bool)
    for code in codes.values():
        several |= distinct(code, cell) > 1
    keep, swept, edges, pairs = ~several & ~lost, [], [], []
    order = np.argsort(cell, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(cell[order])) + 1):
        if not several[part[0]] or lost[part].all():
            continue
        rows, value, state = _best(part, values, codes, np.where(lost, np.inf, loss))
        keep[rows] = True
        if state == "pair":
            pairs += list(rows)
        elif state != "single":
            loss[rows] = value
            swept += list(rows)
        if state == "edge":
            edges.append(rows[0])
    if dead := int((pd.Series(lost).groupby(cell).transform("all") & ~pd.Series(cell).duplicated()).sum()):
        notes.append(f"{dead} of the (params, batch, tokens) have diverged runs only, or pruned ones: not used.")
    df = df.assign(loss=loss, _cell=cell)
    if "seed" in df and swept:
        df["seed"] = df["seed"].astype(object)
        df.loc[swept, "seed"] = None
    if check and edges:
        keep[edges] = False
        _name(notes, df.loc[edges], "are best at an end of their LR or weight decay grid")
    if check:
        single = keep.copy()
        single[swept] = False
        keep[_against_the_rule(df, np.flatnonzero(single), np.isin(np.arange(len(df)), pairs), notes)] = False
    return df[keep].reset_index(drop=True)


def _best(part: np.ndarray, values: dict, codes: dict, loss: np.ndarray) -> tuple[np.ndarray, float, str]:
    """(rows, loss, "interior", "edge", "pair" or "single") of one cell in which something varies; diverged and pruned
    runs have infinite loss. Pair: no axis of three values; single: no axis. Of both the rows of the best setting."""
    axes: list[np.ndarray] = []
    x: list[np.ndarray] = []
    names = [name for name in values if not np.isnan(values[name][part]).all()]
    for name in names:  # weight decay 0 has no place on a log axis
        part = part[~np.isnan(values[name][part])]
    for name in names:
        code = codes[name][part]
        free = len(np.unique(code)) > 1 and all(len(np.unique(np.c_[a, code], axis=0)) > a.max() + 1 for a in axes)
        if free and len(axes) < 2 and not (name == "tau" and axes):
            axes.append(np.unique(code, return_inverse=True)[1].ravel())
            x.append(np.log(values[name][part]))
    part_loss = loss[part]
    if not axes or max(a.max() for a in axes) < 2:
        setting = combine(*axes) if axes else np.zeros(len(part), int)
        means = np.bincount(setting, np.where(np.isinf(part_loss), 1e300, part_loss)) / np.bincount(setting)
        rows = part[(setting == means.argmin()) & np.isfinite(part_loss)]
        return rows if len(rows) else part[[part_loss.argmin()]], np.nan, "pair" if axes else "single"
    value, inside = _lowest(part_loss, axes, x)
    return part[[part_loss.argmin()]], value, "interior" if inside else "edge"


def _lowest(loss: np.ndarray, axes: list[np.ndarray], x: list[np.ndarray]) -> tuple[float, bool]:
    """(loss, whether inside the grid) at the best of the first axis, the second profiled out."""
    nodes, y, inner = [], [], []
    for code in np.unique(axes[0]):
        mine = axes[0] == code
        if len(axes) > 1:
            value, inside = _lowest(loss[mine], [axes[1][mine]], [x[1][mine]])
        else:
            value, inside = float(loss[mine].mean()), True
        nodes.append(float(np.median(x[0][mine])))
        y.append(value)
        inner.append(inside)
    order = np.argsort(nodes)
    x0, y0 = np.array(nodes)[order], np.array(y)[order]
    i = int(y0.argmin())
    if i in (0, len(x0) - 1):
        return float(y0[i]), len(x0) == 1 and inner[order[i]]
    return _vertex(x0[i - 1 : i + 2], y0[i - 1 : i + 2]), inner[order[i]]


def _vertex(x: np.ndarray, y: np.ndarray) -> float:
    """Lowest value of the parabola through three points of which the middle one is lowest."""
    if not np.isfinite(y).all():
        return float(y[1])
    x, y, least = x - x[1], y - y[1], float(y[1])
    left, right = y[0] / x[0], y[2] / x[2]
    a = (right - left) / (x[2] - x[0])
    b = left - a * x[0]
    return least - b * b / (4 * a) if a > 0 else least


def _against_the_rule(df: pd.DataFrame, single: np.ndarray, pair: np.ndarray, notes: list[str]) -> list[int]:
    """Rows of cells with one setting (or, where pair (n,), the better of two) that no rule in tau covers and whose LR
    does not move with the batch."""
    off, same_lr, two, unknown, by_lr = [], [], [], 0, 0
    mine = df.loc[single]
    log_tau = _log_tau(mine)
    lr = mine["lr"].to_numpy(float) if "lr" in mine else np.full(len(mine), np.nan)
    for size in np.unique(mine["_size"]):
        spots = np.flatnonzero(mine["_size"] == size)
        if np.isfinite(log_tau[spots]).all():
            on = _on_rule(np.log(mine["tokens"].to_numpy(float)[spots]), log_tau[spots])
            off += list(single[spots[~on]])
            continue
        two += list(single[spots[pair[single[spots]]]])
        spots = spots[~pair[single[spots]]]
        said = np.isfinite(lr[spots])
        unknown += mine["_cell"].iloc[spots[~said]].nunique()
        spots = spots[said]
        shared = _shared(mine.iloc[spots], lr[spots])
        same_lr += list(single[spots[shared]])
        by_lr += mine["_cell"].iloc[spots[~shared]].nunique()
    if off:
        _name(notes, df.loc[off], "have one LR and weight decay, off any tau(tokens) that holds for all batches")
    if two:
        _name(notes, df.loc[two], "have two LRs or weight decays and no tau, the better at an end")
    if same_lr:
        _name(notes, df.loc[same_lr], "have one LR, the same at all batches or at some a factor of two apart, and no tau")
    if by_lr:
        notes.append(f"{by_lr} of the (params, batch, tokens) have one LR and no tau: taken as tuned, as LR moves.")
    if unknown:
        notes.append(f"{unknown} of the (params, batch, tokens) do not say how LR was set: taken as tuned.")
    return off + two + same_lr


def _shared(rows: pd.DataFrame, lr: np.ndarray) -> np.ndarray:
    """Which rows of one model size have an LR (n,) that batches APART share at equal tokens; all, where LR follows
    tokens alone (which tells where no two batches have equal tokens)."""
    if len(rows) == 0 or rows["_batch_code"].nunique() == 1:
        return np.zeros(len(rows), bool)
    tokens = rows["tokens"].to_numpy(float)
    if _on_rule(np.log(tokens), np.log(lr), np.log1p(SAME)).all():
        return np.ones(len(rows), bool)
    batch = rows["_batch"].groupby(cluster(lr, cluster(tokens), SAME))
    return (batch.transform("max") > APART * batch.transform("min")).to_numpy()


def _log_tau(df: pd.DataFrame) -> np.ndarray:
    """ln tau, up to a constant of the model size where the LR of the hidden matrices is not known; nan where unknown."""
    nothing = np.full(len(df), np.nan)
    known = np.log(df["tau"].to_numpy(float)) if "tau" in df else nothing
    if np.isfinite(known).all() or not {"lr", "weight_decay"} <= set(df):
        return known
    independent = df["weight_decay_mode"] == "independent" if "weight_decay_mode" in df else np.zeros(len(df), bool)
    shrink = df["weight_decay"].to_numpy(float) * np.where(independent, 1.0, df["lr"].to_numpy(float))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.log(df["_batch"].to_numpy(float) / df["tokens"].to_numpy(float) / shrink)
    return np.where(np.isfinite(relative), relative, np.nan)


def _on_rule(x: np.ndarray, log_tau: np.ndarray, tolerance: float = OFF_RULE) -> np.ndarray:
    """Whether each row lies on ln tau = a + b ln D, the line of least absolute deviations; x (n,) ln D."""
    spots = np.unique(np.linspace(0, len(x) - 1, min(len(x), 60)).round().astype(int))
    i, j = np.triu_indices(len(spots), 1)
    i, j = spots[i], spots[j]
    apart = np.abs(x[i] - x[j]) > 0.02
    slopes = np.unique(np.r_[0.0, ((log_tau[i] - log_tau[j])[apart] / (x[i] - x[j])[apart]).round(6)])
    rest = log_tau - slopes[:, None] * x
    deviation = np.abs(rest - np.median(rest, axis=1, keepdims=True)).sum(axis=1)
    best = rest[deviation.argmin()]
    return np.abs(best - np.median(best)) <= tolerance


def _name(notes: list[str], rows: pd.DataFrame, why: str) -> None:
    cells = rows.drop_duplicates("_cell")
    shown = zip(cells["params"], cells["_batch"], cells["tokens"], strict=True)
    said = [f"{n:.3g}, {b:.4g}, {d:.3g}" for n, b, d in list(shown)[:3]]
    more = "; ..." if len(cells) > 3 else ""
    notes.append(f"{len(cells)} of the (params, batch, tokens) {why}, so not tuned: not used ({'; '.join(said)}{more}); "
                 "tuned=assume uses them.")  # fmt: skip
