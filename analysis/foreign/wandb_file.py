"""Records of a wandb run file (run-*.wandb), one protobuf message each.

The file is a leveldb log: a header of 7 bytes (":W&B", 0xBEE1, version 0), then blocks of 32 KiB, in them fragments of
7 + n bytes: CRC-32 of kind and data (little endian), length n, kind (1 whole, 2 first, 3 middle, 4 last of a record);
fewer than 7 bytes at a block's end are padding. wandb had a reader of it (wandb.sdk.internal.datastore) until it went
into Go; the messages are read with wandb.proto. A file that is cut short or damaged gives the records that are whole.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analysis.errors import UserError

HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
BLOCK = 32 * 1024
FRAGMENT = struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def messages() -> Any:
    """wandb's message definitions. Raises UserError where wandb is not installed."""
    try:
        from wandb.proto import wandb_internal_pb2
    except ImportError as error:
        raise UserError(
            f"wandb's files are read with wandb, which cannot be imported ({error}): pip install 'hyperlaw[wandb]'; "
            "or give a CSV export, csv=FILE."
        ) from None
    return wandb_internal_pb2


def records(path: Path) -> Iterator[bytes | str]:
    """The records' bytes in order; a text instead says what is wrong with the file, after which whole records may
    follow."""
    try:
        content = path.read_bytes()
    except OSError as error:
        yield f"cannot be read ({error.strerror or error})"
        return
    if not content:
        yield "is empty"
        return
    if not content.startswith(HEADER):
        yield "is no wandb run file (its first bytes are others)"
        return
    at, parts = len(HEADER), None
    while at < len(content):
        left = BLOCK - at % BLOCK
        if left < FRAGMENT.size:
            at += left
            continue
        if len(content) - at < FRAGMENT.size:
            yield "is cut short"
            return
        checksum, length, kind = FRAGMENT.unpack_from(content, at)
        if kind == 0 and not any(content[at:]):
            yield "is cut short"
            return
        data = content[at + FRAGMENT.size : at + FRAGMENT.size + length]
        if FRAGMENT.size + length <= left and len(data) < length:
            yield "is cut short"
            return
        if FRAGMENT.size + length > left or zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
            yield f"is damaged at byte {at}"
            at, parts = at + left, None  # on with the next block, as leveldb does
            continue
        at += FRAGMENT.size + length
        if kind in (WHOLE, FIRST):
            parts = [data]
        elif parts is not None:
            parts.append(data)
        if kind in (WHOLE, LAST) and parts is not None:
            yield b"".join(parts)
            parts = None
    if parts is not None:
        yield "is cut short"
