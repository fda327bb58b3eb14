"""A small corpus, tiny points, launches, and disks that fill up."""

import pytest

from ..fixtures import background, corpus, launch, tiny
from ..support import unavailable
from .disk import Disk, Unavailable

__all__ = ["background", "corpus", "launch", "tiny"]


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MB of its own."""
    try:
        mounted = Disk(tmp_path / "disk", 2 << 20)
    except Unavailable as reason:
        unavailable(reason)
    yield mounted
    mounted.close()
