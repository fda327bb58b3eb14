"""The request error, so that harness and sweeps need not reach into models for it, and what a file's error means."""

import errno

from models.errors import UserError

WORDS = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "the file system is "
         "read-only", errno.EACCES: "not allowed to write or read"}  # fmt: skip


def plain_os_error(error: OSError) -> str:
    """One line: what is wrong, and with which file."""
    what = WORDS.get(error.errno) or error.strerror or (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{what}: {error.filename}" if error.filename else what


__all__ = ["UserError", "plain_os_error"]
