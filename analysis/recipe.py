"""The parts of a Recipe: every hyper-parameter from law, target or held value; overrides; distances in words."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.errors import UserError
from analysis.predict import predict, predictors
from analysis.region import Region, distances, off_ray, same

if TYPE_CHECKING:
    from analysis.recommend import Request

NAMES = ("batch_size", "tau", "lr", "weight_decay")  # what a recipe holds; a law may need those before it
FAR = 2.0  # a held hyper-parameter that differs by more is said to differ
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
KEYS = {"tau": "tau", "weight_decay": "optimizer.weight_decay", "batch_size": "batch_size", "batch_tokens": "batch_tokens",
        "lr": "optimizer.lr"}  # fmt: skip
BATCH = ("batch_size", "batch_tokens")  # the latter where nothing says how long a sequence is
Laws = Mapping[str, Mapping]
Regions = Mapping[str, Region]


def resolve(chosen: Laws, regions: Regions, request: "Request", level: float) -> dict[str, dict]:
    """{NAME: {"value", "low", "high", "source"}}: the target's own values, then laws as their predictors become known,
    then what the laws held. Of tau and weight decay one is set, and tau where a law gives both."""
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
        recipe[name] = _from_law(law, values, level, notes)
        _set(values, name, recipe[name]["value"])
    if not set(BATCH) & recipe.keys():
        _hold_batch(chosen, regions, recipe, values, notes)
    for name in ("lr", _decay(chosen, regions)):
        twin = {"tau": "weight_decay", "weight_decay": "tau"}.get(name)
        value = None if name in recipe or twin in recipe else held(name, chosen, regions, values, notes)
        if value is not None:
            recipe[name] = _exactly(value, "held")
    return {name: recipe[name] for name in ("batch_tokens", *NAMES) if name in recipe}


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


def _from_law(law: Mapping, values: Mapping[str, float], level: float, notes: list[str]) -> dict:
    prediction = predict(law, values, level)
    if prediction.note:
        notes.append(f"{law['name']} law: {prediction.note}.")
    if not (math.isfinite(prediction.value) and prediction.value > 0):
        raise UserError(f"the {law['name']} law gives {prediction.value:g} at this target: look at its parameters.")
    scale = _sequences(law, values, notes) if law["name"] == "batch_size" else 1.0
    ends = {"value": prediction.value, "low": prediction.low, "high": prediction.high}
    return {**{key: end * scale for key, end in ends.items()}, "source": "law"}


def _sequences(law: Mapping, values: Mapping[str, float], notes: list[str]) -> float:
    """Sequences of the recipe's context in the unit of a batch law: tokens, or sequences of its own context."""
    own, context = (law.get("given") or {}).get("context"), values.get("context")
    if law.get("unit") == "tokens":
        if not context:
            raise UserError("the batch law counts tokens; add context=TOKENS to say how long a sequence is.")
        notes.append(f"batch_size: from tokens to sequences of {context:g}.")
        return 1 / context
    if not isinstance(own, int | float) or not context or own == context:
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
    given = {key: value for law in reversed(chosen.values()) for key, value in (law.get("given") or {}).items()}
    given |= request.demands | ({"context": numbers["context"]} if "context" in numbers else {})
    words = [f"{key}={_plain(given[column])}" for column, key in CARRIED.items() if _carries(column, given, numbers)]
    if {"width", "depth"} <= numbers.keys():
        words += [f"model.{key}={_plain(numbers[key])}" for key in ("width", "depth")]
    words.append(f"tokens={round(numbers['tokens'])}")
    for name, key in KEYS.items():
        if name in recipe:
            value = recipe[name]["value"]
            words.append(f"{key}={max(1, round(value))}" if name in BATCH else f"{key}={value:.6g}")
    return words


def _carries(column: str, given: Mapping, numbers: Mapping) -> bool:
    if given.get(column) is None:
        return False
    return column != "head_dim" or ("width" in numbers and numbers["width"] % given["head_dim"] == 0)


def _plain(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, float) and value == int(value) else str(value)


def compare_with_held(chosen: Laws, regions: Regions, recipe: Mapping[str, Mapping], notes: list[str]) -> None:
    """Says where a law's slices held another hyper-parameter elsewhere than this recipe sets it."""
    for name, law in chosen.items():
        if recipe.get(name, {}).get("source") != "law":
            continue
        for other in sorted({"lr", "tau", "weight_decay"} & recipe.keys() - {name, *predictors(law)}):
            if other in regions[name].ranges:
                low, high = regions[name].ranges[other]
                value = recipe[other]["value"]
                if not low / FAR <= value <= high * FAR:
                    kept = f"{low:.3g}" if same(low, high) else f"{low:.3g} to {high:.3g}"
                    notes.append(f"the {name} law was measured at {other} = {kept}; this recipe has {value:.3g}.")


def extrapolation(chosen: Laws, regions: Regions, recipe: Mapping[str, Mapping], request: "Request") -> dict[str, dict]:
    """{predictor: {"decades", "sampled": [low, high], "law"}} for the law that is farthest from the target, and under
    "ray" the distance off the line of collinear predictors. What lies outside is put into words in the notes."""
    target = {**request.numbers, **({"batch_size": recipe["batch_size"]["value"]} if "batch_size" in recipe else {})}
    result: dict[str, dict] = {}
    for name, law in chosen.items():
        if recipe.get(name, {}).get("source") != "law":
            continue
        without = {axis: value for axis, value in target.items() if axis != name}
        found = distances(regions[name], without)
        if not found:
            request.notes.append(f"the {name} law does not say which scales it saw: the extrapolation is unknown.")
        if ray := off_ray(regions[name], without):
            found["ray"] = {**ray, "sampled": None}
        for axis, entry in found.items():
            if axis not in result or entry["decades"] > result[axis]["decades"]:
                result[axis] = {**entry, "law": name}
        for axis in ("params", "tokens"):
            if axis in found and found[axis]["decades"] and same(*found[axis]["sampled"]) and not _sees(law, axis):
                request.notes.append(f"the {name} law saw one {axis} only: how {name} moves with {axis} is not in it.")
        for axis in ("context", "depth"):
            own = regions[name].ranges.get(axis, (0, 0))
            if axis in target and same(*own) and own[0] and not same(own[0], target[axis]):
                request.notes.append(f"the {name} law saw {axis} {own[0]:g} only; this recipe has {target[axis]:g}.")
    on_ray = result.get("ray", {}).get("ray", "").endswith("tokens per parameter")
    outside = {axis: entry for axis, entry in result.items() if entry["decades"] and not (axis == "tpp" and on_ray)}
    request.notes += [_distance(axis, entry, target) for axis, entry in outside.items()]
    return result


def _sees(law: Mapping, axis: str) -> bool:
    names = set(predictors(law))
    return axis in names or bool({"tpp", "flops"} & names) or (axis == "params" and "width" in names)


def _distance(axis: str, entry: Mapping, target: Mapping[str, float]) -> str:
    decades = f"{entry['decades']:.2f} decades"
    if axis == "ray":
        where = f"all slices of the {entry['law']} law lie on one ray ({entry['ray']})"
        return f"{where}; the target is {decades} off it (perpendicular)."
    low, high = entry["sampled"]
    saw = f"{low:.4g} only" if same(low, high) else f"{low:.4g} to {high:.4g}"
    side = "above" if target[axis] > high else "below"
    return f"{axis} = {target[axis]:.4g} lies {decades} {side} what the {entry['law']} law saw ({saw})."
