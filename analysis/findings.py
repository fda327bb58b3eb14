"""What was found in a table's cells: rows that cannot be used, which stop a fit, and rows to tell the reader of.

Remembered as masks over the rows and said only after `where=`, of the rows that it keeps: so a filter can mend a table.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.errors import UserError


@dataclass(frozen=True)
class Finding:
    """rows: mask over the table. words: with {n} and {of} rows and {cell}, the first of `cells` among them. wrong: the
    table cannot be used while such rows are in it."""

    rows: pd.Series
    words: str
    wrong: bool = False
    cells: pd.Series | None = None

    def said(self, kept: pd.Index) -> str | None:
        """The line on the rows `kept`; None where none of them is concerned."""
        rows = self.rows.loc[kept]
        if not rows.any():
            return None
        cell = None if self.cells is None else self.cells.loc[kept][rows].iloc[0]
        line = self.words.format(n=int(rows.sum()), of=len(rows), cell=repr(cell))
        return line + _readable(self.cells.loc[kept][rows]) if self.wrong and self.cells is not None else line


def settle(df: pd.DataFrame, findings: list[Finding], notes: list[str]) -> pd.DataFrame:
    """The table with its notes in attrs["notes"]. Raises UserError for the first wrong finding that concerns its rows."""
    said = [(finding, finding.said(df.index)) for finding in findings]
    for finding, line in said:
        if finding.wrong and line:
            raise UserError(line)
    df.attrs["notes"] = list(dict.fromkeys([*notes, *(line for _, line in said if line)]))
    return df


def number(column: pd.Series, name: str) -> tuple[pd.Series, list[Finding]]:
    """(floats, findings); a cell that is no number is NaN and wrong, an empty one NaN. Raises UserError for a column of
    true and false."""
    if pd.api.types.is_bool_dtype(column):
        raise UserError(f"column {name} holds true and false where numbers are expected.")
    if pd.api.types.is_numeric_dtype(column):
        return column.astype(float), []
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    bad = numbers.isna() & column.notna()
    if bad.any():
        bad[bad] = ~column[bad].map(lambda cell: str(cell).strip().lower() in ("", "nan", "none", "null"))
    shown = name.replace("{", "{{").replace("}", "}}")
    words = f"column {shown} is not a number in {{n}} of {{of}} rows, for instance {{cell}}."
    return numbers, [Finding(bad, words, True, column)] if bad.any() else []


def _readable(cells: pd.Series) -> str:
    """Where to take a table whose cells are numbers as people write them, such as 2.5B and 1,000,000."""
    from analysis.foreign.cells import numbers  # which stands on this module

    return "" if np.asarray(numbers(cells)[1]).any() else "\nGive the file as csv=FILE, which reads such numbers."
