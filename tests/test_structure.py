"""The architecture as tests: layers, budgets, late imports (DESIGN in README.md)."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "mvray").rglob("*.py"))
LOOP_LINES, FILE_LINES, FUNCTION_LINES = 250, 400, 60

# A module may import from its own layer and from those below. First match of the longest name counts.
LAYERS = (
    ("errors",),
    ("patience", "s3", "storage"),
    (
        "job",
        "exhibits",
        "source",
        "inputs",
        "method",
        "metrics",
        "retrieval",
        "clustering",
        "reduction",
        "figures",
        "cluster_figures",
        "progress",
        "nn",
        "sampling",
        "search",
        "search_figures",
        "settings",
        "redact",
    ),
    ("methods", "segmenters", "generators"),
    (
        "data",
        "samples",
        "checkpoint",
        "spool",
        "machine",
        "tracking",
        "ui",
        "server",
        "mlflow_store",
        "spool_copy",
    ),
    ("agreement", "board", "environment", "task", "optim", "state", "loop"),
    ("plan", "spent", "manifest", "report", "search_report", "study", "doctor", "shipment"),
    (
        "alike",
        "cluster",
        "crew",
        "forked",
        "generate",
        "measure",
        "mediator",
        "one_machine",
        "pool",
        "room",
        "scoreboard",
        "submit",
        "train",
    ),
    (
        "album",
        "find",
        "group",
        "group_sheets",
        "look",
        "match_sheets",
        "model",
        "owned",
        "results",
        "runlog",
        "sheets",
        "strips",
    ),
    ("run", "tune"),
    ("cli",),
)
ONLY = {
    "ray": {
        "alike",
        "cluster",
        "crew",
        "one_machine",
        "forked",
        "train",
        "generate",
        "measure",
        "mediator",
        "pool",
        "room",
        "scoreboard",
        "submit",
        "tune",
        "doctor",
    },
    "mlflow": {"mlflow_store", "ui", "doctor"},
}


def _name(file: Path) -> str:
    return file.relative_to(ROOT / "mvray").with_suffix("").parts[0]


def _layer(name: str) -> int:
    return next((i for i, names in enumerate(LAYERS) if name in names), -1)


@cache
def _nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text())))


def _imports(file: Path) -> list[str]:
    found = []
    for node in _nodes(file):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_downwards(file):
    name = _name(file)
    if name == "__init__":
        return
    assert _layer(name) >= 0, f"{name} is in no layer; add it to LAYERS"
    for module in _imports(file):
        parts = module.split(".")
        if parts[0] == "mvray" and len(parts) > 1 and not parts[1].startswith("__"):
            assert _layer(parts[1]) <= _layer(name), f"{file.name} imports {module}, which is above it"
            if name == "methods":
                assert parts[1] != "methods", f"{file.name} imports its sibling {module}"


@pytest.mark.parametrize("library", ONLY)
def test_only_these_know(library):
    for file in FILES:
        if any(module.split(".")[0] == library for module in _imports(file)):
            assert _name(file) in ONLY[library], f"{file.relative_to(ROOT)} imports {library}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_budgets(file):
    text = file.read_text()
    limit = LOOP_LINES if file.name == "loop.py" else FILE_LINES
    assert text.count("\n") <= limit
    for node in _nodes(file):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= FUNCTION_LINES, f"{file.name}: {node.name} is too long"


def test_no_utils_module():
    assert not [file for file in FILES if file.stem in ("utils", "util", "helpers", "common", "misc")]


def _loaded_after(code: str) -> set[str]:
    watch = ["torch._C", "torchvision", "ray", "mlflow", "matplotlib", "pandas"]
    check = f"{code}\nimport sys; print(*[m for m in {watch!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


def test_help_loads_nothing_heavy():
    assert _loaded_after("import mvray, mvray.cli; mvray.cli._parser()") == set()


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.py")), ids=lambda f: f.stem)
def test_loading_a_job_loads_nothing_heavy(job):
    code = (
        "from pathlib import Path; from mvray.cli import _lazy, load_job; _lazy('torch'); "
        f"load_job(Path({str(job)!r}), True, None, [])"
    )
    assert _loaded_after(code) == set()


def test_drawing_curves_loads_no_torch():
    """Matplotlib asks whether numbers are a torch.Tensor; that must not cost a run seconds between its steps."""
    code = (
        "import mvray.data.pictures; from mvray.reports.figures import curves; "
        "curves({'a': [(0.0, 1.0), (1.0, 2.0)]}, 'title', 'value')"
    )
    assert "torch._C" not in _loaded_after(code)


def test_locks_name_no_hosts():
    locks = [ROOT / "requirements.lock", ROOT / "tests/benchmarks/requirements.lock"]
    for lock in locks:
        assert "://" not in lock.read_text()
        assert "index" + "-url" not in lock.read_text()
