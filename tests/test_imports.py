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


def test_a_compiled_step_is_made_ready_without_the_compiler():
    """Whose imports take a worker as long as PyTorch's; what is compiled already is only loaded."""
    code = (
        "import sys, harness.train; from harness.step import Step; from models.shape import LlamaShape; "
        "from models.parameterization import Parameterization; p = Parameterization.build('standard', 32, 1); "
        "Step(LlamaShape.build(32, 1, vocab=16, context=8), p, 'bf16', 'cpu', True).zeros(); "
        "print('torch._dynamo' in sys.modules, 'sympy' in sys.modules, 'pandas' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False", "False"]


# What runs code that it reads, or that it is told to run, by name or by the module it lives in.
RUNS_CODE = set(
    "eval exec compile __import__ unsafe_load full_load FullLoader UnsafeLoader Loader CLoader read_pickle to_pickle "
    "system popen get_method get_class get_object instantiate torch.load torch.jit.load".split()
)
RUN_BY = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle", "ctypes"}


def test_nothing_of_ours_runs_what_it_reads():
    """No pickle, eval or unsafe YAML anywhere; no torch.load, no np.load of objects, no table evaluated as Python."""
    paths = [ROOT / "demo.py", *(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))]
    for path in paths:
        text = path.read_text()
        assert not {name.split(".")[0] for name in imports_of(path) if name} & RUN_BY, path
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            function = ast.unparse(call.func)
            name = function.split(".")[-1]
            if function not in ("torch.compile", "re.compile"):
                assert not {name, function} & RUNS_CODE, (path, function)
            keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert keywords.get("allow_pickle", "False") == "False" and "shell" not in keywords, (path, function)
            assert keywords.get("trust_remote_code", "False") == "False", (path, function)
            if function == "yaml.load":
                assert keywords.get("Loader") in ("_Loader", "yaml.SafeLoader"), (path, function)
            if name == "query":  # of a DataFrame: with a text of ours only
                assert isinstance(call.args[0], ast.Constant), (path, function)
