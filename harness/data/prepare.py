"""From a source to a corpus: tokenized once, in bounded memory, resumable, by one process at a time.

Folder `<cache>/data/NAME-KEY/`: shards `train-00000.bin`, ..., `manifest.json` once complete; until then `progress.json`,
which says how far the shards can be trusted. KEY hashes the request and the source's signature, so a source that changed
gets a new folder and running workers keep theirs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from harness.data import tokenizers
from harness.data.corpus import SCHEMA, SPLITS, Corpus, fingerprint, open_corpus, write_manifest
from harness.data.shards import SplitWriter
from harness.data.sources import Source, check, open_source
from harness.errors import UserError
from harness.files import read_json, write_atomic, write_json

if TYPE_CHECKING:
    from harness.config import DataConfig

SHARD_TOKENS = 1 << 27
BATCH_BYTES = 1 << 20  # text tokenized at a time
CHECKPOINT_BYTES = 64 << 20  # text between two states that a killed preparation goes on from
REPORT_SECONDS = 2.0
PROGRESS = "progress.json"
TOKENIZER = "tokenizer.json"
Report = Callable[[str], object]


def locate(data: DataConfig, cache: Path) -> Corpus | None:
    """The corpus that `data` describes if it is prepared, its shards' sizes are right and its source has not changed;
    else None. Reads no text. Raises UserError where the source or the tokenizer's file is missing."""
    folder = _folder(data, open_source(data), Path(cache))
    try:
        return open_corpus(folder)
    except UserError:
        return None


def prepare(data: DataConfig, cache: Path, report: Report = print) -> Corpus:
    """The corpus that `data` describes, its checksums verified; tokenized first where `cache` lacks it or it is damaged.

    Many processes may call it at once: one prepares, the others wait. Raises UserError."""
    folder = _folder(data, open_source(data), Path(cache))
    if corpus := _whole(folder):
        return corpus
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(folder.name + ".lock"), data, report):
            return _whole(folder, report) or _prepare(data, folder, report)
    except OSError as error:
        raise UserError(f"cannot prepare data={data.name} in {folder}: {error.strerror or error}") from error


def vocab_of(data: DataConfig) -> int | None:
    """Vocabulary that the tokens will have, without preparing them; None where only `data.vocab` could tell and it is
    not given (a tokenizer.json that is not here). Raises UserError where `data` contradicts itself."""
    if data.name == "markov":
        return data.states
    if data.tokenizer not in ("bytes", "bpe") and not Path(data.tokenizer).expanduser().is_file():
        return data.vocab
    return _tokenizer(data)[1]


def unprepared_fingerprint(data: DataConfig) -> str:
    """Stands for the fingerprint in a plan whose data is not prepared: the same for the same request."""
    request = json.dumps(_request(data, data.tokenizer) | {"path": data.path}, sort_keys=True)
    return "unprepared-" + hashlib.blake2b(request.encode(), digest_size=8).hexdigest()


def _tokenizer(data: DataConfig) -> tuple[str, int, bytes | None]:
    """What `data.tokenizer` asks for: (key, vocabulary, content of the tokenizer.json that is given)."""
    if data.tokenizer == "bytes":
        found = "bytes", tokenizers.Bytes.vocab, None
    elif data.tokenizer == "bpe":
        if data.vocab is None or data.vocab < 257:
            raise UserError("data.tokenizer=bpe needs data.vocab= of at least 257 (256 bytes and the end of a document)")
        return f"bpe-{data.vocab}", data.vocab, None
    else:
        content = tokenizers.read_tokenizer_file(data.tokenizer)
        found = tokenizers.content_id(content), tokenizers.file_vocab(content), content
    if data.vocab not in (None, found[1]):
        raise UserError(f"data.vocab={data.vocab}, but data.tokenizer={data.tokenizer} has {found[1]} tokens; drop one")
    return found


def _request(data: DataConfig, tokenizer: str) -> dict:
    """What decides the tokens, beside the source's signature."""
    if data.name == "markov":
        return {"schema": SCHEMA, "source": data.name, "states": data.states, "tokens": data.tokens,
                "entropy": data.entropy, "validation_fraction": data.validation_fraction}  # fmt: skip
    keys = ("validation_fraction", "max_bytes", "subset", "split", "revision", "text_key", "vocab")
    return {"schema": SCHEMA, "source": data.name, "tokenizer": tokenizer} | {k: getattr(data, k) for k in keys}


def _folder(data: DataConfig, source: Source, cache: Path) -> Path:
    tokenizer = "" if source.vocab else _tokenizer(data)[0]
    request = json.dumps([_request(data, tokenizer), source.signature, SHARD_TOKENS], sort_keys=True)
    return cache.expanduser() / "data" / f"{data.name}-{hashlib.blake2b(request.encode(), digest_size=8).hexdigest()}"


def _whole(folder: Path, report: Report | None = None) -> Corpus | None:
    if not folder.is_dir():
        return None
    try:
        return open_corpus(folder).verify()
    except UserError as error:
        if report and not (folder / PROGRESS).is_file():
            report(f"{error}".split(";")[0] + ": preparing it again")
        return None


@contextmanager
def _locked(path: Path, data: DataConfig, report: Report) -> Iterator[None]:
    """Holds an exclusive lock that the system drops when the process dies."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"data={data.name}: another process is preparing it, waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass
class _State:
    """How far the documents have been read. A document whose hash is at most `threshold` is for validation."""

    threshold: int
    low: int = 1 << 64  # least and greatest hash so far
    high: int = -1
    part: int = 0
    document: int = 0
    text_bytes: int = 0
    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))


def _prepare(data: DataConfig, folder: Path, report: Report) -> Corpus:
    # The source again, under the lock: the signature that the folder is named by must be that of the text read now.
    source = open_source(data)
    if _folder(data, source, folder.parent.parent) != folder:
        raise UserError(f"data={data.name} changed while it was waited for; run the command again")
    progress = read_json(folder / PROGRESS)
    if progress is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        tokenizer = None if source.vocab else _load_tokenizer(data, source, folder, report)
        run = _Run(data, source, tokenizer, folder, report)
        corpus = run.fill(progress)
        if open_source(data).signature != source.signature:
            raise UserError(f"data={data.name} changed while it was read; run the command again")
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    write_manifest(corpus, {"source_signature": source.signature, "validation_fraction": data.validation_fraction})
    (folder / PROGRESS).unlink(missing_ok=True)
    report(f"data={data.name}: {corpus.train_tokens:,} training and {corpus.validation_tokens:,} validation tokens")
    return corpus.verify()


def _load_tokenizer(data: DataConfig, source: Source, folder: Path, report: Report) -> tokenizers.Tokenizer:
    _, vocab, content = _tokenizer(data)
    if data.tokenizer == "bytes":
        return tokenizers.Bytes()
    saved = folder / TOKENIZER
    if data.tokenizer == "bpe":
        if not saved.is_file():
            report(f"data={data.name}: training a BPE of {vocab} tokens")
            write_atomic(saved, tokenizers.train_bpe(_sample(data, source), vocab))
        content = saved.read_bytes()
    else:
        write_atomic(saved, content)
    return tokenizers.FromFile(content, data.tokenizer)


def _sample(data: DataConfig, source: Source) -> Iterator[bytes]:
    """Training documents to train a BPE on, spread over the source's parts, SAMPLE_BYTES at most (and `max_bytes`)."""
    parts, threshold = list(source.parts), _threshold(data)
    left, quota = tokenizers.SAMPLE_BYTES, max(1 << 20, tokenizers.SAMPLE_BYTES // max(1, len(parts)))
    if data.max_bytes:  # then only the beginning of the source is used at all
        left = quota = min(left, data.max_bytes)
    else:
        parts = [parts[i] for i in sorted(range(len(parts)), key=lambda i: i * 0.6180339887 % 1)]
    for part in parts:
        taken = 0
        for document in source.read(part):
            if _hash(document) > threshold:
                yield document
            taken += len(document)
            if taken >= min(quota, left):
                break
        left -= taken
        if left <= 0:
            return


def _threshold(data: DataConfig) -> int:
    return int(data.validation_fraction * (1 << 64))


def _hash(document: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(document, digest_size=8).digest(), "big")


class _Run:
    """One preparation: reads the documents, splits and tokenizes them, and can go on from its last checkpoint."""

    def __init__(self, data: DataConfig, source: Source, tokenizer: tokenizers.Tokenizer | None, folder: Path,
                 report: Report):  # fmt: skip
        self.data, self.source, self.tokenizer, self.folder, self.report = data, source, tokenizer, folder, report
        self.vocab = source.vocab or tokenizer.vocab
        self.dtype = "|u1" if self.vocab <= 1 << 8 else "<u2" if self.vocab <= 1 << 16 else "<u4"
        self._reported, self._saved_bytes = time.monotonic(), 0
        self._began = self._reported

    def fill(self, progress: dict | None) -> Corpus:
        """Both splits in full. Raises UserError where there are fewer than two different documents."""
        self._resume(progress, _State(_threshold(self.data)))
        self._read_all()
        # A small corpus may leave a split empty: then the document of the least (greatest) hash makes it up.
        for split, threshold in (("validation", self.state.low), ("train", self.state.high - 1)):
            if not self.writers[split].tokens and self.state.low < self.state.high:
                self._resume(None, _State(threshold))
                self._read_all()
        documents, text_bytes = self.state.documents, self.state.text_bytes
        if not all(self.writers[split].tokens for split in SPLITS):
            raise UserError(
                f"data={self.data.name} holds {sum(documents.values())} different document of {text_bytes:,} bytes, "
                "and training and validation are split by document: give more text"
            )
        shards = {split: self.writers[split].finish() for split in SPLITS}
        name = self.tokenizer.id if self.tokenizer else f"states-{self.vocab}"
        return Corpus(self.folder, fingerprint(name, shards), self.data.name, name, self.vocab, self.dtype, SHARD_TOKENS,
                      shards, documents, text_bytes, self.source.entropy_rate)  # fmt: skip

    def _resume(self, progress: dict | None, fresh: _State) -> None:
        for writer in getattr(self, "writers", {}).values():
            writer.close()
        saved = {}
        self.state = fresh
        if progress:
            self.state, saved = _State(**progress["state"]), progress["splits"]
            self.report(f"data={self.data.name}: going on after {self.state.text_bytes / 1e6:.0f} MB of text")
        self.writers = {s: SplitWriter(self.folder, s, self.dtype, SHARD_TOKENS, saved.get(s)) for s in SPLITS}
        self._saved_bytes = self.state.text_bytes

    def _read_all(self) -> None:
        state = self.state
        while state.part < len(self.source.parts):
            part = self.source.parts[state.part]
            for batch in self._batches(islice(self.source.read(part), state.document, None)):
                if self.tokenizer:
                    self._add_text(batch)
                else:
                    self.writers[part].append(batch[0])
                    state.documents[part] = 1
                state.document += len(batch)
                self._checkpoint()
                if self.data.max_bytes and state.text_bytes >= self.data.max_bytes:
                    return
            state.part, state.document = state.part + 1, 0

    def _batches(self, documents: Iterator) -> Iterator[list]:
        """Documents in lists of about BATCH_BYTES; the last is the one that reaches `max_bytes`."""
        room = (self.data.max_bytes or float("inf")) - self.state.text_bytes
        batch, size, total = [], 0, 0
        for document in documents:
            batch.append(document)
            size, total = size + len(document), total + len(document)
            if total >= room:
                break
            if size >= BATCH_BYTES or not self.tokenizer:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _add_text(self, batch: list[bytes]) -> None:
        state = self.state
        for document, tokens in zip(batch, self.tokenizer.encode(batch), strict=True):
            place = _hash(document)
            state.low, state.high = min(state.low, place), max(state.high, place)
            split = "validation" if place <= state.threshold else "train"
            self.writers[split].append(tokens)
            state.documents[split] += 1
            state.text_bytes += len(document)

    def _checkpoint(self) -> None:
        now = time.monotonic()
        if self.state.text_bytes - self._saved_bytes >= CHECKPOINT_BYTES:
            splits = {s: w.checkpoint() for s, w in self.writers.items()}
            write_json(self.folder / PROGRESS, {"state": asdict(self.state), "splits": splits})
            self._saved_bytes = self.state.text_bytes
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            tokens = sum(w.tokens for w in self.writers.values())
            parts = f", part {self.state.part + 1} of {len(self.source.parts)}" if len(self.source.parts) > 1 else ""
            self.report(f"data={self.data.name}: {self.state.text_bytes / 1e6:.0f} MB of text, {tokens:,} tokens, "
                        f"{now - self._began:.0f} s{parts}")  # fmt: skip
