"""The words of a command line as keywords: `analysis=lr columns.params=N predictors=[tokens] 'where=params < 1e9'`.

Values follow Hydra's grammar (lists, numbers, null), except those that are taken as they stand: paths, `where`,
`columns.*` and run ids (a hash such as 4e10 is no number). Every key of an analysis may be written bare or as analysis.KEY.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis.errors import UserError, nearest

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "analysis"
PATHS = ("table", "runs", "wandb", "csv", "out", "laws")
RUN_IDS = ("fit_runs", "heldout_runs")
ID = re.compile(r"""\s*("[^"]*"|'[^']*'|[^,"'\[\]]*)\s*(?:,|$)""")
AS_THEY_STAND = ("where", "heldout", "published", *PATHS)


def parse(words: Iterable[str]) -> dict[str, Any]:
    """{key: value}, with `columns` gathered into one dict. Raises UserError for what is no KEY=VALUE or is given twice."""
    found: dict[str, Any] = {}
    columns: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        key = key.lstrip("+").removeprefix("analysis.")
        if not equals or not key:
            raise UserError(f"{word!r} is no KEY=VALUE.")
        target = columns if key.startswith("columns.") else found
        key = key.removeprefix("columns.")
        if key in target:
            raise UserError(f"{word!r}: {key} is given twice.")
        if not value and key in PATHS:
            raise UserError(f"{key}= is empty: give a path.")
        raw = target is columns or key in AS_THEY_STAND
        if target is found and key in RUN_IDS:
            target[key] = _ids(word, key, value)
            continue
        target[key] = _unquoted(value) if raw and key != "where" else value if raw else _value(word, key, value)
        if key == "heldout" and target is found:  # a share, or a condition as in where=
            target[key] = _share(value)
    if not isinstance(found.get("columns") or {}, dict):
        raise UserError(f"columns={found['columns']}: give columns.CANONICAL=THEIRS, such as columns.params=N.")
    if columns:
        found["columns"] = {**(found.get("columns") or {}), **columns}
    return found


def _share(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _ids(word: str, key: str, value: str) -> list[str] | None:
    """`[4e10,'a b',007]`, or one of them bare, as text."""
    value = value.strip()
    if value in ("null", ""):
        return None
    inside, spot, found = value[1:-1] if value[0] == "[" and value[-1] == "]" else value, 0, []
    while spot < len(inside):
        match = ID.match(inside, spot)
        if match is None:
            raise UserError(f"{word!r} is no list of run ids, such as {key}=[127,140].")
        found.append(_unquoted(match[1].strip()))
        spot = match.end()
    if inside == value and len(found) > 1:
        raise UserError(f"{word!r}: a list is written in brackets, {key}=[{value}].")
    if "" in found:
        raise UserError(f"{word!r} holds an empty run id.")
    return found


def choices() -> list[str]:
    """Names that `analysis=NAME` may take."""
    return sorted(p.stem for p in CONFIGS.glob("*.yaml"))


def options(name: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The analysis' defaults (configs/analysis/NAME.yaml) with `given` on top. Raises UserError for an unknown name."""
    if name is None or str(name) not in choices():
        listed = f"Choices: {', '.join(choices())}."
        raise UserError(f"analysis={name}: no such analysis{nearest(str(name), choices())}" if name is not None
                        else f"fit needs analysis=NAME. {listed}")  # fmt: skip
    return {**(OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"), resolve=True) or {}), **given}


def _value(word: str, key: str, value: str) -> Any:
    try:
        override = OverridesParser.create().parse_override(f"{key}={value}")
        if override.is_sweep_override():
            raise UserError(f"{word!r}: a list is written in brackets, {key}=[{value}].")
        parsed = override.value()
    except UserError:
        raise
    except (HydraException, ValueError, RecursionError):  # the latter two: too long a number, too deep a nesting
        shown = repr(word if len(word) <= 100 else f"{word[:100]}...")
        raise UserError(
            f"{shown} is no valid KEY=VALUE; text with spaces, quotes or other special characters is quoted twice, "
            f"'{key}=\"...\"'."
        ) from None
    try:
        return OmegaConf.to_container(OmegaConf.create({"v": parsed}))["v"]
    except (OmegaConfBaseException, OverflowError) as e:
        raise UserError(f"{word!r}: {str(e).splitlines()[0]}") from None


def _unquoted(value: str) -> str:
    """A value that a careful user quoted for Hydra keeps its meaning."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
