"""Options of the hyper-parameter fits: typed, with defaults equal to configs/analysis/NAME.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from analysis.errors import UserError
from analysis.keys import COMMON, Check, Keys, between, names, one_of
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
STAGES = ("two", "joint", "both")
UNITS = ("auto", "sequences", "tokens")


def _predictors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(law): _predictors(wanted) for law, wanted in value.items()}
    wanted = names(value)
    if twice := [name for name in wanted if wanted.count(name) > 1]:
        raise UserError(f"predictors={wanted} names {twice[0]} twice: leave one out.".replace("'", ""))
    return wanted


def _window(value: Any) -> str | float:
    if value in (None, "none", "whole"):
        return "none"
    return "auto" if value == "auto" else between(0.0, 100.0)(value)


def yes_or_no(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _profile(value: Any) -> str | list[str]:
    if value == "auto":
        return "auto"
    wanted = [] if value == "none" else names(value)
    if unknown := [name for name in wanted if name not in ("lr", "tau", "weight_decay")]:
        raise UserError(f"profile=[{unknown[0]}] must name lr, tau or weight_decay.")
    return wanted


@dataclass(frozen=True)
class Options(Keys):
    """Keys of a hyper-parameter fit, beyond those of every analysis (analysis/keys.py).

    predictors      columns that the laws are written in; {law: [columns]} where an analysis has several laws; None:
                    PREDICTORS
    estimator       quadratic, argmin, akima (analysis/optimum.py)
    window          auto, none or an excess loss relative to the lowest, of the quadratic (analysis/window.py)
    hold            what a slice of LR, or of LR and batch, holds: weight_decay, tau, or auto; what one of tau holds:
                    lr or weight_decay
    profile         hyper-parameters re-tuned at each batch: their best value is taken there; auto: where they are
                    swept at each
    unit            of the batch: sequences, tokens or auto
    stage           two: optima, then a law of them; joint: the law from all losses at once (analysis/joint.py); both: the
                    law of two, joint beside it in a table (analysis/stages.py)
    compare         whether each law is set beside others of the same optima in other predictors (analysis/compare.py)
    """

    CHECKS: ClassVar[dict[str, Check]] = COMMON | {
        "predictors": (_predictors, "give a list of columns, such as predictors=[params,tokens]"),
        "estimator": one_of("estimator", *ESTIMATORS),
        "window": (_window, "give auto, none, or an excess loss such as 0.05"),
        "hold": one_of("hold", *HOLDS),
        "profile": (_profile, "give auto, none, or a list such as profile=[lr]"),
        "unit": one_of("unit", *UNITS),
        "stage": one_of("stage", *STAGES),
        "compare": (yes_or_no, "give true or false"),
    }
    NULLABLE: ClassVar[tuple[str, ...]] = ("heldout", "window")

    predictors: dict[str, list[str]] | list[str] | None = None
    estimator: str = "quadratic"
    window: str | float = "auto"
    hold: str = "auto"
    profile: str | list[str] = "auto"
    unit: str = "auto"
    stage: str = "both"
    compare: bool = True

    def predictors_of(self, analysis: str, law: str) -> tuple[list[str], bool]:
        """(columns, whether the user named them) for one law."""
        if isinstance(self.predictors, dict):
            named = self.predictors.get(law)
        else:
            named = self.predictors
        default = PREDICTORS[analysis][law]
        return (list(default), False) if named is None else (list(named), list(named) != default)
