"""The canonical table that a fit starts from."""

import pandas as pd

from analysis.canonical import canonical, rename
from analysis.keys import Keys
from analysis.query import select


def prepare(table: pd.DataFrame, options: Keys) -> pd.DataFrame:
    """Columns mapped, derived and checked, rows filtered, index 0..n-1. Lines for the reader in `attrs["notes"]`.
    Raises UserError for columns that are no numbers or out of their range."""
    if table.attrs.get("columns") != options.columns:
        table = rename(table, options.columns)
    df = canonical(table.reset_index(drop=True), options.parameterization, options.lr_adjusted)
    return select(df, options.where).reset_index(drop=True)
