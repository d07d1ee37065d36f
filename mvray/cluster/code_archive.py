"""The code that goes to a cluster: what git tracks, as it lies in the working folder, in one zip.

Beside the code lies a note (`NOTE`) that says what a cluster without ``.git`` cannot know: the commit, and the
versions of packages that the lock file names.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mvray.errors import SettingError
from mvray.experiment import NOTE, git_commit

LOCK = "requirements.lock"
LIMIT_MIB = 50
BIGGEST = 5
SUBMODULE = "160000 "
"""What git says of a submodule, where it says of a file whether it can be executed."""
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The time of every file in the zip: the same code is the same bytes, which Ray does not send twice."""


@dataclass(frozen=True)
class CodeArchive:
    """Code to send: ``files`` below ``root``, the job file's path among them, and what the note says."""

    root: Path
    files: tuple[str, ...]
    job: str
    note: Mapping[str, Any]
    bytes: int
    untracked: tuple[str, ...]
    """Files that git neither tracks nor ignores: they stay here."""

    @property
    def commit(self) -> str:
        commit: str = self.note["commit"]
        return commit

    def write(self, file: Path) -> None:
        """Write the zip."""
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in self.files:
                mode = 0o755 if os.access(self.root / name, os.X_OK) else 0o644
                archive.writestr(_entry(name, mode), (self.root / name).read_bytes())
            archive.writestr(_entry(NOTE, 0o644), json.dumps(self.note, sort_keys=True, indent=1))


def pack(job_file: Path, limit_mib: float = LIMIT_MIB) -> CodeArchive:
    """What has to go to a cluster to run ``job_file``.

    Raises SettingError where the file is missing, not in git or not tracked, where a tracked link leads out of the
    repository or nowhere, where a submodule is not checked out, and where it all is larger than ``limit_mib``.
    """
    if not job_file.is_file():
        raise SettingError(f"There is no job file {job_file}. Expected a file as jobs/gradcam_masking.py.")
    folder = job_file.resolve().parent
    try:
        root = Path(_git(folder, "rev-parse", "--show-toplevel").strip())
    except (OSError, subprocess.SubprocessError) as error:
        stderr = (getattr(error, "stderr", None) or str(error)).strip()
        raise SettingError(
            f"{job_file} is not in a git repository ({stderr}); expected one, because what git tracks is what is sent. "
            "Put it into one: git init && git add, or move the job file."
        ) from None
    tracked = set(_tracked(root))
    job = (folder / job_file.name).relative_to(root).as_posix()
    if job not in tracked:
        raise SettingError(
            f"{job_file} is not tracked by git; only what git tracks is sent. `git add {shlex.quote(job)}` is enough "
            "for that (a commit is not needed)."
        )
    files = tuple(sorted(_files(root, tracked)))
    _check_links(root, files)
    sizes = {name: (root / name).stat().st_size for name in files}
    _check_size(sizes, limit_mib)
    untracked = _git(root, "ls-files", "-z", "--others", "--exclude-standard").split("\0")
    note = {"commit": git_commit(root) or "", **reference(root / LOCK if LOCK in files else None)}
    return CodeArchive(root, files, job, note, sum(sizes.values()), tuple(name for name in untracked if name))


def reference(lock: Path | None) -> dict[str, Any]:
    """What nodes must have of what mvray needs: the lock's versions where it names Ray, else this machine's.

    "versions" has [name, version, marker]. Markers are for the nodes to decide: their Python may be another one than
    the one here, as long as mvray knows it ("python").
    """
    about = metadata.metadata("mvray")
    locked = list(_locked(lock.read_text())) if lock else []
    requirements = [line for line in metadata.requires("mvray") or [] if "extra ==" not in line]
    needed = sorted({_plain(re.split(r"[^\w.-]", line)[0]) for line in requirements})
    if any(name == "ray" for name, *_ in locked):
        versions, source = sorted(line for line in locked if line[0] in needed), LOCK
    else:
        versions, source = [[name, metadata.version(name), ""] for name in needed], "the machine that submitted"
    return {"versions": versions, "versions_of": source, "python": about["Requires-Python"]}


def _locked(text: str) -> Iterator[list[str]]:
    """Name, version and marker of each line NAME==VERSION ; MARKER of a lock file."""
    for match in re.finditer(
        r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;\\]+)(?: *;([^\\\n]*))?", text, re.MULTILINE
    ):
        yield [_plain(match[1]), match[2], (match[3] or "").strip()]


def _plain(name: str) -> str:
    """A package's name in the one spelling that the registry has for it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _git(folder: Path, *words: str) -> str:
    process = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    return process.stdout


def _tracked(root: Path, under: str = "") -> Iterator[str]:
    """What git tracks in ``root`` and in its submodules, without one whose folder was deleted.

    `git ls-files --recurse-submodules` says nothing of a submodule that is known and not checked out.
    """
    for line in filter(None, _git(root, "ls-files", "-z", "--stage").split("\0")):
        about, _, name = line.partition("\t")
        if not about.startswith(SUBMODULE):
            yield under + name
        elif (root / name).is_dir():
            try:
                if not (root / name / ".git").exists():
                    raise FileNotFoundError("it has no .git")
                yield from _tracked(root / name, f"{under}{name}/")
            except (OSError, subprocess.SubprocessError) as error:
                stderr = (getattr(error, "stderr", None) or str(error)).strip()
                raise SettingError(
                    f"The submodule {under}{name} is not checked out ({stderr}); expected its files, because what git "
                    "tracks is sent. Get them: git submodule update --init --recursive, or remove it from git."
                ) from None


def _files(root: Path, tracked: Iterable[str]) -> set[str]:
    """The files to send, without those that are deleted here. A link to a folder is what is tracked below its target.

    Raises SettingError for a link with another such link below its target: that may be a link to its own parent.
    """
    folders = {name: _target(root, name) for name in tracked if (root / name).is_symlink()}
    folders = {name: target for name, target in folders.items() if target.is_dir()}
    files = {name for name in tracked if (root / name).is_file()}
    paths = set(files)
    for link, target in folders.items():
        below = target.relative_to(root.resolve()).as_posix() + "/"
        below = "" if below == "./" else below
        if inner := sorted(name for name in folders if name.startswith(below)):
            raise SettingError(
                f"{link} is a link to the folder {target}, below which {inner[0]} is such a link too; expected none "
                "there, because a link is sent as what it leads to. Remove one of them from git."
            )
        paths |= {f"{link}/{name[len(below) :]}" for name in files if name.startswith(below)}
    return paths


def _target(root: Path, link: str) -> Path:
    """Where a tracked link leads. Raises SettingError where that is out of ``root``, or nothing."""
    if not (root / link).exists():  # nor for one that leads to itself
        raise SettingError(
            f"{link} is a link to {(root / link).readlink()}, which is not there; expected a file or folder, because a "
            "link is sent as what it leads to. Make it (of a submodule: git submodule update --init), or remove the "
            "link from git."
        )
    _check_links(root, (link,))
    return (root / link).resolve()


def _entry(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, LONG_AGO)
    entry.external_attr = mode << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def _check_links(root: Path, files: tuple[str, ...]) -> None:
    for name in files:
        target = (root / name).resolve()
        if not target.is_relative_to(root.resolve()):
            raise SettingError(
                f"{name} is a link to {target}, outside of {root}; expected links that stay inside, because a link is "
                "sent as what it leads to. Remove it from git, or put the file itself there."
            )


def _check_size(sizes: Mapping[str, int], limit_mib: float) -> None:
    total = sum(sizes.values())
    if total <= limit_mib * 2**20:
        return
    biggest = sorted(sizes, key=lambda name: -sizes[name])[:BIGGEST]
    listing = ", ".join(f"{name} ({sizes[name] / 2**20:.1f} MiB)" for name in biggest)
    raise SettingError(
        f"What git tracks has {total / 2**20:.1f} MiB; expected at most {limit_mib:g} MiB, because every node "
        f"downloads it. The biggest: {listing}. Take data out of git (--data s3://...), or raise --code-limit."
    )
