"""Hydra composes the groups once per command; the typed schema checks every key and value before anything starts.

    overrides -> compose() -> Request(config, axes, ...) -> request.with_values({...}) -> Config -> resolve() -> Point

Layers, the later displacing the earlier side of a relation (resolve.RELATIONS): defaults, sweep file, command line.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.compose_errors import hydra_cause, plain_errors
from harness.config import Config
from harness.errors import UserError
from harness.groups import (
    CONFIGS,
    GROUPS,
    OPEN,
    check_names,
    choices,
    group_file,
    known_keys,
    load,
    nearest,
    sweep_file_keys,
    unknown,
)
from harness.layers import OTHER, displace, owner_of, shallow, yield_defaults
from harness.overrides import RANGE, shown, split_axes
from harness.redact import secrets

__all__ = ["CONFIGS", "RANGE", "Request", "choices", "compose", "known_keys"]


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
        with plain_errors(key):
            if OmegaConf.select(tree, key, default=_ABSENT) is _ABSENT:
                raise UserError(unknown(key))
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
        with plain_errors(group):
            tree[group] = OmegaConf.merge(tree[group], load(group_file(group, name, self.config_dir)))
            for key in given:
                OmegaConf.update(tree, key, OmegaConf.select(self._tree, key))
            displace(tree, {k for k in given if OmegaConf.select(tree, k) is not None}, "the request")
            _no_secrets(tree[group], f"{group}.")
            return OmegaConf.to_object(tree[group])

    def with_values(self, values: dict[str, Any]) -> Config:
        """The base config with typed `values` set; each displaces the other side of its relation. Groups come first, so
        that `schedule` with `schedule.warmup` means: that schedule, then that warm-up."""
        config = shallow(self.config)
        for key in sorted(values, key=lambda k: k not in GROUPS):
            owner, name = owner_of(config, key)
            value = values[key]
            setattr(owner, name, copy.copy(value) if key in GROUPS else value)
            if key in GROUPS:
                yield_defaults(config, key)
            other = OTHER.get(key)
            if other and other not in values and value is not None:
                owner, name = owner_of(config, other)
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
    file_given = sweep_file_keys(fixed, config_dir)
    with plain_errors("config"):
        displace(tree, given, f"`hyperlaw {command}`")
        displace(tree, file_given, "the sweep file", above=given)
        _no_secrets(tree)
        config = OmegaConf.to_object(tree)
    return Request(config, axes, frozenset(given), frozenset(file_given), config_dir, tree)


def _compose_tree(fixed: list[str], config_dir: Path | None) -> DictConfig:
    check_names(fixed, config_dir)
    ConfigStore.instance().store(name="schema", node=Config)
    search = [f"hydra.searchpath=[file://{config_dir}]"] if config_dir else []
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return hydra_compose("config", overrides=search + [_opened(text) for text in fixed])
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, AttributeError, ArithmeticError) as e:
        raise UserError(hydra_cause(e)) from None  # an odd file makes Hydra fail in many ways


def _opened(text: str) -> str:
    """Any key may be put into `OPEN`."""
    return f"++{text.lstrip('+')}" if text.lstrip("+").startswith((f"{OPEN}.", f"{OPEN}=")) else text


def _no_secrets(tree: DictConfig, prefix: str = "") -> None:
    """Raises UserError where `${oc.env:...}` of a config file fetched a secret: it would be written down with the rest."""

    def walk(raw: Any, found: Any, key: str) -> None:
        if isinstance(raw, str):
            if "${" in raw and any(secret in str(found) for secret in secrets()):
                raise UserError(f"{key}={shown(raw)} fetches a secret, and configs are written down; leave it to the tool "
                                "that needs it, which reads the environment itself.")  # fmt: skip
        elif isinstance(raw, dict | list):
            for k, child in raw.items() if isinstance(raw, dict) else enumerate(raw):
                walk(child, found[k], f"{key}.{k}" if key else str(k))

    raw = OmegaConf.to_container(tree, resolve=False)
    if "${" in str(raw):
        walk(raw, OmegaConf.to_container(tree, resolve=True), prefix.rstrip("."))
