"""The config groups, their files and the keys of the schema; what is unknown is named with the nearest that is."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.compose_errors import first_line
from harness.config import Config
from harness.errors import UserError
from harness.untrusted import check_yaml

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GROUPS = ("model", "parameterization", "optimizer", "schedule", "data", "sweep", "launcher", "tracking")
OPEN = "launcher.sbatch"  # holds keys that are not ours


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


def unknown(key: str) -> str:
    """What a UserError says of a key that the schema lacks."""
    return f"{key}: no such key.{nearest(key, list(known_keys()))}"


def check_names(fixed: list[str], config_dir: Path | None) -> None:
    """Unknown keys and choices, named before Hydra stumbles over them."""
    for text in fixed:
        key, _, value = text.partition("=")
        key = key.lstrip("+~")
        if key in GROUPS:
            names = choices(key, config_dir)
            if value not in names:
                raise UserError(f"{key}={value}: no such {key}.{nearest(value, names)} Choices: {', '.join(names)}.")
            load(group_file(key, value, config_dir))
        elif key not in known_keys() and not key.startswith(f"{OPEN}."):
            raise UserError(unknown(key))


def group_file(group: str, name: str, config_dir: Path | None) -> Path:
    """Where the choice `name` is written down; a folder of the user's own comes first."""
    mine = (config_dir / group / f"{name}.yaml") if config_dir else None
    return mine if mine and mine.is_file() else CONFIGS / group / f"{name}.yaml"


def load(path: Path) -> DictConfig:
    """The mapping in a YAML file. Raises UserError with the line where it is none."""
    try:
        check_yaml(path)
        tree = OmegaConf.load(path)
    except yaml.MarkedYAMLError as e:
        line = f", line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise UserError(f"{path}{line}: no valid YAML: {e.problem or e.context}.") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as e:
        raise UserError(f"{path} cannot be read: {first_line(e)}.") from None
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path}: KEY: VALUE lines are expected.")
    return tree


def sweep_file_keys(fixed: list[str], config_dir: Path | None) -> set[str]:
    """Dotted keys that the sweep file itself sets."""
    names = [o.partition("=")[2] for o in fixed if o.partition("=")[0] == "sweep"]
    if not names:
        return set()
    tree = OmegaConf.to_container(load(group_file("sweep", names[-1], config_dir)), resolve=False)

    def walk(node: dict, prefix: str) -> set[str]:
        keys = set()
        for k, v in node.items():
            keys |= walk(v, f"{prefix}{k}.") if isinstance(v, dict) else ({f"{prefix}{k}"} if v is not None else set())
        return keys

    return walk({k: v for k, v in tree.items() if k not in ("defaults", "sweep")}, "")
