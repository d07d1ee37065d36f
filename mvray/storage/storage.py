"""Files below one root: a local folder or an S3 bucket, through the same few methods (local.py, s3.py)."""

from __future__ import annotations

import json
import os
import re
import uuid
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from mvray.errors import ClusterError, DataError, StorageFailed, StorageRefused
from mvray.storage.local import Entry, LocalFiles
from mvray.storage.retry import FOR_ROOM, RetryPolicy
from mvray.storage.s3 import PART_BYTES, S3Files

T = TypeVar("T")


class Storage:
    """A root and the files below it.

    ``uri`` is a local path, ``file://...`` or ``s3://bucket/prefix``; ``self.uri`` is absolute.
    Paths given to the methods are relative to it with "/" and cannot leave it (DataError). Whatever
    is written appears whole under its name or not at all. Can be pickled; connects when first used.

    A missing file is FileNotFoundError. On S3, a server that is busy, slow or away is waited for as ``policy`` says,
    by default up to 5 minutes, then StorageFailed is raised; what it refuses is StorageRefused. A full disk
    is StorageFailed at once. All of these are OSErrors. Objects larger than ``part_bytes`` are sent in such parts.
    """

    def __init__(self, uri: str, policy: RetryPolicy = RetryPolicy(), part_bytes: int = PART_BYTES) -> None:
        scheme, has_scheme, rest = uri.partition("://")
        self._options = (policy, part_bytes)
        self._files: LocalFiles | S3Files
        if not has_scheme or scheme == "file":
            local = Path(unquote(urlsplit(uri).path) if has_scheme else uri).expanduser().absolute()
            self.is_local, self._root = True, Path(os.path.normpath(local)).as_posix()
            self.uri, self._files = self._root, LocalFiles(self._root)
        elif re.match("[^/]*[@:]", rest):  # ":" alone: half of all secret keys have a "/" before the "@"
            raise ClusterError(
                f"Found a name or key before '@' in an address, or ':' in a bucket's name ({scheme}://...); expected "
                "s3://BUCKET/PREFIX, because addresses are logged. Give keys as AWS does: AWS_ACCESS_KEY_ID ..., "
                "~/.aws, or a role."
            )
        elif scheme == "s3" and rest.partition("/")[0]:
            self.is_local, self._root = False, str(PurePosixPath(rest.strip("/")))
            self.uri, self._files = f"s3://{self._root}", S3Files(self._root, policy, part_bytes)
        else:
            raise ClusterError(
                f"Found storage {uri!r}; expected a local folder or s3://BUCKET/PREFIX. Give one of these two."
            )

    def __reduce__(self) -> tuple[type[Storage], tuple[object, ...]]:
        return (Storage, (self.uri, *self._options))

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Storage) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def _checked(self, path: str) -> str:
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts:
            raise DataError(f"Found the path {path!r}; expected one below {self.uri}, without '..'.")
        return "/".join(parts)

    def full(self, path: str) -> str:
        """The whole address of ``path``, for people."""
        return f"{self.uri.rstrip('/')}/{self._checked(path)}".rstrip("/") or "/"

    def local(self, path: str = "") -> Path | None:
        """``path`` as a local Path; None on S3."""
        return Path(self._root, self._checked(path)) if self.is_local else None

    def child(self, path: str) -> Storage:
        """The storage whose root is ``path``."""
        return Storage(self.full(path), *self._options)

    def read(self, path: str) -> bytes:
        """All of a file; where others replace it meanwhile, as one of them wrote it."""
        return self._files.read(self._checked(path))

    def read_json(self, path: str, kind: type[T]) -> T:
        """The JSON that mvray has written to ``path``, a ``kind``. Raises DataError where it is damaged."""
        data = self.read(path)
        try:
            value = json.loads(data)
        except ValueError as error:
            raise self.damaged(path, str(error)) from error
        if not isinstance(value, kind):
            raise self.damaged(path, f"a {type(value).__name__} where a {kind.__name__} is expected")
        return value

    def damaged(self, path: str, why: str) -> DataError:
        """What to raise where a file of mvray's own is not as mvray has written it."""
        return DataError(
            f"{self.full(path)} is not as mvray has written it ({why}). Find out what happened to this storage. Bring "
            f"the file back, or remove {self.uri}: the same command then makes anew what was in it."
        )

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """At most ``length`` bytes from byte ``start`` on."""
        return self._files.read_range(self._checked(path), start, length)

    def write(self, path: str, data: bytes) -> None:
        """Replace the file ``path`` by ``data``."""
        self._files.write(self._checked(path), data)

    def insist(self, path: str, data: bytes, policy: RetryPolicy = FOR_ROOM) -> None:
        """As `write`, for what must be stored in the end: a full disk is waited for, too, by default for 10 minutes."""
        self._files.write(self._checked(path), data, policy)

    def try_write(self, path: str, data: bytes) -> bool:
        """As `write`, for what need not be stored: tried once. Whether it went well."""
        try:
            self._files.once().write(self._checked(path), data)
        except OSError:
            return False
        return True

    def download(self, path: str, local_file: Path) -> None:
        """Copy ``path`` to ``local_file``, in the memory of some megabytes."""
        self._files.download(self._checked(path), local_file)

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder ``path``."""
        return self._files.exists(self._checked(path))

    def size(self, path: str) -> int:
        """Bytes of the file ``path``."""
        return self._files.size(self._checked(path))

    def list(self, prefix: str = "", recursive: bool = False) -> list[Entry]:
        """Files and folders directly in the folder ``prefix``, or all files below it; sorted, [] if it is missing.

        A local link that points nowhere is listed as an empty file. Keys on S3 that are no path ("a/../b",
        "a//b") cannot be read by these methods and are left out.
        """
        return sorted(self._files.list(self._checked(prefix), recursive))

    def delete(self, path: str) -> None:
        """Remove the file ``path``, or the folder and all below it; nothing happens if it is missing.

        Of a local link the link is removed, not what it points to.
        """
        self._files.delete(self._checked(path))

    def check(self, write: bool = True) -> None:
        """Write and delete a small file, or only list, once. Raises ClusterError in words where that fails, soon."""
        purpose = "written" if write else "read"
        files, probe = self._files.once(purpose), f".mvray-probe-{uuid.uuid4().hex}"
        try:
            if write:
                files.write(probe, b"mvray")
                files.delete(probe)
            else:
                files.list("", recursive=False)
        except (StorageFailed, StorageRefused, DataError) as error:
            raise ClusterError(str(error)) from error
        except OSError as error:
            raise ClusterError(
                f"{self.uri} cannot be {purpose} ({error.strerror}); expected a folder that can. Choose another one."
            ) from error
