"""wandb's offline runs as a table: config, state and what was logged last of each run; or all that was logged.

A run that was resumed has several files with one id: they are one row, later files over earlier ones. State: finished
or crashed by its exit code; without one the run is still going, or was killed, and is `running`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import UserError
from analysis.foreign.cells import flatten
from analysis.foreign.mapping import to_canonical
from analysis.foreign.names import CONFIG, LOGGED
from analysis.foreign.wandb_file import messages, records


@dataclass
class Run:
    """What the files of one run say; history as {"_step":, ...} rows where it was asked for."""

    run_id: str
    info: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    history: list[dict] = field(default_factory=list)


def read_wandb(path: str | os.PathLike, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """One row per run of `path`: a .wandb file, or a folder at or above the offline-run-* folders.

    Names of config entries as they are (nested ones dotted); of logged values too, or summary.NAME where the config has
    the same. columns: {canonical: theirs}. What became of each column, and what is wrong with files and cells, stands
    in `attrs["listed"]`. Raises UserError where there is no run, or wandb is not installed.
    """
    runs, faults = _read(path, history=False)
    rows, roles = [], {"run_id": CONFIG, "status": LOGGED}
    logged_too = {name for run in runs for name in run.summary} & {name for run in runs for name in run.config}
    for run in runs:
        logged = {f"summary.{name}" if name in logged_too else name: value for name, value in run.summary.items()}
        roles |= dict.fromkeys(run.config, CONFIG) | dict.fromkeys(logged, LOGGED)
        state = "running" if run.exit_code is None else "finished" if run.exit_code == 0 else "crashed"
        own = {name: value for name, value in run.config.items() if name not in ("run_id", "status")}
        rows.append({"run_id": run.run_id, "status": state, **run.info, **own, **logged})
    unfinished = [run.run_id for run in runs if run.exit_code is None]
    if unfinished:
        shown = ", ".join(unfinished[:6]) + (f" and {len(unfinished) - 6} more" if len(unfinished) > 6 else "")
        faults.append(f"{len(unfinished)} runs have no end on file (going on, or killed): status running ({shown}).")
    frame = pd.DataFrame(rows)
    return to_canonical(frame, columns, {name: roles[name] for name in frame if name in roles}, faults)


def read_wandb_curves(path: str | os.PathLike) -> pd.DataFrame:
    """All that was logged, a row per run and step: run_id, step, then the logged names as they are; faults of files in
    `attrs["notes"]`."""
    runs, faults = _read(path, history=True)
    rows = [{"run_id": run.run_id, "step": row.get("_step"), **row} for run in runs for row in run.history]
    if not rows:
        raise UserError(f"wandb={path}: nothing was logged by {len(runs)} runs.")
    frame = pd.DataFrame(rows).drop(columns="_step", errors="ignore")
    frame.attrs["notes"] = faults
    return frame.sort_values(["run_id", "step"], kind="stable", ignore_index=True)


def _read(path: str | os.PathLike, history: bool) -> tuple[list[Run], list[str]]:
    runs: dict[str, Run] = {}
    faults: list[str] = []
    pb = messages()
    for file in _files(Path(path)):
        found = _read_file(file, pb, history, faults)
        if found is None:
            continue
        if found.run_id not in runs:
            runs[found.run_id] = found
            continue
        run = runs[found.run_id]
        run.info |= found.info
        run.config |= found.config
        run.summary |= found.summary
        run.exit_code = found.exit_code
        run.history += found.history
        faults.append(f"run {run.run_id} goes on in {file.parent.name}: one row.")
    if not runs:
        raise UserError(f"wandb={path} holds no run that can be read{f' ({faults[0]})' if faults else ''}.")
    return list(runs.values()), faults


def _files(path: Path) -> list[Path]:
    """Run files in the order they were begun (their folders carry the time); links such as latest-run are passed
    over."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"wandb={path}: no such file or folder.")
    found = [Path(root) / name for root, _, names in os.walk(path) for name in names if name.endswith(".wandb")]
    if not found:
        raise UserError(f"wandb={path} holds no run file (offline-run-*/run-*.wandb).")
    return sorted(found, key=lambda file: (file.parent.name, file.name))


def _read_file(file: Path, pb: Any, history: bool, faults: list[str]) -> Run | None:
    run: Run | None = None
    last: dict[str, Any] = {}
    for content in records(file):
        if isinstance(content, str):
            faults.append(f"{file.parent.name}/{file.name} {content}: what is whole is used.")
            continue
        try:
            record = pb.Record.FromString(content)
        except Exception:  # a message of another program; protobuf's DecodeError has no stable home
            faults.append(f"{file.parent.name}/{file.name} holds a record that cannot be read: passed over.")
            continue
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = run or Run(record.run.run_id)
            info = {"name": record.run.display_name, "group": record.run.run_group, "tags": ", ".join(record.run.tags)}
            run.info |= {key: value for key, value in info.items() if value}
            _update(run.config, record.run.config.update)
        elif run is None:
            continue
        elif kind == "config":
            _update(run.config, record.config.update)
            for gone in record.config.remove:
                run.config.pop(_name(gone), None)
        elif kind == "summary":
            _update(run.summary, record.summary.update)
        elif kind == "history":
            row: dict[str, Any] = {}
            _update(row, record.history.item)
            last |= row
            if history:
                run.history.append({"_step": record.history.step.num, **row})
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    if run is None:
        faults.append(f"{file.parent.name}/{file.name} holds no run: passed over.")
        return None
    run.summary = {**last, **run.summary}
    return run


def _name(item: Any) -> str:
    return ".".join(item.nested_key) or item.key


def _update(target: dict[str, Any], items: Any) -> None:
    for item in items:
        name = _name(item)
        if name.split(".")[0] == "_wandb":
            continue
        try:
            value = json.loads(item.value_json)
        except (ValueError, RecursionError):
            value = item.value_json
        flat = flatten(value, f"{name}.") if isinstance(value, dict) else flatten({name: value})
        target |= {key: _written(value) for key, value in flat.items()}


def _written(value: Any) -> Any:
    """NaN and infinities in words: in a column of floats they could not be told from what is missing."""
    return json.dumps(value) if isinstance(value, float) and value * 0 != 0 else value
