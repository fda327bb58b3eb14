"""How a batch is cut into passes, and which steps are compiled for that."""

import pytest

from harness.passes import cut, steps


@pytest.mark.parametrize("batch, micro_batch, shared, size", [
    (16, None, None, None), (16, 16, None, None), (16, 64, None, None),  # whole
    (16, 4, None, 4), (16, 5, None, 5),
    (16, 16, 8, 8), (8, 8, 8, 8), (12, 12, 8, None), (4, 4, 8, None),  # what it divides, a single pass too
    (16, 8, 8, 8), (16, 4, 8, 4),  # memory comes first
])  # fmt: skip
def test_cut(batch, micro_batch, shared, size):
    assert cut(batch, micro_batch, shared) == size


def test_steps_to_compile():
    assert steps([8, 16, 64]) == (("whole", 8), ("whole", 16), ("whole", 64))
    assert steps([8, 16, 64], shared=8) == (("part", 8),)
    assert steps([4, 16, 20], shared=8) == (("part", 8), ("whole", 4), ("whole", 20))
    assert steps([8, 20], micro_batch=8) == (("part", 4), ("part", 8), ("whole", 8))
