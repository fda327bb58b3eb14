"""Files are written whole: a temporary beside the target, fsync, rename. A reader sees the old file or the new one."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path

from harness.untrusted import load_json


def write_atomic(path: str | os.PathLike, data: bytes, scratch: Path | None = None) -> None:
    """Replace `path` by `data`; after a crash at any moment the file is the old one or the new one, never a part.

    The temporary lies in `scratch` (same file system; default: beside `path`). Raises OSError where that folder is gone:
    an attempt that lost its run can put nothing in place.
    """
    path = Path(path)
    temporary = (scratch or path.parent) / f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        temporary.unlink(missing_ok=True)  # in a folder that somebody sent it may be a link to elsewhere
        with open(temporary, "xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(e, OSError):
            e.filename = str(path)  # what could not be written, not by which way
        raise


def write_json(path: str | os.PathLike, value: object, scratch: Path | None = None) -> None:
    """As `write_atomic`; NaN and infinities are refused, since JSON has none."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode(), scratch)


def read_json(path: str | os.PathLike) -> dict | None:
    """The object in `path`, or None where the file is absent, not whole, or none that is read (untrusted.py)."""
    try:
        value = load_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
