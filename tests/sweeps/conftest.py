"""Requests, facts, tiny points and launches for the tests of sweeps."""

import pytest

from harness.resolve import DataFacts

from .. import points
from ..fixtures import background, corpus, launch, tiny

__all__ = ["background", "corpus", "launch", "tiny"]


@pytest.fixture(scope="session")
def facts():
    """Of a byte-level corpus that is not prepared."""
    return DataFacts("0123456789abcdef", 256, None)


@pytest.fixture(scope="session")
def request_of():
    return points.request_of
