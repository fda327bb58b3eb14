"""The parts of a Recipe: every hyper-parameter from law, target or held value; overrides.

Intervals. `low` and `high` of a value are those of the optimum with everything that a law supplies still open: a law of
LR that takes the batch has the batch law's error in it (draws, propagate.py). Where that matters `conditional`
holds the interval at the batch (LR, tau) that this recipe sets.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.errors import UserError
from analysis.predict import predict, predictors
from analysis.recommend.convention import at_target
from analysis.recommend.critical_law import sequence_tokens
from analysis.recommend.propagate import interval, sample
from analysis.region import Region, same

if TYPE_CHECKING:
    from analysis.recommend.target import Request

NAMES = ("batch_size", "tau", "lr", "weight_decay")  # what a recipe holds; a law may need those before it
# Overrides of `hyperlaw train` for what was constant in the sweep and changes what lr or batch_size mean.
CARRIED = {
    "parameterization": "parameterization",
    "base_width": "parameterization.base_width",
    "base_depth": "parameterization.base_depth",
    "schedule": "schedule",
    "weight_decay_mode": "optimizer.weight_decay_mode",
    "context": "model.context",
    "head_dim": "model.head_dim",
}
WITH_PARAMETERIZATION = {"base_width", "base_depth", "depth_alpha", "weight_decay_width_exponent"}
SCHEDULES = ("linear", "cosine", "wsd", "constant")  # of `hyperlaw train`
KEYS = {"tau": "tau", "weight_decay": "optimizer.weight_decay", "batch_size": "batch_size", "batch_tokens": "batch_tokens",
        "lr": "optimizer.lr"}  # fmt: skip
BATCH = ("batch_size", "batch_tokens")  # the latter where nothing says how long a sequence is
Laws = Mapping[str, Mapping]
Regions = Mapping[str, Region]


@dataclass
class Resolved:
    """recipe: {NAME: {"value", "low", "high", "source"}}; values: what laws can be written in, at the target; draws:
    natural logs of what laws supplied, those of `recipe` in its units; conditional: the same at the recipe's inputs."""

    recipe: dict[str, dict]
    values: dict[str, float]
    draws: dict[str, np.ndarray]
    conditional: dict[str, np.ndarray]


def resolve(chosen: Laws, regions: Regions, request: "Request", level: float) -> Resolved:
    """The target's own values, then laws as their predictors become known, then what the laws held. Of tau and weight
    decay one is set, and tau where a law gives both."""
    rng = np.random.default_rng(0)
    draws: dict[str, np.ndarray] = {}
    fixed: dict[str, np.ndarray] = {}
    known, notes = request.numbers, request.notes
    recipe = {name: _exactly(known[name], "given") for name in NAMES if name in known}
    if "batch_tokens" in known and "batch_size" not in known:
        recipe["batch_tokens"] = _exactly(known["batch_tokens"], "given")
    pending = {name: law for name, law in chosen.items() if name not in recipe}
    if "batch_tokens" in recipe:
        pending.pop("batch_size", None)
    for side, other in (("tau", "weight_decay"), ("weight_decay", "tau")):
        if other in pending and (side in recipe or (side == "tau" and side in pending)):
            follows = "tau is set and the weight decay follows from it" if side == "tau" else "weight_decay is given"
            notes.append(f"{follows}; the {other} law is not used.")
            del pending[other]
    values = {**known, "flops": known.get("flops", 6 * known["params"] * known["tokens"])}
    vocab = [known["vocab"]] if "vocab" in known else [(law.get("given") or {}).get("vocab") for law in chosen.values()]
    vocab = next((each for each in vocab if each is not None), None)
    if isinstance(vocab, int | float) and vocab > 0:
        values["vocab"] = float(vocab)  # for laws that count parameters without it (convention.py)
    for name in BATCH:
        if name in known:
            _set(values, name, known[name])
    while pending:
        ready = [name for name in NAMES if name in pending and values.keys() >= set(predictors(pending[name]))]
        if not ready:
            _hold_a_predictor(pending, chosen, regions, recipe, values, notes)
            continue
        name = ready[0]
        law = pending.pop(name)
        if "flops" in predictors(law) and "flops" not in known:
            notes.append("flops of the target taken as 6 * params * tokens.")
        recipe[name], draws[name], fixed[name] = _from_law(law, values, draws, level, rng, notes)
        _set(values, name, recipe[name]["value"])
    if not set(BATCH) & recipe.keys():
        _hold_batch(chosen, regions, recipe, values, notes)
    for name in ("lr", _decay(chosen, regions)):
        twin = {"tau": "weight_decay", "weight_decay": "tau"}.get(name)
        value = None if name in recipe or twin in recipe else held(name, chosen, regions, values, notes)
        if value is not None:
            recipe[name] = _exactly(value, "held")
    recipe = {name: recipe[name] for name in ("batch_tokens", *NAMES) if name in recipe}
    return Resolved(recipe, values, draws, fixed)


def _hold_batch(chosen: Laws, regions: Regions, recipe: dict, values: dict, notes: list[str]) -> bool:
    """Puts the batch that the laws held into the recipe: in sequences, or in tokens where neither laws nor target say
    how long a sequence is. Returns whether there is one."""
    name, value = "batch_size", held("batch_size", chosen, regions, values, notes)
    if value is None:
        name, value = "batch_tokens", held("batch_tokens", chosen, regions, values, notes)
        if value is not None and values.get("context"):
            name, value = "batch_size", max(1.0, value / values["context"])
            notes.append(f"batch_size: from tokens to sequences of {values['context']:g}.")
    if value is None:
        return False
    recipe[name] = _exactly(value, "held")
    _set(values, name, value)
    return True


def _exactly(value: float, source: str) -> dict:
    return {"value": value, "low": value, "high": value, "source": source}


def _set(values: dict, name: str, value: float) -> None:
    values[name] = max(1, round(value)) if name == "batch_size" else value  # what will be trained: whole sequences
    if name == "batch_size" and "context" in values:
        values["batch_tokens"] = values[name] * values["context"]
    if name in BATCH and "batch_tokens" in values:
        values["steps"] = values["tokens"] / values["batch_tokens"]


def _from_law(
    law: Mapping, values: Mapping[str, float], draws: Mapping[str, np.ndarray], level: float, rng, notes: list[str]
) -> tuple[dict, np.ndarray, np.ndarray]:
    """(entry of the recipe, draws with the error of what other laws supplied, draws without)."""
    at = at_target(law, values, notes)
    prediction = predict(law, at, level)
    if prediction.note:
        notes.append(f"{law['name']} law: {prediction.note}.")
    if not (math.isfinite(prediction.value) and prediction.value > 0):
        raise UserError(f"the {law['name']} law gives {prediction.value:g} at this target: look at its parameters.")
    scale = _sequences(law, values, notes) if law["name"] == "batch_size" else 1.0
    ends = {"value": prediction.value, "low": prediction.low, "high": prediction.high}
    entry = {**{key: end * scale for key, end in ends.items()}, "source": "law"}
    open_inputs = _open_inputs(law, at, values, draws)
    alone = sample(law, at, rng) + math.log(scale)
    if not open_inputs:
        return entry, alone, alone
    spread = sample(law, {**at, **open_inputs}, rng) + math.log(scale)
    low, high = interval(spread, level)
    supplied = ", ".join(name for name in open_inputs if name in draws) or "batch_size"
    if math.isfinite(low) and math.isfinite(high) and math.isfinite(entry["low"]):
        entry |= {"low": low, "high": high, "conditional": {"low": entry["low"], "high": entry["high"], "on": supplied}}
    return entry, spread, alone


def _open_inputs(
    law: Mapping, at: Mapping[str, float], values: Mapping[str, float], draws: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Draws of those predictors that another law supplies (the batch in tokens and the steps with the batch)."""
    found = {name: np.exp(draws[name]) for name in predictors(law) if name in draws and np.ptp(draws[name]) > 0}
    if "batch_size" in draws and np.ptp(draws["batch_size"]) > 0 and values.get("context"):
        tokens = np.exp(draws["batch_size"]) * values["context"]
        for name, each in (("batch_tokens", tokens), ("steps", values["tokens"] / tokens)):
            if name in predictors(law):
                found[name] = each
    return {name: each for name, each in found.items() if name in at}


def _sequences(law: Mapping, values: Mapping[str, float], notes: list[str]) -> float:
    """Sequences of the recipe's context in the unit of a batch law: tokens, or sequences of its own length."""
    own, context = sequence_tokens(law), values.get("context")
    if law.get("unit") == "tokens":
        if not context:
            raise UserError("the batch law counts tokens; add context=TOKENS to say how long a sequence is.")
        notes.append(f"batch_size: from tokens to sequences of {context:g}.")
        return 1 / context
    if not own or not context or own == context:
        return 1.0
    notes.append(f"batch_size: from sequences of {own:g} tokens to sequences of {context:g}.")
    return own / context


def _hold_a_predictor(
    pending: Laws, chosen: Laws, regions: Regions, recipe: dict, values: dict, notes: list[str]
) -> None:
    """Some law waits for a hyper-parameter that nothing predicts: take what the laws held, or say what is missing."""
    waiting = {p: name for name, law in pending.items() for p in predictors(law) if p not in values}
    for name in ("batch_size", "tau", "lr", "weight_decay"):
        needed = name in waiting or (name == "batch_size" and {"steps", "batch_tokens"} & waiting.keys())
        if needed and name not in values and name not in pending:
            if name == "batch_size":
                if not set(BATCH) & recipe.keys() and _hold_batch(chosen, regions, recipe, values, notes):
                    return None
            elif (value := held(name, chosen, regions, values, notes)) is not None:
                recipe[name] = _exactly(value, "held")
                return _set(values, name, value)
    predictor, name = next(iter(waiting.items()))
    raise UserError(f"the {name} law needs {predictor}, which neither target nor laws give; add {predictor}=VALUE.")


def held(name: str, chosen: Laws, regions: Regions, values: Mapping[str, float], notes: list[str]) -> float | None:
    """What the slices of the chosen laws held `name` at: one value, or that of the slice nearest to the target."""
    for law_name in ("lr", "tau", "weight_decay", "batch_size"):
        points = regions[law_name].points if law_name in regions and law_name != name else {}
        if name not in points or not points[name].notna().any():
            continue
        column = points[name].dropna()
        if same(column.min(), column.max()):
            value, how = float(column.iloc[0]), "throughout"
        else:
            gap = column * 0
            for axis in ("params", "tokens"):
                if axis in points:
                    gap += (points.loc[column.index, axis] / values[axis]).map(math.log).fillna(0) ** 2
            value = float(column[gap.idxmin()])
            how = f"there in the slice nearest to the target ({column.min():.4g} to {column.max():.4g} in all)"
        notes.append(f"{name} = {value:.4g} has no law: the {law_name} law held it {how}.")
        return value
    return None


def _decay(chosen: Laws, regions: Regions) -> str:
    """The side, tau or weight decay, that the laws held constant; tau where both or neither were."""
    for points in (regions[name].points for name in chosen):
        for side in ("tau", "weight_decay"):
            if side in points and points[side].notna().any() and same(points[side].min(), points[side].max()):
                return side
    there = {side for name in chosen for side in ("tau", "weight_decay") if side in regions[name].points}
    return "weight_decay" if there == {"weight_decay"} else "tau"


def overrides(chosen: Laws, recipe: Mapping[str, Mapping], request: "Request") -> list[str]:
    """Arguments of `hyperlaw train`, in ratios: the resolver derives steps, weight decay and every group's LR."""
    numbers = request.numbers
    given = settings(chosen, request) | ({"context": numbers["context"]} if "context" in numbers else {})
    if given.get("schedule") is not None and given["schedule"] not in SCHEDULES:
        request.notes.append(f"schedule {given['schedule']} is none of `hyperlaw train`'s: the command leaves it out.")
        del given["schedule"]
    words = [f"{key}={_written(given[column])}" for column, key in CARRIED.items() if _carries(column, given, numbers)]
    if {"width", "depth"} <= numbers.keys():
        words += [f"model.{key}={_written(numbers[key])}" for key in ("width", "depth")]
    words.append(f"tokens={round(numbers['tokens'])}")
    for name, key in KEYS.items():
        if name in recipe:
            value = recipe[name]["value"]
            words.append(f"{key}={max(1, round(value))}" if name in BATCH else f"{key}={value:.6g}")
    return words


def settings(chosen: Laws, request: "Request") -> dict:
    """What the run is trained under: settings of the leading law, then of the others, then what the user demands. The base
    shape goes with its parameterization."""
    lead: dict = {}
    for law in chosen.values():
        given = dict(law.get("given") or {})
        if "parameterization" in lead and not same(given.get("parameterization"), lead["parameterization"]):
            given = {key: value for key, value in given.items() if key not in WITH_PARAMETERIZATION}
        lead = given | lead
    return lead | request.demands


def _carries(column: str, given: Mapping, numbers: Mapping) -> bool:
    if given.get(column) is None:
        return False
    return column != "head_dim" or ("width" in numbers and numbers["width"] % given["head_dim"] == 0)


def _written(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, float) and value == int(value) else str(value)
