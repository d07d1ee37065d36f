"""Files in an S3 bucket, by AWS's own conventions.

Credentials, region, endpoint and certificates are what botocore finds: the environment, profiles in ``~/.aws`` (also
with role_arn, SSO or credential_process), a pod's or an instance's role. Credentials that expire are fetched again in
time. botocore's own repetitions are off: retry.py waits, by the error's code and status.
"""

from __future__ import annotations

import email.utils
import http.client
import io
import os
import shutil
import threading
import time
import urllib.parse
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from mvray.errors import StorageFailed, StorageRefused
from mvray.storage.local import Entry, appearing_whole
from mvray.storage.retry import RetryPolicy, retried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

T = TypeVar("T")

CONNECT_S, SILENCE_S = 3.0, 20.0
"""A connection must stand after the first; a request in which nothing arrives for the second has failed."""
PART_BYTES = 16 << 20
"""What is larger is written in parts of so much: what a failed request sends again."""
UPLOADS = 3
"""How often an upload is begun that S3 loses."""
AMAZON = "Amazon's own"
CLOCK_OFF_S = 15 * 60
"""S3 refuses requests whose time is farther off."""

_AT_ONCE_BYTES = 64 << 10
_COPIED_BYTES = 1 << 20
_DELETED_KEYS = 1000  # S3 takes no more in a request
_CONNECTIONS = 32  # kept open; there are 16 threads of steps
_PASSING_STATUSES = frozenset((408, 425, 429, 500, 502, 503, 504, 507))
_PASSING_CODES = frozenset(
    (
        *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded"),
        *("ServiceUnavailable", "InternalError", "InternalFailure", "RequestTimeout", "RequestTimeoutException"),
    )
)
_MISSING_CODES = ("NoSuchKey", "NotFound", "404")  # the last for HEAD, whose answer has no body
_LOST_UPLOAD, _BEHIND_THE_END = "NoSuchUpload", "InvalidRange"
_CLOCK_CODES = ("RequestTimeTooSkewed", "AccessDenied", "403")


class S3Error(OSError):
    """What S3 answered instead of doing it: its ``code`` for that and the HTTP ``status``, "" and 0 if it never did."""

    def __init__(self, text: str, code: str = "", status: int = 0) -> None:
        super().__init__(text)
        self.code, self.status = code, status


def may_pass(error: OSError) -> bool:
    """Whether the same request may succeed later: S3 is busy, away or slow. False for what it refuses."""
    if isinstance(error, S3Error):
        return error.code in _PASSING_CODES or error.status in _PASSING_STATUSES
    return isinstance(error, ConnectionError)


class S3Files:
    """The objects below ``root``, "BUCKET/PREFIX"; paths are relative to it, and whoever calls has checked them.

    Each request is repeated as ``policy`` says, or sent once where that is None. What S3 refuses is StorageRefused,
    in which ``purpose`` says what cannot be done; where it stays away it is StorageFailed.
    """

    def __init__(
        self, root: str, policy: RetryPolicy | None, part_bytes: int = PART_BYTES, purpose: str = "used"
    ) -> None:
        self._root, self._policy, self._part_bytes, self._purpose = root, policy, part_bytes, purpose
        self._bucket, _, self._prefix = root.partition("/")

    def once(self, purpose: str = "used") -> S3Files:
        """The same files, with requests that are sent once."""
        return S3Files(self._root, None, self._part_bytes, purpose)

    def read(self, path: str) -> bytes:
        return self._insist(path, lambda client, at: _content(client.get_object(**at)))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        range_ = f"bytes={start}-{start + length - 1}"
        try:
            return self._insist(path, lambda client, at: _content(client.get_object(**at, Range=range_)))
        except S3Error as error:
            if error.code == _BEHIND_THE_END:
                return b""
            raise

    def write(self, path: str, data: bytes, policy: RetryPolicy | None = None) -> None:
        """In parts where it is large; then a request that fails does not cost the parts before it."""
        if len(data) <= self._part_bytes:
            self._insist(path, lambda client, at: client.put_object(**at, Body=_body(data)), policy)
            return
        for _ in range(UPLOADS):
            try:
                self._write_in_parts(path, data, policy)
                return
            except S3Error as error:
                # Also what S3 says of an upload that it has completed, when its answer to that was lost.
                if error.code != _LOST_UPLOAD:
                    raise
        raise StorageFailed(
            f"S3 has lost the upload of {self._uri(path)} {UPLOADS} times; expected it to last until it is complete. "
            "Find out what ends uploads there, as a rule of the bucket; the same command goes on with what is stored."
        )

    def _write_in_parts(self, path: str, data: bytes, policy: RetryPolicy | None) -> None:
        upload = self._insist(path, lambda client, at: client.create_multipart_upload(**at), policy)["UploadId"]

        def send(number: int, part: bytes) -> dict[str, Any]:
            about = {"UploadId": upload, "PartNumber": number}
            answer = self._insist(path, lambda client, at: client.upload_part(**at, **about, Body=_body(part)), policy)
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            starts = range(0, len(data), self._part_bytes)
            parts = [send(number, data[start : start + self._part_bytes]) for number, start in enumerate(starts, 1)]
            arguments = {"UploadId": upload, "MultipartUpload": {"Parts": parts}}
            self._insist(path, lambda client, at: client.complete_multipart_upload(**at, **arguments), policy)
        except BaseException:
            with suppress(Exception):  # the first error is the one to raise
                _connection().client.abort_multipart_upload(Bucket=self._bucket, Key=self._key(path), UploadId=upload)
            raise

    def download(self, path: str, local_file: Path) -> None:
        def copy(client: Any, at: dict[str, str]) -> None:
            with (
                closing(client.get_object(**at)["Body"]) as body,
                appearing_whole(local_file) as partial,
                partial.open("wb") as file,
            ):
                shutil.copyfileobj(body, file, _COPIED_BYTES)

        self._insist(path, copy)

    def size(self, path: str) -> int:
        return int(self._insist(path, lambda client, at: client.head_object(**at))["ContentLength"])

    def exists(self, path: str) -> bool:
        return self._is_file(path) or any(page.get("Contents") for page in self._pages(path, MaxKeys=1))

    def list(self, path: str, recursive: bool) -> list[Entry]:
        start = len(f"{self._prefix}/".removeprefix("/"))
        entries = []
        for page in self._pages(path, **({} if recursive else {"Delimiter": "/"})):
            entries += [Entry(item["Key"][start:], item["Size"], False) for item in page.get("Contents", ())]
            entries += [Entry(item["Prefix"][start:-1], 0, True) for item in page.get("CommonPrefixes", ())]
        return [entry for entry in entries if is_path(entry.path)]

    def delete(self, path: str) -> None:
        if self._is_file(path):
            self._insist(path, lambda client, at: client.delete_object(**at))
            return
        keys = [item["Key"] for page in self._pages(path) for item in page.get("Contents", ())]
        for first in range(0, len(keys), _DELETED_KEYS):
            self._delete_keys(path, keys[first : first + _DELETED_KEYS])

    def _delete_keys(self, path: str, keys: Sequence[str]) -> None:
        request = {"Objects": [{"Key": key} for key in keys], "Quiet": True}

        def delete(client: Any, at: dict[str, str]) -> None:
            for failure in client.delete_objects(Bucket=self._bucket, Delete=request).get("Errors", ()):
                raise S3Error(f"{failure['Key']}: {failure.get('Message')}", failure.get("Code", ""))

        self._insist(path, delete)

    def _is_file(self, path: str) -> bool:
        try:
            return bool(self._key(path)) and self.size(path) >= 0
        except FileNotFoundError:
            return False

    def _pages(self, path: str, **more: Any) -> Iterator[dict[str, Any]]:
        """The answers that list the keys below the folder ``path``."""
        query = {"Bucket": self._bucket, "Prefix": f"{self._key(path)}/".removeprefix("/"), **more}
        while True:
            page = self._insist(path, lambda client, at: client.list_objects_v2(**query))
            yield page
            if not page["IsTruncated"]:
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}".strip("/")

    def _uri(self, path: str) -> str:
        return f"s3://{self._bucket}/{self._key(path)}"

    def _insist(self, path: str, work: Callable[[Any, dict[str, str]], T], policy: RetryPolicy | None = None) -> T:
        """What ``work`` returns, which is given botocore's client and the names of bucket and key."""

        def attempt() -> T:
            with _typed_errors(self._uri(path)):
                return work(_connection().client, {"Bucket": self._bucket, "Key": self._key(path)})

        policy = self._policy and (policy or self._policy)
        try:
            return retried(attempt, f"s3://{self._bucket}", may_pass, policy) if policy else attempt()
        except (S3Error, ConnectionError) as error:
            if isinstance(error, S3Error) and error.code in (_LOST_UPLOAD, _BEHIND_THE_END):
                raise
            raise refused(f"s3://{self._root}", error, self._purpose) from error


def is_path(key: str) -> bool:
    """Whether a path of `Storage` can name the key."""
    return all(part not in ("", ".", "..") for part in key.split("/"))


def _content(answer: dict[str, Any]) -> bytes:
    with closing(answer["Body"]) as body:
        return bytes(body.read())


def _body(data: bytes) -> bytes | io.BytesIO:
    """Send large bodies in pieces: the timeout is for one piece, so it may be short."""
    return data if len(data) <= _AT_ONCE_BYTES else io.BytesIO(data)


@contextmanager
def _typed_errors(uri: str) -> Iterator[None]:
    """botocore's errors as FileNotFoundError, S3Error, ConnectionError where nobody answers, or StorageRefused."""
    from botocore import exceptions as botocore_errors
    from botocore.parsers import ResponseParserError

    try:
        yield
    except botocore_errors.ClientError as error:
        code, status = error.response["Error"].get("Code", ""), error.response["ResponseMetadata"]["HTTPStatusCode"]
        if code in _MISSING_CODES:
            raise FileNotFoundError(f"{uri} is not there: {code}.") from error
        raise S3Error(f"{uri}: {error}", code, status) from error
    except (
        botocore_errors.HTTPClientError,
        botocore_errors.ConnectionError,
        botocore_errors.IncompleteReadError,
        ResponseParserError,
    ) as error:
        raise ConnectionError(f"{uri}: {error}") from error  # nobody answers, or it broke off
    except botocore_errors.BotoCoreError as error:  # it was not even sent, as for a name that no bucket can have
        raise S3Error(f"{uri}: {error}") from error


def endpoint() -> str:
    """The address of the server, "" for Amazon's own."""
    return _connection().endpoint


_connections: dict[tuple[Any, ...], _Connection] = {}
_lock = threading.Lock()


def _connection() -> _Connection:
    variables = sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    key = (os.getpid(), *variables)  # what is open does not survive a fork
    with _lock, _no_credentials():
        if key not in _connections:
            _connections[key] = _Connection()
        return _connections[key]


class _Connection:
    """What AWS's conventions say in this environment, and botocore's client, which all threads share."""

    def __init__(self) -> None:
        from botocore.config import Config
        from botocore.configprovider import ConfiguredEndpointProvider
        from botocore.session import Session

        session = Session()
        provider = ConfiguredEndpointProvider(session.full_config, session.get_scoped_config(), "s3")
        is_ignored = session.get_config_variable("ignore_configured_endpoint_urls")
        self.endpoint = str((not is_ignored and provider.provide()) or "")
        self.credentials = session.get_credentials()
        self._client = session.create_client(
            "s3",
            endpoint_url=self.endpoint or None,
            # botocore itself reads AWS_DEFAULT_REGION only.
            region_name=os.environ.get("AWS_REGION") or session.get_config_variable("region"),
            config=Config(
                connect_timeout=CONNECT_S,
                read_timeout=SILENCE_S,
                retries={"total_max_attempts": 1, "mode": "standard"},
                request_checksum_calculation="when_required",  # other servers do not know sums that follow the data
                s3={"addressing_style": "path"} if self.endpoint else None,
                max_pool_connections=_CONNECTIONS,
            ),
        )

    @property
    def client(self) -> Any:
        """With credentials that are valid now. Raises as `_no_credentials`."""
        from botocore.exceptions import NoCredentialsError

        with _no_credentials():
            if self.credentials is None:
                raise NoCredentialsError
            self.credentials.get_frozen_credentials()  # fetched anew where they expire soon
        return self._client


@contextmanager
def _no_credentials() -> Iterator[None]:
    """StorageRefused where there are no credentials to be had, ConnectionError where who gives them is away."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    try:
        yield
    except HTTPClientError as error:
        raise ConnectionError(f"the credentials' own server does not answer: {error}") from error
    except (BotoCoreError, ClientError) as error:
        raise StorageRefused(
            f"There are no credentials for S3: {error}\nExpected what AWS's own tools take: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or this machine's role. Try `aws sts get-caller-identity`."
        ) from error


def refused(uri: str, error: OSError, done: str = "used") -> StorageRefused:
    """What S3 does not do, however often it is asked, in words."""
    code, status = (error.code, error.status) if isinstance(error, S3Error) else ("", 0)
    where = endpoint() or AMAZON
    if (code in _CLOCK_CODES or status == 403) and abs(off_s := _clock_off_s()) > CLOCK_OFF_S:
        return StorageRefused(
            f"{uri} cannot be {done} (endpoint: {where}): the clock of this machine is {abs(off_s) / 60:.0f} minutes "
            f"{'ahead of' if off_s > 0 else 'behind'} that of S3, which takes requests that are at most "
            f"{CLOCK_OFF_S // 60} minutes off. Set the clock: timedatectl set-ntp true."
        )
    if status == 301:
        return StorageRefused(f"{uri} lies in another region than the one that is set. Set AWS_REGION to the bucket's.")
    return StorageRefused(
        f"{uri} cannot be {done} (endpoint: {where}): {error}\nExpected a bucket that exists, and credentials that "
        "allow it. Check the name, AWS_ENDPOINT_URL, AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    )


def _clock_off_s() -> float:
    """How far this machine's clock is ahead of the server's; 0 where that is not known."""
    url = urllib.parse.urlsplit(endpoint() or "https://s3.amazonaws.com")
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.netloc, timeout=CONNECT_S)
    try:
        connection.request("HEAD", "/")
        date = email.utils.parsedate_to_datetime(connection.getresponse().headers["Date"] or "")
        return time.time() - date.timestamp()
    except (OSError, ValueError, TypeError, http.client.HTTPException):
        return 0.0
    finally:
        connection.close()
