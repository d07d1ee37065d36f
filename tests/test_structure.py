"""The house as tests: the order of packages, their faces, budgets, and where Ray, MLflow and Ray's internals are."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "mvray"
FILES = sorted(HOUSE.rglob("*.py"))
FLOORS = (
    ("cli",),
    ("api",),
    ("inference",),
    ("reports",),
    ("tuning",),
    ("pipeline",),
    ("cluster",),
    ("training",),
    ("methods", "generators"),
    ("nn", "metrics", "data", "tracking"),
    ("experiment", "storage"),
    ("errors",),
)
"""From above: imports between packages point strictly downwards."""
ENTRIES = 18
"""Beside py.typed, which type checkers look for there."""
LOOP_LINES, FILE_LINES, FUNCTION_LINES = 250, 400, 60
LATE = {
    "ray": "its start-up takes seconds, and its environment must be set before",
    "mlflow": "its start-up takes seconds",
    "sqlalchemy": "as mlflow, which brings it",
    "torch": "its start-up takes seconds, and Ray's small actors do without",
    "mvray": "the command line imports api, and so torch, when a command needs it",
    "mvray.training": "imports torch: as torch",
    "mvray.pipeline": "imports torch: as torch",
    "mvray.inference": "imports torch: as torch",
    "mvray.tuning": "imports torch: as torch",
    "mvray.tuning.ray_tune": "its classes inherit from Ray's, so that it imports Ray: as ray",
    "mvray.data.synthetic": "imports torch: as torch",
    "mvray.cluster": "a tenth of a second, which --help does not need",
    "mvray.tracking": "a tenth of a second, which --help does not need",
    "mvray.experiment": "a tenth of a second, which --help does not need",
    "mvray.cli": "the doctor's checks, which one command needs",
    "matplotlib": "its start-up takes a second; only pictures need it",
    "pandas": "its start-up takes a second; only results in Python need it",
    "optuna": "its start-up takes a second; only searches need it",
    "sklearn": "its start-up takes seconds; only grouping and scores need it",
    "scipy": "its start-up takes a second; only intervals need it",
    "umap": "compiles at its start; only grouping needs it",
    "numba": "compiles at its start; only grouping needs it",
    "torchvision": "its detection models take a second; only instance masks need them",
    "pytorch_metric_learning": "its start-up takes a second; only ArcFace's scores need it",
    "detectron2": "an optional package",
    "pycocotools": "compiled code that only COCO's files need",
    "botocore": "its start-up takes half a second; only S3 needs it",
    "safetensors": "as torch, whose tensors it reads",
    "av": "FFmpeg's libraries; only videos need them",
    "aiohttp": "as ray, which brings it; only following a log needs it",
    "numpy": "a forked worker seeds it where it was imported",
}
"""What may be imported inside a function, and why."""
ONLY = {
    "ray": {"cluster", "pipeline", "tuning"},
    "mlflow": {"tracking"},
}
INTERNAL = {"cluster/local_ray.py", "cluster/fork_server.py", "cluster/ray_internals.py"}


@cache
def _nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text())))


def _module(file: Path) -> str:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {_module(file): file for file in FILES}
PACKAGES = {_module(file) for file in FILES if file.name == "__init__.py"}


def _imported(file: Path) -> list[tuple[str, ast.stmt]]:
    """Every module that a file imports, at its head, late, or for types alone; names of modules as modules."""
    modules: list[tuple[str, ast.stmt]] = []
    for node in _nodes(file):
        if isinstance(node, ast.Import):
            modules += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                modules.append((full if full in MODULES else node.module, node))
    return modules


def _package(module: str) -> str:
    """The package below mvray that a module is in: "nn" of mvray.nn.cam."""
    return module.split(".")[1] if "." in module else ""


def _floor(package: str) -> int:
    return next(number for number, packages in enumerate(FLOORS) if package in packages)


def test_ls_is_the_architecture():
    names = [path.name for path in HOUSE.iterdir() if path.is_file() or any(path.rglob("*.py"))]
    assert len(set(names) - {"py.typed"}) <= ENTRIES, names
    assert {name.removesuffix(".py") for name in names} - {"__init__", "py.typed"} == {
        package for packages in FLOORS for package in packages
    }
    assert not [file for file in FILES if file.stem in ("utils", "util", "helpers", "common", "misc")]


def test_imports_point_strictly_downwards():
    wrong = []
    for file in FILES:
        package = _package(_module(file))
        for module, node in _imported(file):
            other = _package(module) if module.startswith("mvray") else ""
            sibling = package == other == "methods" and file.name != "__init__.py"
            if sibling or (package and other and other != package and _floor(other) <= _floor(package)):
                wrong.append(f"{file}:{node.lineno} imports {module}, which is not below")
    assert wrong == []


def test_no_circle_of_files():
    below = {name: {m for m, _ in _imported(file) if m in MODULES and m != name} for name, file in MODULES.items()}
    while free := [name for name, others in below.items() if not others]:
        for name in free:
            del below[name]
        for others in below.values():
            others.difference_update(free)
    assert below == {}, f"these import one another, or what does: {sorted(below)}"


def test_only_the_face_of_another_package_is_imported():
    for file in FILES + sorted((ROOT / "jobs").glob("*.py")):
        own = _package(_module(file))
        for node in _nodes(file):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("mvray."):
                continue
            if _package(node.module) == own and file.is_relative_to(HOUSE):
                continue
            assert node.module in PACKAGES or node.module in ("mvray.errors", "mvray.api"), f"{file}:{node.lineno}"
            face = importlib.import_module(node.module)
            for alias in node.names:
                is_package = f"{node.module}.{alias.name}" in PACKAGES
                known = is_package or node.module == "mvray.errors" or alias.name in face.__all__
                assert known, f"{file}:{node.lineno}: {alias.name} is not in {node.module}.__all__"


@pytest.mark.parametrize("package", sorted(PACKAGES - {"mvray"}))
def test_a_face_says_what_it_is_and_what_is_public(package):
    face = importlib.import_module(package)
    assert len((face.__doc__ or "").split()) >= 4
    assert len(set(face.__all__)) == len(face.__all__)
    for name in face.__all__:
        assert getattr(face, name) is not None
    own = {name for name, value in vars(face).items() if getattr(value, "__module__", "").startswith(f"{package}.")}
    assert {name for name in own if not name.startswith("_")} <= set(face.__all__), "imported by the face, not public"


@cache
def _late(file: Path) -> list[tuple[str, int]]:
    """Imports inside of functions."""
    late: dict[int, tuple[str, int]] = {}
    for function in _nodes(file):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    late[id(node)] = (node.names[0].name, node.lineno)
                elif isinstance(node, ast.ImportFrom):
                    late[id(node)] = (node.module or "", node.lineno)
    return list(late.values())


def test_a_late_import_has_a_reason():
    for file in FILES:
        own = ".".join(_module(file).split(".")[:2])
        for module, line in _late(file):
            known = any(module == name or (module.startswith(f"{name}.") and name != "mvray") for name in LATE)
            assert known, f"{file}:{line} imports {module} late; see LATE"
            assert not module.startswith(f"{own}.") or module in LATE, f"{file}:{line} imports its own {module} late"


def test_every_reason_is_needed():
    used = {module for file in FILES for module, _ in _late(file)}
    idle = [name for name in LATE if not any(f"{module}.".startswith(f"{name}.") for module in used)]
    assert idle == []


@pytest.mark.parametrize("library", ONLY)
def test_only_these_know(library):
    for file in FILES:
        if any(module.split(".")[0] == library for module, _ in _imported(file)):
            assert _package(_module(file)) in ONLY[library], f"{file.relative_to(ROOT)} imports {library}"


def test_rays_internals_are_known_in_three_files():
    for file in FILES:
        for module, node in _imported(file):
            parts = module.split(".")
            if parts[0] == "ray" and any(part.startswith("_") for part in parts):
                assert str(file.relative_to(HOUSE)) in INTERNAL, f"{file.name}, line {node.lineno} imports {module}"


def test_budgets():
    for file in FILES:
        assert file.read_text().count("\n") <= (LOOP_LINES if file.name == "loop.py" else FILE_LINES), file
        for node in _nodes(file):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno + 1 <= FUNCTION_LINES, f"{file}: {node.name} is too long"


def test_steps_are_not_told_apart_by_their_class():
    """They say themselves what they need; a driver asserts that it got its own kind."""
    for file in FILES:
        for node in _nodes(file):
            if isinstance(node, ast.If | ast.IfExp | ast.While) and "isinstance" in ast.unparse(node.test):
                kinds = {name.id for name in ast.walk(node.test) if isinstance(name, ast.Name)}
                told = kinds & {"Generate", "Measure"}
                assert not told, f"{file.relative_to(ROOT)}, line {node.lineno}"


def test_what_needs_no_job_loads_nothing_heavy():
    """Of what does, tests/cli/test_cli.py sees that Ray is loaded when it is used alone."""
    code = "import mvray, mvray.experiment, mvray.cli; mvray.cli._parser()"
    code += "\nfrom mvray.cluster import JobClient; from mvray.tracking import deliver"
    watch = ["torch", "torchvision", "ray", "mlflow", "matplotlib", "pandas", "pyarrow"]
    check = f"{code}\nimport sys; print(*[m for m in {watch!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "\n"


def test_locks_name_no_hosts():
    locks = [ROOT / "requirements.lock", ROOT / "tests/benchmarks/requirements.lock"]
    for lock in locks:
        assert "://" not in lock.read_text()
        assert "index" + "-url" not in lock.read_text()
