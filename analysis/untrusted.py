"""Files of a run directory that somebody sent: nothing in them is run, and time and memory stay bounded.

The readers are those of harness/untrusted.py, word for word (tests/test_security.py): neither package imports the other.
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

LIMIT = 1 << 20  # bytes of a status.json, result.json
YAML_LIMIT = 1 << 20  # of a point.yaml
LAWS_LIMIT = 64 << 20  # bytes of a laws.json
DEEPEST = 10_000  # marks that open a level of YAML; beyond 100,000 libyaml's caller overflows the stack
MAX_CELLS = 200_000_000  # of a parquet file, whose rows may take no space in it
MAX_BYTES = 1 << 30  # of its texts, each row's its own, and of its pages
LONGEST_NUMBER = 400  # characters
ERRORS = (OSError, ValueError, RecursionError, MemoryError, yaml.YAMLError)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Without merge keys, whose expansion grows without bound, and without numbers that take for ever to read."""

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


def load_json(path: str | os.PathLike, limit: int = LIMIT) -> object:
    """The value in a JSON file. Raises OSError, ValueError (also where it is nested too deeply)."""
    try:
        return json.loads(read_bytes(path, limit))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def levels(text: str) -> int:
    """As many levels a YAML text can have at most."""
    return sum(text.count(mark) for mark in ("[", "{", "- ", "-\t", "? ", "?\t", "-\n", "?\n"))


def load_yaml(path: str | os.PathLike, limit: int = YAML_LIMIT) -> object:
    """The value in a YAML file of plain types. Raises OSError, ValueError (also where it is nested too deeply)."""
    text = read_bytes(path, limit).decode("utf-8")
    if levels(text) > DEEPEST:
        raise ValueError(f"{path} is nested too deeply")
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, TypeError, AttributeError) as e:
        raise ValueError(f"{path} is no YAML that is read here ({type(e).__name__})") from None


def load(path: str | os.PathLike) -> object:
    """The value in a .json or .yaml file. Raises OSError, ValueError."""
    return (load_json if str(path).endswith(".json") else load_yaml)(path)


def plain(value: Any) -> Any:
    """A cell: numbers that a float can hold, texts, booleans, None; anything else as text."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else float(value) if abs(value) < 2**1000 else None
    return str(value)[:1000]


def read_parquet(path: str | os.PathLike, columns: list[str] | None = None, numeric: bool = False) -> pd.DataFrame:
    """The columns (default: all that hold single values) of a parquet file, as numbers and texts; `numeric`: texts are
    refused. Raises OSError, ValueError, KeyError; also where it stands for more than memory should be given to, which a
    small file can: repeated values take no space in it."""
    import pyarrow as pa
    from pyarrow import parquet

    if not Path(path).is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    try:
        with parquet.ParquetFile(path) as file:
            names, texts = _columns(file, columns, numeric)
        # A text that many rows repeat is held once.
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            found, size = [], 0
            for group in range(file.metadata.num_row_groups):
                found.append(file.read_row_group(group, columns=names))
                size += sum(map(_text_bytes, found[-1].columns))
                if size > MAX_BYTES:
                    raise ValueError(f"its texts are more than {MAX_BYTES:,} bytes")
            found = [_written_out(table) for table in found] or [file.schema_arrow.empty_table().select(names)]
            return pa.concat_tables(found).replace_schema_metadata(None).to_pandas()
    except pa.ArrowNotImplementedError as e:  # no ValueError, as the others are
        raise ValueError(str(e)) from None


def _columns(file: Any, wanted: list[str] | None, numeric: bool) -> tuple[list[str], list[str]]:
    """(names of the columns to read, those of texts among them), by what the footer says of them."""
    from pyarrow import types

    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    rows = max(file.metadata.num_rows, sum(group.num_rows for group in groups))
    schema = file.schema_arrow
    if missing := set(wanted or ()) - set(schema.names):
        raise KeyError(min(missing))
    kinds = {f.name: f.type for f in schema if (wanted is None or f.name in wanted) and not types.is_nested(f.type)
             and not hasattr(f.type, "extension_name") and b"ARROW:extension:name" not in (f.metadata or {})}  # fmt: skip
    if missing := set(wanted or ()) - set(kinds):
        raise ValueError(f"column {min(missing)} holds no single values")
    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    if numeric and (texts := [n for n, t in kinds.items() if not any(number(t) for number in numbers)]):
        raise ValueError(f"column {texts[0]} holds {kinds[texts[0]]}, no numbers")
    if rows * len(kinds) > MAX_CELLS:
        raise ValueError(f"{rows:,} rows of {len(kinds)} columns are more than is read at once")
    leaves = [file.schema.column(i) for i in range(len(file.schema))]
    fixed = rows * sum(leaf.length for leaf in leaves if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" and leaf.path in kinds)
    chunks = (group.column(i) for group in groups for i in range(group.num_columns))
    if fixed + sum(c.total_uncompressed_size for c in chunks if c.path_in_schema in kinds) > MAX_BYTES:
        raise ValueError(f"it stands for more than {MAX_BYTES:,} bytes")
    is_text = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return list(kinds), [n for n, t in kinds.items() if any(text(t) for text in is_text)]


def _text_bytes(column: Any) -> int:
    """Bytes of a column of texts (a dictionary and indices into it) once each row has its own."""
    import numpy as np
    from pyarrow import compute, types

    if not types.is_dictionary(column.type):
        return 0
    size = 0
    for chunk in column.chunks:
        if types.is_primitive(chunk.dictionary.type):
            continue
        lengths = compute.binary_length(chunk.dictionary).fill_null(0).to_numpy().astype(np.int64)
        counts = np.bincount(chunk.indices.drop_null().to_numpy(), minlength=len(lengths))
        size += int(counts @ lengths)
    return size


def _written_out(table: Any) -> Any:
    """`table` with texts instead of indices into a dictionary."""
    from pyarrow import types

    for i, field in enumerate(table.schema):
        if types.is_dictionary(field.type):
            table = table.set_column(i, field.name, table.column(i).cast(field.type.value_type))
    return table
