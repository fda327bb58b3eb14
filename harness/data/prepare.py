"""From a source to a corpus: tokenized once, in bounded memory, resumable, by one process at a time.

Folder `<cache>/data/NAME-KEY/`: shards `train-00000.bin`, ..., and `manifest.json` once complete; until then
`progress.json`, which says how far the shards can be trusted. KEY hashes the request and the source's signature, so a
source that changed gets a new folder and running workers keep theirs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.data import tokenizers
from harness.data.corpus import SCHEMA, Corpus, open_corpus, write_manifest
from harness.data.fill import PROGRESS, Filling, Report, goes_to_validation, threshold_of
from harness.data.sources import Source, open_source
from harness.errors import UserError
from harness.files import read_json, write_atomic

if TYPE_CHECKING:
    from harness.config import DataConfig

TOKENIZER = "tokenizer.json"


def locate(data: DataConfig, cache: Path) -> Corpus | None:
    """The corpus that `data` describes if it is prepared, its shards' sizes are right and its source has not changed;
    else None. Reads no text. Raises UserError where the source or the tokenizer's file is missing."""
    folder = _folder(data, open_source(data), Path(cache))
    try:
        return open_corpus(folder)
    except UserError:
        return None


def prepare(data: DataConfig, cache: Path, report: Report = print) -> Corpus:
    """The corpus that `data` describes, its checksums verified; tokenized first where it is missing or damaged.

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
    if data.tokenizer not in ("bytes", "bpe") and not os.path.isfile(os.path.expanduser(data.tokenizer)):
        return data.vocab
    return _tokenizer(data)[1]


def unprepared_fingerprint(data: DataConfig) -> str:
    """Stands for the fingerprint in a plan whose data is not prepared: the same for the same request."""
    request = json.dumps(_request(data, data.tokenizer) | {"path": data.path, "vocab": data.vocab}, sort_keys=True)
    return "unprepared-" + hashlib.blake2b(request.encode(), digest_size=8).hexdigest()


def _tokenizer(data: DataConfig) -> tuple[str, int, bytes | None]:
    """What `data.tokenizer` asks for: (key, vocabulary, content of the tokenizer.json that is given)."""
    if data.tokenizer == "bytes":
        found = "bytes", tokenizers.Bytes.vocab, None
    elif data.tokenizer == "bpe":
        if data.vocab is None or data.vocab < 257:
            raise UserError("data.tokenizer=bpe needs data.vocab= of at least 257 (bytes and the end of a document)")
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
    keys = ("validation_fraction", "max_bytes", "subset", "split", "revision", "text_key")
    return {"schema": SCHEMA, "source": data.name, "tokenizer": tokenizer} | {k: getattr(data, k) for k in keys}


def _folder(data: DataConfig, source: Source, cache: Path) -> Path:
    tokenizer = "" if source.vocab else _tokenizer(data)[0]
    request = json.dumps([_request(data, tokenizer), source.signature], sort_keys=True)
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


def _prepare(data: DataConfig, folder: Path, report: Report) -> Corpus:
    # The source again, under the lock: the signature that the folder is named by must be that of the text read now.
    source = open_source(data)
    if _folder(data, source, folder.parent.parent) != folder:
        raise UserError(f"data={data.name} changed while it was waited for; run the command again")
    if source.vocab and data.tokens * 2 > (free := shutil.disk_usage(folder.parent).free):
        raise UserError(f"data.tokens={data.tokens:g} take {data.tokens * 2:.3g} bytes, but {free:.3g} are free; lower it")
    progress = read_json(folder / PROGRESS)
    if progress is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for left in folder.glob(".*.tmp"):  # files that a kill kept from being renamed
        left.unlink()
    try:
        tokenizer = None if source.vocab else _load_tokenizer(data, source, folder, report)
        corpus = Filling(data, source, tokenizer, folder, report).run(progress)
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
    parts, threshold = list(source.parts), threshold_of(data.validation_fraction)
    left, quota = tokenizers.SAMPLE_BYTES, max(1 << 20, tokenizers.SAMPLE_BYTES // max(1, len(parts)))
    if data.max_bytes:  # then only the beginning of the source is used at all
        left = quota = min(left, data.max_bytes)
    else:
        parts = [parts[i] for i in sorted(range(len(parts)), key=lambda i: i * 0.6180339887 % 1)]
    for part in parts:
        taken = 0
        for document in source.read(part):
            if not goes_to_validation(document, threshold):
                yield document
            taken += len(document)
            if taken >= min(quota, left):
                break
        left -= taken
        if left <= 0:
            return
