"""`hyperlaw COMMAND key=value ...`: the one place that sees all four packages, each imported inside its command.

Exit status: 0 done (a diverged point is a result), 1 some points failed, 2 the request is wrong (one or two lines).
"""

import json
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

More points per hour (docs/throughput.md):
  sweep.strategy=grid|refine|halving   all points; those that narrow the law most (sweep.budget=0.4); losers stop early
  sweep.share=true|false               train the beginning that points have in common once
  reuse=[DIR,...]                      take the points that other sweeps finished from their runs
  schedule.batch_ramp=[[TOKENS,BATCH],...]   smaller batches until so many tokens
  profile=true                         (train) first say where a step's time goes
  python -m benchmarks.train|sweep|prefix|refine|gpu [--quick]   measure it here
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


# ---- training: the commands themselves are in sweeps/commands.py


def train(words: list[str], flags: dict) -> int:
    """One point: a sweep of one."""
    from sweeps import commands

    return commands.train(words, flags)


def sweep(words: list[str], flags: dict) -> int:
    """The points of a sweep that are not there yet."""
    from sweeps import commands

    return commands.sweep(words, flags)


def status(words: list[str], flags: dict) -> int:
    """What happened to the points of a sweep."""
    from sweeps import commands

    return commands.status(words, flags)


def train_quietly(words: list[str], config_dir: str | None = None):
    """A job of Hydra's, which multirun.py may not ask sweeps for."""
    from sweeps import commands

    return commands.train_quietly(words, config_dir)


def prepare_multirun(request, words: list[str]) -> list[str]:
    """Of what Hydra's jobs will ask for, likewise."""
    from sweeps import commands

    return commands.prepare_multirun(request, words)


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
