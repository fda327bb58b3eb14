"""One writer of a folder at a time: `with exclusive(folder): read, merge, write`.

An advisory lock on the folder itself (flock: it goes with the process, however that ends, and leaves no file behind).
Where the system or the file system has none, a lock file that only one process can create; one that is older than
STALE seconds was left by a process that died, and is removed.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from analysis.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

WAIT, STALE, PAUSE = 60.0, 30.0, 0.02  # seconds


@contextmanager
def exclusive(folder: Path, wait: float = WAIT) -> Iterator[None]:
    """Holds `folder` (which exists) against other processes that use this function. Raises UserError where another
    holds it for longer than `wait` seconds."""
    handle = _open(folder)
    try:
        if handle is None or not _flock(handle, folder, wait):
            with _lock_file(folder / ".lock", wait):
                yield
        else:
            yield
    finally:
        if handle is not None:
            os.close(handle)


def _open(folder: Path) -> int | None:
    try:
        return os.open(folder, os.O_RDONLY) if fcntl is not None else None
    except OSError:
        return None


def _flock(handle: int, folder: Path, wait: float) -> bool:
    """Whether the lock is held now; False where there is no such lock here."""
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            _pause(folder, end)
        except OSError:  # a file system without it
            return False


@contextmanager
def _lock_file(path: Path, wait: float) -> Iterator[None]:
    end = time.monotonic() + wait
    while True:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            _remove_if_stale(path)
            _pause(path.parent, end)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _remove_if_stale(path: Path) -> None:
    try:
        if time.time() - path.stat().st_mtime > STALE:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass


def _pause(folder: Path, end: float) -> None:
    if time.monotonic() > end:
        raise UserError(f"another process has held {folder} for long; let that fit end, or choose another out=DIR.")
    time.sleep(PAUSE)
