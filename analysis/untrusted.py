"""Files of a run directory that somebody sent: nothing in them is run, and time and memory stay bounded.

Only plain files are opened (a pipe would be waited for, a device has no end), up to a size. YAML is read by the safe
loader, without merge keys, whose expansion grows without bound, and only as deep as libyaml's stack allows.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

LIMIT = 1 << 20  # bytes of a point.yaml, status.json, result.json
LAWS_LIMIT = 64 << 20  # bytes of a laws.json
DEEPEST = 10_000  # marks that open a level of YAML; beyond 100,000 libyaml's caller overflows the stack
MAX_CELLS = 200_000_000  # of a parquet file, whose rows may take no space in it
LONGEST_NUMBER = 400  # characters
ERRORS = (OSError, ValueError, RecursionError, MemoryError, yaml.YAMLError)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "merge keys are not read", node.start_mark)

    def whole(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > LONGEST_NUMBER:
            raise yaml.constructor.ConstructorError(None, None, "too long a number", node.start_mark)
        return self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole)


def read_bytes(path: str | os.PathLike, limit: int = LIMIT) -> bytes:
    """The content of a plain file of at most `limit` bytes. Raises OSError, ValueError where it is none or larger."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(file, "rb") as f:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} is no plain file")
        content = f.read(found.st_size + 1) if found.st_size <= limit else b""  # not a buffer of `limit` bytes
    if found.st_size > limit or len(content) > limit:
        raise ValueError(f"{path} is larger than {limit:,} bytes")
    return content


def load(path: str | os.PathLike, limit: int = LIMIT) -> object:
    """The value in a .json or .yaml file. Raises one of ERRORS."""
    content = read_bytes(path, limit)
    if str(path).endswith(".json"):
        return json.loads(content)
    text = content.decode("utf-8")
    if sum(text.count(mark) for mark in ("[", "{", "- ", "-\t", "? ", "?\t", "-\n", "?\n")) > DEEPEST:
        raise ValueError(f"{path} is nested too deeply")
    return yaml.load(text, Loader=_Loader)


def plain(value: Any) -> Any:
    """A cell: numbers that a float can hold, texts, booleans, None; anything else as text."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else float(value) if abs(value) < 2**1000 else None
    return str(value)[:1000]


def read_parquet(path: str | os.PathLike, columns: list[str] | None = None) -> pd.DataFrame:
    """The columns (default: all) of a parquet file. Raises OSError, ValueError, KeyError; also where its rows are more than
    memory should be given to."""
    from pyarrow import parquet

    if not Path(path).is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    with parquet.ParquetFile(path) as file:
        rows, names = file.metadata.num_rows, file.schema_arrow.names
        rows = max(rows, sum(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)))
    if missing := set(columns or ()) - set(names):
        raise KeyError(min(missing))
    if rows * len(columns or names) > MAX_CELLS:
        raise ValueError(f"{rows:,} rows of {len(columns or names)} columns are more than is read at once")
    return pd.read_parquet(path, columns=columns)
