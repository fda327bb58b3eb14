"""Hydra composes the groups once per command; the typed schema checks every key and value before anything starts.

    overrides -> compose() -> Request(config, axes, ...) -> request.with_values({...}) -> Config -> resolve() -> Point

Layers, the later displacing the earlier side of a relation (resolve.RELATIONS): defaults, sweep file, command line.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import itertools
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config import Config
from harness.errors import UserError
from harness.redact import secrets
from harness.resolve import RELATIONS
from harness.untrusted import check_yaml

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GROUPS = ("model", "parameterization", "optimizer", "schedule", "data", "sweep", "launcher", "tracking")
# "key=log2(-10, -5, 6)" is ours, not Hydra's grammar: taken out before Hydra parses the rest.
RANGE = re.compile(r"^\s*(log2|log10|geom|linear)\s*\(.*\)\s*$")
KEY = re.compile(r"[A-Za-z_][\w.@/]*", re.ASCII)
OTHER = {a: b for pair in RELATIONS for a, b in (pair, pair[::-1])}
PATHS = ("out", "runs", "cache", "data.path", "data.tokenizer")  # taken as they stand where Hydra's grammar ends
MAX_VALUES = 10_000
OPEN = "launcher.sbatch"  # holds keys that are not ours


@dataclass
class Request:
    """What a command line (and sweep file) asks for: a base config, the axes typed on the command line, and which keys
    were given where (a default yields to a given side of a relation; two given sides are an error)."""

    config: Config
    axes: dict[str, list | str] = field(default_factory=dict)
    command_given: frozenset[str] = frozenset()
    file_given: frozenset[str] = frozenset()
    config_dir: Path | None = None
    _tree: DictConfig | None = None
    _typed: dict = field(default_factory=dict)
    _scratch: DictConfig | None = None  # a copy of the tree, but for numbers

    def typed(self, key: str, value: Any) -> Any:
        """`value` as the schema's type for `key`; for a group (`parameterization`) the named choice's config object.

        Raises UserError for an unknown key or an ill-typed value.
        """
        cached = self._typed.get((key, repr(value)))
        if cached is None:
            cached = self._typed[(key, repr(value))] = (self._type(key, value),)
        return cached[0]

    def _type(self, key: str, value: Any) -> Any:
        if key in GROUPS:
            if key == "sweep":
                raise UserError("sweep is no axis: a sweep file cannot sweep over sweeps.")
            return self._group(key, str(value))
        number = isinstance(value, int | float)
        if not number or self._scratch is None:
            self._scratch = copy.deepcopy(self._tree)  # slow, and a number changes nothing but its own leaf
        tree, self._scratch = self._scratch, None
        with _plain_errors(key):
            if OmegaConf.select(tree, key, default=_ABSENT) is _ABSENT:
                raise UserError(_unknown(key))
            OmegaConf.update(tree, key, value)
            found = OmegaConf.select(tree, key)
        self._scratch = tree if number else None
        return OmegaConf.to_object(found) if OmegaConf.is_config(found) else found

    def _group(self, group: str, name: str) -> Any:
        """The choice `name` of `group`, with what the sweep file and the command line set inside that group."""
        names = choices(group, self.config_dir)
        if name not in names:
            raise UserError(f"{group}={name}: no such {group}.{nearest(name, names)} Choices: {', '.join(names)}.")
        tree = OmegaConf.structured(Config)
        given = {k for k in self.command_given | self.file_given if k.startswith(f"{group}.")}
        with _plain_errors(group):
            tree[group] = OmegaConf.merge(tree[group], _load(_group_file(group, name, self.config_dir)))
            for key in given:
                OmegaConf.update(tree, key, OmegaConf.select(self._tree, key))
            _displace(tree, {k for k in given if OmegaConf.select(tree, k) is not None}, "the request")
            _no_secrets(tree[group], f"{group}.")
            return OmegaConf.to_object(tree[group])

    def with_values(self, values: dict[str, Any]) -> Config:
        """The base config with typed `values` set; each displaces the other side of its relation. Groups come first, so
        that `schedule` with `schedule.warmup` means: that schedule, then that warm-up."""
        config = _shallow(self.config)
        for key in sorted(values, key=lambda k: k not in GROUPS):
            owner, name = _owner(config, key)
            value = values[key]
            setattr(owner, name, copy.copy(value) if key in GROUPS else value)
            if key in GROUPS:
                _yield_defaults(config, key)
            other = _other(key)
            if other and other not in values and value is not None:
                owner, name = _owner(config, other)
                setattr(owner, name, None)
        return config


class _Absent:
    pass


_ABSENT = _Absent()


def compose(overrides: list[str], command: str = "train", config_dir: str | Path | None = None) -> Request:
    """Compose the groups with `overrides` (Hydra's grammar).

    Comma lists and ranges become `Request.axes` where `command` is sweep, status or check; elsewhere they are an error.
    Raises UserError for unknown groups, keys and choices (with the nearest valid name), ill-typed values, and relations
    of which both sides are given in one layer.
    """
    if config_dir and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir}: no such folder; sweeps of your own lie in DIR/sweep/NAME.yaml.")
    fixed, axes = split_axes(overrides)
    if axes and command not in ("sweep", "status", "check"):
        key = next(iter(axes))
        raise UserError(f"{key} is given a list, but `hyperlaw {command}` takes one value; lists are for `hyperlaw sweep`.")
    config_dir = Path(config_dir).resolve() if config_dir else None
    given = {k.lstrip("+~") for k in (o.split("=", 1)[0] for o in fixed)}
    tree = _compose_tree(fixed, config_dir)
    file_given = _sweep_file_keys(fixed, config_dir)
    with _plain_errors("config"):
        _displace(tree, given, f"`hyperlaw {command}`")
        _displace(tree, file_given, "the sweep file", above=given)
        _no_secrets(tree)
        config = OmegaConf.to_object(tree)
    return Request(config, axes, frozenset(given), frozenset(file_given), config_dir, tree)


def choices(group: str, config_dir: Path | None = None) -> list[str]:
    """Names that `group=NAME` may take."""
    folders = [CONFIGS / group] + ([config_dir / group] if config_dir else [])
    return sorted({p.stem for folder in folders if folder.is_dir() for p in folder.glob("*.yaml")})


def nearest(name: str, names: list[str]) -> str:
    """' Did you mean NAME?' or ''."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean {found[0]}?" if found else ""


@cache
def known_keys() -> tuple[str, ...]:
    """Every dotted key of the schema."""

    def walk(tree: DictConfig, prefix: str) -> list[str]:
        keys = []
        for k in tree:
            node = tree._get_node(k)
            keys += walk(node, f"{prefix}{k}.") if isinstance(node, DictConfig) and not node._is_none() else []
            keys.append(f"{prefix}{k}")
        return keys

    return tuple(walk(OmegaConf.structured(Config), ""))


def split_axes(overrides: list[str]) -> tuple[list[str], dict[str, list | str]]:
    """(overrides with one value, {key: list or range}). Raises UserError where the grammar is broken."""
    fixed, axes = [], {}
    for text in (o.lstrip("+") for o in overrides):  # every key is in the schema, so `+` adds nothing
        key, equals, value = text.partition("=")
        if key in axes:
            raise UserError(f"{key} is given twice; put all its values into one list.")
        if equals and RANGE.match(value):
            axes[key] = value.strip()
            continue
        text, override = _parsed(text)
        if override.is_delete():
            raise UserError(f"{text!r}: keys are not deleted; set {key.lstrip('~')}=null to leave it to its default rule.")
        if override.key_or_group == "sweep.axes" or override.key_or_group.startswith(("sweep.axes.", "sweep.zip.")):
            axis = "".join(override.key_or_group.split(".", 2)[2:]) or "KEY"
            raise UserError(f"{text!r}: an axis is a comma list, {axis}=V1,V2,V3 or {axis}=log2(a,b,n), or in a sweep file.")
        if override.key_or_group.split(".")[0] == "hydra":
            raise UserError(f"{text!r}: Hydra's own settings are not taken here; use `--config-dir DIR` for more configs.")
        if override.is_sweep_override():
            axes[override.key_or_group] = _listed(text, override)
        else:
            fixed.append(text)
    if both := [text for text in fixed if text.partition("=")[0] in axes]:
        raise UserError(f"{both[0]} and a list of values for the same key; keep one.")
    return fixed, axes


def _parsed(text: str) -> tuple[str, Override]:
    """(the override as Hydra takes it, parsed); a path that Hydra cannot read unquoted (`data.path=/a(b`) is quoted."""
    key, equals, value = text.partition("=")
    if not equals and not text.startswith("~"):
        raise UserError(f"{_shown(text)} is no KEY=VALUE, such as model.width=128.")
    if not KEY.fullmatch(key.lstrip("~")):
        raise UserError(f"{_shown(text)} is no valid KEY=VALUE: {key!r} is no key, such as model.width.")
    tried = [text]
    if key in PATHS and value:
        tried.append(f"{key}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'")
    for attempt in tried:
        # Too deep a nesting and too long a number escape Hydra's own errors.
        with contextlib.suppress(HydraException, ValueError, RecursionError):
            return attempt, OverridesParser.create().parse_override(attempt)
    raise UserError(
        f"{_shown(text)} is no valid KEY=VALUE. A list is V1,V2,V3 or [V1,V2,V3] without an empty place; text with spaces, "
        f"quotes or other special characters is quoted twice, '{key}=\"...\"'."
    )


def _listed(text: str, override: Override) -> list:
    """The values of a comma list, `choice(...)` or `range(...)`."""
    try:
        found = list(itertools.islice(override.sweep_iterator(), MAX_VALUES + 1))
    except HydraException:
        raise UserError(f"{_shown(text)}: an axis is a comma list, V1,V2,V3, or log2(a,b,n) and its like.") from None
    if not 1 <= len(found) <= MAX_VALUES:
        raise UserError(f"{_shown(text)}: an axis has from 1 to {MAX_VALUES} values.")
    return [_number(v.text if isinstance(v, QuotedString) else v) for v in found]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}...")


def _number(text: Any) -> Any:
    """Hydra's sweep iterator gives strings; numbers, booleans and null come back as such."""
    if not isinstance(text, str):
        return text
    value = OmegaConf.create(f"v: {text}")["v"] if re.fullmatch(r"[\w.+\-]+", text) else text
    return value


def _compose_tree(fixed: list[str], config_dir: Path | None) -> DictConfig:
    _check_names(fixed, config_dir)
    ConfigStore.instance().store(name="schema", node=Config)
    search = [f"hydra.searchpath=[file://{config_dir}]"] if config_dir else []
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return hydra_compose("config", overrides=search + [_opened(text) for text in fixed])
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, AttributeError, ArithmeticError) as e:
        raise UserError(_cause(e)) from None  # an odd file makes Hydra fail in many ways


def _check_names(fixed: list[str], config_dir: Path | None) -> None:
    """Unknown keys and choices, named before Hydra stumbles over them."""
    for text in fixed:
        key, _, value = text.partition("=")
        key = key.lstrip("+~")
        if key in GROUPS:
            names = choices(key, config_dir)
            if value not in names:
                raise UserError(f"{key}={value}: no such {key}.{nearest(value, names)} Choices: {', '.join(names)}.")
            _load(_group_file(key, value, config_dir))
        elif key not in known_keys() and not key.startswith(f"{OPEN}."):
            raise UserError(_unknown(key))


def _opened(text: str) -> str:
    """Any key may be put into `OPEN`."""
    return f"++{text.lstrip('+')}" if text.lstrip("+").startswith((f"{OPEN}.", f"{OPEN}=")) else text


def _unknown(key: str) -> str:
    return f"{key}: no such key.{nearest(key, list(known_keys()))}"


def _sweep_file_keys(fixed: list[str], config_dir: Path | None) -> set[str]:
    """Dotted keys that the sweep file itself sets."""
    names = [o.partition("=")[2] for o in fixed if o.partition("=")[0] == "sweep"]
    if not names:
        return set()
    tree = OmegaConf.to_container(_load(_group_file("sweep", names[-1], config_dir)), resolve=False)

    def walk(node: dict, prefix: str) -> set[str]:
        keys = set()
        for k, v in node.items():
            keys |= walk(v, f"{prefix}{k}.") if isinstance(v, dict) else ({f"{prefix}{k}"} if v is not None else set())
        return keys

    return walk({k: v for k, v in tree.items() if k not in ("defaults", "sweep")}, "")


def _group_file(group: str, name: str, config_dir: Path | None) -> Path:
    mine = (config_dir / group / f"{name}.yaml") if config_dir else None
    return mine if mine and mine.is_file() else CONFIGS / group / f"{name}.yaml"


def _load(path: Path) -> DictConfig:
    """The mapping in a YAML file. Raises UserError with the line where it is none."""
    try:
        check_yaml(path)
        tree = OmegaConf.load(path)
    except yaml.MarkedYAMLError as e:
        line = f", line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise UserError(f"{path}{line}: no valid YAML: {e.problem or e.context}.") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as e:
        raise UserError(f"{path} cannot be read: {_first_line(e)}.") from None
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path}: KEY: VALUE lines are expected.")
    return tree


def _no_secrets(tree: DictConfig, prefix: str = "") -> None:
    """Raises UserError where `${oc.env:...}` of a config file fetched a secret: it would be written down with the rest."""

    def walk(raw: Any, found: Any, key: str) -> None:
        if isinstance(raw, str):
            if "${" in raw and any(secret in str(found) for secret in secrets()):
                raise UserError(f"{key}={_shown(raw)} fetches a secret, and configs are written down; leave it to the tool "
                                "that needs it, which reads the environment itself.")  # fmt: skip
        elif isinstance(raw, dict | list):
            for k, child in raw.items() if isinstance(raw, dict) else enumerate(raw):
                walk(child, found[k], f"{key}.{k}" if key else str(k))

    raw = OmegaConf.to_container(tree, resolve=False)
    if "${" in str(raw):
        walk(raw, OmegaConf.to_container(tree, resolve=True), prefix.rstrip("."))


def _displace(tree: DictConfig, given: set[str], where: str, above: set[str] = frozenset()) -> None:
    """Null the other side of every relation that `given` decides; `above` are keys that a later layer gave."""
    for a, b in RELATIONS:
        sides = [k for k in (a, b) if k in given and OmegaConf.select(tree, k) is not None]
        if above & {a, b}:
            continue
        if len(sides) == 2:
            raise UserError(f"{where} gives both {a} and {b}, which say the same thing; give one of them.")
        if sides:
            OmegaConf.update(tree, b if sides[0] == a else a, None)


def _other(key: str) -> str | None:
    return OTHER.get(key)


def _yield_defaults(config: Config, group: str) -> None:
    """A fresh group brings its defaults; one whose other side lies outside the group and is set yields to it."""
    for inside, outside in (*RELATIONS, *((b, a) for a, b in RELATIONS)):
        if inside.startswith(f"{group}.") and not outside.startswith(f"{group}."):
            owner, name = _owner(config, outside)
            if getattr(owner, name) is not None:
                owner, name = _owner(config, inside)
                setattr(owner, name, None)


def _owner(config: Config, key: str) -> tuple[Any, str]:
    node = config
    *path, name = key.split(".")
    for part in path:
        node = getattr(node, part)
    return node, name


def _shallow(config: Config) -> Config:
    """A copy whose groups are copies too; lists and dictionaries inside are shared and never changed."""
    new = _twin(config)
    for group in (*GROUPS, "validation"):
        setattr(new, group, _twin(getattr(config, group)))
    return new


def _twin(config: Any) -> Any:
    """copy.copy of a plain object, several times as fast: sweeps have 10,000 points."""
    new = object.__new__(type(config))
    new.__dict__.update(config.__dict__)
    return new


def _cause(e: Exception) -> str:
    """Hydra's line and, where it has one, OmegaConf's line behind it, which names the key and the value."""
    cause = e.__cause__ if isinstance(e.__cause__, OmegaConfBaseException) else e
    return _first_line(cause) if isinstance(cause, HydraException) else _ill_typed(cause, "config")


def _ill_typed(e: Exception, key: str) -> str:
    """`model.width=abc must be a whole number.`"""
    full = re.search(r"full_key: (\S+)", str(e))
    full = getattr(e, "full_key", None) or (full[1] if full else key)
    if isinstance(e, OverflowError):
        return f"{full}: the number is too large."
    if found := re.match(r"Value '(.*)' of type '\w+' could not be converted to (Integer|Float)$", _first_line(e)):
        kind = "whole number, in digits (1000, not 1e3)" if found[2] == "Integer" else "number"
        return f"{full}={found[1]} must be a {kind}."
    if found := re.match(r"Value '(.*)' is not a valid bool", _first_line(e)):
        return f"{full}={found[1]} must be true or false."
    return f"{full}: {_first_line(e)}"


def _first_line(e: Exception) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return lines[0] if lines else type(e).__name__


@contextlib.contextmanager
def _plain_errors(key: str):
    """OmegaConf's errors as one line that names the key."""
    try:
        yield
    except (OmegaConfBaseException, OverflowError) as e:
        raise UserError(_ill_typed(e, key)) from None
