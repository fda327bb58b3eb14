"""The time as the file system has it: heartbeats are its timestamps, and hosts' clocks differ from it and each other."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def file_system_time(folder: Path) -> float | None:
    """Seconds since the epoch by the clock that stamps files in `folder`, from a file without a name made there; None
    where nothing can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".clock-") as f:
            return os.fstat(f.fileno()).st_mtime
    except OSError:
        return None
