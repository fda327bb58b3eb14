"""Options of an analysis as a frozen dataclass whose every key is checked: `Options.from_dict({...})`.

A subclass gives CHECKS, {field: (check, what is valid, in words)}; a check returns the value in its type or raises
ValueError or TypeError.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from analysis.errors import UserError, nearest

Check = tuple[Callable[[Any], Any], str]


def one_of(key: str, *choices: str) -> Check:
    def check(value: Any) -> str:
        if str(value) not in choices:
            near = nearest(value, choices)
            raise UserError(f"{key}={value} must be one of {', '.join(choices)}{near if 'mean' in near else '.'}")
        return str(value)

    return check, f"give one of {', '.join(choices)}"


def names(value: Any) -> list[str]:
    if isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise TypeError
    return list(value)


def texts(value: Any) -> list[str]:
    """A list of names that may look like numbers (run ids), or one of them; whole floats without their .0."""
    items = [value] if isinstance(value, str | int | float) else list(value)
    if any(item is None or isinstance(item, bool) for item in items):
        raise TypeError
    return [str(int(item)) if isinstance(item, float) and item.is_integer() else str(item) for item in items]


def between(low: float, high: float) -> Callable[[Any], float]:
    """Strictly between."""

    def check(value: Any) -> float:
        number = float(value)
        if isinstance(value, bool) or not low < number < high:
            raise ValueError
        return number

    return check


def whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value) or not 0 <= int(value) <= 10_000_000:
        raise ValueError
    return int(value)


def share_or_condition(value: Any) -> float | str | None:
    """heldout: a share of the scales, a condition on them, or none."""
    if isinstance(value, str):
        return None if value.strip().lower() in ("", "none") else value
    return None if value is None or value == 0 else between(0.0, 1.0)(value)


def _columns(value: Any) -> dict[str, str]:
    return {str(key): str(theirs) for key, theirs in dict(value).items() if theirs is not None}


COMMON: dict[str, Check] = {
    "columns": (_columns, "give columns.CANONICAL=THEIRS"),
    "where": (str, "give a condition, such as 'params < 1e9'"),
    "by": (names, "give a list of columns, such as by=[data]"),
    "heldout": (share_or_condition, "give a share between 0 and 1, a condition such as 'params > 1e9', or none"),
    "bootstrap": (whole, "give a whole number, 0 for none"),
    "seed": (whole, "give a whole number"),
    "level": (between(0.0, 1.0), "give a number between 0 and 1, such as 0.8 for 10-90 %"),
    "parameterization": (str, "give a name, such as standard"),
    "lr_adjusted": (str, "give a column of the table"),
}


@dataclass(frozen=True)
class Keys:
    """What every analysis takes.

    columns     {canonical: theirs}
    where       condition on rows, after mapping (analysis/query.py)
    by          further columns that part laws
    heldout     share of the scales to hold out, the largest; or a condition on them; None: none
    bootstrap   resamples behind the intervals
    seed        of the resamples
    level       probability content of all intervals
    parameterization, lr_adjusted   how LR of hidden matrices follows, where the table does not say
                                    (analysis/canonical.py)
    """

    CHECKS: ClassVar[dict[str, Check]] = COMMON
    NULLABLE: ClassVar[tuple[str, ...]] = ("heldout",)  # null is a value of these; elsewhere it means the default

    columns: dict[str, str] = field(default_factory=dict)
    where: str | None = None
    by: list[str] = field(default_factory=list)
    heldout: float | str | None = 0.25
    bootstrap: int = 1000
    seed: int = 0
    level: float = 0.8
    parameterization: str | None = None
    lr_adjusted: str | None = None

    @classmethod
    def from_dict(cls, given: "Mapping[str, Any] | Keys | None") -> Self:
        """Checked options from plain values; `name` (the analysis) is passed over. Raises UserError naming the
        nearest key, or what is valid."""
        if isinstance(given, cls):
            return given
        if isinstance(given, Keys):
            raise UserError(f"these are options of another analysis: {type(given).__module__}, not {cls.__module__}.")
        given = {key: value for key, value in (given or {}).items() if key != "name"}
        known = [f.name for f in fields(cls)]
        for key in given:
            if key not in known:
                raise UserError(f"{key} is no option of this analysis{nearest(key, known)}")
        return cls(**{k: cls._check(k, v) for k, v in given.items() if v is not None or k in cls.NULLABLE})

    @classmethod
    def _check(cls, key: str, value: Any) -> Any:
        check, words = cls.CHECKS[key]
        try:
            return check(value)
        except UserError:
            raise
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{key}={value!r} is not valid: {words}.") from None
