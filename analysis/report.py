"""What `hyperlaw fit` prints: optima with their verdicts, laws with intervals and held-out errors, notes."""

import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.laws_io import clean
from analysis.predict import LEVEL, in_numbers, off, predictors, usable
from analysis.region import same
from analysis.style import short

WIDTH = 118  # characters
MOST_ROWS = 60  # optima printed; all are in laws.json
# Of what was constant, what a reader looks for first; the rest is counted, and stands in laws.json.
SHOWN = (
    "parameterization", "optimizer", "schedule", "data", "context", "params", "tokens", "tpp", "width", "depth",
    "batch_size", "batch_tokens", "lr", "tau", "weight_decay",
)  # fmt: skip


Tables = Mapping[str, pd.DataFrame]


def as_json(
    laws: Sequence[Mapping], optima: Sequence[Mapping], notes: Sequence[str] = (), tables: Tables | None = None
) -> dict:
    """The one object that `hyperlaw fit --json` prints: the entries of laws.json, the notes, and tables as lists of
    rows; numbers finite or null."""
    rows = {title: table.to_dict("records") for title, table in (tables or {}).items()}
    return clean({"laws": list(laws), "optima": list(optima), "notes": list(notes), "tables": rows})


def as_text(
    laws: Sequence[Mapping], optima: Sequence[Mapping], notes: Sequence[str] = (), tables: Tables | None = None
) -> str:
    """Optima by target, then laws, tables and notes, in lines of less than 120 characters."""
    parts = []
    for target in dict.fromkeys(optimum.get("target", "") for optimum in optima):
        parts.append(optima_table([optimum for optimum in optima if optimum.get("target", "") == target], target))
    parts += [law_lines(law) for law in laws]
    if not laws and (optima or not tables):  # tables alone are a result too: collapse, an audit
        wanted = ": a law needs interior optima at two scales or more" if optima else ""
        parts.append(f"no law{wanted}.")
    parts += [table_lines(title, table) for title, table in (tables or {}).items()]
    if notes:
        parts.append("\n".join(_wrap(f"- {note}") for note in dict.fromkeys(notes)))
    return "\n\n".join(parts)


def optima_table(optima: Sequence[Mapping], target: str) -> str:
    """One row an optimum: what tells it from the others, its value and interval, verdict, loss, number of runs."""
    columns = _telling([o.get("given") or {} for o in optima])
    held = _telling([o.get("held") or {} for o in optima])
    rows = [[*columns, *held, f"best {target}", _percent(optima), "verdict", "loss", "runs", ""]]
    for o in optima[:MOST_ROWS]:
        given = [_cell((o.get("given") or {}).get(c)) for c in columns] + [
            _cell((o.get("held") or {}).get(c)) for c in held
        ]
        ends = _ends(o)
        interior = o.get("verdict", "interior") == "interior"
        value = _cell(o.get("value")) if interior or o.get("value") is None else f"({_cell(o.get('value'))})"
        loss = "" if o.get("loss") is None else f"{o['loss']:.4f}"
        mark = "held out" if o.get("heldout") else ""
        rows.append([*given, value, ends if interior else "", o.get("verdict", ""), loss, _cell(o.get("n")), mark])
    constant = {**_constant([o.get("given") or {} for o in optima]), **_constant([o.get("held") or {} for o in optima])}
    lines = [_wrap("optima at " + _in_brief(constant))] if constant else []
    lines += [line[:WIDTH] for line in _aligned(rows)]
    if len(optima) > MOST_ROWS:
        lines.append(f"... and {len(optima) - MOST_ROWS} more in laws.json")
    used = sum(o.get("verdict", "interior") == "interior" for o in optima)
    if used < len(optima):
        lines.append(f"{used} of {len(optima)} are interior; the others enter no law (values in brackets).")
    return "\n".join(lines)


def table_lines(title: str, table: pd.DataFrame) -> str:
    """A table under its title, numbers in four digits, at most 60 rows."""
    rows = [list(map(str, table.columns))]
    rows += [["" if pd.isna(cell) else _cell(cell) for cell in row] for row in table.head(MOST_ROWS).itertuples(index=False)]
    lines = [_wrap(title), *(f"  {line}"[:WIDTH] for line in _aligned(rows))]
    if len(table) > MOST_ROWS:
        lines.append(f"  ... and {len(table) - MOST_ROWS} more rows (--json has all)")
    return "\n".join(lines)


def law_lines(law: Mapping) -> str:
    """A law in two or three lines: numbers with intervals, quality, what was constant."""
    name, unit = law["name"], f" ({law['unit']})" if law.get("unit") else ""
    if not usable(law) and "coefficient" in law["parameters"]:
        return _wrap(f"{name}: no law. " + " ".join(law.get("notes") or []))
    body = in_numbers(law) if usable(law) else law.get("form", "")
    level = law.get("level") or LEVEL
    shown = [*predictors(law), "coefficient"] if usable(law) else list(law["parameters"])
    values = [
        f"{symbol} {_cell(law['parameters'][symbol]['value'])} [{_ends(law['parameters'][symbol])}]" for symbol in shown
    ]
    quality = [f"{_outer(level)} intervals"]
    if law.get("r2") is not None:
        quality.append(f"R2 {law['r2']:.3f}")
    if law.get("n") is not None:
        quality.append(f"{law['n']} {law.get('counts', 'optima')}")
    held = law.get("heldout") or {}
    if held.get("mean_abs_log_error") is not None:
        which = "" if law["name"] in ("annealing", "multi_power") else " largest"  # runs, by name
        quality.append(f"held out ({held.get('n')}{which}): {off(held['mean_abs_log_error'])} off")
    if held.get("mean_excess_loss") is not None:
        quality.append(f"costing {held['mean_excess_loss']:.2g} nats")
    given = _in_brief(law.get("given") or {})
    lines = [f"{name} = {body}{unit}", "  " + ";  ".join(values), "  " + ", ".join(quality)]
    lines += [f"  for {given}"] if given else []
    lines += [f"  {kept} stands for {', '.join(names)} too" for kept, names in (law.get("behind") or {}).items()]
    return "\n".join(_wrap(line, "    ") for line in lines)


def _in_brief(constant: Mapping) -> str:
    """`parameterization mup, tau 0.5 and 14 more settings`; few settings are all said."""
    said = {k: v for k, v in constant.items() if v is not None and v != ""}
    shown = {k: said[k] for k in SHOWN if k in said} if len(said) > len(SHOWN) else said
    rest = f" and {len(said) - len(shown)} more settings (in laws.json)" if len(said) > len(shown) else ""
    return ", ".join(f"{k} {_cell(v)}" for k, v in shown.items()) + rest


def _telling(rows: Sequence[Mapping]) -> list[str]:
    """Columns that differ between rows."""
    columns = dict.fromkeys(key for row in rows for key in row)
    return [c for c in columns if any(not same(row.get(c), rows[0].get(c)) for row in rows)]


def _constant(rows: Sequence[Mapping]) -> dict:
    telling = set(_telling(rows))
    return {k: v for row in rows[:1] for k, v in row.items() if k not in telling and v is not None}


def _percent(optima: Sequence[Mapping]) -> str:
    return _outer(next((o["level"] for o in optima if o.get("level")), LEVEL))


def _outer(level: float) -> str:
    return f"{50 * (1 - level):.3g}-{50 * (1 + level):.3g} %"


def _ends(entry: Mapping) -> str:
    if entry.get("low") is None or entry.get("high") is None:
        return "unknown"
    return f"{_cell(entry['low'])} .. {_cell(entry['high'])}"


def _cell(value: object) -> str:
    if value is None or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return short(value) if not isinstance(value, float) or abs(value) >= 1000 else f"{value:.4g}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _wrap(line: str, indent: str = "  ") -> str:
    return "\n".join(textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False)) or line
