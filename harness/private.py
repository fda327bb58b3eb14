"""Folders for this user only: compiled code and the scratch of engines, whose files run when they are read.

PyTorch's compile cache, submitit and Ray hold pickles: whoever can write there runs code as the user who reads. The
cache around such a folder may be shared; the folder itself may not, so its name carries the user (`private_name`).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from harness.errors import UserError


def private_name(name: str) -> str:
    """`name` with this user's number, so that several users of one cache have a folder each."""
    return f"{name}-{os.geteuid()}"



def compiled_folder(cache: str | os.PathLike) -> Path:
    """Where PyTorch keeps compiled code, in `cache`. Raises UserError as `private_folder`."""
    return private_folder(Path(cache) / private_name("inductor"))


def keep_compiled_code() -> None:
    """Before anything is compiled: PyTorch's own default, /tmp/torchinductor_USER, may have been made by somebody else.
    Precompiled headers would lie there in any case."""
    os.environ.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")
    if not os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        cache = os.environ.get("HYPERLAW_CACHE") or "~/.cache/hyperlaw"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(compiled_folder(Path(cache).expanduser().absolute()))


def private_folder(path: str | os.PathLike) -> Path:
    """The folder `path`, made 0700 where it is absent. Raises UserError where it cannot be made, belongs to another user
    or may be written by others."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        found, link = os.stat(path), os.lstat(path)
    except OSError as e:
        raise UserError(f"{path} cannot be made ({e.strerror}); cache=DIR names another place.") from None
    if not stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path} is no folder; move it away, or cache=DIR names another place.")
    me = os.geteuid()
    if found.st_uid != me or link.st_uid != me:  # a link of somebody else's leads where he likes
        raise UserError(f"{path} belongs to another user, who could put code into it; cache=DIR names another place.")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(f"{path} may be written by other users, who could put code into it: delete it, or cache=DIR.")
    if stat.S_ISDIR(link.st_mode) and stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)
    return path
