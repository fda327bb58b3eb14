"""Options of analysis=critical_batch; defaults equal configs/analysis/critical_batch.yaml."""

from dataclasses import dataclass
from typing import Any, ClassVar

from analysis.critical.curves import SHARES
from analysis.keys import COMMON, Check, Keys, between, names, one_of, whole


def _targets(value: Any) -> int | list[float]:
    if isinstance(value, list | tuple):
        losses = [between(0.0, float("inf"))(item) for item in value]
        if not losses:
            raise ValueError
        return losses
    if isinstance(value, float) and value != int(value):
        return [between(0.0, float("inf"))(value)]
    if not 1 <= whole(value) <= 50:
        raise ValueError
    return int(value)


@dataclass(frozen=True)
class Options(Keys):
    """Keys beyond those of every analysis (analysis/keys.py).

    definition     hyperbola (McCandlish: B_crit = D_min/S_min) or overhead (Zhang)
    overhead       of steps over perfect scaling at the critical batch, definition=overhead
    optimal_batch  from which Zhang's perfect scaling starts, in sequences; in tokens where the batch is in tokens and no
                   context is known, and then no default
    targets        target losses of a sweep: how many for each model size, or a list of losses
    share          what L_B(D) of one model size shares: none, E, E_beta, or auto (analysis/critical/curves.py)
    tuned          check: rows whose LR and weight decay are not tuned or set by tau are left out and named; assume:
                   taken as tuned (analysis/critical/tuning.py)
    predictors     columns of the law: tokens (D_min), params, loss (the target)
    unit           of the batch: sequences, tokens or auto
    """

    CHECKS: ClassVar[dict[str, Check]] = COMMON | {
        "definition": one_of("definition", "hyperbola", "overhead"),
        "overhead": (between(0.0, 100.0), "give a share above 0, such as 0.2"),
        "optimal_batch": (between(0.0, float("inf")), "give a batch above 0, in sequences"),
        "targets": (_targets, "give a whole number from 1 to 50, or losses such as targets=[3.2,3.0]"),
        "share": one_of("share", "auto", *SHARES),
        "tuned": one_of("tuned", "check", "assume"),
        "predictors": (names, "give a list of columns, such as predictors=[tokens]"),
        "unit": one_of("unit", "auto", "sequences", "tokens"),
    }

    definition: str = "hyperbola"
    overhead: float = 0.2
    optimal_batch: float = 256.0
    targets: int | list[float] = 5
    share: str = "auto"
    tuned: str = "check"
    predictors: list[str] | None = None
    unit: str = "auto"
