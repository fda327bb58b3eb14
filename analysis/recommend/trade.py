"""The parts of a Recipe that a loss law gives: predicted loss, loss-optimal allocation, and time against compute."""

import math
from collections.abc import Mapping

import numpy as np

from analysis.errors import UserError
from analysis.recommend import critical_law, loss_law
from analysis.recommend.pareto import Machine, critical_at, curves, minimum_tokens, place, plane, row, rows
from analysis.recommend.published_laws import PUBLISHED
from analysis.region import same

TOLD = ("devices", "tokens_per_second", "device_flops", "device_batch", "reference_params")  # keys of the target
SETTINGS = ("parameterization", "optimizer", "schedule", "data")
SEQUENCE = 2048  # tokens of a device's smallest step, and of a sequence, where no context is known


def machine(told: Mapping[str, float], values: Mapping) -> Machine:
    """From the target's words. Raises UserError where they say one thing twice."""
    if "device_flops" in told and "tokens_per_second" in told:
        raise UserError("device_flops and tokens_per_second say the same: give one.")
    reference = told.get("reference_params", values["params"])
    rate = told.get("device_flops")
    if "tokens_per_second" in told:
        rate = 6 * reference * told["tokens_per_second"]
    return Machine(told.get("device_batch") or values.get("context") or SEQUENCE, told.get("devices"), rate, reference)


def allocation(law: Mapping, values: Mapping, level: float) -> dict:
    """Predicted loss of the target, and the N and D of least loss at its 6 N D FLOPs, with intervals from the law's
    covariance (of the law: the scatter of single runs about it is not in them)."""
    point, drawn = loss_law.central(law), loss_law.draws(law)
    n, d = values["params"], values["tokens"]
    flops = 6 * n * d

    def ends(what) -> dict:
        value = float(what(point))
        if drawn is None:
            return {"value": value, "low": None, "high": None}
        with np.errstate(over="ignore", invalid="ignore"):
            each = np.asarray(what(drawn), float)
        low, high = np.quantile(each[np.isfinite(each)], [(1 - level) / 2, (1 + level) / 2])
        return {"value": value, "low": float(low), "high": float(high)}

    return {
        "flops": flops,
        "loss": ends(lambda x: x.loss(n, d)),  # at batches well below B_crit
        "loss_at_batch": None,  # at the recipe's, where a critical_batch law says what it costs
        "batch_over_critical": None,
        "params": ends(lambda x: x.best(flops)[0]),
        "tokens": ends(lambda x: x.best(flops)[1]),
        "tpp": ends(lambda x: x.best(flops)[1] / x.best(flops)[0]),
        "best_loss": ends(lambda x: x.loss(*x.best(flops))),
        "excess_loss": ends(lambda x: x.loss(n, d) - x.loss(*x.best(flops))),
    }


def _at_batch(law: Mapping, point, critical: Mapping, values: Mapping, batch: float, level: float) -> dict:
    """The loss at the recipe's batch, which makes of its tokens D_min = D / (1 + B / B_crit), and B / B_crit there."""
    n, tokens = values["params"], values["tokens"]
    minimum = minimum_tokens(critical, n, tokens, batch, lambda d: float(point.loss(n, d)))
    lowered = allocation(law, {**values, "tokens": minimum}, level)
    return {"loss_at_batch": lowered["loss"], "batch_over_critical": tokens / minimum - 1}


def under(laws: list[Mapping], settings: Mapping) -> list[Mapping]:
    """The laws, last those that were fitted under these settings (parameterization, optimizer, ...), as far as both say."""
    return sorted(laws, key=lambda law: -len(unlike(law, settings)))


def unlike(law: Mapping, settings: Mapping) -> list[str]:
    """Settings in which a law differs, in words."""
    given = law.get("given") or {}
    known = [key for key in SETTINGS if given.get(key) is not None and settings.get(key) is not None]
    return [f"{key}={given[key]}" for key in known if not same(given[key], settings[key])]


def trade(
    laws: list[Mapping],
    values: Mapping,
    batch: float | None,
    told: Mapping[str, float],
    level: float,
    lent: bool,
    settings: Mapping,
) -> tuple[dict | None, dict | None, list[str]]:
    """(allocation, pareto, notes); None where a law is missing, which a note names. laws: `under` the recipe's `settings`.
    batch: of the recipe, in tokens. lent: whether Power Lines' critical batch may stand in for one's own."""
    notes: list[str] = []
    law = loss_law.find(laws)
    if law is None:
        notes.append("allocation, time and compute: no loss law of N and D here; `hyperlaw fit analysis=loss` gives one.")
        return None, None, notes
    if loss_law.constrained(law):
        notes.append(
            "the loss law is data-constrained: its E, A, B, alpha, beta are taken, which is one epoch of fresh tokens; "
            "for repeated tokens the loss is higher."
        )
    allotted = allocation(law, values, level)
    critical = critical_law.find([each for each in laws if not each.get("published")])
    if critical is None and lent:
        critical = PUBLISHED["power_lines"].laws[2]
        notes.append("critical batch taken from Power Lines (coefficient from memory): fit analysis=critical_batch.")
    if critical is None:
        notes.append(
            "time against compute: no critical_batch law here; `hyperlaw fit analysis=critical_batch` gives one "
            "(published=power_lines lends its own)."
        )
        return allotted, None, notes
    for each in (law, critical):
        if apart := unlike(each, settings):
            notes.append(f"the {each['name']} law was fitted with {', '.join(apart)}; this recipe differs.")
    point = loss_law.central(law)
    if batch and batch <= values["tokens"]:
        allotted |= _at_batch(law, point, critical, values, batch, level)
    front, lines = _pareto(point, critical, values, batch, told)
    return allotted, front, notes + lines


def _pareto(point, critical: Mapping, values: Mapping, batch: float | None, told: Mapping) -> tuple[dict | None, list[str]]:
    notes = []
    mine = machine(told, values)
    context = values.get("context") or SEQUENCE
    n, tokens = values["params"], values["tokens"]
    given = told.get("loss")
    if given is not None and given <= point.E:
        notes.append(f"loss={given:g} lies below what the loss law can reach at any scale ({point.E:.4g}).")
        return None, notes
    minimum = tokens
    if batch and batch > tokens:
        notes.append("time against compute: the batch is larger than the run, so the target is not placed.")
        batch = None
    elif not batch:
        notes.append("time against compute: the recipe has no batch in tokens, so the target is not placed.")
    if given is None and batch:
        minimum = minimum_tokens(critical, n, tokens, batch, lambda d: float(point.loss(n, d)))
    goal = given if given is not None else float(point.loss(n, minimum))
    try:
        with np.errstate(all="ignore"):
            found = plane(point, critical, goal, mine, context, n)
    except (ArithmeticError, ValueError):
        found = None
    if found is None or not found.front.any():
        notes.append("time against compute: this target lies where the loss law gives no runs to compare.")
        return None, notes
    own = None
    if batch:
        least = float(point.tokens_for(goal, n))
        if math.isfinite(least):
            needed = least * (1 + batch / float(critical_at(critical, n, least, goal)))
            flops, seconds = 6 * n * needed, float(mine.seconds(n, batch, needed / batch))
            own = {**row(n, needed, batch, flops, seconds, context, mine), **place(found, flops, seconds)}
        else:
            notes.append(f"loss={goal:g} is out of reach of {n:.3g} parameters.")
    _, translated = critical_law.critical_tokens(critical, {**values, "loss": goal})
    notes += [f"critical batch: {translated}."] if translated else []
    cheapest = [float(each) for each in point.cheapest(goal)]
    return (
        {
            "loss": goal,
            "loss_from": "given" if given is not None else "the target",
            "critical_batch_tokens": float(critical_at(critical, n, minimum, goal)),
            "critical_batch_from": critical.get("published") or "laws",
            "machine": {
                "devices": mine.devices,
                "device_flops": mine.rate,
                "device_batch": mine.device_batch,
                "time_unit": "seconds" if mine.rate else f"micro-batches of a device at {mine.reference:.4g} params",
            },
            "cheapest": {"params": cheapest[0], "tokens": cheapest[1], "tpp": cheapest[1] / cheapest[0]},
            "front": rows(found, context, mine),
            "target": own,
            "curves": curves(found),
        },
        notes,
    )
