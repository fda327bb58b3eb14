"""Options of `analysis=transfer`, with defaults equal to configs/analysis/transfer.yaml."""

from dataclasses import dataclass
from typing import Any, ClassVar

from analysis.keys import COMMON, Check, Keys, between, one_of
from analysis.options import HOLDS, _window

TUNED = ("lr", "tau", "weight_decay")
SCALES = ("params", "params_total", "params_non_embedding", "width", "depth", "tokens", "tpp", "flops")


def _range(value: Any) -> list[float]:
    low, high = (between(0.0, float("inf"))(end) for end in value)
    if not low < high:
        raise ValueError
    return [low, high]


@dataclass(frozen=True)
class Options(Keys):
    """Keys of the transfer analysis, beyond those of every analysis (analysis/keys.py).

    tuned         the hyper-parameter that is transferred
    scale         the column along which it is transferred
    fixed         what stays along a line of scales: tpp, tokens, params, none; auto: what puts more slices in lines of
                  three scales or more
    compare       the column whose values are compared: parameterization, optimizer, any other; auto: the first of
                  these two that varies
    reference     the value of `compare` that others are measured against; null: the lowest asymptote for R_inf, adamw
                  or else the first in the alphabet for compute multipliers
    factor        by which a transferred value is taken to be wrong, for the loss that it costs
    exponent      separate or shared: whether each line of L = L_inf + a n^-b has its own b
    best          the loss that compute multipliers compare: fitted (at the optimum of a slice), lowest (run), auto:
                  fitted where every slice is interior
    interpolate   the reference of a compute multiplier: auto: in log (L - L_inf) where L_inf is identified; loss: in log L
    interval      [low, high] over which sensitivity is averaged; null: what all slices measured
    initial_loss  nats per token before training, where sensitivity cuts losses off; null: log of the vocabulary
    window, hold  of the slices, as in analysis=lr
    """

    CHECKS: ClassVar[dict[str, Check]] = COMMON | {
        "tuned": one_of("tuned", *TUNED),
        "scale": one_of("scale", *SCALES),
        "fixed": one_of("fixed", "auto", "tpp", "tokens", "params", "none"),
        "compare": (str, "give a column, such as parameterization or optimizer"),
        "reference": (str, "give a value of the compared column, such as adamw"),
        "factor": (between(1.0, 1e6), "give a number above 1, such as 2"),
        "exponent": one_of("exponent", "separate", "shared"),
        "best": one_of("best", "auto", "fitted", "lowest"),
        "interpolate": one_of("interpolate", "auto", "loss"),
        "interval": (_range, "give [low, high], two numbers above 0"),
        "initial_loss": (between(0.0, 1e3), "give nats per token, such as 10.8"),
        "window": (_window, "give auto, none, or an excess loss such as 0.05"),
        "hold": one_of("hold", *HOLDS),
    }
    NULLABLE: ClassVar[tuple[str, ...]] = ("heldout", "window")

    tuned: str = "lr"
    scale: str = "params"
    fixed: str = "auto"
    compare: str = "auto"
    reference: str | None = None
    factor: float = 2.0
    exponent: str = "separate"
    best: str = "auto"
    interpolate: str = "auto"
    interval: list[float] | None = None
    initial_loss: float | None = None
    window: str | float = "auto"
    hold: str = "auto"
