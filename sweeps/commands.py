"""What `hyperlaw train`, `sweep` and `status` do, and what Hydra's multirun needs of them (harness/cli.py)."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from harness.compose import RANGE, Request, choices, compose
from harness.errors import UserError
from harness.files import read_json
from harness.redact import redact
from sweeps.axes import parse_values
from sweeps.jobs import Summary
from sweeps.launch import Planned, follow_plan, make_folders, prepare_plan, run_plan
from sweeps.profiling import check_profile, profile, refuse_profile, render_profile
from sweeps.records import queued
from sweeps.status import read_state, render_status
from sweeps.status import status as read
from sweeps.trunks import trunk_report


def train(words: list[str], flags: dict) -> int:
    """One point: a sweep of one."""
    request = compose(words, "train", flags.get("--config-dir"))
    check_profile(request.config)
    planned, summary = _launch(request, flags, "train")
    if summary is None:
        return 0
    run_dir = planned.plan.runs_dir / planned.members[0].point.id
    result = read_json(run_dir / "result.json") or {}
    if flags.get("--json"):
        more = {"profile": read_json(run_dir / "profile.json")} if request.config.profile else {}
        print(json.dumps({"run_id": run_dir.name, "run_dir": str(run_dir), "status": _status(planned, run_dir), **result,
                          **more}))  # fmt: skip
    elif result.get("loss") is not None:
        floor = result.get("entropy_rate")
        beside = f" (entropy rate of the source {floor:.4f})" if floor is not None else ""
        print(f"validation loss {result['loss']:.4f} nats per token{beside} after {result['tokens']:,} tokens")
    else:
        print(f"{_status(planned, run_dir)}")
    if not flags.get("--json"):
        print(f"run in {run_dir}")
    return summary.exit_status


def train_quietly(words: list[str], config_dir: str | None = None) -> tuple[Path, str, float | None, Summary]:
    """(run directory, status, loss or None, summary) of one point, without progress: a job of Hydra's (multirun.py)."""
    own = [] if any(word.startswith("launcher.workers=") for word in words) else ["launcher.workers=1"]
    request = compose([*words, *own], "train", config_dir)
    refuse_profile(request.config, "-m")
    planned = prepare_plan(request, name="train", report=_to_stderr, only_one=True)
    summary = run_plan(planned, quiet=True)
    run_dir = planned.plan.runs_dir / planned.members[0].point.id
    status, result = _status(planned, run_dir), read_json(run_dir / "result.json") or {}
    return run_dir, status.partition(":")[0], result.get("loss"), summary


def prepare_multirun(request: Request, words: list[str]) -> list[str]:
    """Plans what Hydra's jobs will ask for, prepares its data and folders; returns `words` with the ranges, which are not
    of Hydra's grammar, as lists (multirun.py). Raises UserError for whatever cannot be."""
    refuse_profile(request.config, "-m")
    make_folders(prepare_plan(request, name="train", report=_to_stderr))
    pairs = [word.partition("=")[::2] for word in words]
    return [f"{key}={','.join(str(v) for v in parse_values(key, value))}" if RANGE.match(value) else word
            for word, (key, value) in zip(words, pairs, strict=True)]  # fmt: skip


def sweep(words: list[str], flags: dict) -> int:
    """The points of a sweep that are not there yet."""
    config_dir = flags.get("--config-dir")
    request = compose(_named("sweep", words, config_dir), "sweep", config_dir)
    refuse_profile(request.config, "hyperlaw sweep")
    if flags.get("--detach"):
        if flags.get("--wait"):
            raise UserError("--detach and --wait contradict each other: waiting is what `sweep` does.")
        if request.config.launcher.name != "slurm":
            raise UserError("--detach needs an engine that goes on alone: launcher=slurm. On a Ray cluster:\n"
                            "ray job submit --no-wait -- hyperlaw sweep ... launcher=ray launcher.address=auto")  # fmt: skip
    planned, summary = _launch(request, flags, None)
    if summary is None:
        return 0
    if flags.get("--json"):
        print(json.dumps({**vars(summary), "runs": str(planned.plan.runs_dir)}))
    elif flags.get("--detach"):
        print(f"{summary.queued} points in the queue; runs in {planned.plan.runs_dir}")
        own = ["--config-dir", config_dir] if config_dir else []
        print(f"follow: hyperlaw status {shlex.join([*words, *own])} [--wait]")
    else:
        print(_summary_line(summary))
        analyses = planned.request.config.sweep.analyses or ["lr"]
        print(f"runs in {planned.plan.runs_dir}")
        print(f"next: hyperlaw fit analysis={analyses[0]} runs={planned.plan.runs_dir} out={planned.out / 'laws'}")
    return summary.exit_status


def status(words: list[str], flags: dict) -> int:
    """What happened to the points of a sweep, with --wait once nothing of it trains or is queued."""
    config_dir = flags.get("--config-dir")
    request = compose(_named("sweep", words, config_dir), "status", config_dir)
    planned = prepare_plan(request, dry_run=True, probe=False, take_over=False)
    plan, states = planned.plan, planned.plan.states
    if flags.get("--wait"):
        states = follow_plan(planned, lambda line: print(line, file=sys.stderr))
        if states.keys() != plan.states.keys():  # rounds added points
            plan = prepare_plan(request, dry_run=True, probe=False, take_over=False).plan
    waiting = queued(planned.out)
    report = read(plan.points, plan.runs_dir, plan.rates, plan.workers, states=states, queued=waiting,
                  trunks=trunk_report(plan.jobs(), plan.runs_dir, planned.request.config.launcher.lease_seconds))
    print(json.dumps(report) if flags.get("--json") else redact(render_status(report)))
    return int(bool(flags.get("--wait")) and any(state.left for state in states.values()))


def _launch(request: Request, flags: dict, name: str | None) -> tuple[Planned, Summary | None]:
    """(planned, summary), the summary None after --dry-run."""
    as_json, dry_run = flags.get("--json"), bool(flags.get("--dry-run"))

    def report(line: str) -> None:
        print(redact(line), file=sys.stderr if as_json else sys.stdout)

    planned = prepare_plan(request, dry_run, name, report, only_one=name == "train")
    if dry_run and as_json:
        print(json.dumps(planned.plan.to_dict()))
    elif dry_run or name is None:
        report(planned.plan.render())
    for data in sorted(planned.book.provisional):
        report(f"data={data} is not prepared yet: ids are provisional, and whether its tokens suffice is not known")
    if dry_run:
        return planned, None
    if request.config.profile:
        report(render_profile(profile(planned)))
    return planned, run_plan(planned, detach=bool(flags.get("--detach")))


def _summary_line(summary: Summary) -> str:
    parts = [f"{getattr(summary, name)} {name}" for name in ("done", "diverged", "pruned", "failed", "left")
             if getattr(summary, name)]  # fmt: skip
    lines = [f"{', '.join(parts) or 'nothing to do'} in {summary.seconds:.0f} s"]
    alike = {}  # points of one dead allocation failed of one thing
    for run, why in summary.failures.items():
        alike.setdefault(why, []).append(run)
    more = {why: f" and {len(runs) - 3} more" if len(runs) > 3 else "" for why, runs in alike.items()}
    return "\n".join(lines + [f"  {', '.join(runs[:3])}{more[why]}: {why}" for why, runs in alike.items()])


def _status(planned: Planned, run_dir: Path) -> str:
    """What became of the planned point, and why."""
    lease = planned.request.config.launcher.lease_seconds
    state = read_state(run_dir.parent, planned.members[0].point, lease)
    reason = state.reason or {}
    return state.status + (f": {reason.get('message')} (step {reason.get('step')})" if reason else "")


def _named(group: str, words: list[str], config_dir: str | None) -> list[str]:
    """`words`, once they name a choice of the group that the command needs."""
    if not any(word.startswith(f"{group}=") for word in words):
        names = choices(group, Path(config_dir) if config_dir else None)
        raise UserError(f"which {group}? Give {group}=NAME; there are {', '.join(names)}.")
    return words


def _to_stderr(line: str) -> None:
    print(redact(line), file=sys.stderr)
