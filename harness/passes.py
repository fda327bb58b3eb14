"""Into which forward passes a batch is cut, and which compiled steps that takes. Pure, without torch."""

from __future__ import annotations

from collections.abc import Iterable


def cut(batch: int, micro_batch: int | None = None, shared: int | None = None) -> int | None:
    """Sequences of each pass over which the gradient of a batch is summed; None: the batch is one whole step.

    micro_batch: most sequences that memory, or the user, allows. shared: sequences of the pass that a sweep's batch sizes
    have in common (sweeps/passes.py); batches that it divides take it, also one of a single pass, and no other does.
    """
    if shared and batch % shared == 0 and shared <= (micro_batch or shared):
        return shared
    return micro_batch if micro_batch and micro_batch < batch else None


def steps(batches: Iterable[int], micro_batch: int | None = None, shared: int | None = None) -> tuple[tuple[str, int], ...]:
    """("whole" or "part", sequences) of each step that is compiled for these batches."""
    found = set()
    for batch in batches:
        size = cut(batch, micro_batch, shared)
        if size is None:
            found.add(("whole", batch))
        else:
            found |= {("part", n) for n in (size, batch % size) if n}
    return tuple(sorted(found))
