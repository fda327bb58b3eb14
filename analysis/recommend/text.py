"""A Recipe for the terminal, in sections of lines shorter than 118 characters."""

import textwrap
from collections.abc import Mapping, Sequence

from analysis.predict import LEVEL, in_numbers, off
from analysis.recommend.target import SIZES
from analysis.style import short

WIDTH = 116
UNITS = {"hours": "hours", "batch_tokens": "batch in tokens", "lr_adjusted": "LR of hidden matrices",
         "weight_decay": "weight decay (base)", "tau": "tau", "steps": "steps", "flops": "FLOPs"}  # fmt: skip


def as_table(recipe: Mapping) -> str:
    """Values with intervals and where they come from, what follows, what an error costs, published laws, time against
    compute, distances, notes, the command."""
    target = recipe["target"]
    sizes = [f"{key} {_number(target[key])}" for key in SIZES if target.get(key)]
    rate = target.get("tokens_per_second")
    sizes += [f"{key} {_number(target[key])}" for key in ("devices", "device_batch", "device_flops") if target.get(key)]
    sizes += [f"tokens_per_second {_number(rate)} per device"] if rate else []
    parts = [["target: " + ", ".join(sizes)], _values(recipe), _penalty(recipe), _comparison(recipe), _allocation(recipe)]
    parts += [_pareto(recipe.get("pareto")), _beyond(recipe), [line for note in recipe["notes"] for line in _note(note)]]
    parts = [[each for line in lines for each in _folded(line)] for lines in parts]
    command = " ".join(["hyperlaw train", *recipe["overrides"]])
    parts += [[" \\\n    ".join(textwrap.wrap(command, 108, break_on_hyphens=False, break_long_words=False))]]
    parts += [[f"wrote {file}" for file in recipe["files"]]] if recipe.get("files") else []
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _values(recipe: Mapping) -> list[str]:
    level = recipe.get("level", LEVEL)
    rows = [("", "value", f"{50 * (1 - level):.3g}-{50 * (1 + level):.3g} %", "from")]
    for name, entry in recipe["recipe"].items():
        fixed = entry["source"] != "law" or None in (entry["low"], entry["high"])
        ends = "" if fixed else f"{_number(entry['low'])} .. {_number(entry['high'])}"
        rows.append((name, _number(entry["value"]), ends, _origin(entry, recipe["laws"].get(name))))
        if entry.get("conditional"):
            known = entry["conditional"]
            rows.append(("", "", f"{_number(known['low'])} .. {_number(known['high'])}", f"at this {known['on']}"))
    for name, entry in (recipe.get("derived") or {}).items():
        if entry.get("value") is not None and name in UNITS:
            sure = None in (entry["low"], entry["high"]) or entry["low"] == entry["high"]
            ends = "" if sure else f"{_number(entry['low'])} .. {_number(entry['high'])}"
            rows.append((f"= {UNITS[name]}", _number(entry["value"]), ends, "follows"))
    return _aligned(rows)


def _penalty(recipe: Mapping) -> list[str]:
    if not recipe.get("penalty"):
        return []
    rows = [("optimum lies", "at the low end", "at the high end", "within, on average")]
    for name, entry in recipe["penalty"].items():
        cells = []
        for key in ("low", "high", "mean"):
            bought = (entry["compute"] or {}).get(key)
            cells.append(f"{entry[key]:.2g} nats" + (f" = {_percent(bought)} FLOPs" if bought is not None else ""))
        rows.append((name, *cells))
    return ["cost of being wrong", *_aligned(rows)]


def _comparison(recipe: Mapping) -> list[str]:
    rows = recipe.get("comparison") or []
    if not rows:
        return []
    cells = [("", "says", "here", "ratio", "in interval")]
    words = {True: "inside", False: "OUTSIDE", None: "-"}
    table = []
    for row in rows:
        value = "-" if row["value"] is None else _number(row["value"])
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        cells.append((f"{row['name']}: {row['against']}", value, _number(row["recipe"]), ratio, words[row["inside"]]))
    for line, row in zip(_aligned(cells), [None, *rows], strict=True):
        table.append(line)
        if row and row["caveats"]:
            table += textwrap.wrap("; ".join(row["caveats"]), WIDTH, initial_indent="    ", subsequent_indent="    ")
    return ["against published laws", *table]


def _allocation(recipe: Mapping) -> list[str]:
    found = recipe.get("allocation")
    if not found:
        return []

    def said(key: str, form) -> str:
        entry = found[key]
        ends = "" if entry["low"] is None else f" [{form(entry['low'])} .. {form(entry['high'])}]"
        return f"{form(entry['value'])}{ends}"

    nats = "{:.4f}".format
    first = [f"predicted loss {said('loss', nats)}, at batches well below the critical one"]
    if found.get("loss_at_batch"):
        crowded = f"(batch / critical batch {found['batch_over_critical']:.2g})"
        first.append(f"  {said('loss_at_batch', nats)} at this batch {crowded}")
    return [
        *first,
        f"at its {found['flops']:.3g} FLOPs the loss law would take",
        f"  N {said('params', short)}, D {said('tokens', short)}, {said('tpp', '{:.3g}'.format)} tokens per parameter",
        f"  for {said('best_loss', nats)} ({found['excess_loss']['value']:.2g} nats less)",
    ]


def _pareto(found: Mapping | None) -> list[str]:
    if not found:
        return []
    unit = "hours" if found["machine"]["time_unit"] == "seconds" else "time"
    scale = 3600.0 if unit == "hours" else 1.0
    rows = [("", "params", "tokens", "tpp", "batch", "tokens a step", "steps", "devices", "FLOPs", unit)]
    rows += [("", *_run(row, scale)) for row in found["front"]]
    own = found.get("target")
    if own:
        rows.append(("target", *_run(own, scale)))
    title = f"time against compute at loss {found['loss']:.4f}: N, D and batch that no other beats in both"
    lines = [title, *_aligned(rows)]
    if own and own["dominated"]:
        lines.append(
            f"the target takes {_percent(own['excess_time'])} more time than the fastest of its compute, or "
            f"{_percent(own['excess_compute'])} more compute than the cheapest in its time"
        )
    elif own:
        lines.append("the target lies on the front")
    if unit == "time":
        unit = found["machine"]["time_unit"]
        lines.append(f"time in {unit}, one after the other; devices= and device_flops= (per device) give hours")
    return lines


def _run(row: Mapping, scale: float) -> tuple[str, ...]:
    plain = (short(row["params"]), short(row["tokens"]), f"{row['tpp']:.3g}", f"{row['batch_size']:.4g}")
    more = (short(row["batch_tokens"]), f"{row['steps']:.4g}", f"{row['devices']:.4g}", f"{row['flops']:.3g}")
    return (*plain, *more, f"{row['time'] / scale:.3g}")


def _beyond(recipe: Mapping) -> list[str]:
    beyond = {axis: entry for axis, entry in recipe["extrapolation"].items() if entry["decades"]}
    if beyond:
        far = ", ".join(f"{axis} {entry['decades']:.2f}" for axis, entry in beyond.items())
        return [f"beyond the laws by (decades): {far}"]
    return ["inside the region that the laws saw"] if recipe["extrapolation"] else []


def _folded(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent="    ") if len(line) > WIDTH else [line]


def _note(note: str) -> list[str]:
    return textwrap.wrap(note, 110, initial_indent="- ", subsequent_indent="  ")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()[:WIDTH] for row in rows]


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 10 else f"{share + 1:.3g}x"


def _origin(entry: Mapping, law: Mapping | None) -> str:
    if law is None:
        return {"given": "the target", "held": "held by the laws"}[entry["source"]]
    error = (law.get("heldout") or {}).get("mean_abs_log_error")
    parts = [in_numbers(law), f"{law['n']} optima" if law.get("n") else law.get("published")]
    parts.append(f"held out {off(error)} off" if error is not None else None)
    return ", ".join(part for part in parts if part)


def _number(value: float) -> str:
    if isinstance(value, float) and (value != int(value) if abs(value) < 1e15 else True) or value >= 1e6:
        return f"{value:.4g}"
    return f"{value:.0f}"
