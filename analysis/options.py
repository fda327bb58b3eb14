"""Options of the hyper-parameter fits: typed, with defaults equal to configs/analysis/NAME.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from analysis.errors import UserError, nearest
from analysis.optimum import ESTIMATORS

ANALYSES = ("tau", "weight_decay", "lr", "batch", "lr_batch")
# By what each law is predicted, unless `predictors` says otherwise: tau by tokens per parameter and the batch by
# tokens (Power
# Lines, arXiv 2505.13738), LR by parameters and tokens (Step Law, arXiv 2503.04715); the batch, LR too, where slices
# differ in it.
PREDICTORS = {
    "tau": {"tau": ["tpp"]},
    "weight_decay": {"weight_decay": ["params", "tokens", "batch_size", "lr"]},
    "lr": {"lr": ["params", "tokens", "batch_size"]},
    "batch": {"batch_size": ["tokens"]},
    "lr_batch": {"lr": ["params", "tokens"], "batch_size": ["tokens"]},
}
HOLDS = ("auto", "weight_decay", "tau", "lr")
UNITS = ("auto", "sequences", "tokens")


@dataclass(frozen=True)
class Options:
    """Keys of a fit.

    columns         {canonical: theirs}
    where           condition on rows, after mapping (analysis/query.py)
    predictors      columns that the laws are written in; {law: [columns]} where an analysis has several laws; None:
                    PREDICTORS
    estimator       quadratic, argmin, akima (analysis/optimum.py)
    window          auto, none or an excess loss relative to the lowest, of the quadratic (analysis/window.py)
    hold            what a slice of LR, or of LR and batch, holds: weight_decay, tau, or auto; what one of tau holds:
                    lr or weight_decay
    profile         hyper-parameters re-tuned at each batch: their best value is taken there; auto: where they are
                    swept at each
    by              further columns that part laws
    heldout         share of the slices to hold out, at the largest scales; or a condition on slices; None: none
    bootstrap       resamples for the interval of an optimum; 0: delta method
    seed            of the resamples
    level           probability content of all intervals
    unit            of the batch: sequences, tokens or auto
    parameterization, lr_adjusted   how LR of hidden matrices follows, where the table does not say
                                    (analysis/canonical.py)
    """

    columns: dict[str, str] = field(default_factory=dict)
    where: str | None = None
    predictors: dict[str, list[str]] | list[str] | None = None
    estimator: str = "quadratic"
    window: str | float = "auto"
    hold: str = "auto"
    profile: str | list[str] = "auto"
    by: list[str] = field(default_factory=list)
    heldout: float | str | None = 0.25
    bootstrap: int = 1000
    seed: int = 0
    level: float = 0.8
    unit: str = "auto"
    parameterization: str | None = None
    lr_adjusted: str | None = None

    @classmethod
    def from_dict(cls, given: Mapping[str, Any] | None) -> "Options":
        """Checked options from plain values; `name` (the analysis) is passed over. Raises UserError naming the
        nearest key."""
        given = {key: value for key, value in (given or {}).items() if key != "name"}
        names = [f.name for f in fields(cls)]
        for key in given:
            if key not in names:
                raise UserError(f"{key} is no option of this analysis{nearest(key, names)}")
        defaults = cls()
        values = {key: _check(key, value, getattr(defaults, key)) for key, value in given.items()}
        return cls(**values)

    def predictors_of(self, analysis: str, law: str) -> tuple[list[str], bool]:
        """(columns, whether the user named them) for one law."""
        if isinstance(self.predictors, dict):
            named = self.predictors.get(law)
        else:
            named = self.predictors
        default = PREDICTORS[analysis][law]
        return (list(default), False) if named is None else (list(named), list(named) != default)


def _check(key: str, value: Any, default: Any) -> Any:
    check = _CHECKS[key]
    if value is None and key not in ("window", "bootstrap", "seed", "level"):
        return default if key not in ("heldout",) else None
    try:
        return check(value)
    except UserError:
        raise
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{key}={value!r} is not valid: {_WORDS[key]}.") from None


def _one_of(key: str, *choices: str):
    def check(value: Any) -> str:
        if str(value) not in choices:
            near = nearest(value, choices)
            raise UserError(f"{key}={value} must be one of {', '.join(choices)}{near if 'mean' in near else '.'}")
        return str(value)

    return check


def _names(value: Any) -> list[str]:
    if isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise TypeError
    return list(value)


def _columns(value: Any) -> dict[str, str]:
    return {str(key): str(theirs) for key, theirs in dict(value).items() if theirs is not None}


def _predictors(value: Any) -> Any:
    return {str(law): _names(names) for law, names in value.items()} if isinstance(value, Mapping) else _names(value)


def _window(value: Any) -> str | float:
    if value in (None, "none", "whole"):
        return "none"
    return "auto" if value == "auto" else _between(0.0, 100.0)(value)


def _profile(value: Any) -> str | list[str]:
    if value == "auto":
        return "auto"
    names = [] if value == "none" else _names(value)
    if unknown := [name for name in names if name not in ("lr", "tau", "weight_decay")]:
        raise UserError(f"profile=[{unknown[0]}] must name lr, tau or weight_decay.")
    return names


def _heldout(value: Any) -> float | str | None:
    if isinstance(value, str):
        return None if value.strip().lower() in ("", "none") else value
    return None if value == 0 else _between(0.0, 1.0)(value)


def _between(low: float, high: float):
    def check(value: Any) -> float:
        number = float(value)
        if isinstance(value, bool) or not low < number < high:
            raise ValueError
        return number

    return check


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value) or not 0 <= int(value) <= 10_000_000:
        raise ValueError
    return int(value)


_CHECKS = {
    "columns": _columns,
    "where": str,
    "predictors": _predictors,
    "estimator": _one_of("estimator", *ESTIMATORS),
    "window": _window,
    "hold": _one_of("hold", *HOLDS),
    "profile": _profile,
    "by": _names,
    "heldout": _heldout,
    "bootstrap": _whole,
    "seed": _whole,
    "level": _between(0.0, 1.0),
    "unit": _one_of("unit", *UNITS),
    "parameterization": str,
    "lr_adjusted": str,
}
_WORDS = {
    "columns": "give columns.CANONICAL=THEIRS",
    "where": "give a condition, such as 'params < 1e9'",
    "predictors": "give a list of columns, such as predictors=[params,tokens]",
    "window": "give auto, none, or an excess loss such as 0.05",
    "profile": "give auto, none, or a list such as profile=[lr]",
    "by": "give a list of columns, such as by=[data]",
    "heldout": "give a share between 0 and 1, a condition such as 'params > 1e9', or none",
    "bootstrap": "give a whole number, 0 for none",
    "seed": "give a whole number",
    "level": "give a number between 0 and 1, such as 0.8 for 10-90 %",
}
