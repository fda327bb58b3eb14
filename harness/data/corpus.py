"""A prepared corpus on disk: token shards of two splits and the manifest that describes and seals them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.errors import UserError
from harness.files import read_json, write_json

MANIFEST = "manifest.json"
VERIFIED = "verified.json"
SPLITS = ("train", "validation")
SCHEMA = 1
DTYPES = ("|u1", "<u2", "<u4")


@dataclass(frozen=True)
class Shard:
    """One file of `tokens` little-endian unsigned integers; `checksum` is BLAKE2b-160 of its bytes."""

    file: str
    tokens: int
    checksum: str


@dataclass(frozen=True)
class Corpus:
    """Tokens of one source under one tokenizer. `fingerprint` depends on the tokens and the tokenizer only, never on
    paths, times or the machine. `entropy_rate` in nats per token where the source knows it."""

    dir: Path
    fingerprint: str
    name: str
    tokenizer: str
    vocab: int
    dtype: str
    shard_tokens: int  # length of every shard of a split but the last
    shards: dict[str, tuple[Shard, ...]]
    documents: dict[str, int]
    text_bytes: int
    entropy_rate: float | None = None

    @property
    def train_tokens(self) -> int:
        return sum(s.tokens for s in self.shards["train"])

    @property
    def validation_tokens(self) -> int:
        return sum(s.tokens for s in self.shards["validation"])

    def arrays(self, split: str) -> list[np.ndarray]:
        """The split's shards, memory-mapped, as plain read-only arrays."""
        # A memmap slices many times slower than the plain array over the same pages.
        return [np.asarray(np.memmap(self.dir / s.file, self.dtype, "r")).view(np.ndarray) for s in self.shards[split]]

    def damage(self, checksums: bool = False) -> str | None:
        """What is wrong with the shards, or None. Sizes only, unless `checksums`."""
        for shard in (s for split in SPLITS for s in self.shards[split]):
            path = self.dir / shard.file
            if not path.is_file():
                return f"{path} is missing"
            size = shard.tokens * np.dtype(self.dtype).itemsize
            if path.stat().st_size != size:
                return f"{path} has {path.stat().st_size} bytes instead of {size}"
            if checksums and checksum(path) != shard.checksum:
                return f"{path} does not match its checksum"
        return None

    def verify(self, again: bool = False) -> Corpus:
        """Checksums of all shards, once per state of the files (`again`: even so); returns itself.

        Raises UserError naming the damaged file and the mend."""
        stamps = self._stamps()
        if stamps is None or again or read_json(self.dir / VERIFIED) != stamps:
            if damage := self.damage(checksums=True):
                raise UserError(_damaged(self.dir, damage))
            try:
                write_json(self.dir / VERIFIED, stamps)
            except OSError:  # a read-only cache is verified each time
                pass
        return self

    def _stamps(self) -> dict | None:
        """Size and time of each shard: those of the last verification are kept, so that it is not repeated."""
        try:
            stats = {s.file: (self.dir / s.file).stat() for split in SPLITS for s in self.shards[split]}
        except OSError:
            return None
        return {name: [st.st_size, st.st_mtime_ns, st.st_ctime_ns] for name, st in stats.items()}


def open_corpus(folder: Path) -> Corpus:
    """The corpus in `folder`, its shards' sizes checked. Raises UserError where it is absent, unfinished or damaged."""
    value = read_json(folder / MANIFEST)
    try:
        if value is None or value.pop("seal") != _seal(value) or value["schema"] != SCHEMA:
            raise KeyError
        shards = {split: tuple(Shard(**s) for s in value["shards"][split]) for split in SPLITS}
        fields = {k: value[k] for k in Corpus.__dataclass_fields__ if k not in ("dir", "shards")}
        corpus = Corpus(dir=folder, shards=shards, **fields)
        _check(corpus)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(_damaged(folder, f"{folder / MANIFEST} is missing or not whole")) from None
    if damage := corpus.damage():
        raise UserError(_damaged(folder, damage))
    return corpus


def _check(corpus: Corpus) -> None:
    """Raises ValueError where a manifest that somebody sealed names files elsewhere, or no tokens."""
    shards = [shard for split in SPLITS for shard in corpus.shards[split]]
    if not all(shard.file == os.path.basename(shard.file) not in ("", ".", "..") for shard in shards):
        raise ValueError("a shard lies outside the folder")
    if corpus.dtype not in DTYPES or not all(type(shard.tokens) is int and shard.tokens >= 0 for shard in shards):
        raise ValueError("no tokens")


def _damaged(folder: Path, damage: str) -> str:
    return f"damaged data: {damage}; delete the folder {folder} and run the command again: it is prepared anew"


def write_manifest(corpus: Corpus, facts: dict) -> None:
    """Seals a finished corpus; `facts` are kept for the reader and not read back."""
    value = {k: getattr(corpus, k) for k in Corpus.__dataclass_fields__ if k not in ("dir", "shards")}
    value["shards"] = {split: [vars(s) for s in corpus.shards[split]] for split in SPLITS}
    tokens = {"train_tokens": corpus.train_tokens, "validation_tokens": corpus.validation_tokens}
    value = {"schema": SCHEMA, **value, **tokens, **facts}
    write_json(corpus.dir / MANIFEST, value | {"seal": _seal(value)})


def _seal(value: dict) -> str:
    """Hash of the manifest's content, so that a flipped bit in it is noticed as one in a shard is."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def fingerprint(tokenizer: str, shards: dict[str, tuple[Shard, ...]]) -> str:
    """16 hex digits over the tokenizer's content and every shard's length and checksum, in order."""
    digest = hashlib.blake2b(tokenizer.encode(), digest_size=8)
    for split in SPLITS:
        for shard in shards[split]:
            digest.update(f"\n{split} {shard.tokens} {shard.checksum}".encode())
    return digest.hexdigest()


def checksum(path: Path) -> str:
    """BLAKE2b-160 of a file, read in pieces."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=20)).hexdigest()
