"""The error of a loss law on the rows at the largest training FLOPs, by a refit without them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from analysis.errors import UserError
from analysis.law import largest_scales
from analysis.loss import repeats
from analysis.loss.forms import chinchilla_rows
from analysis.loss.huber import log_loss
from analysis.loss.identify import terms
from analysis.loss.point import fit_point
from analysis.loss.rows import Group
from analysis.query import mask

NOTHING = {"n": 0, "mean_abs_log_error": None, "mean_excess_loss": None}


def held_out(group: Group, options) -> np.ndarray:
    """(n,) bool: whole scales, the largest in N D; or by a condition on the rows."""
    if options.heldout is None:
        return np.zeros(len(group), bool)
    if isinstance(options.heldout, str):
        held = mask(pd.DataFrame(group.frame), options.heldout)
        if held.all():
            raise UserError(f"heldout={options.heldout} holds out every row.")
        return held
    return largest_scales(6.0 * group.params * group.tokens, options.heldout)


def score(group: Group, options, kept) -> tuple[dict, list[str]]:
    """(`heldout` of the LAW, notes); errors in natural log."""
    held = held_out(group, options)
    if not held.any():
        return dict(NOTHING), []
    rest, away = _part(group, ~held), _part(group, held)
    still, _, possible = terms(rest, options)
    if not possible or still.varying != kept.varying:
        return dict(NOTHING), ["nothing held out: without the largest scales the law is not determined."]
    rows = chinchilla_rows(rest, options, kept)
    if group.epochs is not None:
        problem = repeats.Problem(rest.params, rest.tokens, rest.epochs, rest.loss, options.delta, options.fixed)
        theta, _ = problem.fit()
        where = (np.log(v) for v in (away.params, away.tokens, away.epochs))
        predicted = repeats.log_loss(theta[None], *where)[0]
    else:
        theta = fit_point(rows, options.seed).theta
        at = SimpleNamespace(x=np.log(away.params) - rows.centre[0], z=np.log(away.tokens) - rows.centre[1])
        predicted = log_loss(theta[None], at)[0]
    error = float(np.mean(np.abs(predicted - np.log(away.loss))))
    return {**NOTHING, "n": int(held.sum()), "mean_abs_log_error": error}, []


def _part(group: Group, rows: np.ndarray) -> Group:
    def codes(values: np.ndarray) -> np.ndarray:
        return np.unique(values[rows], return_inverse=True)[1].ravel()

    return Group(
        group.settings, group.frame[rows], group.params[rows], group.tokens[rows], group.loss[rows], codes(group.block),
        codes(group.cell), None if group.epochs is None else group.epochs[rows],
    )  # fmt: skip
