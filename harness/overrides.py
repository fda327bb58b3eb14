"""The words of a command line: KEY=VALUE in Hydra's grammar, comma lists and ranges apart from them."""

from __future__ import annotations

import contextlib
import itertools
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from harness.errors import UserError

# "key=log2(-10, -5, 6)" is ours, not Hydra's grammar: taken out before Hydra parses the rest.
RANGE = re.compile(r"^\s*(log2|log10|geom|linear)\s*\(.*\)\s*$")
KEY = re.compile(r"[A-Za-z_][\w.@/]*", re.ASCII)
PATHS = ("out", "runs", "cache", "data.path", "data.tokenizer")  # taken as they stand where Hydra's grammar ends
MAX_VALUES = 10_000


def split_axes(overrides: list[str]) -> tuple[list[str], dict[str, list | str]]:
    """(overrides with one value, {key: list or range}). Raises UserError where the grammar is broken."""
    fixed, axes = [], {}
    for text in (o.lstrip("+") for o in overrides):  # every key is in the schema, so `+` adds nothing
        key, equals, value = text.partition("=")
        if key in axes:
            raise UserError(f"{key} is given twice; put all its values into one list.")
        if equals and RANGE.match(value):
            axes[key] = value.strip()
            continue
        text, override = _parsed(text)
        if override.is_delete():
            raise UserError(f"{text!r}: keys are not deleted; set {key.lstrip('~')}=null to leave it to its default rule.")
        if override.key_or_group == "sweep.axes" or override.key_or_group.startswith(("sweep.axes.", "sweep.zip.")):
            axis = "".join(override.key_or_group.split(".", 2)[2:]) or "KEY"
            raise UserError(f"{text!r}: an axis is a comma list, {axis}=V1,V2,V3 or {axis}=log2(a,b,n), or in a sweep file.")
        if override.key_or_group.split(".")[0] == "hydra":
            raise UserError(f"{text!r}: Hydra's own settings are not taken here; use `--config-dir DIR` for more configs.")
        if override.is_sweep_override():
            axes[override.key_or_group] = _listed(text, override)
        else:
            fixed.append(text)
    if both := [text for text in fixed if text.partition("=")[0] in axes]:
        raise UserError(f"{both[0]} and a list of values for the same key; keep one.")
    return fixed, axes


def _parsed(text: str) -> tuple[str, Override]:
    """(the override as Hydra takes it, parsed); a path that Hydra cannot read unquoted (`data.path=/a(b`) is quoted."""
    key, equals, value = text.partition("=")
    if not equals and not text.startswith("~"):
        raise UserError(f"{shown(text)} is no KEY=VALUE, such as model.width=128.")
    if not KEY.fullmatch(key.lstrip("~")):
        raise UserError(f"{shown(text)} is no valid KEY=VALUE: {key!r} is no key, such as model.width.")
    tried = [text]
    if key in PATHS and value:
        tried.append(f"{key}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'")
    for attempt in tried:
        # Too deep a nesting and too long a number escape Hydra's own errors.
        with contextlib.suppress(HydraException, ValueError, RecursionError):
            return attempt, OverridesParser.create().parse_override(attempt)
    raise UserError(
        f"{shown(text)} is no valid KEY=VALUE. A list is V1,V2,V3 or [V1,V2,V3] without an empty place; text with spaces, "
        f"quotes or other special characters is quoted twice, '{key}=\"...\"'."
    )


def _listed(text: str, override: Override) -> list:
    """The values of a comma list, `choice(...)` or `range(...)`."""
    try:
        found = list(itertools.islice(override.sweep_iterator(), MAX_VALUES + 1))
    except HydraException:
        raise UserError(f"{shown(text)}: an axis is a comma list, V1,V2,V3, or log2(a,b,n) and its like.") from None
    if not 1 <= len(found) <= MAX_VALUES:
        raise UserError(f"{shown(text)}: an axis has from 1 to {MAX_VALUES} values.")
    return [_number(v.text if isinstance(v, QuotedString) else v) for v in found]


def shown(text: str) -> str:
    """In quotes, cut where it is long."""
    return repr(text if len(text) <= 100 else f"{text[:100]}...")


def _number(text: Any) -> Any:
    """Hydra's sweep iterator gives strings; numbers, booleans and null come back as such."""
    if not isinstance(text, str):
        return text
    value = OmegaConf.create(f"v: {text}")["v"] if re.fullmatch(r"[\w.+\-]+", text) else text
    return value
