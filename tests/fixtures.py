"""Fixtures of everything that trains; a conftest.py imports those that its tests use."""

from functools import partial

import pytest

from . import launches, points


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return points.small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def tiny(corpus):
    """`tiny("seed=0,1", tokens=20000)` -> (points, config), a second or so each at most."""
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
