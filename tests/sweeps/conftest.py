"""Requests and facts for the tests of sweeps."""

from dataclasses import replace

import pytest

from harness.compose import compose
from harness.resolve import DataFacts


@pytest.fixture(scope="session")
def facts():
    """Of a byte-level corpus that is not prepared."""
    return DataFacts("0123456789abcdef", 256, None)


@pytest.fixture(scope="session")
def request_of():
    """(overrides, fields of SweepConfig put in by hand) -> Request."""

    def build(*overrides, file_given=(), **sweep):
        r = compose(list(overrides), "sweep")
        config = replace(r.config, sweep=replace(r.config.sweep, **sweep))
        return replace(r, config=config, file_given=r.file_given | frozenset(file_given))

    return build
