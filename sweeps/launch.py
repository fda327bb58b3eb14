"""From a Request to trained runs: data, points, plan, launch. What `hyperlaw sweep` and `hyperlaw train` do, in Python.

    from harness.compose import compose
    from sweeps.launch import prepare_plan, run_plan
    planned = prepare_plan(compose(["sweep=lr_width"], "sweep"))
    print(planned.plan.render())
    summary = run_plan(planned)
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from harness.compose import Request
from harness.config import Config
from harness.errors import UserError
from harness.places import DataBook, cache_dir, out_dir, runs_dir
from harness.point import Point
from harness.private import compiled_folder
from sweeps.deciding import deciding
from sweeps.engines import check_engine, check_launcher, engine, engine_settings, trains_here
from sweeps.expand import Member, expand_members
from sweeps.extend import FILE as EXTENSION
from sweeps.extend import extended_members, extension, target_keys
from sweeps.follow import follow
from sweeps.halving import Halving, chained
from sweeps.halving import check as check_halving
from sweeps.jobs import Settings, Summary
from sweeps.plan import Plan, make_plan, worker_count
from sweeps.rate import device_kind
from sweeps.refine import FILE as REFINED
from sweeps.refine import Refinement, begin, refinement
from sweeps.refine import check as check_refine
from sweeps.reuse import reusable, sources, taken
from sweeps.rounds import damaged, read_rounds
from sweeps.status import RunState

DEVICES = ("auto", "cpu", "cuda")
TRACKERS = ("none", "wandb")
MODES = ("offline", "online", "disabled")
STRATEGIES = ("grid", "refine", "halving")


@dataclass
class Planned:
    """A plan with all that is needed to run it."""

    request: Request
    members: list[Member]
    plan: Plan
    book: DataBook
    out: Path
    name: str
    halving: Halving | None = None


def prepare_plan(
    request: Request,
    dry_run: bool = False,
    name: str | None = None,
    report: Callable[[str], None] = print,
    probe: bool = True,
    only_one: bool = False,
    take_over: bool = True,
) -> Planned:
    """Points, statuses and price of `request`. Prepares its data, unless `dry_run`: then data that is not prepared is
    planned for with provisional ids. `take_over`: points that another sweep has trained are taken from it (reuse.py).
    Raises UserError for whatever cannot be, before anything is written."""
    config = request.config
    if config.device not in DEVICES:
        raise UserError(f"device={config.device} is not one of {', '.join(DEVICES)}.")
    check_launcher(config.launcher)
    _check_settings(config)
    if not dry_run:
        check_engine(config)
    name = name or config.sweep.name or "sweep"
    cache, out = cache_dir(config), out_dir(config, name)
    # Everything but the data is checked on provisional facts first, so that a wrong request prepares nothing.
    draft = DataBook(cache, prepare=False, report=report, out=out)
    members = expand_members(request, draft)
    if only_one and len(members) > 1:
        raise UserError(f"`hyperlaw train` trains one point, but this is a sweep of {len(members)}: use `hyperlaw sweep`.")
    local = trains_here(config.launcher)
    if config.device == "cuda" and local and not dry_run and device_kind("auto") != "cuda":
        raise UserError("device=cuda, but there is no GPU here, or this PyTorch is a CPU build; say device=cpu or auto.")
    book = draft
    if not dry_run:
        book = DataBook(cache, prepare=True, report=report)
        members = expand_members(request, book)
    path = _rounds_file(config, out)
    if path and damaged(path):
        report(f"{path} is damaged: the rounds begin anew, by the results that are there")
    members, refined = _with_rounds(request, members, book, path)
    points, runs = [m.point for m in members], runs_dir(config, name)
    reused = reusable(points, runs, sources(config, name, runs, report), config.keep_weights) if take_over else {}
    if not dry_run:
        reused = taken(points, runs, reused, config.launcher.lease_seconds, config.keep_weights)
    plan = make_plan(points, runs, config.launcher, cache, config.device, config.micro_batch, name, probe=probe,
                     reused=reused, **_halved(config))  # fmt: skip
    if refined:
        plan = replace(plan, notes=(*refined.notes(), *plan.notes), whole=refined.price(plan, cache))
    planned = Planned(request, members, plan, book, out, name)
    if config.sweep.strategy == "halving":
        planned.halving = Halving(planned, cache)
        planned.plan = planned.halving.begin()
    return planned


def _rounds_file(config: Config, out: Path) -> Path | None:
    """Where an adaptive sweep says what it added."""
    return out / (REFINED if config.sweep.strategy == "refine" else EXTENSION) if _adds(config) else None


def _adds(config: Config) -> bool:
    return config.sweep.strategy == "refine" or config.sweep.extend


def _with_rounds(request: Request, grid: list[Member], book: DataBook,
                 path: Path | None) -> tuple[list[Member], Refinement | None]:  # fmt: skip
    """(what is to be trained of `grid`, with what rounds have added by now; the refinement where it is one)."""
    if request.config.sweep.strategy == "refine":
        state = begin(request, grid, book, path)
        return list(state.members.values()), state
    return (extended_members(request, grid, path, book) if path else grid), None


def _halved(config: Config) -> dict:
    """Where points pause for a decision, each trains alone: trunks would pass the rungs."""
    halving = config.sweep.strategy == "halving"
    return {"keep_pruned": halving, "share": config.sweep.share and not halving}


def _check_settings(config: Config) -> None:
    """What no Point holds, so that resolving does not see it."""
    for key, value, low in (
        ("micro_batch", config.micro_batch, 1),
        ("curve_points", config.curve_points, 1),
        ("checkpoint_seconds", config.checkpoint_seconds, 0),
        ("launcher.lease_seconds", config.launcher.lease_seconds, 1),
        ("sweep.extend_rounds", config.sweep.extend_rounds, 0),
    ):
        if value is not None and not low <= value < math.inf:
            raise UserError(f"{key}={value:g} is impossible: it must be at least {low} and finite.")
    for key, value, names in (("tracking", config.tracking.name, TRACKERS), ("tracking.mode", config.tracking.mode, MODES),
                              ("sweep.strategy", config.sweep.strategy, STRATEGIES)):
        if value not in names:
            raise UserError(f"{key}={value} is not one of {', '.join(names)}.")
    target_keys(config.sweep.extend_target)
    check_halving(config)
    check_refine(config)


def run_plan(planned: Planned, stream: TextIO | None = None, quiet: bool = False, detach: bool = False) -> Summary:
    """Train what is left of the plan; extends the grid where `sweep.extend` asks for it. `detach`: return once an engine
    has it all in its queue. Raises UserError where the runs directory cannot be written, or another launch refines `out`."""
    config, refines = planned.request.config, planned.request.config.sweep.strategy == "refine"
    settings = settings_of(planned, detach)
    make_folders(planned)
    try:
        with contextlib.ExitStack() as stack:
            more = None
            if _adds(config) or planned.halving:
                lease = stack.enter_context(deciding(planned.out, settings.lease_seconds, alone=refines))
            if refines:
                more = refinement(planned, settings.cache, lease.still_mine)
            elif config.sweep.extend:
                more = extension(planned, settings.cache)
            if planned.halving:
                more = chained(planned.halving, more)
            return engine(config.launcher.name).run(planned.plan, settings, more=more, stream=stream, quiet=quiet)
    except OSError as e:
        raise _unwritable(planned, e) from None


def make_folders(planned: Planned) -> None:
    """The folders that training writes to, refused here, before anything starts. Raises UserError."""
    compiled_folder(cache_dir(planned.request.config))
    try:
        os.makedirs(planned.plan.runs_dir, exist_ok=True)
        os.makedirs(planned.out, exist_ok=True)
        planned.book.save(planned.out)
    except OSError as e:
        raise _unwritable(planned, e) from None


def _unwritable(planned: Planned, e: OSError) -> UserError:
    where = e.filename or planned.plan.runs_dir
    return UserError(f"cannot write {where}: {e.strerror or e}; choose another out=DIR or runs=DIR.")


def follow_plan(planned: Planned, say: Callable[[str], None]) -> dict[str, RunState]:
    """Blocks until nothing of the plan trains or is queued, and no launch decides what comes next (sweeps/follow.py);
    returns the states then, of points that were added meanwhile too."""
    config, plan = planned.request.config, planned.plan
    path, grid, seen = _rounds_file(config, planned.out), None, None
    points = list(plan.points)

    def now() -> list[Point]:
        nonlocal points, grid, seen
        if path and (rounds := read_rounds(path)) != seen:
            grid, seen = grid or expand_members(planned.request, planned.book), rounds
            points = [m.point for m in _with_rounds(planned.request, grid, planned.book, path)[0]]
        return points

    return follow(now, plan.runs_dir, planned.out, config.launcher.lease_seconds, cache_dir(config), say)


def settings_of(planned: Planned, detach: bool = False) -> Settings:
    """Where and how the jobs of a plan run."""
    config, plan = planned.request.config, planned.plan
    launcher = config.launcher
    return Settings(
        runs_dir=plan.runs_dir,
        cache=cache_dir(config),
        logs=planned.out / "logs",
        corpora=planned.book.corpora,
        device=plan.device,
        workers=worker_count(launcher, plan.device),
        threads=launcher.threads,
        points_per_device=launcher.points_per_device,
        devices_per_point=launcher.devices_per_point,
        parallel=launcher.parallel,
        max_attempts=launcher.max_attempts,
        point_seconds=launcher.point_seconds,
        lease_seconds=launcher.lease_seconds,
        compile=launcher.compile,
        micro_batch=config.micro_batch,
        checkpoint_seconds=config.checkpoint_seconds,
        curve_points=config.curve_points,
        keep_weights=config.keep_weights,
        tracking=vars(config.tracking),
        engine=engine_settings(launcher),
        detach=detach,
    )
