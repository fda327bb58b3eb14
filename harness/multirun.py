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
import traceback
from pathlib import Path

from harness.errors import UserError
from harness.redact import redact, redacted

FLAGS = ("-m", "--multirun")
# An option of Hydra's that reads a pickle (--experimental-rerun), and others that print what composes: not taken.
FULL_ERROR = "HYDRA_FULL_ERROR"  # set by whoever wants Hydra's traces
QUIET = ("hydra.output_subdir=null", "hydra/job_logging=none")


class PointFailed(RuntimeError):
    """One of the jobs failed; the message names run and reason."""


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit status (harness/cli.py): 2 where the request is wrong, 1 where a point failed."""
    from harness import cli

    _hide_secrets()
    words = list(sys.argv[1:] if argv is None else argv)
    if not set(FLAGS) & set(words):
        return cli.main(["train", *words])
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    try:
        overrides, config_dir = _split([word for word in words if word not in FLAGS])
        command, place = _checked(overrides, config_dir)
        try:
            return _hydra(["-m", *command, *(["--config-dir", config_dir] if config_dir else [])])
        finally:
            _redact_record(place / "multirun.yaml")
    except KeyboardInterrupt:
        return 130
    except UserError as e:
        said, status = str(e), 2
    except PointFailed as e:
        said, status = str(e), 1
    print(redact(f"hyperlaw: {said}"), file=sys.stderr)
    return status


def train(config) -> float:
    """The task that Hydra calls with its composed config, of which only the overrides count: the loss of that point.

    Raises PointFailed, so that Hydra says which job failed; SystemExit where a signal stopped it."""
    _hide_secrets()  # some launchers call this in processes of theirs
    try:
        return _train()
    except (UserError, PointFailed):
        raise
    except Exception as e:  # a fault of ours: its trace would be lost between processes
        traceback.print_exc()
        raise PointFailed(f"{type(e).__name__}: {_line(e)}") from None


def _train() -> float:
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


def _hide_secrets() -> None:
    """Hydra writes overrides to stdout and tracebacks to stderr as they are."""
    sys.stdout, sys.stderr = redacted(sys.stdout), redacted(sys.stderr)


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


def _checked(overrides: list[str], config_dir: str | None) -> tuple[list[str], Path]:
    """The command line for Hydra, and where it keeps its own. What Hydra's basic sweeper will make of it is resolved and
    its data prepared first, so that a wrong request fails here, in a line; other sweepers choose the points themselves."""
    from harness import cli
    from harness.compose import compose
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
        own = cli.prepare_multirun(request, own)
    folder = private_folder(cache_dir(request.config) / private_name("hydra"))
    place = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    given = {word.partition("=")[0].lstrip("+~") for word in hydra}
    ours = [word for word in (f"hydra.sweep.dir='{place}'", *QUIET) if word.partition("=")[0] not in given]
    return [*own, *hydra, *ours], place


def _redact_record(path: Path) -> None:
    """Hydra's record of the request, in a folder of ours."""
    with contextlib.suppress(OSError, ValueError):
        path.write_text(redact(path.read_text("utf-8")), "utf-8")


def _searched(word: str) -> bool:
    """Whether a sweeper is to choose the values: `interval(1e-4, 1e-2)`, `choice(...)`, a comma list."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word).is_sweep_override()
    except HydraException:  # not of Hydra's grammar; compose() says what it is
        return False


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
    """Raises PointFailed, and UserError for what Hydra, its launchers and its sweepers refuse, which say it in many ways."""
    import hydra
    from hydra.core.config_store import ConfigStore

    from harness.compose import CONFIGS
    from harness.config import Config

    ConfigStore.instance().store(name="schema", node=Config)
    sys.argv = ["harness.train", *argv]
    traced = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"  # errors come here, instead of being printed by Hydra
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(train)()
    except (UserError, PointFailed):
        raise
    except Exception as e:
        if traced:
            raise
        raise UserError(f"Hydra: {_line(e)}") from None
    finally:
        os.environ.pop(FULL_ERROR)
        os.environ.update({FULL_ERROR: traced} if traced else {})
    return 0


def _line(e: Exception) -> str:
    """The message of an error of Hydra's or OmegaConf's, less where it searched, with the key that OmegaConf puts below."""
    text = str(e).partition("Config search path")[0]
    text, _, key = text.partition("\n    full_key: ")
    key = f"{key.split()[0]}: " if key and key.split()[0] not in text else ""
    return f"{key}{' '.join(text.split())[:500]}" or type(e).__name__
