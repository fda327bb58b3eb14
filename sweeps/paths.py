"""Points compared step by step: after how many steps they are still in the same state.

Two points are where all that acts agrees: model, multipliers, optimizer constants, data and its order, seeds, precision, and
in each step the numbers that it takes (harness/hyper.py, as float32) and the batch. The schedules' kinds, lengths and names
do not count: a wsd run is a constant one until it cools.

Steps are compared by digests of blocks and, inside the first block that differs, number by number. What points have in
common that differ only in seed, data, validation or precision is worked out once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from harness.hyper import rates
from harness.point import SCHEMA, DataSpec, OptimizerSpec, Point, ValidationSpec, acting_multipliers
from harness.schedule import shares

BLOCK = 512  # steps of one digest
CHUNK = 32 * BLOCK  # steps that are computed at a time for digests


def prefix_id(point: Point, steps: int) -> str:
    """16 hex digits: equal for points that are in the same state after `steps` steps. ValueError beyond the last one."""
    if not 0 <= steps <= point.steps:
        raise ValueError(f"{point.id} has {point.steps} steps, asked for {steps}")
    return name_of(constants(point), path_of(point), steps)


def name_of(constants: bytes, path: Path, steps: int) -> str:
    """`prefix_id` of what was worked out already."""
    return hashlib.sha256(constants + path.digest(steps)).hexdigest()[:16]


def constants(point: Point) -> bytes:
    """What acts in every step. Validation sequences too: a branch takes over what its trunk has measured."""
    head, tail = _acting(point.shape, point.parameterization, point.optimizer)
    own = [point.data.fingerprint, point.data.seed, point.seed, point.precision, point.validation.sequences]
    return f"{head}, {json.dumps(own)[1:]}{tail}".encode()


@lru_cache(maxsize=4096)
def _acting(shape, parameterization, optimizer: OptimizerSpec) -> tuple[str, str]:
    fixed = {k: v for k, v in vars(optimizer).items() if k not in ("lr", "weight_decay", "weight_decay_mode")}
    return json.dumps([SCHEMA, vars(shape), fixed], sort_keys=True)[:-1], acting_multipliers(shape, parameterization)


class Path:
    """A point's steps: the numbers that each takes, bias corrections aside, which follow from constants and the step."""

    def __init__(self, point: Point):
        self.point, self.steps = point, point.steps
        self.table = point.rules
        self._chunks: dict[int, np.ndarray] = {}
        self._prefixes: dict[int, bytes] = {}
        self._rows: dict[int, bytes] = {}

    def numbers(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Steps start ... stop-1, as far as there are: share of the peak, float64, and sequences, int64."""
        stop = min(stop, self.steps)
        return shares(self.point.schedule, self.steps, start, stop), self.point.batches(start, stop)

    def rows(self, block: int) -> np.ndarray:
        """The steps of a block as they are compared, uint32 (at most BLOCK, numbers of a step)."""
        return _rows_of(self, block)

    def row(self, step: int) -> bytes:
        """Equal where this step is."""
        if step not in self._rows:
            # The first alone: it tells most points of a grid apart, and its numbers do not depend on how many are computed.
            found = self.rows(step // BLOCK)[step % BLOCK] if step else self._first_step()
            self._rows[step] = found.tobytes()
        return self._rows[step]

    def _first_step(self) -> np.ndarray:
        return _rows(self.point.optimizer, self.table, *self.numbers(0, 1))[0]

    def digests(self, chunk: int) -> np.ndarray:
        """Of the whole blocks in a chunk, uint64 (at most CHUNK / BLOCK, 2)."""
        if chunk not in self._chunks:
            numbers = self.numbers(chunk * CHUNK, (chunk + 1) * CHUNK)
            self._chunks[chunk] = _digests(self.point.optimizer, self.table, *(x.tobytes() for x in numbers))
        return self._chunks[chunk]

    def digest(self, steps: int) -> bytes:
        """Of the first `steps` steps."""
        if steps not in self._prefixes:
            blocks, rest = divmod(steps, BLOCK)
            whole = b"".join(self.digests(chunk).tobytes() for chunk in range(-(-steps // CHUNK)))[: 16 * blocks]
            self._prefixes[steps] = whole + (_digest(self.rows(blocks)[:rest]) if rest else b"")
        return self._prefixes[steps]


def path_of(point: Point) -> Path:
    """The same for points that differ only in seed, data, validation or precision."""
    return _path_of(point.shape, point.parameterization, point.optimizer, point.schedule, point.batch_size, point.steps)


@lru_cache(maxsize=4096)
def _path_of(shape, parameterization, optimizer, schedule, batch_size, steps) -> Path:
    nowhere, never = DataSpec("", "", "", 0, None), ValidationSpec(0, ())
    return Path(Point(shape, parameterization, optimizer, schedule, nowhere, never, batch_size, steps, 0, ""))


@lru_cache(maxsize=512)  # 20 MB; points that differ in their seed alone ask for the same
def _rows_of(path: Path, block: int) -> np.ndarray:
    return _rows(path.point.optimizer, path.table, *path.numbers(block * BLOCK, (block + 1) * BLOCK))


def _rows(optimizer: OptimizerSpec, table: tuple, share: np.ndarray, batches: np.ndarray) -> np.ndarray:
    numbers = rates(optimizer, table, share).view(np.uint32)
    return np.concatenate([numbers, batches.view(np.uint32).reshape(-1, 2)], axis=1)


@lru_cache(maxsize=64)  # constant stretches, of which sweeps are full, are worked out once
def _digests(optimizer: OptimizerSpec, table: tuple, share: bytes, batches: bytes) -> np.ndarray:
    rows = _rows(optimizer, table, np.frombuffer(share), np.frombuffer(batches, np.int64))
    whole = [_digest(rows[i : i + BLOCK]) for i in range(0, len(rows) // BLOCK * BLOCK, BLOCK)]
    return np.frombuffer(b"".join(whole), np.uint64).reshape(-1, 2)


def _digest(rows: np.ndarray) -> bytes:
    return hashlib.blake2b(rows.tobytes(), digest_size=16).digest()


@lru_cache(maxsize=4096)
def common(paths: tuple[Path, ...], start: int) -> int:
    """Steps in which all these different paths agree; they do in the first `start`."""
    agreed = min(path.steps for path in paths)
    if len(paths) == 1:
        return agreed
    if start == 0 < agreed and len({path.row(0) for path in paths}) > 1:
        return 0
    if start == 0 and (here := _in_block(paths, 0, agreed)) < min(BLOCK, agreed):  # most part at once, or much later
        return here
    for chunk in range(start // CHUNK, agreed // CHUNK + 1):
        found = [path.digests(chunk) for path in paths]
        n = min(map(len, found))
        digests = np.stack([x[:n] for x in found])
        differ = (digests != digests[0]).any(axis=(0, 2))
        block = _first(differ)
        if block < CHUNK // BLOCK:
            each = {x[block].tobytes() if len(x) > block else path: path for x, path in zip(found, paths, strict=True)}
            return _in_block(list(each.values()), chunk * (CHUNK // BLOCK) + block, agreed)
    return agreed


def _in_block(paths: Sequence[Path], block: int, agreed: int) -> int:
    """The first step of the block in which paths differ, or its end, at most `agreed`."""
    n = min(agreed - block * BLOCK, BLOCK)
    first, *others = [path.rows(block)[:n] for path in paths]
    return block * BLOCK + min([_first((first != rows).any(axis=1)) for rows in others], default=n)


def _first(true: np.ndarray) -> int:
    return int(true.argmax()) if true.any() else len(true)
