"""Requests and facts for the tests of sweeps."""

from functools import partial

import pytest

from harness.resolve import DataFacts

from .. import launches, points


@pytest.fixture(scope="session")
def facts():
    """Of a byte-level corpus that is not prepared."""
    return DataFacts("0123456789abcdef", 256, None)


@pytest.fixture(scope="session")
def request_of():
    return points.request_of


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return points.small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def tiny(corpus):
    return partial(points.tiny_points, corpus)


@pytest.fixture
def launch(corpus, tmp_path):
    """(points, config, folder, settings) -> Summary of a launch of the local launcher."""
    return partial(launches.launch_here, corpus, tmp_path)


@pytest.fixture
def background(corpus, tmp_path):
    """(points, folder, settings) -> the process of a launch; all are ended with the test."""
    started = launches.Background(tmp_path, corpus)
    yield started
    started.end()
