"""Files below one root: a local folder or an S3 bucket, through the same few methods.

S3 is used with AWS's own conventions (s3.py). What fails there for a while is tried again (retry.py).
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from mvray.errors import ClusterError, DataError, StorageFailed, StorageRefused
from mvray.storage import s3
from mvray.storage.retry import FOR_ROOM, PATIENCE, Patience, is_full, may_pass, waited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow.fs

T = TypeVar("T")

_PARTIAL = ".partial"  # files on the way to their name; never listed


@dataclass(frozen=True, order=True)
class Entry:
    """A file or folder: ``path`` relative to the root with "/", ``size`` in bytes (0 for folders)."""

    path: str
    size: int
    is_dir: bool


class Storage:
    """A root and the files below it.

    ``uri`` is a local path, ``file://...`` or ``s3://bucket/prefix``; ``self.uri`` is absolute.
    Paths given to the methods are relative to it with "/" and cannot leave it (DataError). Whatever
    is written appears whole under its name or not at all. Can be pickled; connects when first used.

    A missing file is FileNotFoundError. On S3, a server that is busy, slow or away is waited for, up to 5
    minutes (patience.PATIENCE), then StorageFailed is raised; what it refuses is StorageRefused. A full disk
    is StorageFailed at once. All of these are OSErrors.
    """

    def __init__(self, uri: str) -> None:
        scheme, found, rest = uri.partition("://")
        if not found or scheme == "file":
            local = Path(unquote(urlsplit(uri).path) if found else uri).expanduser().absolute()
            self.is_local, self._root = True, Path(os.path.normpath(local)).as_posix()
            self.uri = self._root
        elif re.match("[^/]*[@:]", rest):  # ":" alone: half of all secret keys have a "/" before the "@"
            raise ClusterError(
                f"Found a name or key before '@' in an address, or ':' in a bucket's name ({scheme}://...); expected "
                "s3://BUCKET/PREFIX, because addresses are logged. Give keys as AWS does: AWS_ACCESS_KEY_ID ..., "
                "~/.aws, or a role."
            )
        elif scheme == "s3" and rest.partition("/")[0]:
            self.is_local, self._root = False, str(PurePosixPath(rest.strip("/")))
            self.uri = f"s3://{self._root}"
        else:
            raise ClusterError(
                f"Found storage {uri!r}; expected a local folder or s3://BUCKET/PREFIX. Give one of these two."
            )

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (Storage, (self.uri,))

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Storage) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    @property
    def _bucket(self) -> str:
        return self._root.partition("/")[0]

    def _key(self, path: str) -> str:
        return self._at(path).partition("/")[2]

    @cached_property
    def _local_files(self) -> pyarrow.fs.FileSystem:
        import pyarrow.fs

        return pyarrow.fs.LocalFileSystem()

    def _at(self, path: str) -> str:
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts:
            raise DataError(f"Found the path {path!r}; expected one below {self.uri}, without '..'.")
        return "/".join((self._root.rstrip("/"), *parts))

    def full(self, path: str) -> str:
        """The whole address of ``path``, for people."""
        return f"{'' if self.is_local else 's3://'}{self._at(path)}"

    def local(self, path: str = "") -> Path | None:
        """``path`` as a local Path; None on S3."""
        return Path(self._at(path)) if self.is_local else None

    def child(self, path: str) -> Storage:
        """The storage whose root is ``path``."""
        return Storage(self.full(path))

    def read(self, path: str) -> bytes:
        """All of a file."""

        def read(files: pyarrow.fs.FileSystem) -> bytes:
            with files.open_input_file(self._at(path)) as file:
                return bytes(file.read())

        return self._waited(read)

    def read_current(self, path: str) -> bytes:
        """All of a file that others replace meanwhile, as one of them wrote it."""
        if self.is_local:
            return self.read(path)
        return self._waited(lambda _: s3.get(self._bucket, self._key(path)))

    def read_json(self, path: str, kind: type[T], current: bool = False) -> T:
        """The JSON that mvray has written to ``path``, a ``kind``; ``current`` as in `read_current`.

        Raises DataError where it is damaged.
        """
        data = self.read_current(path) if current else self.read(path)
        try:
            read = json.loads(data)
        except ValueError as error:
            raise self.damaged(path, str(error)) from error
        if not isinstance(read, kind):
            raise self.damaged(path, f"a {type(read).__name__} where a {kind.__name__} is expected")
        return read

    def damaged(self, path: str, why: str) -> DataError:
        """What to raise where a file of mvray's own is not as mvray has written it."""
        return DataError(
            f"{self.full(path)} is not as mvray has written it ({why}). Find out what happened to this storage. Bring "
            f"the file back, or remove {self.uri}: the same command then makes anew what was in it."
        )

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """At most ``length`` bytes from byte ``start`` on."""

        def read(files: pyarrow.fs.FileSystem) -> bytes:
            with files.open_input_file(self._at(path)) as file:
                return bytes(file.read_at(length, start))

        return self._waited(read)

    def write(self, path: str, data: bytes) -> None:
        """Replace the file ``path`` by ``data``."""
        self._write(path, data, PATIENCE)

    def insist(self, path: str, data: bytes) -> None:
        """As `write`, for what must be stored in the end: a full disk is waited for, too, for 10 minutes."""
        self._write(path, data, FOR_ROOM)

    def try_write(self, path: str, data: bytes) -> bool:
        """As `write`, for what need not be stored: tried once. Whether it went well."""
        try:
            self._write_once(path, data)
        except OSError:
            return False
        return True

    def _write(self, path: str, data: bytes, patience: Patience) -> None:
        if self.is_local:
            self._waited(lambda _: self._write_once(path, data), patience)
        else:
            s3.put(self._bucket, self._key(path), data, lambda request: self._waited(lambda _: request(), patience))

    def _write_once(self, path: str, data: bytes) -> None:
        if not self.is_local:
            self._connected(attempts=1)  # has words for missing credentials
            s3.put(self._bucket, self._key(path), data, lambda request: request(), attempts=1)
            return
        try:
            with _whole(Path(self._at(path))) as partial:
                partial.write_bytes(data)
        except OSError as error:
            if not is_full(error):
                raise
            full = StorageFailed(
                f"{self.full(path)} cannot be written: the disk is full ({error.strerror}; {len(data):,} bytes were "
                "wanted). Free some space there."
            )
            full.errno = error.errno
            raise full from error

    def download(self, path: str, local_file: Path) -> None:
        """Copy ``path`` to ``local_file``, in the memory of some megabytes."""

        def copy(files: pyarrow.fs.FileSystem) -> None:
            with (
                files.open_input_stream(self._at(path), compression=None) as source,
                _whole(local_file) as partial,
                partial.open("wb") as file,
            ):
                shutil.copyfileobj(source, file, length=16 << 20)

        self._waited(copy)

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder ``path``."""
        return bool(self._info(path).type.value)

    def size(self, path: str) -> int:
        """Bytes of the file ``path``."""
        info = self._info(path)
        if not info.is_file:
            raise FileNotFoundError(f"{self.full(path)} is not a file.")
        return int(info.size)

    def list(self, prefix: str = "", recursive: bool = False) -> list[Entry]:
        """Files and folders directly in the folder ``prefix``, or all files below it; sorted, [] if it is missing.

        A local link that points nowhere is listed as an empty file. Keys on S3 that are no path ("a/../b",
        "a//b") cannot be read by these methods and are left out.
        """
        if self.is_local:
            return sorted(_local_entries(Path(self._at(prefix)), len(self._at("").rstrip("/")) + 1, recursive))
        import pyarrow.fs

        selector = pyarrow.fs.FileSelector(self._at(prefix), allow_not_found=True, recursive=recursive)
        folder = pyarrow.fs.FileType.Directory
        found = (
            Entry(info.path[len(self._root) + 1 :], info.size or 0, info.type == folder)
            for info in self._waited(lambda files: files.get_file_info(selector))
            if not (recursive and info.type == folder)
        )
        return sorted(entry for entry in found if _is_path(entry.path))

    def delete(self, path: str) -> None:
        """Remove the file ``path``, or the folder and all below it; nothing happens if it is missing.

        Of a local link the link is removed, not what it points to.
        """
        if self.is_local and (link := Path(self._at(path))).is_symlink():
            link.unlink()
            return

        def delete(files: pyarrow.fs.FileSystem) -> None:
            info = files.get_file_info(self._at(path))
            if info.is_file:
                files.delete_file(info.path)
            elif info.type.value:
                files.delete_dir(info.path)

        with suppress(FileNotFoundError):  # a request that was answered too late had removed it
            self._waited(delete)

    def check(self, write: bool = True) -> None:
        """Write and delete a small file, or only list, once. Raises ClusterError in words where that fails, soon."""
        probe = f".mvray-probe-{uuid.uuid4().hex}"
        try:
            files = self._connected(attempts=1)
            if write:
                self._write_once(probe, b"mvray")
                files.delete_file(self._at(probe))
            elif not self.is_local:
                import pyarrow.fs

                files.get_file_info(pyarrow.fs.FileSelector(self._at(""), allow_not_found=True))
            else:
                self.list()
        except (StorageFailed, DataError) as error:
            raise ClusterError(str(error)) from error
        except OSError as error:
            raise ClusterError(_out_of_reach(self, "written" if write else "read", error)) from error

    def _info(self, path: str) -> Any:
        return self._waited(lambda files: files.get_file_info(self._at(path)))

    def _connected(self, attempts: int = s3.ATTEMPTS) -> pyarrow.fs.FileSystem:
        return self._local_files if self.is_local else s3.filesystem(self._bucket, attempts)

    def _waited(self, call: Callable[[pyarrow.fs.FileSystem], T], patience: Patience = PATIENCE) -> T:
        """What ``call`` returns, on S3 called again while that may help, and on a full disk with FOR_ROOM."""
        if self.is_local:
            return waited(
                lambda: call(self._local_files), self.uri, lambda e: patience is FOR_ROOM and is_full(e), patience
            )
        try:
            return waited(lambda: call(self._connected()), f"s3://{self._bucket}", may_pass, patience)
        except OSError as error:
            if isinstance(error, FileNotFoundError | StorageFailed | StorageRefused) or error.errno is not None:
                raise
            raise s3.refused(self.uri, error) from error


def _is_path(key: str) -> bool:
    """Whether a key is what `Storage._at` makes of itself."""
    return all(part not in ("", ".", "..") for part in key.split("/"))


def _local_entries(
    folder: Path, start: int, recursive: bool, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[Entry]:
    """As Storage.list; pyarrow's own listing leaves out links that point nowhere.

    ``above`` has device and inode of the folders on the way here: a link to one of them is not followed.
    """
    try:
        if not folder.is_dir():
            return
        status = folder.stat()
        within = above | {(status.st_dev, status.st_ino)}
        if within == above:
            return
        with os.scandir(folder) as found:
            for item in found:
                if _is_folder(item):
                    if recursive:
                        yield from _local_entries(Path(item.path), start, recursive, within)
                    else:
                        yield Entry(item.path[start:], 0, True)
                elif not item.name.endswith(_PARTIAL):
                    broken = item.is_symlink() and not Path(item.path).exists()
                    yield Entry(item.path[start:], 0 if broken else item.stat().st_size, False)
    except PermissionError as error:
        raise DataError(
            f"Found the folder {folder}, which cannot be read ({error.strerror}); expected one whose files you may "
            "list. Change its permissions (chmod u+rx), or move it elsewhere."
        ) from error


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A path beside ``target`` to write to, renamed to it when that went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}{_PARTIAL}")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _out_of_reach(storage: Storage, done: str, error: OSError) -> str:
    if storage.is_local:
        return f"{storage.uri} cannot be {done} ({error.strerror}); expected a folder that can. Choose another one."
    return str(error if isinstance(error, StorageRefused) else s3.refused(storage.uri, error, done))
