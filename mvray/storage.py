"""Files below one root: a local folder or an S3 bucket, through the same few methods.

S3 is used with AWS's own conventions: credentials, region and ``AWS_ENDPOINT_URL_S3`` or
``AWS_ENDPOINT_URL`` from the environment, profiles from ``~/.aws``.
"""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from mvray.errors import ClusterError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow.fs

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
    is written appears whole under its name or not at all. A missing file is FileNotFoundError, a
    storage that does not answer OSError. Can be pickled; connects when first used.
    """

    def __init__(self, uri: str) -> None:
        scheme, found, rest = uri.partition("://")
        if not found or scheme == "file":
            local = Path(unquote(urlsplit(uri).path) if found else uri).expanduser().absolute()
            self.is_local, self._root = True, Path(os.path.normpath(local)).as_posix()
            self.uri = self._root
        elif "@" in rest.partition("/")[0]:
            raise ClusterError(
                f"Found a name or key before '@' in an address ({scheme}://...); expected s3://BUCKET/PREFIX, because "
                "addresses are logged. Give keys as AWS does: AWS_ACCESS_KEY_ID ..., ~/.aws, or a role."
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

    @cached_property
    def _files(self) -> pyarrow.fs.FileSystem:
        import pyarrow.fs

        return pyarrow.fs.LocalFileSystem() if self.is_local else _s3(self._root, attempts=5)

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
        with self._files.open_input_file(self._at(path)) as file:
            return bytes(file.read())

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """At most ``length`` bytes from byte ``start`` on."""
        with self._files.open_input_file(self._at(path)) as file:
            return bytes(file.read_at(length, start))

    def write(self, path: str, data: bytes) -> None:
        """Replace the file ``path`` by ``data``."""
        if self.is_local:
            with _whole(Path(self._at(path))) as partial:
                partial.write_bytes(data)
            return
        with self._files.open_output_stream(self._at(path)) as file:
            file.write(data)

    def upload(self, path: str, local_file: Path) -> None:
        """Copy ``local_file`` to ``path``."""
        if self.is_local:
            with _whole(Path(self._at(path))) as partial:
                shutil.copyfile(local_file, partial)
            return
        with local_file.open("rb") as source, self._files.open_output_stream(self._at(path)) as file:
            try:
                shutil.copyfileobj(source, file, length=16 << 20)
            except BaseException:
                # Closing the stream finishes the object, so half of one has to go again.
                file.close()
                self.delete(path)
                raise

    def download(self, path: str, local_file: Path) -> None:
        """Copy ``path`` to ``local_file``."""
        with (
            self._files.open_input_stream(self._at(path)) as source,
            _whole(local_file) as partial,
            partial.open("wb") as file,
        ):
            shutil.copyfileobj(source, file, length=16 << 20)

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

        A local link that points nowhere is listed as an empty file.
        """
        if self.is_local:
            return sorted(_local_entries(Path(self._at(prefix)), len(self._at("").rstrip("/")) + 1, recursive))
        import pyarrow.fs

        selector = pyarrow.fs.FileSelector(self._at(prefix), allow_not_found=True, recursive=recursive)
        folder = pyarrow.fs.FileType.Directory
        return sorted(
            Entry(info.path[len(self._root) + 1 :], info.size or 0, info.type == folder)
            for info in self._files.get_file_info(selector)
            if not (recursive and info.type == folder)
        )

    def delete(self, path: str) -> None:
        """Remove the file ``path``, or the folder and all below it; nothing happens if it is missing."""
        info = self._info(path)
        if info.is_file:
            self._files.delete_file(info.path)
        elif info.type.value:
            self._files.delete_dir(info.path)

    def check(self, write: bool = True) -> None:
        """Write and delete a small file, or only list. Raises ClusterError in words where that fails, soon."""
        probe = f".mvray-probe-{uuid.uuid4().hex}"
        once = Storage(self.uri)
        try:
            if not self.is_local:
                once._files = _s3(self._root, attempts=1)
            if write:
                once.write(probe, b"mvray")
                once.delete(probe)
            else:
                once.list()
        except OSError as error:
            raise ClusterError(_out_of_reach(self, "written" if write else "read", error)) from error

    def _info(self, path: str) -> Any:
        return self._files.get_file_info(self._at(path))


def _local_entries(folder: Path, start: int, recursive: bool) -> Iterator[Entry]:
    """As Storage.list; pyarrow's own listing leaves out links that point nowhere."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as found:
        for item in found:
            if item.is_dir():
                if recursive:
                    yield from _local_entries(Path(item.path), start, recursive)
                else:
                    yield Entry(item.path[start:], 0, True)
            elif not item.name.endswith(_PARTIAL):
                broken = item.is_symlink() and not Path(item.path).exists()
                yield Entry(item.path[start:], 0 if broken else item.stat().st_size, False)


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


def _s3(root: str, attempts: int) -> pyarrow.fs.FileSystem:
    import pyarrow.fs

    environ = os.environ
    # pyarrow reads these two by itself only in FileSystem.from_uri, which takes no further options.
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    if not (endpoint or region or environ.get("AWS_PROFILE")):
        region = pyarrow.fs.resolve_s3_region(root.partition("/")[0])
    return pyarrow.fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region,
        connect_timeout=3,
        request_timeout=30,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        allow_delayed_open=True,  # small objects in one request
    )


def _out_of_reach(storage: Storage, done: str, error: OSError) -> str:
    if storage.is_local:
        return f"{storage.uri} cannot be {done} ({error.strerror}); expected a folder that can. Choose another one."
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "Amazon's own"
    return (
        f"{storage.uri} cannot be {done} (endpoint: {endpoint}): {error}\nExpected a bucket that exists, and "
        "credentials that allow it. Check the name, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    )
