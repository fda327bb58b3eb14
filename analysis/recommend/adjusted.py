"""What follows from a recipe: LR of the hidden matrices, weight decay of a tau, steps, FLOPs; with intervals.

    steps = tokens / batch_tokens,   weight decay = 1 / (tau * steps * lr_adjusted) / (its multiplier)

(independent weight decay: without lr_adjusted). The multipliers of the hidden matrices restate those of
models/parameterization.py, which analysis may not import; a test holds them together.
"""

import math
from collections.abc import Mapping

import numpy as np

from analysis.recommend.propagate import interval
from analysis.region import is_number

WIDTH_EXPONENT = {"standard": 0.0, "standard_embedding": 0.0, "mup": 0.0, "completep": 1.0}  # of weight decay


def multipliers(given: Mapping, width: float | None, depth: float | None) -> tuple[float, float] | None:
    """(LR, weight decay) multipliers of the hidden matrices under the settings `given`; None where they are not known."""
    name = given.get("parameterization")
    if not isinstance(name, str) or name not in WIDTH_EXPONENT:
        return None
    exponent = given.get("weight_decay_width_exponent")
    exponent = float(exponent) if is_number(exponent) else WIDTH_EXPONENT[name]
    if name.startswith("standard") and exponent == 0:
        return 1.0, 1.0
    if not (is_number(given.get("base_width")) and given["base_width"] > 0 and width):
        return None
    m = width / given["base_width"]
    if name.startswith("standard"):
        return 1.0, m**exponent
    alpha = given.get("depth_alpha") if name == "completep" else None
    alpha = float(alpha) if is_number(alpha) else 1.0
    if alpha == 1.0 or name == "mup":
        return 1 / m, m**exponent
    if not (is_number(given.get("base_depth")) and given["base_depth"] > 0 and depth):
        return None
    return (depth / given["base_depth"]) ** (alpha - 1) / m, m**exponent


def derived(recipe: Mapping[str, Mapping], draws: Mapping[str, np.ndarray], values: Mapping, given: Mapping, level: float):
    """({name: {"value", "low", "high"}}, notes) of what a recipe implies. draws: logs of the uncertain entries."""
    logs = {name: draws.get(name, math.log(entry["value"])) for name, entry in recipe.items() if entry["value"] > 0}
    points = {name: math.log(entry["value"]) for name, entry in recipe.items() if entry["value"] > 0}
    if "batch_size" in points:  # as trained: whole sequences
        points["batch_size"] = math.log(max(1, round(recipe["batch_size"]["value"])))
    result, notes = {}, []

    def add(name: str, formula) -> None:
        value, spread = formula(points), formula(logs)
        with np.errstate(over="ignore"):
            exact = float(np.exp(value))
        low, high = interval(spread, level) if isinstance(spread, np.ndarray) else (exact, exact)
        if 0 < exact < math.inf:
            result[name] = {"value": exact, "low": low, "high": high}

    tokens, context = math.log(values["tokens"]), values.get("context")

    def batch(x: Mapping):
        return x["batch_tokens"] if "batch_tokens" in x else x["batch_size"] + math.log(context)

    has_batch = "batch_tokens" in points or ("batch_size" in points and context)
    if has_batch:
        add("batch_tokens", batch)
        add("steps", lambda x: tokens - batch(x))
    factors = multipliers(given, values.get("width"), values.get("depth"))
    if "lr" in points and factors:
        add("lr_adjusted", lambda x: x["lr"] + math.log(factors[0]))
    sides = {"tau", "weight_decay"} & points.keys()
    if len(sides) == 1:
        side = sides.pop()
        other = "weight_decay" if side == "tau" else "tau"
        independent = given.get("weight_decay_mode") == "independent"
        missing = [] if has_batch else ["the batch in tokens (context=...)"]
        missing += [] if independent or "lr" in points else ["lr"]
        missing += [] if factors else ["the parameterization's multipliers (parameterization, base_width, width)"]
        if missing and side == "tau":
            notes.append(f"{other} does not follow from {side}: not known is {' and '.join(missing)}.")
        elif not missing:
            rate = (lambda x: 0.0) if independent else (lambda x: x["lr"] + math.log(factors[0]))
            # tau * weight_decay * multiplier * rate * steps = 1, for either side
            add(other, lambda x: -(x[side] + math.log(factors[1]) + rate(x) + tokens - batch(x)))
    result["flops"] = dict.fromkeys(("value", "low", "high"), values["flops"])
    return result, notes
