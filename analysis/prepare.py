"""The canonical table that a fit starts from."""

import pandas as pd

from analysis.canonical import derive, marks, rename
from analysis.findings import settle
from analysis.keys import Keys
from analysis.query import select


def prepare(table: pd.DataFrame, options: Keys) -> pd.DataFrame:
    """Columns mapped and derived, rows filtered, what is left checked, index 0..n-1. Lines for the reader in
    `attrs["notes"]`. The filter sees numbers as the table has them, so it may drop those that cannot be.

    Raises UserError for columns that are no numbers or out of their range in the rows that are left.
    """
    if table.attrs.get("columns") != options.columns:
        table = rename(table, options.columns)
    df, findings, notes = derive(table.reset_index(drop=True), options.parameterization, options.lr_adjusted)
    return settle(select(df, options.where), [*findings, *marks(df)], notes).reset_index(drop=True)
