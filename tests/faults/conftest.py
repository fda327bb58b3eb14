"""A small corpus, tiny points, launches, and disks that fill up."""

import os
from functools import partial

import pytest

from .. import launches, points
from .disk import Disk, Unavailable


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


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MB of its own."""
    try:
        mounted = Disk(tmp_path / "disk", 2 << 20)
    except Unavailable as reason:
        unavailable(reason)
    yield mounted
    mounted.close()


def unavailable(reason):
    """Skip what this machine cannot do; under CI=true that is a failure."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(reason))
