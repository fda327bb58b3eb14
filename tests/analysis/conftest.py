"""Published tables, and the planted sweeps of benchmarks/ (the repository's root is no package)."""

import os
import sys
from pathlib import Path

import pytest

from ..support import unavailable
from .foreign_runs import offline

__all__ = ["offline"]

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def published():
    """name -> path of the published runs.csv; skips where the tables are absent, fails there under CI=true."""
    folder = Path(os.environ.get("HYPERLAW_PUBLISHED", ROOT.parent / "shared" / "published"))

    def path(name: str) -> Path:
        file = folder / name / "runs.csv"
        if not file.is_file():
            unavailable(f"published tables not found at {folder}; set HYPERLAW_PUBLISHED")
        return file

    return path
