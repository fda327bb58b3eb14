"""Requests, facts, tiny points and launches for the tests of sweeps."""

import json

import pytest

from harness.resolve import DataFacts
from harness.rundir import SEALED, digest, point_yaml

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


@pytest.fixture(scope="session")
def write_sealed():
    """(run directory, point, loss): a run that another sweep has trained to its end, whole as far as can be seen."""

    def write(run_dir, point, loss):
        run_dir.mkdir(parents=True)
        files = {name: b"" for name in SEALED}
        files |= {"point.yaml": point_yaml(point), "result.json": json.dumps({"loss": loss}).encode()}
        for name, content in files.items():
            (run_dir / name).write_bytes(content)
        sealed = {name: digest(content) for name, content in files.items()}
        (run_dir / "status.json").write_text(json.dumps({"status": "done", "sealed": sealed}))

    return write
