"""Which laws disagree: a recipe beside what published laws, and further laws of the same folder, say at the target.

A published law is `inside` where its value lies within the recipe's interval; where the recipe has none (given, held, too
few optima) nothing is said. `caveats` name what the two do not share: an optimum under another optimizer,
parameterization or schedule need not agree. Values are in the recipe's units: batches in its sequences, and an LR of one
standard parameterization beside the recipe's LR of the hidden matrices where muP scales it.
"""

import math
from collections.abc import Mapping

from analysis.predict import predict, predictors, usable
from analysis.recommend.convention import at_target
from analysis.recommend.critical_law import critical_tokens, find, sequence_tokens
from analysis.recommend.published_laws import PUBLISHED, Published
from analysis.region import same

SETTINGS = ("optimizer", "parameterization", "schedule", "weight_decay_mode")
BEYOND = 1.05  # a target outside a published law's range by more is said to be


def anchored(law: Mapping, content: Mapping, lr_law: Mapping | None) -> tuple[dict | None, str]:
    """(`law`, whose coefficient is unknown, through the interior optimum at the largest N * D; or None, and in words)."""
    best = None
    for optimum in content.get("optima") or []:
        at = {**(optimum.get("held") or {}), **(optimum.get("given") or {})}
        theirs = (lr_law or {}).get("given") or {}
        fits = optimum.get("target") == law["name"] and optimum.get("verdict") == "interior" and optimum.get("value")
        needed = {*predictors(law), "params", "tokens"}
        known = all(isinstance(at.get(name), int | float) and at[name] > 0 for name in needed)
        agrees = all(same(at[key], theirs[key]) for key in at.keys() & theirs.keys() if key not in predictors(law))
        if fits and known and agrees and optimum["value"] > 0 and (best is None or at["params"] * at["tokens"] > best[0]):
            best = (at["params"] * at["tokens"], at, optimum["value"])
    if best is None:
        return None, "exponents only, and no measured optimum to anchor them"
    _, at, value = best
    slope = sum(law["parameters"][name]["value"] * math.log(at[name]) for name in predictors(law))
    parameters = {**law["parameters"], "coefficient": {"value": value * math.exp(-slope), "low": None, "high": None}}
    words = f"anchored at the optimum of {at['params']:.3g} params, {at['tokens']:.3g} tokens"
    return {**law, "parameters": parameters}, words


def compare(
    content: Mapping, chosen: Mapping[str, Mapping], recipe: Mapping[str, Mapping], derived: Mapping, values: Mapping
) -> list[dict]:
    """Rows {"name", "against", "citation", "value", "recipe", "low", "high", "ratio", "inside", "caveats"}: of every
    published law that speaks of something in the recipe, and of every law in the folder that lost to the chosen one."""
    rows = []
    entries = {**{k: v for k, v in derived.items() if k == "weight_decay" and "value" in v}, **recipe}
    if "batch_tokens" in recipe and "batch_size" not in recipe and values.get("context"):
        scale = 1 / values["context"]
        ends = {end: recipe["batch_tokens"][end] * scale for end in ("value", "low", "high")}
        entries["batch_size"] = {**recipe["batch_tokens"], **ends}
    for published in PUBLISHED.values():
        for law in published.laws:
            if law["name"] in entries and chosen.get(law["name"], {}).get("published") != published.name:
                rows.append(_row(law, published, content, chosen, entries[law["name"]], derived, values))
    for law in content.get("laws") or []:
        mine = chosen.get(law["name"])
        others = (law.get("given") or {}) == ((mine or {}).get("given") or {}) or law.get("method") == "joint"
        if mine is not None and law is not mine and usable(law) and others and values.keys() >= set(predictors(law)):
            if law["name"] in entries and not law.get("published"):
                rows.append(_row(law, None, content, chosen, entries[law["name"]], derived, values))
    critical = _critical(content, values)
    return [row for row in [*rows, *critical] if row]


def _row(law, published: Published | None, content, chosen, entry, derived, values) -> dict | None:
    caveats = []
    if law["parameters"]["coefficient"]["value"] is None:
        law, words = anchored(law, content, chosen.get("lr"))
        if law is None:
            return _as_row(published, "lr", None, entry, [words])
        caveats.append(words)
    value = predict(law, at_target(law, values, notes := [])).value
    caveats += [note.split(": ", 1)[-1].rstrip(".") for note in notes]
    mine = (chosen.get(law["name"]) or {}).get("given") or {}
    theirs = law.get("given") or {}
    name = law["name"]
    if name == "batch_size":
        value = _in_sequences(law, value, values, caveats)
    if name == "lr" and theirs.get("parameterization") == "standard" and "lr_adjusted" in derived:
        ratio = derived["lr_adjusted"]["value"] / entry["value"]
        if not same(ratio, 1.0):
            entry = {**entry, **{end: entry[end] * ratio for end in ("value", "low", "high") if entry[end] is not None}}
            caveats.append("beside the LR of this recipe's hidden matrices")
    for key in SETTINGS:
        if key in mine and key in theirs and not same(mine[key], theirs[key]):
            caveats.append(f"{key} {theirs[key]}, here {mine[key]}")
    caveats += _outside(law, values)
    if law.get("memory"):
        caveats.append(f"{', '.join(law['memory'])} from memory")
    if published is None:
        caveats.insert(0, f"method {law.get('method') or 'unknown'}")
    return _as_row(published, name, value, entry, caveats)


def _as_row(published: Published | None, name: str, value: float | None, entry: Mapping, caveats: list[str]) -> dict:
    low, high = entry.get("low"), entry.get("high")
    sure = entry.get("source") in ("law", None) and low is not None and high is not None
    known = value is not None and math.isfinite(value) and value > 0
    inside = bool(low <= value <= high) if sure and known and math.isfinite(low) and math.isfinite(high) else None
    return {
        "name": name,
        "against": published.name if published else "another law here",
        "citation": published.citation if published else None,
        "value": value if known else None,
        "recipe": entry["value"],
        "low": low if sure else None,
        "high": high if sure else None,
        "ratio": value / entry["value"] if known else None,
        "inside": inside,
        "caveats": caveats,
    }


def _in_sequences(law: Mapping, value: float, values: Mapping, caveats: list[str]) -> float:
    context, own = values.get("context"), sequence_tokens(law)
    if law.get("unit") == "tokens" and not context:
        context = sequence_tokens({**law, "unit": None})
        known = f"sequences taken as {context:g} tokens, since" if context else "it counts tokens, and"
        caveats.append(f"{known} context is unknown")
        return value / context if context else math.nan
    return value * own / context if context and own else value


def _outside(law: Mapping, values: Mapping) -> list[str]:
    lines = []
    for axis, ends in (law.get("range") or {}).items():
        if axis in values and law.get("published"):
            factor = max(ends["low"] / values[axis], values[axis] / ends["high"])
            if factor > BEYOND:
                lines.append(f"{math.log10(factor):.1f} decades beyond its {axis}")
    return lines


def _critical(content: Mapping, values: Mapping) -> list[dict]:
    """A critical batch of one's own beside the published one, both at the target's tokens as D_min, in tokens."""
    own = find([law for law in content.get("laws") or [] if not law.get("published")])
    if own is None or not values.keys() >= set(predictors(own)):
        return []
    mine, _ = critical_tokens(own, values)
    prediction = predict(own, values)
    ends = {end: mine * getattr(prediction, end) / prediction.value for end in ("low", "high")}
    ends = {end: each if math.isfinite(each) else None for end, each in ends.items()}
    entry = {"value": mine, **ends, "source": "law"}
    theirs = PUBLISHED["power_lines"].laws[2]
    value, _ = critical_tokens(theirs, values)
    caveats = ["in tokens", f"{', '.join(theirs['memory'])} from memory", *_outside(theirs, values)]
    return [_as_row(PUBLISHED["power_lines"], "critical_batch", float(value), entry, caveats)]
