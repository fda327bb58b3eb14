"""The one error that means "the request is wrong". Analysis imports no other package, so it has its own."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """One or two lines: what is wrong with the request or the table and how to mend it."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean X?`, or the choices where none is near; empty where there are none."""
    names = sorted({str(choice) for choice in choices})
    lower = {choice.lower(): choice for choice in reversed(names)}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {lower[near[0]]}?"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"; there is {shown}." if names else "."
