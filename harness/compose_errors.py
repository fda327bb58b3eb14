"""What Hydra and OmegaConf raise, as one line that names the key."""

from __future__ import annotations

import contextlib
import re

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from harness.errors import UserError


@contextlib.contextmanager
def plain_errors(key: str):
    """OmegaConf's errors as one line that names the key."""
    try:
        yield
    except (OmegaConfBaseException, OverflowError) as e:
        raise UserError(_ill_typed(e, key)) from None


def hydra_cause(e: Exception) -> str:
    """Hydra's line and, where it has one, OmegaConf's line behind it, which names the key and the value."""
    cause = e.__cause__ if isinstance(e.__cause__, OmegaConfBaseException) else e
    return first_line(cause) if isinstance(cause, HydraException) else _ill_typed(cause, "config")


def _ill_typed(e: Exception, key: str) -> str:
    """`model.width=abc must be a whole number.`"""
    full = re.search(r"full_key: (\S+)", str(e))
    full = getattr(e, "full_key", None) or (full[1] if full else key)
    if isinstance(e, OverflowError):
        return f"{full}: the number is too large."
    if found := re.match(r"Value '(.*)' of type '\w+' could not be converted to (Integer|Float)$", first_line(e)):
        kind = "whole number, in digits (1000, not 1e3)" if found[2] == "Integer" else "number"
        return f"{full}={found[1]} must be a {kind}."
    if found := re.match(r"Value '(.*)' is not a valid bool", first_line(e)):
        return f"{full}={found[1]} must be true or false."
    return f"{full}: {first_line(e)}"


def first_line(e: Exception) -> str:
    """The first line of the message that says something; the error's name where none does."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return lines[0] if lines else type(e).__name__
