"""`fit(table, analysis, options) -> FitResult`: every analysis by its name.

Each lives in a module with `Options` (analysis/keys.py) and `fit(table, options, analysis)`.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.errors import UserError, nearest
from analysis.keys import Keys
from analysis.result import FitResult

MODULES = {
    "tau": "analysis.hyper",
    "weight_decay": "analysis.hyper",
    "lr": "analysis.hyper",
    "batch": "analysis.hyper",
    "lr_batch": "analysis.hyper",
    "curves": "analysis.curves.fit",
    "critical_batch": "analysis.critical.fit",
    "loss": "analysis.loss.parametric",
    "isoflop": "analysis.loss.isoflop",
    "envelope": "analysis.loss.envelope",
    "transfer": "analysis.transfer",
}


def fit(table: pd.DataFrame, analysis: str, options: Keys | Mapping[str, Any] | None = None) -> FitResult:
    """The laws of one analysis (a key of MODULES) from a table of runs.

    table: what read_runs or read_table gives, or any DataFrame with the columns of DESIGN (mapped by options.columns).
    options: the Options of its module, or a dict of their keys. Raises UserError where the request or the table cannot
    be used; a table that determines no law gives verdicts, notes and no law.
    """
    if analysis not in MODULES:
        raise UserError(f"analysis={analysis} is no analysis{nearest(analysis, MODULES)}")
    module = importlib.import_module(MODULES[analysis])
    result = module.fit(table, module.Options.from_dict(options), analysis)
    result.notes = list(dict.fromkeys([*(f"damaged: {line}" for line in table.attrs.get("damaged", [])), *result.notes]))
    return result
