"""From laws to the hyper-parameters of a run that nobody has tuned: `recommend(laws, target) -> Recipe`.

A Recipe is `{"target", "recipe": {NAME: {"value", "low", "high", "source"}}, "overrides", "notes", "extrapolation",
"laws"}`: what to type after `hyperlaw train`, how sure the laws are of it (prediction intervals, 10-90 %), and how far
it lies from what they saw. `source` says where a value is from: a law, the target (given), or what the laws held.
"""

import math
import os
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from analysis import laws_io
from analysis.errors import UserError, nearest
from analysis.ladder import choose_shape, count_blocks
from analysis.predict import LEVEL, in_numbers, off, predictors, usable
from analysis.recipe import NAMES, compare_with_held, extrapolation, overrides, resolve
from analysis.region import Region, region, same

SAME_SIZE = 0.05  # params as given, and as width and depth count
SIZES = ("params", "width", "depth", "tokens", "tpp", "context", "flops")
PORTABLE = {"tau", "batch_size"}  # not in units of base LR: their laws may serve another parameterization


@dataclass
class Request:
    """The target in numbers; what the user demands of `given`; lines for the reader."""

    numbers: dict[str, float]
    demands: dict[str, object]
    notes: list[str] = field(default_factory=list)


def recommend(
    laws: Mapping | str | os.PathLike,
    target: Mapping[str, object],
    level: float = LEVEL,
    count: Callable[[int, int], float] | None = None,
) -> dict:
    """The Recipe of `target` under `laws` (what `laws_io.read` gives, or its folder).

    target: `params` or `width` and `depth` (or both); `tokens` or `tpp`; optionally `batch_size` (sequences) or
    `batch_tokens`, `lr`, `tau` or `weight_decay` to be taken as they are, `context`, and any column of the laws' `given`
    (parameterization="mup") that chooses among laws of one name. level: of the prediction intervals, or in `target`.
    count(width, depth) -> params of such a model; not given: 12 * depth * width^2.
    Raises UserError where the target is incomplete or impossible, or no law can serve it.
    """
    content = laws if isinstance(laws, Mapping) else laws_io.read(laws)
    target = dict(target)
    level = _positive("level", target.pop("level", level))
    optima = content.get("optima") or []
    candidates = [law for law in content["laws"] if law["name"] in NAMES and usable(law)]
    if not candidates:
        others = ", ".join(sorted({law["name"] for law in content["laws"]})) or "none"
        raise UserError(
            f"no usable law of {', '.join(NAMES)} here (there is: {others}); run `hyperlaw fit analysis=lr`."
        )
    request = _request(target, candidates, level)
    chosen = _choose(candidates, request)
    regions = {name: region(law, optima) for name, law in chosen.items()}
    _size(request, regions, chosen, count)
    recipe = resolve(chosen, regions, request, level)
    compare_with_held(chosen, regions, recipe, request.notes)
    beyond = extrapolation(chosen, regions, recipe, request)
    return laws_io.clean(
        {
            "target": {**request.numbers, **request.demands},
            "recipe": recipe,
            "overrides": overrides(chosen, recipe, request),
            "notes": list(dict.fromkeys(request.notes)),
            "extrapolation": beyond,
            "laws": {name: _served(law) for name, law in chosen.items() if recipe.get(name, {}).get("source") == "law"},
            "level": level,
        }
    )


def _request(target: Mapping[str, object], laws: list[Mapping], level: float) -> Request:
    if not 0 < level < 1:
        raise UserError(f"level={level:g} must lie between 0 and 1, such as 0.8 for 10-90 %.")
    known = {key for law in laws for key in (law.get("given") or {})}
    columns = {column for law in laws for column in predictors(law)}
    numbers, demands = {}, {}
    for key, value in target.items():
        if value is None:
            continue
        if key in SIZES or key in NAMES or key in columns or key == "batch_tokens":
            numbers[key] = _positive(key, value)
        elif key in known:
            demands[key] = value
        else:
            hint = nearest(key, [*SIZES, *NAMES, "batch_tokens", "level", *known])
            raise UserError(f"{key}={value}: neither a size, nor a hyper-parameter, nor a setting of these laws{hint}")
    for one, other in (("tokens", "tpp"), ("tau", "weight_decay"), ("batch_size", "batch_tokens")):
        if one in numbers and other in numbers:
            raise UserError(f"{one}={numbers[one]:g} and {other}={numbers[other]:g} say the same: give one.")
    if "params" not in numbers and not {"width", "depth"} <= numbers.keys():
        raise UserError("the target needs a size: params=1e9, or model.width=W and model.depth=L.")
    if "tokens" not in numbers and "tpp" not in numbers:
        raise UserError("the target needs its training length: tokens=2e10.")
    return Request(numbers, demands)


def _positive(key: str, value: object) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UserError(f"{key}={value} must be a number above 0.")
    if key in ("width", "depth") and number != int(number):
        raise UserError(f"{key}={value} must be a whole number.")
    if key == "batch_size" and number < 1:
        raise UserError(f"batch_size={value} must be at least 1 sequence.")
    return number


def _choose(laws: list[Mapping], request: Request) -> dict[str, Mapping]:
    """One law a name: the last that agrees with what the user demands, then with the law of lr (which leads)."""
    chosen: dict[str, Mapping] = {}
    implied: dict[str, object] = {}
    for name in ("lr", "tau", "weight_decay", "batch_size"):
        named = [law for law in laws if law["name"] == name]
        wanted = {**implied, **request.demands}
        admitted = [(i, law) for i, law in enumerate(named) if _admits(law, request, implied)]
        fitting = [(len(_conflicts(law, wanted)), -i, law) for i, law in admitted]
        if named and not fitting:
            offers = sorted({_words(law, wanted) for law in named})
            request.notes.append(f"no {name} law agrees with the rest of this recipe (there is {'; '.join(offers)}).")
        if fitting:
            law = chosen[name] = min(fitting, key=lambda entry: entry[:2])[2]
            for key, value in _conflicts(law, wanted).items():
                request.notes.append(
                    f"the {name} law was fitted with {key}={law['given'][key]}; this recipe has {value}."
                )
            labels = {k: v for k, v in (law.get("given") or {}).items() if isinstance(v, str)}
            implied = {**labels, **implied}
    if not chosen:
        offers = "; ".join(dict.fromkeys(f"{law['name']} for {_words(law, request.demands)}" for law in laws))
        asked = ", ".join(f"{key}={value}" for key, value in request.demands.items())
        raise UserError(f"no law agrees with {asked}; there is {offers}.")
    return chosen


def _conflicts(law: Mapping, wanted: Mapping[str, object]) -> dict[str, object]:
    given = law.get("given") or {}
    return {key: value for key, value in wanted.items() if given.get(key) is not None and not same(given[key], value)}


def _admits(law: Mapping, request: Request, implied: Mapping[str, object]) -> bool:
    """Whether the law may serve: under another parameterization or optimizer, base LR and weight decay mean another."""
    clash = _conflicts(law, request.demands).keys()
    if law["name"] in PORTABLE:
        return clash <= {"parameterization"} and "optimizer" not in _conflicts(law, implied)
    return not clash and not {"parameterization", "optimizer"} & _conflicts(law, implied).keys()


def _words(law: Mapping, keys: Mapping) -> str:
    given = law.get("given") or {}
    return ", ".join(f"{key}={given[key]}" for key in keys if key in given) or "other settings"


def _size(request: Request, regions: Mapping[str, Region], chosen: Mapping, count: Callable | None) -> None:
    """Fills in params, width, depth, tokens, tpp, context."""
    numbers = request.numbers
    if "params" not in numbers:
        numbers["params"] = float((count or count_blocks)(int(numbers["width"]), int(numbers["depth"])))
        if count is None:
            request.notes.append(f"params taken as 12 * depth * width^2 = {numbers['params']:.4g}.")
    elif {"width", "depth"} <= numbers.keys():
        _agree(request, count)
    if "tokens" not in numbers:
        numbers["tokens"] = numbers["tpp"] * numbers["params"]
    numbers["tpp"] = numbers["tokens"] / numbers["params"]
    lead = next(iter(chosen.values())).get("given") or {}
    if isinstance(lead.get("context"), int | float) and lead["context"] >= 1:
        numbers.setdefault("context", float(lead["context"]))
    if "batch_tokens" in numbers and "context" in numbers:
        numbers["batch_size"] = numbers["batch_tokens"] / numbers["context"]
        if numbers["batch_size"] < 1:
            raise UserError(f"batch_tokens={numbers['batch_tokens']:g} is less than one sequence of {numbers['context']:g}.")
    if "width" in numbers and "depth" in numbers:
        return
    points = next((r.points for r in regions.values() if {"width", "depth"} <= set(r.points)), None)
    points = points.dropna(subset=["width", "depth"]) if points is not None else None
    if points is None or points.empty:
        request.notes.append("the laws do not say which widths and depths they saw: add model.width and model.depth.")
        return
    heads = points["head_dim"].dropna().unique() if "head_dim" in points else []
    known = {key: numbers[key] for key in ("width", "depth") if key in numbers}
    if known:
        raise UserError("give model.width and model.depth together, or params alone.")
    shapes = points[["width", "depth"]].drop_duplicates()
    head_dim = int(heads[0]) if len(heads) == 1 else None
    width, depth = choose_shape(numbers["params"], list(shapes["width"]), list(shapes["depth"]), count, head_dim)
    numbers["width"], numbers["depth"] = width, depth
    size = f"{(count or count_blocks)(width, depth):.4g} params" + ("" if count else " by 12 * depth * width^2")
    request.notes.append(f"width {width} and depth {depth} follow the sweep's aspect ratio ({size}).")


def _agree(request: Request, count: Callable | None) -> None:
    """Raises UserError where params and the shape, both given, are two models."""
    params, width, depth = (request.numbers[key] for key in ("params", "width", "depth"))
    counted = (count or count_blocks)(int(width), int(depth))
    if count is None:
        request.notes.append(
            f"params={params:.4g} taken as given; width {width:g} and depth {depth:g} make {counted:.4g} by "
            "12 * depth * width^2, which counts neither embedding nor head."
        )
    elif abs(counted / params - 1) > SAME_SIZE:
        raise UserError(
            f"params={params:.4g} and model.width={width:g} model.depth={depth:g} ({counted:.4g} params) are two sizes: "
            "give one of them."
        )


def _served(law: Mapping) -> dict:
    keys = ("analysis", "name", "given", "form", "unit", "parameters", "r2", "n", "heldout", "behind")
    return {key: law[key] for key in keys if key in law}


def as_table(recipe: Mapping) -> str:
    """A Recipe for the terminal: values with intervals and where they come from, distances, notes, the command."""
    target, level = recipe["target"], recipe.get("level", LEVEL)
    sizes = [f"{key} {_number(target[key])}" for key in SIZES if target.get(key)]
    interval = f"{50 * (1 - level):.3g}-{50 * (1 + level):.3g} %"
    rows = [("", "value", interval, "from")]
    for name, entry in recipe["recipe"].items():
        fixed = entry["source"] != "law" or None in (entry["low"], entry["high"])
        ends = "" if fixed else f"{_number(entry['low'])} .. {_number(entry['high'])}"
        rows.append((name, _number(entry["value"]), ends, _origin(entry, recipe["laws"].get(name))))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["target: " + ", ".join(sizes), ""]
    lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, (*widths, 0), strict=True)).rstrip() for row in rows]
    beyond = {axis: entry for axis, entry in recipe["extrapolation"].items() if entry["decades"]}
    if beyond:
        far = ", ".join(f"{axis} {entry['decades']:.2f}" for axis, entry in beyond.items())
        lines += ["", f"beyond the laws by (decades): {far}"]
    elif recipe["extrapolation"]:
        lines += ["", "inside the region that the laws saw"]
    for note in recipe["notes"]:
        lines += textwrap.wrap(note, 110, initial_indent="- ", subsequent_indent="  ")
    command = " ".join(["hyperlaw train", *recipe["overrides"]])
    lines += ["", " \\\n    ".join(textwrap.wrap(command, 108, break_on_hyphens=False, break_long_words=False))]
    return "\n".join(lines)


def _origin(entry: Mapping, law: Mapping | None) -> str:
    if law is None:
        return {"given": "the target", "held": "held by the laws"}[entry["source"]]
    error = (law.get("heldout") or {}).get("mean_abs_log_error")
    parts = [in_numbers(law), f"{law['n']} optima" if law.get("n") else None]
    parts.append(f"held-out error {off(error)}" if error is not None else None)
    return ", ".join(part for part in parts if part)


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) and value != int(value) or value >= 1e6 else f"{value:.0f}"
