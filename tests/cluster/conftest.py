"""Beds started once a session, set right before each test, and ended with it; points small enough to train there."""

import contextlib
import os

import pytest

from ..fixtures import corpus, tiny
from ..support import unavailable
from .beds import Ray, Slurm, Unavailable

__all__ = ["corpus", "tiny"]


@contextlib.contextmanager
def started(bed):
    """Skips where this machine cannot have the bed, fails there under CI=true."""
    try:
        try:
            bed.start()
        except Unavailable as reason:
            unavailable(reason)
        yield bed
    finally:
        bed.close()


@contextlib.contextmanager
def entered(bed, monkeypatch):
    """With the environment of this Slurm for what the test calls in its own process."""
    for name in [n for n in os.environ if n.startswith(("SLURM", "SBATCH", "SQUEUE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", bed.env["SLURM_CONF"])
    bed.reset()
    yield bed
    bed.reset()


@pytest.fixture(scope="session")
def slurm_session():
    with started(Slurm()) as bed:
        yield bed


@pytest.fixture(scope="session")
def slurm_dbd_session():
    with started(Slurm("dbd")) as bed:
        yield bed


@pytest.fixture
def slurm(slurm_session, monkeypatch):
    """Two idle nodes, no jobs, no accounting (sacct fails). SLURM_CONF is set."""
    with entered(slurm_session, monkeypatch) as bed:
        yield bed


@pytest.fixture
def slurm_dbd(slurm_dbd_session, monkeypatch):
    """As slurm, with accounting: sacct works."""
    with entered(slurm_dbd_session, monkeypatch) as bed:
        yield bed


@pytest.fixture(scope="session")
def ray_session():
    with started(Ray()) as bed:
        yield bed


@pytest.fixture
def ray_cluster(ray_session):
    """Two live nodes n1, n2 of one CPU each."""
    ray_session.reset()
    return ray_session
