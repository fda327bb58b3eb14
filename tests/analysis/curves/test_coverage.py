"""The short form of benchmarks/coverage_curves.py."""

import numpy as np
import pytest

from benchmarks.coverage_curves import CASES, measure


@pytest.mark.parametrize("name", ["annealing law, independent noise", "annealing law, AR(1) noise"])
def test_intervals_hold_the_truth(name):
    found = measure(CASES[name], 30)
    print(f"\n{name}: {found['coverage']}")
    for share in (np.mean([found["coverage"][k] for k in ("L0", "A", "alpha", "C")]), found["coverage"]["final loss"]):
        assert 0.6 <= share <= 0.97
