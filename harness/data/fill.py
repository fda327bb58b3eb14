"""Reads a source's documents, splits them into training and validation, and tokenizes them into shards.

What a kill leaves behind is gone on from: the last checkpoint says which documents have been read and how long the
shards were then.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from harness.data.corpus import SPLITS, Corpus, fingerprint
from harness.data.shards import SplitWriter
from harness.data.sources import Source
from harness.data.tokenizers import Tokenizer
from harness.errors import UserError
from harness.files import write_json

if TYPE_CHECKING:
    from harness.config import DataConfig

SHARD_TOKENS = 1 << 27
BATCH_BYTES = 1 << 20  # text tokenized at a time
CHECKPOINT_BYTES = 64 << 20  # text between two checkpoints
REPORT_SECONDS = 2.0
PROGRESS = "progress.json"
Report = Callable[[str], object]


def threshold_of(validation_fraction: float) -> int:
    """Documents whose hash is at most this are for validation."""
    return int(validation_fraction * (1 << 64))


def goes_to_validation(document: bytes, threshold: int) -> bool:
    """By content alone: the same for every order, seed and machine, and equal documents go to the same split."""
    return _hash(document) <= threshold


def _hash(document: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(document, digest_size=8).digest(), "big")


@dataclass
class _State:
    """How far the documents have been read."""

    threshold: int
    low: int = 1 << 64  # least and greatest hash so far
    high: int = -1
    part: int = 0
    document: int = 0
    text_bytes: int = 0
    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))


class Filling:
    """One preparation of `source` in `folder`; `tokenizer` is None where the source yields tokens."""

    def __init__(self, data: DataConfig, source: Source, tokenizer: Tokenizer | None, folder: Path, report: Report):
        self.data, self.source, self.tokenizer, self.folder, self.report = data, source, tokenizer, folder, report
        self.vocab = source.vocab or tokenizer.vocab
        self.dtype = "|u1" if self.vocab <= 1 << 8 else "<u2" if self.vocab <= 1 << 16 else "<u4"
        self.writers: dict[str, SplitWriter] = {}
        self._began = self._reported = time.monotonic()

    def run(self, progress: dict | None) -> Corpus:
        """Both splits in full. Raises UserError where there are fewer than two different documents."""
        self._start(progress, threshold_of(self.data.validation_fraction))
        self._read_all()
        # A small corpus may leave a split empty: then the document of the least (greatest) hash makes it up.
        for split, threshold in (("validation", self.state.low), ("train", self.state.high - 1)):
            if not self.writers[split].tokens and self.state.low < self.state.high:
                self._start(None, threshold)
                self._read_all()
        text_bytes = self.state.text_bytes
        if not all(self.writers[split].tokens for split in SPLITS):
            raise UserError(
                f"data={self.data.name} holds fewer than two different documents ({text_bytes:,} bytes), "
                "and training and validation are split by document: give more text"
            )
        shards = {split: self.writers[split].finish() for split in SPLITS}
        name = self.tokenizer.id if self.tokenizer else f"states-{self.vocab}"
        return Corpus(
            dir=self.folder,
            fingerprint=fingerprint(name, shards),
            name=self.data.name,
            tokenizer=name,
            vocab=self.vocab,
            dtype=self.dtype,
            shard_tokens=SHARD_TOKENS,
            shards=shards,
            documents=self.state.documents,
            text_bytes=text_bytes,
            entropy_rate=self.source.entropy_rate,
        )

    def _start(self, progress: dict | None, threshold: int) -> None:
        """At the checkpoint `progress`; without one, or where its shards are shorter than it says, anew."""
        for writer in self.writers.values():
            writer.close()
        saved = progress["splits"] if progress else {}
        try:
            self.writers = {s: SplitWriter(self.folder, s, self.dtype, SHARD_TOKENS, saved.get(s)) for s in SPLITS}
        except (OSError, ValueError):
            if not progress:
                raise
            return self._start(None, threshold)
        if progress:
            self.state = _State(**progress["state"])
            self.report(f"data={self.data.name}: going on after {self.state.text_bytes / 1e6:.0f} MB of text")
        else:
            (self.folder / PROGRESS).unlink(missing_ok=True)
            self.state = _State(threshold)
        self._saved_bytes = self.state.text_bytes

    def _full(self) -> bool:
        return self.data.max_bytes is not None and self.state.text_bytes >= self.data.max_bytes

    def _read_all(self) -> None:
        state = self.state
        while state.part < len(self.source.parts) and not self._full():
            part = self.source.parts[state.part]
            for batch in self._batches(islice(self.source.read(part), state.document, None)):
                if self.tokenizer:
                    self._add_text(batch)
                else:
                    self.writers[part].append(batch[0])
                    state.documents[part] = 1
                state.document += len(batch)
                self._checkpoint()
                if self._full():
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
            tokens = f"{sum(w.tokens for w in self.writers.values()):,} tokens"
            text = f"{self.state.text_bytes / 1e6:.0f} MB of text, " if self.tokenizer else ""
            parts = f", part {self.state.part + 1} of {len(self.source.parts)}" if len(self.source.parts) > 1 else ""
            self.report(f"data={self.data.name}: {text}{tokens}, {now - self._began:.0f} s{parts}")
