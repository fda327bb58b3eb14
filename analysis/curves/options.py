"""Options of analysis=curves: typed, with defaults equal to configs/analysis/curves.yaml."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from analysis.keys import COMMON, Check, Keys, between, names, one_of, texts, whole

LAWS = ("annealing", "multi_power", "both", "power", "collapse")
KERNELS = ("exponential", "power")


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _from_step(value: Any) -> str | int:
    return "auto" if value == "auto" else whole(value)


def _fraction(value: Any) -> str | float:
    return "fit" if value == "fit" else between(0.0, 1.0)(value)


def _count(value: Any) -> int:
    if not 10 <= whole(value) <= 100_000:
        raise ValueError
    return whole(value)


def _nodes(value: Any) -> int:
    if not 2 <= whole(value) <= 500:
        raise ValueError
    return whole(value)


def _steps(value: Any) -> int | None:
    if value is None:
        return None
    if whole(value) < 10:
        raise ValueError
    return whole(value)


def _positive(value: Any) -> float | None:
    return None if value is None else between(0.0, float("inf"))(value)


@dataclass(frozen=True)
class Options(Keys):
    """Keys of a fit of loss curves, beyond those of every analysis (analysis/keys.py; `by` parts laws, `heldout` is not
    used: runs are held out by name).

    law             annealing, multi_power, both, power (no annealing term: the negative control), collapse
    fit_runs        ids of the runs that the parameters come from; none: all but heldout_runs
    heldout_runs    ids of the runs that are predicted; none: all but fit_runs; neither: parameters from all runs, and a
                    second fit without the longest ones (or without the last, where all are of one length) is scored on
                    them
    run_by          columns that together name a run, where the table has no run_id
    from_step       losses up to this step stay out of the fit; auto: 2,000, or 10 % of the longest run if less
    points          losses taken from a run at most, evenly over it
    delta           of the Huber loss of log residuals
    annealing       false: the law without its annealing term
    momentum        of the annealing law, per step; `fit`: fitted too
    kernel          exponential (Tissue et al.), or power: (1 + age)^-p with p fitted
    optimise_steps  length of a run whose schedule is to minimise the predicted final loss; none: no such search
    peak_lr, warmup_steps   of that schedule; none: those of the longest fit run
    nodes           decisions in that schedule
    groups          columns whose equal values make one collapse; those the table lacks are passed over
    fraction        share of a run that an early prediction may see
    smooth          width of a moving mean over a curve, as a share of the run; 0: none
    """

    CHECKS: ClassVar[dict[str, Check]] = COMMON | {
        "law": one_of("law", *LAWS),
        "fit_runs": (texts, "give a list of run ids, such as fit_runs=[127,140]"),
        "heldout_runs": (texts, "give a list of run ids, such as heldout_runs=[32,50]"),
        "run_by": (names, "give a list of columns, such as run_by=[size,horizon]"),
        "from_step": (_from_step, "give a step, or auto"),
        "points": (_count, "give a whole number from 10 on"),
        "delta": (between(0.0, 10.0), "give a number above 0, such as 0.001"),
        "annealing": (_flag, "give true or false"),
        "momentum": (_fraction, "give a number between 0 and 1, such as 0.999, or fit"),
        "kernel": one_of("kernel", *KERNELS),
        "optimise_steps": (_steps, "give a number of steps from 10 on"),
        "peak_lr": (_positive, "give a learning rate above 0"),
        "warmup_steps": (lambda v: None if v is None else whole(v), "give a number of steps"),
        "nodes": (_nodes, "give a whole number from 2 to 500"),
        "groups": (names, "give a list of columns, such as groups=[tpp,tau,schedule]"),
        "fraction": (between(0.0, 1.0), "give a share of the run between 0 and 1, such as 0.3"),
        "smooth": (lambda v: 0.0 if v == 0 else between(0.0, 0.5)(v), "give a share of the run below 0.5, such as 0.01"),
    }
    NULLABLE: ClassVar[tuple[str, ...]] = ("heldout", "optimise_steps", "peak_lr", "warmup_steps")

    heldout: float | str | None = None
    law: str = "annealing"
    fit_runs: list[str] = field(default_factory=list)
    heldout_runs: list[str] = field(default_factory=list)
    run_by: list[str] = field(default_factory=list)
    from_step: str | int = "auto"
    points: int = 250
    delta: float = 1e-3
    annealing: bool = True
    momentum: str | float = 0.999
    kernel: str = "exponential"
    optimise_steps: int | None = None
    peak_lr: float | None = None
    warmup_steps: int | None = None
    nodes: int = 50
    groups: list[str] = field(default_factory=lambda: ["tpp", "tau", "schedule"])
    fraction: float = 0.3
    smooth: float = 0.0
