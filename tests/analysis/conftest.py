"""Published tables, and the planted sweeps of benchmarks/ (the repository's root is no package)."""

import os
import sys
from pathlib import Path

import pytest

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
            message = f"published tables not found at {folder}; set HYPERLAW_PUBLISHED"
            pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
        return file

    return path
