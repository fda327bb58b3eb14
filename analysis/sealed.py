"""Whether the files of a finished run are still what they were: their digests stand in its status.json."""

import hashlib
import os

from analysis.untrusted import LAWS_LIMIT, read_bytes

SEALED = ("point.yaml", "result.json", "curve.parquet")


def damage(folder: str | os.PathLike, status: object) -> dict[str, str]:
    """{file: what is wrong with it}, for a run whose status.json holds `status`; empty where all is whole or nothing is
    sealed."""
    sealed = status.get("sealed") if isinstance(status, dict) else None
    found = {}
    for name in SEALED if isinstance(sealed, dict) else ():
        if name in sealed:
            try:
                content = read_bytes(os.path.join(folder, name), LAWS_LIMIT)
                if hashlib.blake2b(content, digest_size=16).hexdigest() != sealed[name]:
                    found[name] = "is damaged"
            except FileNotFoundError:
                found[name] = "is missing"
            except (OSError, ValueError):
                found[name] = "cannot be read"
    return found
