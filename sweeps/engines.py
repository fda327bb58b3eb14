"""The engines by name, which keys of `launcher.` each has, and what of them cannot be."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields
from importlib import import_module

from harness.config import Config, LauncherConfig
from harness.errors import UserError

MODULES = {"local": "sweeps.local", "slurm": "sweeps.slurm", "ray": "sweeps.ray"}
# Keys that not every engine has.
KEYS = {
    "local": (),
    "slurm": ("gpus", "cpus", "points_per_job", "max_running", "partition", "account", "qos", "time", "memory",
              "signal_seconds", "setup", "sbatch"),
    "ray": ("gpus", "cpus", "address"),
}  # fmt: skip
COMPILE = ("auto", "always", "never")
PARALLEL = ("ddp", "fsdp")


def engine(name: str):
    """The module of an engine: `run` (sweeps.jobs.Launcher) and, but for local, `check(config)`."""
    return import_module(MODULES[name])


def trains_here(launcher: LauncherConfig) -> bool:
    """Whether points train on this machine and no other."""
    return launcher.name == "local" or (launcher.name == "ray" and launcher.address is None)


def engine_settings(launcher: LauncherConfig) -> dict:
    """The values of the keys that not every engine has, and how many workers were asked for (null: as many as fit)."""
    return {key: getattr(launcher, key) for key in ("workers", *KEYS[launcher.name])}


def check_engine(config: Config) -> None:
    """Raises UserError where the engine cannot do its work here: package or program missing, keys that cannot be."""
    module = engine(config.launcher.name)
    if hasattr(module, "check"):
        module.check(config)


def check_launcher(launcher: LauncherConfig) -> None:
    """Raises UserError for an unknown engine, another engine's key, and values that cannot be."""
    if launcher.name not in MODULES:
        raise UserError(f"launcher={launcher.name} is not known; there are {', '.join(MODULES)}.")
    for f in fields(LauncherConfig):
        owners = [name for name, keys in KEYS.items() if f.name in keys]
        default = f.default_factory() if f.default is MISSING else f.default
        if owners and launcher.name not in owners and getattr(launcher, f.name) != default:
            names = " or ".join(f"launcher={name}" for name in owners)
            raise UserError(f"launcher.{f.name} belongs to {names}, but this is launcher={launcher.name}.")
    for key, names in (("compile", COMPILE), ("parallel", PARALLEL)):
        if getattr(launcher, key) not in names:
            raise UserError(f"launcher.{key}={getattr(launcher, key)} is not one of {', '.join(names)}.")
    least = {"workers": 1, "threads": 1, "points_per_device": 1, "devices_per_point": 1, "max_attempts": 1, "cpus": 1,
             "points_per_job": 1, "max_running": 1, "gpus": 0, "signal_seconds": 1}  # fmt: skip
    for key, low in least.items():
        value = getattr(launcher, key)
        if value is not None and value < low:
            raise UserError(f"launcher.{key}={value} must be at least {low}.")
    limit = launcher.point_seconds
    if limit is not None and not 0 < limit < math.inf:
        raise UserError(f"launcher.point_seconds={limit:g} must be positive and finite; null is no limit.")
    if launcher.devices_per_point > 1 and launcher.points_per_device > 1:
        raise UserError("launcher.devices_per_point and launcher.points_per_device cannot both exceed 1.")
