"""Files that somebody sent: only plain files are opened (no pipe to wait for, no device without end), up to a size.

analysis/untrusted.py has the same readers, word for word (tests/test_security.py), since neither package imports the other.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import yaml

LIMIT = 64 << 20  # of a JSON file; what it becomes in memory is some ten times that
YAML_LIMIT = 1 << 20  # of a point.yaml, or another YAML file
DEEPEST = 10_000  # marks that open a level of YAML; beyond 100,000 libyaml's caller overflows the stack
LONGEST_NUMBER = 400  # characters
MOST_NODES = 100_000  # of a config


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


def check_yaml(path: str | os.PathLike, limit: int = YAML_LIMIT) -> None:
    """Raises OSError, ValueError, yaml.YAMLError where a YAML file is none, too large, or would be with its aliases and
    merge keys written out (a few lines can stand for billions)."""
    text = read_bytes(path, limit).decode("utf-8")
    if levels(text) > DEEPEST:
        raise ValueError("it is nested too deeply")
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_NODES  # one that holds itself has no end
            inside = node.value if isinstance(node, yaml.CollectionNode) else []
            flat = [n for pair in inside for n in pair] if isinstance(node, yaml.MappingNode) else inside
            sizes[id(node)] = 1 + sum(size(n) for n in flat)
        return sizes[id(node)]

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and size(root) > MOST_NODES:
            raise ValueError(f"it stands for more than {MOST_NODES:,} values")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def no_link(folder: str | os.PathLike) -> None:
    """Raises ValueError where `folder` is a link: what is written and removed there would be somewhere else."""
    if Path(folder).is_symlink():
        raise ValueError(f"{folder} is a link; files are not written or removed through one: put the folder in its place")
