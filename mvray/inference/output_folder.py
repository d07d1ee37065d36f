"""A folder that a command may write again: it replaces what it wrote before, and nothing else that lies there.

What a command wrote is listed in .mvray-COMMAND.json in that folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from mvray.errors import DataError


def check(out: Path, command: str, names: Iterable[str]) -> None:
    """Raises DataError where ``out`` cannot be written, or has something called like one of ``names`` that ``command``
    did not write there. A folder that was not there is made for the trial only."""
    mine = {PurePosixPath(path).parts[0] for path in _list(out, command)}
    taken = [name for name in names if name not in mine and os.path.lexists(out / name)]
    if taken:
        raise DataError(
            f"{out} has {taken[0]}, which `mvray {command}` did not write; expected an empty folder or a new one. "
            "Name another folder with --out, or move it."
        )
    try:
        new = [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        for folder in new:
            folder.rmdir()
    except OSError as error:
        raise _cannot(out, error) from None
    if not new and not os.access(out, os.W_OK | os.X_OK):
        raise DataError(f"{out} cannot be written (no permission). Name another folder with --out.")


def write(out: Path, command: str, files: Mapping[str, bytes | Path]) -> int:
    """Write ``files``, by their path below ``out``: content, or a link to a file. Returns how many links are copies.

    What ``command`` wrote there before goes first, also where it was ended in the middle. A link is
    symbolic and relative, so that it stays right when both folders are moved together; where links cannot
    be made the file is copied. Something foreign with the same name stays, and the new file is named NAME-2.
    Raises DataError where something cannot be written.
    """
    before = _list(out, command)
    ledger = out / _ledger(command)
    try:
        out.mkdir(parents=True, exist_ok=True)
        ledger.write_text(json.dumps([*before, *files]))
        _remove(out, before)
        written, copies = [], 0
        for name, content in files.items():
            path = _free(out / name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                copies += not _link(path, content)
            written.append(path.relative_to(out).as_posix())
        ledger.write_text(json.dumps(written))
    except OSError as error:
        raise _cannot(out, error) from None
    return copies


def _ledger(command: str) -> str:
    return f".mvray-{command}.json"


def _list(out: Path, command: str) -> list[str]:
    """What the command wrote before. Raises DataError for a list that it cannot have written."""
    try:
        listed = json.loads((out / _ledger(command)).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        raise DataError(
            f"{out / _ledger(command)} cannot be read ({error}); delete it, or name another --out."
        ) from None
    if not isinstance(listed, list) or not all(isinstance(path, str) and _is_below(path) for path in listed):
        raise DataError(f"{out / _ledger(command)} is not a list of files; delete it, or name another --out.")
    return listed


def _is_below(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts


def _remove(out: Path, listed: Iterable[str]) -> None:
    folders = set()
    for name in listed:
        (out / name).unlink(missing_ok=True)
        folders |= {parent for parent in PurePosixPath(name).parents if parent.parts}
    for folder in sorted(folders, key=lambda path: -len(path.parts)):
        path = out / folder
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _free(path: Path) -> Path:
    """``path``, or the first of NAME-2, NAME-3 ... that is not there."""
    free, count = path, 1
    while os.path.lexists(free):
        count += 1
        free = path.with_name(f"{path.stem}-{count}{path.suffix}")
    return free


def _link(path: Path, target: Path) -> bool:
    """Whether ``path`` became a link to ``target``; else it is a copy."""
    real = os.path.join(os.path.realpath(target.parent), target.name)  # noqa: PTH118 (bytes of names stay)
    try:
        path.symlink_to(os.path.relpath(real, os.path.realpath(path.parent)))
    except OSError:  # a file system without links, or no right to make them
        shutil.copyfile(target, path)
        return False
    return True


def _cannot(out: Path, error: OSError) -> DataError:
    return DataError(f"{out} cannot be written ({error.strerror}). Name another folder with --out.")
