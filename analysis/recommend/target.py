"""The target of a recipe: what the user typed, checked, and what follows from it (size, shape, length, context)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from analysis.errors import UserError, nearest
from analysis.predict import predictors
from analysis.recommend.critical_law import sequence_tokens
from analysis.recommend.ladder import choose_shape, count_blocks
from analysis.recommend.recipe import NAMES
from analysis.recommend.trade import TOLD
from analysis.region import Region

SAME_SIZE = 0.05  # params as given, and as width and depth count
SAME_FLOPS = 2.0  # flops as given, against 6 N D: attention may be in them
SIZES = ("params", "width", "depth", "tokens", "tpp", "context", "flops")
TWICE = (
    ("tokens", "tpp"), ("tau", "weight_decay"), ("batch_size", "batch_tokens"), ("device_flops", "tokens_per_second"),
)  # fmt: skip


@dataclass
class Request:
    """numbers: the target; demands: what the user demands of `given`; told: machine and loss, for time against compute
    (trade.py); notes: lines for the reader."""

    numbers: dict[str, float]
    demands: dict[str, object]
    told: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def request(target: Mapping[str, object], laws: list[Mapping], level: float) -> Request:
    """Raises UserError for a key that nothing knows, a value that is impossible, or a target without size or length."""
    if not 0 < level < 1:
        raise UserError(f"level={level:g} must lie between 0 and 1, such as 0.8 for 10-90 %.")
    known = {key for law in laws for key in (law.get("given") or {})}
    columns = {column for law in laws for column in predictors(law)}
    numbers, demands, told = {}, {}, {}
    for key, value in target.items():
        if value is None:
            continue
        if key in (*TOLD, "loss"):
            told[key] = positive(key, value)
        size = key in SIZES or (key == "vocab" and key not in known)
        if size or key in NAMES or key in columns or key == "batch_tokens":
            numbers[key] = positive(key, value)
        elif key in known:
            demands[key] = value
        elif key not in told:
            hint = nearest(key, [*SIZES, "vocab", *NAMES, *TOLD, "loss", "batch_tokens", "level", *known])
            raise UserError(f"{key}={value}: neither a size, nor a hyper-parameter, nor a setting of these laws{hint}")
    for one, other in TWICE:
        both = {**numbers, **told}
        if one in both and other in both:
            raise UserError(f"{one}={both[one]:g} and {other}={both[other]:g} say the same: give one.")
    if "params" not in numbers and not {"width", "depth"} <= numbers.keys():
        raise UserError("the target needs a size: params=1e9, or model.width=W and model.depth=L.")
    if "tokens" not in numbers and "tpp" not in numbers:
        raise UserError("the target needs its training length: tokens=2e10.")
    return Request(numbers, demands, told)


def positive(key: str, value: object) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UserError(f"{key}={value} must be a number above 0.")
    if key in ("width", "depth", "devices") and number != int(number):
        raise UserError(f"{key}={value} must be a whole number.")
    if key == "batch_size" and number < 1:
        raise UserError(f"batch_size={value} must be at least 1 sequence.")
    return number


def complete(request: Request, regions: Mapping[str, Region], chosen: Mapping, count: Callable | None) -> None:
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
    batch = chosen.get("batch_size") or {}
    if batch.get("unit") != "tokens" and (length := sequence_tokens(batch) or 0) >= 1:
        numbers.setdefault("context", length)
    if "batch_tokens" in numbers and "context" in numbers:
        numbers["batch_size"] = numbers["batch_tokens"] / numbers["context"]
        if numbers["batch_size"] < 1:
            raise UserError(f"batch_tokens={numbers['batch_tokens']:g} is less than one sequence of {numbers['context']:g}.")
    _possible(numbers)
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


def _possible(numbers: Mapping[str, float]) -> None:
    """Raises UserError for flops that params and tokens contradict, and for a batch larger than the run."""
    params, tokens = numbers["params"], numbers["tokens"]
    if "flops" in numbers and not 1 / SAME_FLOPS <= numbers["flops"] / (6 * params * tokens) <= SAME_FLOPS:
        raise UserError(
            f"flops={numbers['flops']:g} contradicts params={params:g} and tokens={tokens:g}, which take about "
            f"{6 * params * tokens:.3g} (6 N D): leave flops out, or mend the others."
        )
    name = "batch_tokens" if "batch_size" not in numbers else "batch_size"
    batch = numbers.get(name, 0.0) * (numbers.get("context", 1.0) if name == "batch_size" else 1.0)
    if batch > tokens:
        raise UserError(
            f"a batch of {batch:.4g} tokens is larger than the run of tokens={tokens:.4g}, which would be less than one "
            "step: give a smaller batch or more tokens."
        )


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
