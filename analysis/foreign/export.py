"""A tracker's CSV export, or anyone's plain CSV or parquet file, as the canonical table."""

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from analysis.foreign.cells import EMPTY, as_dict, flatten, holds_dicts
from analysis.foreign.mapping import to_canonical
from analysis.foreign.names import read
from analysis.table import header, load

ASIDE = ("run_id", "trunk")  # names of runs stay text


def read_export(path: str | os.PathLike, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The table of a .csv (.csv.gz, .tsv) or .parquet file whose columns carry the names of wandb's export (Name,
    State, Created, lr, val_loss), of its API (summary and config as dicts in JSON or Python's words), dotted config
    names (config.optimizer.lr), or anyone's.

    columns: {canonical: theirs}. What became of each column and cell stands in `attrs["listed"]`. Raises UserError where
    the file is missing or unreadable, or two columns could be the loss.
    """
    path = Path(path)
    names = [] if path.suffix == ".parquet" else header(path)
    texts = [name for name in names if read(name).canonical in ASIDE or name in [(columns or {}).get(a) for a in ASIDE]]
    frame = load(path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=list(EMPTY))
    notes: list[str] = []
    if names and names[0] == "column 1" and frame[names[0]].tolist() == list(range(len(frame))):
        frame = frame.drop(columns=names[0])  # the index that pandas writes
        notes.append("the first column has no name and counts the rows: left out.")
    for name in [name for name in frame if holds_dicts(frame[name])]:
        frame = _spread(frame, name, notes)
    return to_canonical(frame, columns, notes=notes)


def _spread(frame: pd.DataFrame, name: str, notes: list[str]) -> pd.DataFrame:
    """The dicts of a column as columns of their own, name.KEY."""
    found = frame[name].map(as_dict)
    bad = found.isna() & frame[name].notna()
    if bad.any():
        notes.append(f"{name}: {int(bad.sum())} of {len(frame)} cells are no dict that can be read: left as they are.")
    flat = pd.DataFrame([flatten(cell, f"{name}.") if isinstance(cell, dict) else {} for cell in found], index=frame.index)
    clash = [column for column in flat if column in frame]
    flat = flat.drop(columns=clash)
    rest = frame.drop(columns=name) if not bad.any() else frame.assign(**{name: frame[name].where(bad)})
    return pd.concat([rest, flat], axis=1)
