"""Appends tokens to the shards of one split; what has been written up to a checkpoint survives a kill."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from harness.data.corpus import Shard, checksum


class SplitWriter:
    """`state` is what `checkpoint` returned before (None: empty): finished shards and the tokens in the open one."""

    def __init__(self, folder: Path, split: str, dtype: str, shard_tokens: int, state: dict | None = None):
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, np.dtype(dtype), shard_tokens
        state = state or {"shards": [], "open": 0}
        self.shards = [Shard(**s) for s in state["shards"]]
        self._open = state["open"]
        self._file = open(self._path(), "r+b" if self._open else "wb")
        if os.fstat(self._file.fileno()).st_size < self._open * self.dtype.itemsize:
            raise ValueError(f"{self._path()} is shorter than its checkpoint")
        self._file.truncate(self._open * self.dtype.itemsize)
        self._file.seek(0, os.SEEK_END)

    @property
    def tokens(self) -> int:
        return sum(s.tokens for s in self.shards) + self._open

    def append(self, tokens: np.ndarray) -> None:
        """`tokens` (n,) of any integer type; a full shard is closed and the next one begun."""
        while len(tokens):
            part, tokens = np.split(tokens, [self.shard_tokens - self._open])
            self._file.write(part.astype(self.dtype, copy=False).data)
            self._open += len(part)
            if self._open == self.shard_tokens:
                self._close_shard()
                self._file = open(self._path(), "wb")

    def checkpoint(self) -> dict:
        """Flushes to disk; the state to go on from."""
        self._sync()
        return {"shards": [vars(s) for s in self.shards], "open": self._open}

    def finish(self) -> tuple[Shard, ...]:
        """All shards, the last one closed."""
        if self._open:
            self._close_shard()
        else:
            self._file.close()
            self._path().unlink()
        return tuple(self.shards)

    def close(self) -> None:
        self._file.close()

    def _path(self) -> Path:
        return self.folder / f"{self.split}-{len(self.shards):05d}.bin"

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _close_shard(self) -> None:
        self._sync()
        self._file.close()
        path = self._path()
        self.shards.append(Shard(path.name, self._open, checksum(path)))
        self._open = 0
