"""Where to start: variable projection. For a given (alpha, beta) the loss is linear in E, A and B, which non-negative
least squares gives (reweighted for Huber's loss); the objective over a grid of (alpha, beta) then shows every basin.
"""

from itertools import combinations

import numpy as np

from analysis.loss.huber import NIL, Rows, objective
from analysis.loss.solver import solve

GRID = np.array([0.01, 0.03, 0.06, 0.1, 0.14, 0.19, 0.25, 0.32, 0.4, 0.5, 0.62, 0.76, 0.95, 1.2, 1.6, 2.2, 3.2])
REWEIGHTINGS = 6
SUBSETS = [list(s) for k in (1, 2, 3) for s in combinations(range(3), k)]


def grid(rows: Rows) -> np.ndarray:
    """(cells, 2) of alpha, beta; one value of what is held, or not in the law."""
    low, high = rows.bounds()
    axes = [GRID if low[k] < high[k] else low[k : k + 1] for k in (2, 4)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def features(rows: Rows, cells: np.ndarray) -> np.ndarray:
    """(cells, n, 3): 1, N^-alpha, D^-beta (centred), over the loss."""
    columns = [np.ones((len(cells), len(rows))), np.exp(-cells[:, :1] * rows.x), np.exp(-cells[:, 1:] * rows.z)]
    columns[1:] = [column * here for column, here in zip(columns[1:], rows.varying, strict=True)]
    return np.stack(columns, axis=-1) * np.exp(-rows.y)[:, None]


def non_negative(gram: np.ndarray, moment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minimum of c' gram c / 2 - moment c over c >= 0: gram (..., 3, 3), moment (..., 3) -> (c (..., 3), gain (...)).

    The best of the seven subsets whose solution is not negative: exact for three coefficients."""
    shape = moment.shape[:-1]
    gram, moment = gram.reshape(-1, 3, 3), moment.reshape(-1, 3)
    best, most = np.zeros_like(moment), np.full(len(moment), -np.inf)
    for subset in SUBSETS:
        part = gram[:, subset][:, :, subset].copy()
        np.einsum("sii->si", part)[...] *= 1 + 1e-12
        c, definite = solve(part, moment[:, subset])
        gain = 0.5 * (c * moment[:, subset]).sum(axis=1)
        take = definite & (c >= 0).all(axis=1) & (gain > most)
        most[take] = gain[take]
        best[take] = 0.0
        best[np.ix_(take, subset)] = c[take]
    return best.reshape(*shape, 3), most.reshape(shape)


def profile(rows: Rows) -> np.ndarray:
    """(cells, 5) theta: the best E, A, B at each (alpha, beta) of the grid."""
    cells = grid(rows)
    f = features(rows, cells)
    weight = np.ones(f.shape[:2]) if rows.weight is None else np.tile(rows.weight, (len(cells), 1))
    coefficients, own = None, weight
    for step in range(REWEIGHTINGS):
        weighted = f * own[..., None]
        coefficients, _ = non_negative(weighted.transpose(0, 2, 1) @ f, weighted.sum(axis=1))
        residual = np.abs((f @ coefficients[..., None])[..., 0] - 1)
        delta = max(rows.delta, float(np.median(residual.min(axis=0))) * 4.0 ** (1 - step))
        own = weight * delta / np.maximum(residual, delta)
    return as_theta(coefficients, cells, rows)


def as_theta(coefficients: np.ndarray, cells: np.ndarray, rows: Rows) -> np.ndarray:
    """(S, 3) of E, A, B at the centre and (S, 2) of alpha, beta -> (S, 5); nil terms begin where they can come back."""
    least = np.exp(rows.y.min() - 0.3 * NIL)
    e, a, b = np.log(np.maximum(coefficients, least)).T
    return np.stack([e, a, cells[:, 0], b, cells[:, 1]], axis=1)


def starts(rows: Rows, most: int) -> np.ndarray:
    """(at most `most`, 5): the basins of the profile over (alpha, beta), then the lowest cells."""
    theta = np.clip(profile(rows), *rows.bounds())
    shape = [len(np.unique(theta[:, k])) for k in (2, 4)]
    value = objective(theta, rows).reshape(shape)
    padded = np.pad(value, 1, constant_values=np.inf)
    around = [padded[1 + i : 1 + i + shape[0], 1 + j : 1 + j + shape[1]] for i in (-1, 0, 1) for j in (-1, 0, 1)]
    basin = (value <= np.min(around, axis=0)).ravel()
    order = np.lexsort((value.ravel(), ~basin))
    return theta[order[:most]]
