"""Covariance of the optima of one law from the noise of their runs."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse


def own_covariance(optima: Sequence, target: int) -> tuple[np.ndarray | None, float]:
    """((n, n) covariance of log optima from the noise of their runs, degrees of freedom), or (None, 0) if any has
    none.

    Runs in two slices, or branches of one trunk, carry the same noise into both; so does an error in the shape that
    bent basins share (analysis/bend.py).
    """
    if any(o.influence is None for o in optima) or not optima:
        return None, 0.0
    codes = [o.slice.block[o.used] for o in optima]
    common = [o.shared for o in optima if o.shared is not None]
    blocks = np.unique(np.concatenate([*codes, *(c.block for c in common[:1])]), return_inverse=True)[1]
    rows = int(sum(map(len, codes)))
    owners = np.repeat(np.arange(len(optima)), [len(c) for c in codes])
    amounts = np.concatenate([o.influence[target] for o in optima])
    shares = sparse.csr_array((amounts, (owners, blocks[:rows])), shape=(len(optima), blocks.max() + 1))  # equal ones add
    if not common:
        own = (shares @ shares.T).toarray()
    else:
        terms = common[0].influence
        loading = np.array([np.zeros(len(terms)) if o.loading is None else o.loading[target] for o in optima])
        moved = np.zeros((len(terms), shares.shape[1]))
        np.add.at(moved.T, blocks[rows:], terms.T)
        cross = (shares @ moved.T) @ loading.T
        own = (shares @ shares.T).toarray() + cross + cross.T + loading @ (moved @ moved.T) @ loading.T
        degrees = max(o.models.shape[1] for o in optima if o.models is not None)
        between = np.array([np.zeros(degrees) if o.models is None else o.models[target] for o in optima])
        own = own + between @ between.T
    return own, float(sum(o.dof for o in optima) / len(optima))
