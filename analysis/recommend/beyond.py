"""How far a recipe lies from what its laws saw: distances in decades, and what else differed there, in words."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.predict import predictors
from analysis.region import Region, distances, off_ray, same

if TYPE_CHECKING:
    from analysis.recommend.target import Request

FAR = 2.0  # a held hyper-parameter that differs by more is said to differ
Laws = Mapping[str, Mapping]
Regions = Mapping[str, Region]


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
