"""`hyperlaw COMMAND key=value ...`: the one place that sees all four packages, each imported inside its command.

Exit status: 0 done (a diverged point is a result), 1 some points failed, 2 the request is wrong (one or two lines).
"""

import json
import shlex
import sys

from harness.errors import plain_os_error
from harness.redact import redact, redacted

HELP = """\
hyperlaw: how must learning rate, weight decay and batch size change as my model and my data grow?

  hyperlaw train KEY=VALUE ...                     train one point
  hyperlaw sweep sweep=NAME [KEY=V1,V2 ...]        plan a sweep, show its price, train what is missing
  hyperlaw status sweep=NAME [--wait] [--json]     counts by status, progress, what failed and why
  hyperlaw table runs=DIR|csv=FILE|wandb=DIR [columns.params=N ...] [--out t.csv|t.parquet]   one row per run
  hyperlaw fit analysis=NAME table=FILE|runs=DIR [out=DIR] [columns.params=N ...] ['where=...'] [--json]
  hyperlaw recommend laws=DIR params=1e9|model.width=W model.depth=L tokens=2e10 [batch_size=...] [--json]
      [published=power_lines,step_law] [devices=64 tokens_per_second=4e4|device_flops=F] [loss=2.6] [out=DIR]
  hyperlaw check coordinates [KEY=VALUE ...]       coordinate check of a parameterization

  --dry-run         (train, sweep) print the plan and stop
  --detach          (sweep launcher=slurm) return once submitted
  --wait            (status) first wait until nothing of the sweep trains or is queued
  --config-dir DIR  more configs: DIR/sweep/mine.yaml is sweep=mine

Keys typed most: model.width model.depth tpp|tokens batch_size|batch_tokens optimizer.lr tau|optimizer.weight_decay
parameterization=NAME schedule=NAME data=NAME data.path seed device out runs. Ranges: optimizer.lr=log2(-10,-5,6).
"""
FLAGS = {
    "train": {"--dry-run", "--json"},
    "sweep": {"--dry-run", "--json", "--detach", "--wait"},
    "status": {"--json", "--wait"},
    "table": set(),
    "fit": {"--json"},
    "recommend": {"--json"},
    "check": set(),
}
VALUED = {"table": {"--out"}, **{c: {"--config-dir"} for c in ("train", "sweep", "status", "check")}}


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    if argv is None:
        sys.stderr = redacted(sys.stderr)  # a traceback may quote a token
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or {"-h", "--help"} & set(argv) or argv[0] == "help":
        print(HELP)
        return 0 if argv else 2
    try:
        return _run(argv[0], argv[1:])
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `hyperlaw table | head`
        sys.stderr.close()
        return 0
    except Exception as e:
        said = plain_os_error(e) if isinstance(e, OSError) else e
        if said is e and not any(c.__name__ == "UserError" for c in type(e).__mro__):
            raise
        print(redact(f"hyperlaw: {said}"), file=sys.stderr)
        return 2


def _run(command: str, words: list[str]) -> int:
    from models.errors import UserError

    commands = {"train": train, "sweep": sweep, "status": status, "table": table, "fit": fit, "recommend": recommend,
                "check": check}  # fmt: skip
    if command not in commands:
        raise UserError(f"{command!r} is no command; there are {', '.join(commands)} (`hyperlaw --help`).")
    flags, overrides, words = {}, [], iter(words)
    for word in words:
        flag, equals, value = word.partition("=")
        if not word.startswith("-"):
            overrides.append(word)
        elif flag in VALUED.get(command, ()):
            flags[flag] = value if equals else next(words, "")
            if not flags[flag]:
                raise UserError(f"{flag} needs a value: {flag} PATH.")
        elif word in FLAGS[command]:
            flags[word] = True
        else:
            known = sorted(FLAGS[command] | VALUED.get(command, set()) | {"--help"})
            raise UserError(f"{word}: `hyperlaw {command}` has no such flag; it has {', '.join(known)}.")
    return commands[command](overrides, flags)


# ---- training


def train(words: list[str], flags: dict) -> int:
    """One point: a sweep of one."""
    from harness.compose import compose
    from harness.files import read_json

    planned, summary = _launch(compose(words, "train", flags.get("--config-dir")), flags, "train")
    if summary is None:
        return 0
    run_dir = planned.plan.runs_dir / planned.members[0].point.id
    result = read_json(run_dir / "result.json") or {}
    if flags.get("--json"):
        print(json.dumps({"run_id": run_dir.name, "run_dir": str(run_dir), "status": _status(planned, run_dir), **result}))
    elif result.get("loss") is not None:
        floor = result.get("entropy_rate")
        beside = f" (entropy rate of the source {floor:.4f})" if floor is not None else ""
        print(f"validation loss {result['loss']:.4f} nats per token{beside} after {result['tokens']:,} tokens")
    else:
        print(f"{_status(planned, run_dir)}")
    if not flags.get("--json"):
        print(f"run in {run_dir}")
    return summary.exit_status


def train_quietly(words: list[str], config_dir: str | None = None):
    """(run directory, status, loss or None, summary) of one point, without progress: a job of Hydra's (multirun.py)."""
    from harness.compose import compose
    from harness.files import read_json
    from sweeps.launch import prepare_plan, run_plan

    own = [] if any(word.startswith("launcher.workers=") for word in words) else ["launcher.workers=1"]
    planned = prepare_plan(compose([*words, *own], "train", config_dir), name="train", report=_to_stderr, only_one=True)
    summary = run_plan(planned, quiet=True)
    run_dir = planned.plan.runs_dir / planned.members[0].point.id
    status, result = _status(planned, run_dir), read_json(run_dir / "result.json") or {}
    return run_dir, status.partition(":")[0], result.get("loss"), summary


def prepare_multirun(request, words: list[str]) -> list[str]:
    """Plans what Hydra's jobs will ask for, prepares its data and folders; returns `words` with the ranges, which are not
    of Hydra's grammar, as lists (multirun.py). Raises UserError for whatever cannot be."""
    from harness.compose import RANGE
    from sweeps.axes import parse_values
    from sweeps.launch import make_folders, prepare_plan

    make_folders(prepare_plan(request, name="train", report=_to_stderr))
    pairs = [word.partition("=")[::2] for word in words]
    return [f"{key}={','.join(str(v) for v in parse_values(key, value))}" if RANGE.match(value) else word
            for word, (key, value) in zip(words, pairs, strict=True)]  # fmt: skip


def _to_stderr(line: str) -> None:
    print(redact(line), file=sys.stderr)


def sweep(words: list[str], flags: dict) -> int:
    """The points of a sweep that are not there yet."""
    from harness.compose import compose
    from models.errors import UserError

    config_dir = flags.get("--config-dir")
    request = compose(_named("sweep", words, config_dir), "sweep", config_dir)
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


def _launch(request, flags: dict, name: str | None):
    """(planned, summary), the summary None after --dry-run."""
    from sweeps.launch import prepare_plan, run_plan

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
    return planned, None if dry_run else run_plan(planned, detach=bool(flags.get("--detach")))


def _summary_line(summary) -> str:
    parts = [f"{n} {name}" for name, n in (("done", summary.done), ("diverged", summary.diverged),
                                           ("failed", summary.failed), ("left", summary.left)) if n]  # fmt: skip
    lines = [f"{', '.join(parts) or 'nothing to do'} in {summary.seconds:.0f} s"]
    alike = {}  # points of one dead allocation failed of one thing
    for run, why in summary.failures.items():
        alike.setdefault(why, []).append(run)
    more = {why: f" and {len(runs) - 3} more" if len(runs) > 3 else "" for why, runs in alike.items()}
    return "\n".join(lines + [f"  {', '.join(runs[:3])}{more[why]}: {why}" for why, runs in alike.items()])


def _status(planned, run_dir) -> str:
    """What became of the planned point, and why."""
    from sweeps.status import read_state

    lease = planned.request.config.launcher.lease_seconds
    state = read_state(run_dir.parent, planned.members[0].point, lease)
    reason = state.reason or {}
    return state.status + (f": {reason.get('message')} (step {reason.get('step')})" if reason else "")


def status(words: list[str], flags: dict) -> int:
    """What happened to the points of a sweep, with --wait once nothing of it trains or is queued."""
    from harness.compose import compose
    from sweeps.launch import follow_plan, prepare_plan
    from sweeps.records import queued
    from sweeps.status import render_status
    from sweeps.status import status as read

    config_dir = flags.get("--config-dir")
    request = compose(_named("sweep", words, config_dir), "status", config_dir)
    planned = prepare_plan(request, dry_run=True, probe=False)
    plan, states = planned.plan, planned.plan.states
    if flags.get("--wait"):
        states = follow_plan(planned, lambda line: print(line, file=sys.stderr))
    waiting = queued(planned.out)
    report = read(plan.points, plan.runs_dir, plan.rates, plan.workers, states=states, queued=waiting)
    print(json.dumps(report) if flags.get("--json") else redact(render_status(report)))
    return int(bool(flags.get("--wait")) and any(state.left for state in states.values()))


def _named(group: str, words: list[str], config_dir: str | None) -> list[str]:
    """`words`, once they name a choice of the group that the command needs."""
    from pathlib import Path

    from harness.compose import choices
    from models.errors import UserError

    if not any(word.startswith(f"{group}=") for word in words):
        names = choices(group, Path(config_dir) if config_dir else None)
        raise UserError(f"which {group}? Give {group}=NAME; there are {', '.join(names)}.")
    return words


# ---- analysis


def table(words: list[str], flags: dict) -> int:
    """One row per run, to stdout as CSV or to a file; what became of a foreign table's columns, to stderr."""
    from analysis.command import table as read
    from analysis.request import parse
    from analysis.table import write_table

    frame = read(parse(words))
    if flags.get("--out"):
        write_table(frame, flags["--out"])
    for line in [*frame.attrs.get("damaged", []), *frame.attrs.get("listed", [])]:
        print(line, file=sys.stderr)
    print(f"{len(frame)} runs in {flags['--out']}" if flags.get("--out") else frame.to_csv(index=False).rstrip("\n"))
    return 0


def fit(words: list[str], flags: dict) -> int:
    """Laws from a table: printed, laws.json, figures."""
    from pathlib import Path

    from analysis import command
    from analysis.request import parse

    given = parse(words)
    fitted = command.fit(given)
    out = Path(given.get("out") or "out/laws")
    command.save(fitted, out)
    if flags.get("--json"):
        print(json.dumps(command.as_json(fitted)))
    else:
        print(command.as_text(fitted))
        print(f"\nlaws in {out / 'laws.json'}, figures in {out}")
    return 0


def recommend(words: list[str], flags: dict) -> int:
    """A Recipe: the hyper-parameters of a target run, as a table and as overrides."""
    from analysis import command
    from analysis.recommend import as_table
    from analysis.request import parse

    recipe = command.recommend(parse(words), _count)
    print(json.dumps(recipe) if flags.get("--json") else as_table(recipe))
    return 0


def _count(width: int, depth: int, shape: dict) -> int:
    """Parameters of a model of the sweep's kind (`shape`: vocab, context, tied, head_dim, ...)."""
    from models.count import count_params
    from models.shape import LlamaShape

    return count_params(LlamaShape.build(width, depth, **shape)).params


# ---- checks


def check(words: list[str], flags: dict) -> int:
    """`check coordinates`: do activations change alike at every width (or depth)? A table, a verdict, a figure."""
    from harness.check import check_coordinates
    from harness.compose import compose
    from models.errors import UserError

    if not words or words[0] != "coordinates":
        raise UserError("check what? There is `hyperlaw check coordinates [parameterization=mup] [model.width=64,128]`.")
    text, passed = check_coordinates(compose(words[1:], "check", flags.get("--config-dir")))
    print(text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
