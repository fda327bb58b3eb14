"""Hydra's own multirun, for those who want its launchers and sweepers: the same points in the same run directories.

    python -m harness.train model.width=16                                   one point, as `hyperlaw train`
    python -m harness.train -m model.width=16,24 optimizer.lr=1e-3,2e-3      Hydra's basic launcher: one after the other
    python -m harness.train -m hydra/launcher=joblib ...                     with hydra-joblib-launcher, in parallel

Each of Hydra's jobs is one point, planned and trained as `hyperlaw train` would with the same overrides; to a sweeper
such as Optuna's it returns the validation loss, infinite where the point diverged. What Hydra and its launchers write of
their own (multirun.yaml, pickles) goes to `<cache>/hydra-UID/`, for this user only, unless `hydra.sweep.dir` says otherwise.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time

from harness.errors import UserError
from harness.redact import redact, redacted

FLAGS = ("-m", "--multirun")
# An option of Hydra's that reads a pickle (--experimental-rerun), and others that print what composes: not taken.
QUIET = ("hydra.output_subdir=null", "hydra/job_logging=none")


class PointFailed(RuntimeError):
    """One of the jobs failed; the message names run and reason."""


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit status (harness/cli.py): 2 where the request is wrong, before anything starts."""
    from harness import cli

    words = list(sys.argv[1:] if argv is None else argv)
    if not set(FLAGS) & set(words):
        return cli.main(["train", *words])
    sys.stderr = redacted(sys.stderr)
    try:
        overrides, config_dir = _split([word for word in words if word not in FLAGS])
        command = _checked(overrides, config_dir)
    except KeyboardInterrupt:
        return 130
    except UserError as e:
        print(redact(f"hyperlaw: {e}"), file=sys.stderr)
        return 2
    return _hydra(["-m", *command, *(["--config-dir", config_dir] if config_dir else [])])


def train(config) -> float:
    """The task that Hydra calls with its composed config, of which only the overrides count: the loss of that point.

    Raises PointFailed, so that Hydra says which job failed; SystemExit where a signal stopped it."""
    from hydra.core.hydra_config import HydraConfig

    from harness import cli

    hydra = HydraConfig.get()
    given = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    with _without_hydra():
        run_dir, status, loss, summary = cli.train_quietly(list(hydra.overrides.task), given[0] if given else None)
    if summary.signal:
        raise SystemExit(summary.exit_status)
    why = next(iter(summary.failures.values()), status)
    if status not in ("done", "diverged"):
        raise PointFailed(f"{run_dir.name}: {why}")
    said = f"validation loss {loss:.4f}" if status == "done" else "diverged"
    print(f"{run_dir.name}: {said}, run in {run_dir}", flush=True)
    return loss if status == "done" and math.isfinite(loss) else math.inf


def _split(words: list[str]) -> tuple[list[str], str | None]:
    """(overrides, --config-dir)."""
    overrides, config_dir, words = [], None, iter(words)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag == "--config-dir":
            config_dir = value if equals else next(words, "")
            if not config_dir:
                raise UserError("--config-dir needs a value: --config-dir PATH.")
        elif word.startswith("-"):
            raise UserError(f"{word}: `python -m harness.train -m` has no such flag; it has --config-dir, --multirun.")
        else:
            overrides.append(word)
    return overrides, config_dir


def _checked(overrides: list[str], config_dir: str | None) -> list[str]:
    """The command line for Hydra. What Hydra's basic sweeper will make of it is resolved and its data prepared first, so
    that a wrong request fails here, in a line; other sweepers choose the points themselves."""
    from harness import cli
    from harness.compose import RANGE, compose
    from harness.places import cache_dir
    from harness.private import private_folder, private_name

    hydra = [word for word in overrides if word.lstrip("+~").startswith(("hydra.", "hydra/"))]
    own = [word for word in overrides if word not in hydra]
    if named := [word for word in own if word.partition("=")[0] in ("sweep", "launcher")]:
        raise UserError(f"{named[0]}: under -m Hydra sweeps and launches (hydra/sweeper=, hydra/launcher=); "
                        f"`hyperlaw sweep {named[0]}` does without Hydra.")  # fmt: skip
    if any(word.lstrip("+").startswith("hydra/sweeper=") for word in hydra):
        request = compose([word for word in own if not _searched(word)], "sweep", config_dir)
    else:
        request = compose(own, "sweep", config_dir)
        cli.prepare(request)
        own = [word if not RANGE.match(word.partition("=")[2]) else _listed(word) for word in own]
    folder = private_folder(cache_dir(request.config) / private_name("hydra"))
    place = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    given = {word.partition("=")[0].lstrip("+~") for word in hydra}
    ours = [word for word in (f"hydra.sweep.dir='{place}'", *QUIET) if word.partition("=")[0] not in given]
    return [*own, *hydra, *ours]


def _searched(word: str) -> bool:
    """Whether a sweeper is to choose the values: `interval(1e-4, 1e-2)`, `choice(...)`, a comma list."""
    from harness.compose import RANGE, _parsed

    return RANGE.match(word.partition("=")[2]) is None and _parsed(word)[1].is_sweep_override()


def _listed(word: str) -> str:
    """`key=log2(-10,-5,6)`, which is not of Hydra's grammar, as a list."""
    from harness import cli

    key, _, value = word.partition("=")
    return f"{key}={','.join(str(v) for v in cli.axis_values(key, value))}"


@contextlib.contextmanager
def _without_hydra():
    """Hydra composes for one caller at a time: its application steps aside for our own compose."""
    from hydra.core.global_hydra import GlobalHydra

    held = GlobalHydra.instance()
    application, held.hydra = held.hydra, None
    try:
        yield
    finally:
        held.hydra = application


def _hydra(argv: list[str]) -> int:
    import hydra
    from hydra.core.config_store import ConfigStore

    from harness.compose import CONFIGS
    from harness.config import Config

    ConfigStore.instance().store(name="schema", node=Config)
    sys.argv = ["harness.train", *argv]
    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(train)()
    return 0
