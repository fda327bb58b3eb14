"""Documents out of one file: txt, jsonl, parquet; plain, .gz or .zst. Streaming: memory does not grow with the file."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from harness.errors import UserError

CHUNK = 1 << 20
PACKED = (".gz", ".zst")
TEXT = (".txt", ".text", ".md")
LINES = (".jsonl", ".ndjson", ".json")
# A text file has no documents of its own, so it is cut: at the first blank line after SOFT bytes, else at the last line
# end before HARD bytes. Small enough that one book still has a training and a validation part.
SOFT, HARD = 16 << 10, 128 << 10
_BLANK_LINE = re.compile(rb"\n\r?\n")


def kind(path: Path) -> str | None:
    """`text`, `lines` or `parquet` by the name's ending; None where the ending says nothing."""
    endings = [s.lower() for s in path.suffixes]
    if endings and endings[-1] in PACKED:
        endings.pop()
    ending = endings[-1] if endings else ""
    return "text" if ending in TEXT else "lines" if ending in LINES else "parquet" if ending == ".parquet" else None


def utf8(text: str | bytes) -> bytes:
    """Valid UTF-8; what cannot be decoded (or encoded: lone surrogates) is replaced, so byte 0xFF never occurs."""
    if isinstance(text, str):
        return text.encode("utf-8", "replace")
    try:
        text.decode("utf-8")
        return text
    except UnicodeDecodeError:
        return text.decode("utf-8", "replace").encode("utf-8")


def read_documents(path: Path, text_key: str) -> Iterator[bytes]:
    """Documents of one file in file order, UTF-8. Raises UserError naming the file where it cannot be read."""
    import pyarrow

    how = kind(path) or "text"
    try:
        if how == "parquet":
            yield from _parquet(path, text_key)
        elif how == "lines":
            yield from _json_lines(path, text_key)
        else:
            yield from cut_text(_not_binary(path, _chunks(path)))
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0] if str(error) else error!r}") from error


def _chunks(path: Path) -> Iterator[bytes]:
    """The unpacked content, CHUNK bytes at a time. Raises EOFError or OSError for a packed file that was cut short."""
    with _unpacked(path) as f:
        while chunk := f.read(CHUNK):
            yield chunk


def _unpacked(path: Path) -> BinaryIO:
    ending = path.suffix.lower()
    if ending == ".zst":
        import pyarrow  # its zstd reader, unlike zstandard's, tells a frame cut short from the end of the file

        return pyarrow.input_stream(str(path), compression="zstd")
    return gzip.open(path) if ending == ".gz" else open(path, "rb")


def _not_binary(path: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    for i, chunk in enumerate(chunks):
        if i == 0 and b"\0" in chunk[:65536]:
            known = " ".join(TEXT + LINES)
            raise UserError(f"{path} is not text; known endings: {known} .parquet, each also .gz or .zst")
        yield chunk


def cut_text(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Blocks of SOFT to HARD bytes that end at a blank line where there is one; independent of how `chunks` are cut."""
    buffer = b""
    for chunk in chunks:
        buffer += chunk
        start = 0
        while len(buffer) - start > HARD:
            end = _block_end(buffer, start)
            yield utf8(buffer[start:end])
            start = end
        buffer = buffer[start:]
    start = 0
    while len(buffer) - start > SOFT:
        blank = _BLANK_LINE.search(buffer, start + SOFT)
        end = blank.end() if blank else len(buffer)
        yield utf8(buffer[start:end])
        start = end
    if start < len(buffer):
        yield utf8(buffer[start:])


def _block_end(buffer: bytes, start: int) -> int:
    blank = _BLANK_LINE.search(buffer, start + SOFT, start + HARD)
    if blank:
        return blank.end()
    line = buffer.rfind(b"\n", start + SOFT, start + HARD)
    if line >= 0:
        return line + 1
    end = start + HARD
    for _ in range(3):  # not inside a character
        end -= buffer[end] & 0xC0 == 0x80
    return end


def _json_lines(path: Path, text_key: str) -> Iterator[bytes]:
    for number, line in enumerate(_lines(_chunks(path)), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[text_key]
        except (ValueError, RecursionError):
            raise UserError(f"{path}, line {number}: not JSON; one object a line is expected") from None
        except (KeyError, TypeError, IndexError):
            raise UserError(f"{path}, line {number}: no {text_key!r}; set data.text_key=") from None
        if not isinstance(text, str):
            raise UserError(f"{path}, line {number}: {text_key!r} is not a string; set data.text_key=")
        yield utf8(text)


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    tail: list[bytes] = []
    for chunk in chunks:
        first, newline, rest = chunk.partition(b"\n")
        tail.append(first)
        if newline:
            yield b"".join(tail)
            *lines, last = rest.split(b"\n")
            yield from lines
            tail = [last]
    yield b"".join(tail)


def _parquet(path: Path, text_key: str) -> Iterator[bytes]:
    from pyarrow import parquet

    # buffer_size: pages are read as they are needed, instead of a whole column chunk at once.
    with parquet.ParquetFile(path, buffer_size=CHUNK, pre_buffer=False) as file:
        if text_key not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise UserError(f"{path} has no column {text_key!r} but {names}; name one with data.text_key=")
        for batch in file.iter_batches(batch_size=256, columns=[text_key]):
            for text in batch.column(0):
                value = text.as_py()
                if value is not None and not isinstance(value, (str, bytes)):
                    raise UserError(f"{path}: column {text_key!r} holds no text; name one with data.text_key=")
                if value:
                    yield utf8(value)
