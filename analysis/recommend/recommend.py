"""From laws to the hyper-parameters of a run that nobody has tuned: `recommend(laws, target) -> Recipe`.

A Recipe is a dict of plain JSON:

    target, recipe    {NAME: {"value", "low", "high", "source"}} with prediction intervals, 10-90 % (recipe.py)
    derived           what follows: weight decay of a tau, LR of the hidden matrices, steps (adjusted.py)
    overrides         what to type after `hyperlaw train`
    extrapolation     how far it lies from what the laws saw; laws: those that it comes from; notes: lines for the reader
    comparison        which published laws say otherwise (disagree.py)
    penalty           what being wrong within the interval costs (penalty.py)
    allocation        the loss that a loss law predicts, and the N and D it would choose (trade.py)
    pareto            time against compute at that loss (pareto.py)

The last three are null or empty where a law is missing; a note says which fit gives it. `source` says where a value is
from: a law, the target (given), or what the laws held.
"""

import os
from collections.abc import Callable, Iterable, Mapping

from analysis import laws_io
from analysis.errors import UserError
from analysis.predict import LEVEL, usable
from analysis.recommend import loss_law
from analysis.recommend import target as targets
from analysis.recommend.adjusted import derived
from analysis.recommend.beyond import compare_with_held, extrapolation
from analysis.recommend.disagree import anchored, compare
from analysis.recommend.penalty import penalties
from analysis.recommend.published_laws import as_laws, named
from analysis.recommend.recipe import NAMES, overrides, resolve, settings
from analysis.recommend.target import Request
from analysis.recommend.text import as_table
from analysis.recommend.trade import machine, trade, under
from analysis.region import region, same

__all__ = ["as_table", "recommend"]
PORTABLE = {"tau", "batch_size"}  # not in units of base LR: their laws may serve another parameterization


def recommend(
    laws: Mapping | str | os.PathLike | None,
    target: Mapping[str, object],
    level: float = LEVEL,
    count: Callable[[int, int], float] | None = None,
    published: str | Iterable[str] | None = None,
) -> dict:
    """The Recipe of `target` under `laws` (what `laws_io.read` gives, or its folder; None: published laws alone).

    target: `params` or `width` and `depth` (or both); `tokens` or `tpp`; optionally `batch_size` (sequences) or
    `batch_tokens`, `lr`, `tau` or `weight_decay` to be taken as they are, `context`, and any column of the laws' `given`
    (parameterization="mup") that chooses among laws of one name; for time against compute `devices`, `tokens_per_second`
    (of a device, at the target's size or at `reference_params`) or `device_flops`, `device_batch` (tokens), `loss`.
    level: of the prediction intervals, or in `target`. count(width, depth) -> params of such a model; not given:
    12 * depth * width^2. published: names (published_laws.py) whose laws lead over those of the folder, the first
    named over the next.
    Raises UserError where the target is incomplete or impossible, or no law can serve it.
    """
    content, target = _content(laws, published), dict(target)
    level = targets.positive("level", target.pop("level", level))
    request, chosen = _chosen(content, target, level)
    regions = {name: region(law, content["optima"]) for name, law in chosen.items()}
    targets.complete(request, regions, chosen, count)
    found = resolve(chosen, regions, request, level)
    compare_with_held(chosen, regions, found.recipe, request.notes)
    beyond = extrapolation(chosen, regions, found.recipe, request)
    used = {name: law for name, law in chosen.items() if found.recipe.get(name, {}).get("source") == "law"}
    trained = settings(chosen, request)
    follows, lines = derived(found.recipe, found.draws, found.values, trained, level)
    request.notes += lines
    batch = follows.get("batch_tokens", {}).get("value")
    own = under(content["laws"], trained)
    lent = any(entry.name == "power_lines" for entry in content["sources"])
    allotted, front, more = trade(own, found.values, batch, request.told, level, lent, trained)
    request.notes += [*_too_large(batch, found.values["tokens"]), *_lacks_time(request.told)]
    follows |= _hours(request.told, found.values, follows)
    loss = loss_law.find(own)
    priced, unpriced = penalties(used, found.recipe, found.conditional, found.values, loss and loss_law.central(loss))
    return laws_io.clean(
        {
            "target": {**request.numbers, **request.told, **request.demands},
            "recipe": found.recipe,
            "derived": follows,
            "overrides": overrides(chosen, found.recipe, request),
            "notes": list(dict.fromkeys([*request.notes, *more, *unpriced])),
            "extrapolation": beyond,
            "laws": {name: _served(law) for name, law in used.items()},
            "level": level,
            "comparison": compare(content, chosen, found.recipe, follows, found.values),
            "penalty": priced,
            "allocation": allotted,
            "pareto": front,
        }
    )


def _content(laws: Mapping | str | os.PathLike | None, published: str | Iterable[str] | None) -> dict:
    """Laws and optima of the folder with those of the named published sources, the sources, and notes on them."""
    sources = named(published)
    if laws is None and not sources:
        raise UserError("recommend needs laws=DIR, or published=NAME.")
    read = {"laws": [], "optima": []} if laws is None else laws if isinstance(laws, Mapping) else laws_io.read(laws)
    lent, notes = _lent(sources, read)
    return {"laws": [*read["laws"], *lent], "optima": read.get("optima") or [], "sources": sources, "notes": notes}


def _chosen(content: Mapping, target: Mapping[str, object], level: float) -> tuple[Request, dict[str, Mapping]]:
    """The checked request, and the law that serves each hyper-parameter."""
    candidates = _candidates(content["laws"])
    if not candidates:
        others = ", ".join(sorted({law["name"] for law in content["laws"]})) or "none"
        raise UserError(
            f"no usable law of {', '.join(NAMES)} here (there is: {others}); run `hyperlaw fit analysis=lr`."
        )
    request = targets.request(target, candidates, level)
    request.notes += content["notes"]
    return request, _choose(candidates, request)


def _too_large(batch: float | None, tokens: float) -> list[str]:
    if not batch or batch <= tokens:
        return []
    return [
        f"the laws' batch of {batch:.4g} tokens is larger than the run ({tokens:.4g} tokens), which "
        "would be less than one step: the laws do not reach down here; give batch_size=."
    ]


def _hours(told: Mapping, values: Mapping, follows: Mapping) -> dict:
    """{"hours": ...} where the request tells of machines and the recipe has a batch."""
    if not _has_time(told) or "steps" not in follows:
        return {}
    seconds = machine(told, values).seconds(values["params"], follows["batch_tokens"]["value"], follows["steps"]["value"])
    return {"hours": {"value": seconds / 3600, "low": None, "high": None}}


def _lent(sources, content: Mapping) -> tuple[list[dict], list[str]]:
    """The laws of the named published sources, those without a constant anchored at the folder's optima; notes."""
    laws, notes = [], []
    for law in as_laws(sources):
        if law["parameters"]["coefficient"]["value"] is None:
            law, words = anchored(law, content, None)
            notes.append(f"the bjorck law: {words}.")
        if law is not None:
            laws.append(law)
    return laws, notes


def _candidates(laws: list[Mapping]) -> list[Mapping]:
    """Laws that a recipe can come from. A joint one-stage law serves where there is no other of its name, and stands in
    the comparison where there is."""
    known = [law for law in laws if law["name"] in NAMES and usable(law)]
    staged = {law["name"] for law in known if law.get("method") != "joint"}
    return [law for law in known if law.get("method") != "joint" or law["name"] not in staged]


def _has_time(told: Mapping) -> bool:
    return "devices" in told and ("tokens_per_second" in told or "device_flops" in told)


def _lacks_time(told: Mapping) -> list[str]:
    if "devices" in told and not _has_time(told):
        return ["hours: add tokens_per_second= (per device) or device_flops= for hours."]
    rated = "tokens_per_second" in told or "device_flops" in told
    return ["hours: add devices= for those of this recipe."] if rated and "devices" not in told else []


def _choose(laws: list[Mapping], request: Request) -> dict[str, Mapping]:
    """One law a name: the last that agrees with what the user demands, then with the law of lr (which leads); a published
    law, which is here only if the user named it, before those of the folder."""
    chosen: dict[str, Mapping] = {}
    implied: dict[str, object] = {}
    for name in ("lr", "tau", "weight_decay", "batch_size"):
        named = [law for law in laws if law["name"] == name]
        wanted = {**implied, **request.demands}
        admitted = [(i, law) for i, law in enumerate(named) if _admits(law, request, implied)]
        fitting = [(_rank(law, wanted, i), law) for i, law in admitted]
        if named and not fitting:
            offers = sorted({_words(law, wanted) for law in named})
            request.notes.append(f"no {name} law agrees with the rest of this recipe (there is {'; '.join(offers)}).")
        if fitting:
            law = chosen[name] = min(fitting, key=lambda entry: entry[0])[1]
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


def _rank(law: Mapping, wanted: Mapping[str, object], position: int) -> tuple:
    """Lowest first: what the user named, then the fewest conflicts, then the last."""
    return (0, 0, -position) if law.get("published") else (1, len(_conflicts(law, wanted)), -position)


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


def _served(law: Mapping) -> dict:
    keys = ("analysis", "name", "given", "form", "unit", "parameters", "r2", "n", "heldout", "behind", "curvature",
            "published", "equation", "memory")  # fmt: skip
    return {key: law[key] for key in keys if key in law}
