"""A job file, and the code beside it: loaded here, kept with results, and taken to wherever steps run.

A job may stand in any folder, with modules of its own beside it. Its Python files travel with each piece of work
(`Packed`), so that a worker on another machine imports what was imported here, under the same names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import os
import pickle
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mvray.errors import DataError, SettingError, UserError
from mvray.experiment.identity import syntax_hash
from mvray.experiment.job import Job
from mvray.experiment.settings import Settings

LIMIT_BYTES, LIMIT_FILES = 4 << 20, 500
"""More Python than that beside a job file is not its own code: then only what was imported goes with it."""
EXAMPLE = "jobs/gradcam_masking.py"
_loaded: dict[str, Code] = {}
"""The code of each job folder that this process has loaded, by folder."""
_on_path: list[str] = []
"""The folder that was put on sys.path here."""


@dataclass(frozen=True)
class Code:
    """The Python files of a job's folder: ``files`` by their path below ``folder``; ``job`` is the job file's."""

    folder: str
    job: str
    files: Mapping[str, bytes]

    @cached_property
    def digest(self) -> str:
        content = b"".join(name.encode() + b"\0" + data + b"\0" for name, data in sorted(self.files.items()))
        return hashlib.sha256(content).hexdigest()[:16]

    @property
    def names(self) -> set[str]:
        """The top-level modules that it has."""
        return {name.partition("/")[0].removesuffix(".py") for name in self.files}

    def install(self) -> None:
        """Make its modules importable in this process: from its own folder where that is here and the same."""
        if (before := _loaded.get(self.folder)) is not None and before.digest == self.digest:
            return
        here = all(_read(Path(self.folder) / name) == data for name, data in self.files.items())
        folder = self.folder if here else self._unpacked()
        _forget(self.names)
        _first_on_path(folder)
        _loaded[self.folder] = self

    def _unpacked(self) -> str:
        """A folder of this user's with the files; it appears whole or not at all."""
        target = Path.home() / ".mvray" / "code" / self.digest
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as part:
                for name, data in self.files.items():
                    file = Path(part) / "code" / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(data)
                try:
                    (Path(part) / "code").rename(target)
                except OSError:
                    if not target.is_dir():  # another process was faster
                        raise
        return str(target)


@dataclass(frozen=True)
class Packed:
    """Something to be sent, with the code of one's own that it needs. Its bytes need nothing to be read."""

    codes: tuple[Code, ...]
    data: bytes

    @classmethod
    def of(cls, thing: Any, dumps: Callable[[Any], bytes] = pickle.dumps) -> Packed:
        """``dumps`` is cloudpickle's where functions and classes of a notebook may be part of ``thing``."""
        return cls(codes_of(thing), dumps(thing))

    def open(self) -> Any:
        for code in self.codes:
            code.install()
        return pickle.loads(self.data)  # noqa: S301  packed by our own driver


def load(path: Path, tiny: bool = False) -> Job:
    """The job of a job file. Raises SettingError that names the line where the file cannot be executed."""
    if not path.is_file():
        raise SettingError(f"There is no job file {path}. Expected a file as {EXAMPLE}.")
    if path.suffix != ".py":
        raise SettingError(f"{path} is not a Python file. Expected a job file as {EXAMPLE}.")
    try:
        module = _module_of(path.resolve())
        make: Any = vars(module).get("job")
        if make is None:
            raise SettingError(f"{path} has no function job(tiny=False) -> Job. See {EXAMPLE} for one.")
        job = make(tiny=tiny)
    except SyntaxError as error:
        raise SettingError(f"{error.filename or path}, line {error.lineno}: {error.msg}. Mend the job file.") from None
    except UserError:
        raise
    except Exception as error:
        raise SettingError(_where(path, error)) from error
    if not isinstance(job, Job):
        raise SettingError(f"job() of {path} returned {type(job).__name__}; expected a Job (mvray.Job).")
    return job


def _where(path: Path, error: Exception) -> str:
    """What went wrong, and the line of the job's own files where it did."""
    folder = path.resolve().parent
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if folder in Path(frame.filename).resolve().parents]
    if not own:
        return f"{path}: {type(error).__name__}: {error}. Mend the job file."
    file = path if Path(own[-1].filename).resolve() == path.resolve() else own[-1].filename
    return f"{file}, line {own[-1].lineno} ({own[-1].line}): {type(error).__name__}: {error}. Mend the job file."


def _module_of(path: Path) -> types.ModuleType:
    """The job file as a module, under the name that it has on its folder's path, where workers find it."""
    name, folder = path.stem, str(path.parent)
    loaded = sys.modules.get(name)
    other = loaded is not None and not _is_own(loaded)
    if "." in name or other or name in sys.stdlib_module_names:
        raise SettingError(
            f"{path}: a module cannot be named {name!r}{' beside Python or its packages' if '.' not in name else ''}; "
            "expected a name of its own, as workers import the job file by its name. Rename the file."
        )
    files = _files_of(path.parent)
    before = _loaded.get(folder)
    same = before is not None and before.files == files  # then what was imported there is as it stands there
    _forget(_names_in(path.parent) | {name}, but_in=folder if same else None)
    _first_on_path(folder)
    if loaded is not None and sys.modules.get(name) is loaded and Path(str(loaded.__file__)).resolve() == path:
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _loaded[folder] = Code(folder, path.name, files)
    return module


def _is_own(module: types.ModuleType) -> bool:
    """Whether it is the code of a job that was loaded."""
    file = getattr(module, "__file__", None)
    return file is not None and any(_is_below(file, folder) for folder in _folders())


def _folders() -> Iterator[str]:
    for code in _loaded.values():
        yield code.folder
        yield str(Path.home() / ".mvray" / "code" / code.digest)


def _is_below(file: str, folder: str) -> bool:
    inside = Path(file).resolve().is_relative_to(folder)
    return inside and "site-packages" not in Path(file).parts and not Path(file).is_relative_to(sys.prefix)


def _forget(names: set[str], but_in: str | None = None) -> None:
    """Let go of jobs' modules of these names, but for those in the folder ``but_in``."""
    for name, module in list(sys.modules.items()):
        # In this order: to see where a module lies costs much of a start where thousands are loaded.
        if name.partition(".")[0] not in names or not _is_own(module):
            continue
        if but_in is None or not _is_below(str(module.__file__), but_in):
            del sys.modules[name]


def _first_on_path(folder: str) -> None:
    """Let imports find what lies in ``folder``, and nothing in other jobs' folders.

    What others have put on the path, as Python does with a script's own folder, stays.
    """
    for other in _on_path:
        if other in sys.path:
            sys.path.remove(other)
    _on_path[:] = [folder]
    sys.path.insert(0, folder)
    importlib.invalidate_caches()


def _names_in(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}


def _files_of(folder: Path) -> dict[str, bytes]:
    """The Python files beside a job file, and those of the packages there."""
    names = sorted(path for path in folder.glob("*.py") if path.is_file())
    packages = [path.parent for path in folder.glob("*/__init__.py") if path.parent.name != "mvray"]
    for package in sorted(packages):
        names += sorted(path for path in package.rglob("*.py") if path.is_file())
    if len(names) > LIMIT_FILES or sum(path.stat().st_size for path in names) > LIMIT_BYTES:
        files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        names = [Path(file) for file in files if file and file.endswith(".py") and _is_below(file, str(folder))]
    return {path.resolve().relative_to(folder).as_posix(): path.read_bytes() for path in names}


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def is_from_a_job(thing: Any) -> bool:
    """Whether a class or function stands in the code of a job that was loaded."""
    return (module := sys.modules.get(thing.__module__)) is not None and _is_own(module)


def codes_of(thing: Any) -> tuple[Code, ...]:
    """The code of one's own that settings are made of."""
    modules: set[str] = set()
    visited: set[int] = set()

    def visit(part: Any) -> None:
        if id(part) in visited:
            return
        visited.add(id(part))
        if isinstance(part, types.FunctionType):
            modules.add(part.__module__)
        elif isinstance(part, tuple | list):
            for item in part:
                visit(item)
        elif isinstance(part, Mapping):
            visit(list(part.values()))
        elif dataclasses.is_dataclass(part) and not isinstance(part, type):
            modules.update(cls.__module__ for cls in type(part).__mro__)
            for f in dataclasses.fields(part):
                visit(getattr(part, f.name))

    visit(thing)
    files = [getattr(sys.modules.get(name), "__file__", None) for name in modules]
    return tuple(
        code
        for code in _loaded.values()
        if any(file and any(_is_below(file, f) for f in _folders_of(code)) for file in files)
    )


def _folders_of(code: Code) -> tuple[str, str]:
    return code.folder, str(Path.home() / ".mvray" / "code" / code.digest)


def about(thing: Settings) -> list[dict[str, Any]]:
    """What step.json says of the code of one's own that ``thing`` needs: where it lies, and a hash of each file.

    Of the files that were imported alone: another job beside it, or a test, may change.
    """
    return [
        {
            "folder": code.folder,
            "job": code.job,
            "files": {name: _hash(code.files[name]) for name in sorted(_imported(code))},
        }
        for code in codes_of(thing)
    ]


def _imported(code: Code) -> set[str]:
    """Those of its files that this process has imported."""
    files = [Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))]
    below = (
        file.relative_to(folder).as_posix()
        for folder in _folders_of(code)
        for file in files
        if file.is_relative_to(folder)
    )
    return {code.job, *below} & code.files.keys()


def restore(codes: list[dict[str, Any]]) -> None:
    """Load the code that step.json notes (`about`), where it lies below the folder that this command is run in.

    Only there, because a file that others can write must not name what is executed here. Raises SettingError where it
    lies elsewhere, and DataError where it has changed since.
    """
    for code in codes:
        folder = Path(str(code["folder"]))
        job = folder / str(code["job"])
        if str(folder) in _loaded:
            continue
        if not (folder.is_relative_to(Path.cwd()) and job.is_file()):
            raise SettingError(
                f"This step was made with code of your own, {job}. Give the job file as it lies here: --job FILE "
                "(code below the folder that you are in is found by itself)."
            )
        changed = [name for name, digest in code["files"].items() if _hash(_read(folder / name) or b"") != digest]
        if changed:
            raise DataError(
                f"{', '.join(changed)} in {folder} changed since this step was made; expected the same code, because "
                f"its weights belong to that. Bring it back, or say that it still fits: --job {os.path.relpath(job)}."
            )
        load(job)


def changes(codes: list[dict[str, Any]], thing: Settings) -> list[str]:
    """The files of one's own code that do other things now than step.json notes."""
    now = {code["job"]: code["files"] for code in about(thing)}
    return [
        name
        for code in codes
        for name, digest in code["files"].items()
        if now.get(code["job"], {}).get(name, digest) != digest
    ]


def _hash(data: bytes) -> str:
    """The hash of what a Python file does, "" where it cannot be parsed."""
    try:
        return syntax_hash(data.decode())
    except (SyntaxError, ValueError):
        return ""
