"""Where things lie: caches, outputs and runs; and what planning needs to know of the data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from harness.config import Config, DataConfig
from harness.errors import UserError
from harness.files import read_json, write_json
from harness.resolve import DataFacts

DATA = "data.json"  # in the output folder: what its data came to


def cache_dir(config: Config) -> Path:
    """Tokenized data, compiled code and measured rates, for this user: `cache=`, HYPERLAW_CACHE or ~/.cache/hyperlaw."""
    return _folder("cache", config.cache or os.environ.get("HYPERLAW_CACHE") or "~/.cache/hyperlaw")


def out_dir(config: Config, name: str) -> Path:
    """`out=`, else out/NAME."""
    return _folder("out", config.out or f"out/{name}")


def runs_dir(config: Config, name: str) -> Path:
    """`runs=`, else runs/ in the output folder."""
    return _folder("runs", config.runs) if config.runs else out_dir(config, name) / "runs"


def _folder(key: str, path: str) -> Path:
    """`path`, which need not be there yet. Raises UserError where it cannot be a folder."""
    try:
        found = Path(os.path.expanduser(path)).absolute()
        there = next(p for p in (found, *found.parents) if p.exists())
    except (OSError, ValueError) as e:  # a name too long, a byte that no name has
        raise UserError(f"{key}={path} cannot be a folder: {getattr(e, 'strerror', None) or e}.") from None
    if not there.is_dir():
        raise UserError(f"{key}={path} cannot be a folder: {there} is a file.")
    return found


class DataBook:
    """Corpora by their config: prepared ones, or provisional facts where a plan may be made without the data.

    `book(data)` gives the DataFacts that resolving needs; `corpora` maps fingerprint to folder for the workers. `out`: the
    sweep's folder, whose data.json (`save`) tells the facts where the cache is another: the same command, on any machine
    that sees the folder, speaks of the same points.
    """

    def __init__(self, cache: Path, prepare: bool, report: Callable[[str], None] = print, out: Path | None = None):
        self.cache, self.prepare, self.report = cache, prepare, report
        self.known = (read_json(out / DATA) or {}) if out else {}
        self.prepared: dict[str, dict] = {}
        self.corpora: dict[str, str] = {}
        self.provisional: set[str] = set()  # data that is not prepared
        self._facts: dict[str, DataFacts] = {}

    def __call__(self, data: DataConfig) -> DataFacts:
        # Order and repeats are no part of a corpus, so axes over them share one.
        key = repr({k: v for k, v in vars(data).items() if k not in ("seed", "epochs")})
        if key not in self._facts:
            self._facts[key] = self._look_up(data)
        return self._facts[key]

    def _look_up(self, data: DataConfig) -> DataFacts:
        from harness.data import locate, prepare, unprepared_fingerprint, vocab_of

        if self.prepare:
            corpus = prepare(data, self.cache, self.report)
        else:
            try:
                corpus = locate(data, self.cache)
            except UserError:  # a source that is not on this machine can be planned for all the same
                if data.name != "hf":
                    raise
                corpus = None
        if corpus:
            self.corpora[corpus.fingerprint] = str(corpus.dir)
            facts = DataFacts(corpus.fingerprint, corpus.vocab, corpus.train_tokens)
            self.prepared[unprepared_fingerprint(data)] = vars(facts)
            return facts
        if known := _facts(self.known.get(unprepared_fingerprint(data))):
            return known
        vocab = vocab_of(data)
        if vocab is None:
            raise UserError(f"data={data.name} is not prepared and its vocabulary is not known: give data.vocab=SIZE.")
        self.provisional.add(data.name)
        return DataFacts(unprepared_fingerprint(data), vocab, None)

    def save(self, out: Path) -> None:
        """Raises OSError."""
        known = read_json(out / DATA) or {}
        if any(known.get(k) != v for k, v in self.prepared.items()):
            write_json(out / DATA, {**known, **self.prepared})


def _facts(value: object) -> DataFacts | None:
    """Of an entry of data.json; None where it is absent or damaged."""
    types = {"fingerprint": str, "vocab": int, "train_tokens": int}
    if not isinstance(value, dict) or value.keys() != types.keys():
        return None
    return DataFacts(**value) if all(isinstance(value[k], t) for k, t in types.items()) else None
