"""Secrets never reach a run directory, a log, a table or a launch record: whatever is written from outside passes here.

Known are the values of environment variables that are named like secrets, the keys in ~/.netrc (wandb's) and Hugging
Face's token files, and what a URL or an assignment shows as a secret. Control characters go too: a message of others
shall not move the cursor of whoever reads it.
"""

from __future__ import annotations

import contextlib
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

HIDDEN = "***"
NAME = r"(?:TOKEN(?!IZ)|API_?KEY|ACCESS_KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL)"
_SECRET_NAME = re.compile(NAME, re.IGNORECASE)
_PLACE_NAME = re.compile(r"_(?:FILE|PATH|DIR|FOLDER)$", re.IGNORECASE)  # where a secret lies is none
SHORTEST = 6  # a shorter value would take every second word out of a text
_PATTERNS = (
    (re.compile(r"(?<=://)[^/\s@'\"]+(?=@)"), HIDDEN),  # scheme://user:password@host
    # Looked for from where a name begins only, so that the time of a long text grows as the text.
    (re.compile(rf"(?<![A-Z0-9_])((?=[A-Z0-9_]*{NAME})[A-Z0-9_]+\s*=\s*)(\"[^\"]*\"|'[^']*'|[^\s&;,'\"]+)"), rf"\1{HIDDEN}"),
    (re.compile(r"([?&](?:\w*token|\w*key|\w*secret|password|sig|[\w-]*signature|[\w-]*credential)=)[^&\s'\"]+", re.I),
     rf"\1{HIDDEN}"),
    (re.compile(r"\b((?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.I), rf"\1{HIDDEN}"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), HIDDEN),
)  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def secrets() -> list[str]:
    """Every secret that is known to this process, the longest first."""
    found = {v.strip() for k, v in os.environ.items() if _SECRET_NAME.search(k) and not _PLACE_NAME.search(k)}
    home, hf = os.path.expanduser("~"), os.environ.get("HF_HOME") or "~/.cache/huggingface"
    found.update(_netrc(os.environ.get("NETRC") or f"{home}/.netrc"), _netrc(f"{home}/_netrc"))
    for path in (os.environ.get("HF_TOKEN_PATH"), f"{hf}/token", f"{hf}/stored_tokens", "~/.huggingface/token"):
        found.update(_words(os.path.expanduser(path)) if path else ())
    found = {s for s in found if len(s) >= SHORTEST and not s.replace(".", "", 1).isdigit()}
    return sorted(found | {quote(s, safe="") for s in found}, key=lambda s: (-len(s), s))


def redact(text: Any) -> str:
    """`text` on paper that anyone may read: known secrets and what looks like one as ***, no control characters."""
    text = str(text)
    for secret in secrets():
        text = text.replace(secret, HIDDEN)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return _CONTROL.sub("", text.replace("\r\n", "\n"))


def redact_all(value: Any) -> Any:
    """`value` (JSON: dicts, lists, texts, numbers) with every text redacted, names too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact(k) if isinstance(k, str) else k: redact_all(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(v) for v in value]
    return value


class Redacted:
    """A text stream that redacts what is written to it; all else is the stream's own. What cannot be written (a log on a
    full disk) is lost: it stops nobody's training."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        # Colours and carriage returns of a display stay; what is secret goes.
        hide = any(secret in text for secret in secrets()) or any(p.search(text) for p, _ in _PATTERNS)
        with contextlib.suppress(OSError):
            self._stream.write(redact(text) if hide else text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redacted(stream: TextIO) -> TextIO:
    """`stream` wrapped once."""
    return stream if stream is None or isinstance(stream, Redacted) else Redacted(stream)


@lru_cache(maxsize=8)
def _words(path: str) -> tuple[str, ...]:
    """The words of a small file of tokens (a token alone, or `name = token` lines)."""
    with contextlib.suppress(OSError, ValueError):
        if os.path.isfile(path):
            text = Path(path).read_bytes()[: 1 << 16].decode("utf-8", "replace")
            return tuple(w for w in text.split() if len(w) >= 16)
    return ()


@lru_cache(maxsize=4)
def _netrc(path: str) -> tuple[str, ...]:
    """The passwords in a .netrc."""
    with contextlib.suppress(OSError, ValueError):
        if os.path.isfile(path):
            text = Path(path).read_bytes()[: 1 << 16].decode("utf-8", "replace")
            return tuple(re.findall(r"\bpassword\s+(\S+)", text))
    return ()
