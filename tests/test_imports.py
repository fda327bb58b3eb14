"""Who may import whom (DESIGN): one direction, and planning without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "models": set(),
    "harness": {"models"},
    "analysis": set(),
    "sweeps": {"harness", "analysis"},
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_in_one_direction(package):
    wrong = []
    for path in (ROOT / package).rglob("*.py"):
        if path == ROOT / "harness" / "cli.py":
            continue
        for name in imports_of(path):
            top = name.split(".")[0]
            if top in set(ALLOWED) - {package} - ALLOWED[package]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_planning_needs_no_torch():
    code = (
        "import sys; import models.shape, models.count, models.parameterization, harness.compose, harness.resolve, "
        "harness.point, harness.places, sweeps.expand, sweeps.plan, sweeps.launch, sweeps.local, sweeps.status, "
        "analysis.fit, analysis.recommend; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


def test_no_pickle_and_no_eval_of_configs():
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text())
            names = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
            assert not names & {"eval", "exec"}, path
            assert "pickle" not in imports_of(path), path
