"""The connection to S3, by AWS's own conventions.

Credentials, region, endpoint and certificates are what botocore finds: the environment, profiles in
``~/.aws`` (also with role_arn, SSO or credential_process), a pod's or an instance's role. Credentials that
expire are fetched again in time. What reads much is Arrow's, which does not hold Python's lock. What writes is
botocore's: a stream of Arrow's that is closed after an error leaves half an object under its name.
"""

from __future__ import annotations

import email.utils
import http.client
import io
import os
import re
import threading
import time
import urllib.parse
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mvray.errors import StorageFailed, StorageRefused
from mvray.storage.retry import reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow.fs

CONNECT_S, SILENCE_S = 3.0, 20.0
"""A connection must stand after the first; a request in which nothing arrives for the second has failed."""
ATTEMPTS = 3
"""How often one request is sent before it counts as failed; retry.py begins there."""
PART_BYTES = 16 << 20
"""What is larger is written in parts of so much: what a failed request sends again, and what is copied in memory."""
_AT_ONCE_BYTES = 64 << 10
_CONNECTIONS = 32  # kept open; there are 16 threads of steps
AMAZON = "Amazon's own"
CLOCK_OFF_S = 15 * 60
"""S3 refuses requests whose time is farther off."""

_logins: dict[tuple[Any, ...], _Login] = {}
_lock = threading.Lock()


def filesystem(bucket: str, attempts: int = ATTEMPTS) -> pyarrow.fs.FileSystem:
    """A connection for ``bucket``, shared by all who ask for the same one in this process.

    Raises StorageRefused where there are no credentials to be had, ConnectionError where who gives them is away.
    """
    return _login().filesystem(bucket, attempts)


def get(bucket: str, key: str) -> bytes:
    """An object as it is now, in one request; Arrow's reading asks for its size before, which may change between.

    Raises FileNotFoundError, ConnectionError, StorageRefused without credentials, or OSError with S3's name for the
    error and the HTTP status, as Arrow's have them.
    """
    try:
        with _as_arrow_says(f"s3://{bucket}/{key}"):
            return bytes(_login().client(ATTEMPTS).get_object(Bucket=bucket, Key=key)["Body"].read())
    except OSError as error:
        name, status = reason(error)
        if status == 404:
            raise FileNotFoundError(f"s3://{bucket}/{key} is not there: {name}.") from error
        raise


def put(bucket: str, key: str, data: bytes, each: Callable[[Callable[[], Any]], Any], attempts: int = ATTEMPTS) -> None:
    """Store an object, which appears whole or not at all.

    ``each`` is given every request, to call it once or as often as it likes: one that fails does not cost the parts
    before it. Raises as `get`, but plain OSError where the bucket is missing, and StorageFailed where uploads get lost.
    """

    def ask(name: str, **given: Any) -> Any:
        if "Body" in given:
            given["Body"] = _body(given["Body"])
        with _as_arrow_says(f"s3://{bucket}/{key}"):
            return getattr(_login().client(attempts), name)(Bucket=bucket, Key=key, **given)

    if len(data) <= PART_BYTES:
        each(lambda: ask("put_object", Body=data))
        return
    for _ in range(ATTEMPTS):
        # Also what S3 says of an upload that it has completed, when its answer to that was lost.
        with suppress(_NoSuchUpload):
            _put_in_parts(data, lambda name, **given: each(lambda: ask(name, **given)), ask)
            return
    raise StorageFailed(
        f"S3 has lost the upload of s3://{bucket}/{key} {ATTEMPTS} times; expected it to last until it is complete. "
        "Find out what ends uploads there, as a rule of the bucket; the same command goes on with what is stored."
    )


def _put_in_parts(data: bytes, insist: Callable[..., Any], ask: Callable[..., Any]) -> None:
    upload = insist("create_multipart_upload")["UploadId"]
    try:
        parts = []
        for number, start in enumerate(range(0, len(data), PART_BYTES), start=1):
            done = insist("upload_part", UploadId=upload, PartNumber=number, Body=data[start : start + PART_BYTES])
            parts.append({"PartNumber": number, "ETag": done["ETag"]})
        insist("complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts})
    except BaseException:
        with suppress(Exception):  # what went wrong before is what is told
            ask("abort_multipart_upload", UploadId=upload)
        raise


def _body(data: bytes) -> bytes | io.BytesIO:
    """Much is sent piece by piece: a timeout is for what a socket is given at once, and may be short."""
    return data if len(data) <= _AT_ONCE_BYTES else io.BytesIO(data)


class _NoSuchUpload(Exception):
    """S3 does not know the upload. No OSError, which would be waited for with the same upload."""


@contextmanager
def _as_arrow_says(uri: str) -> Iterator[None]:
    """botocore's errors as OSErrors with the names that Arrow's have: retry.py goes by these."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        CredentialRetrievalError,
        HTTPClientError,
        IncompleteReadError,
        NoCredentialsError,
    )
    from botocore.exceptions import ConnectionError as NotConnected
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        if code == "NoSuchUpload":
            raise _NoSuchUpload(uri) from error
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", code).upper()
        raise OSError(f"{uri}: AWS Error {name} (HTTP status {status}): {error}") from error
    except (NoCredentialsError, CredentialRetrievalError) as error:
        raise _no_credentials(error) from error
    except (HTTPClientError, NotConnected, IncompleteReadError, ResponseParserError) as error:
        # Nobody answers, or it broke off.
        raise ConnectionError(f"{uri}: {error}") from error
    except BotoCoreError as error:  # it was not even sent, as for a name that no bucket can have
        raise OSError(f"{uri}: {error}") from error


def endpoint() -> str:
    """The address of the server, "" for Amazon's own."""
    return _login().endpoint


def _login() -> _Login:
    given = sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    key = (os.getpid(), *given)  # what is open does not survive a fork
    with _lock:
        if key not in _logins:
            _logins[key] = _Login()
        return _logins[key]


class _Login:
    """What AWS's conventions say in this environment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[str, int], tuple[Any, pyarrow.fs.FileSystem]] = {}
        self._clients: dict[int, Any] = {}

    @cached_property
    def _session(self) -> Any:
        import botocore.session

        return botocore.session.Session()

    @cached_property
    def endpoint(self) -> str:
        from botocore.configprovider import ConfiguredEndpointProvider
        from botocore.exceptions import BotoCoreError

        session = self._session
        try:
            if session.get_config_variable("ignore_configured_endpoint_urls"):
                return ""
            found = ConfiguredEndpointProvider(session.full_config, session.get_scoped_config(), "s3").provide()
        except BotoCoreError as error:
            raise _no_credentials(error) from error
        return str(found or "")

    @cached_property
    def _credentials(self) -> Any:
        return self._session.get_credentials()

    @cached_property
    def _region(self) -> str | None:
        # botocore itself reads AWS_DEFAULT_REGION only.
        return os.environ.get("AWS_REGION") or self._session.get_config_variable("region")

    def client(self, attempts: int) -> Any:
        with self._lock:
            if attempts not in self._clients:
                self._clients[attempts] = self._new_client(attempts)
            return self._clients[attempts]

    def _new_client(self, attempts: int) -> Any:
        from botocore.config import Config

        config = Config(
            connect_timeout=CONNECT_S,
            read_timeout=SILENCE_S,
            retries={"total_max_attempts": attempts, "mode": "standard"},
            request_checksum_calculation="when_required",  # other servers do not know sums that follow the data
            s3={"addressing_style": "path"} if self.endpoint else None,  # as Arrow
            max_pool_connections=_CONNECTIONS,
        )
        where = {"endpoint_url": self.endpoint or None, "region_name": self._region}
        return self._session.create_client("s3", config=config, **where)

    def filesystem(self, bucket: str, attempts: int) -> pyarrow.fs.FileSystem:
        keys = self._keys()
        with self._lock:
            before = self._open.get((bucket, attempts))
            if before is None or before[0] != keys:
                before = self._open[bucket, attempts] = keys, self._connected(bucket, attempts, keys)
            return before[1]

    def _keys(self) -> tuple[str, ...]:
        """Access key, secret and session token as they are valid now; () for what Arrow finds by itself."""
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

        try:
            with self._lock:
                found = self._credentials
            if found is None:
                return ()
            keys = found.get_frozen_credentials()
        except HTTPClientError as error:
            raise ConnectionError(f"the credentials' own server does not answer: {error}") from error
        except (BotoCoreError, ClientError) as error:
            raise _no_credentials(error) from error
        return keys.access_key, keys.secret_key, keys.token or ""

    def _connected(self, bucket: str, attempts: int, keys: tuple[str, ...]) -> pyarrow.fs.FileSystem:
        import pyarrow.fs

        region = self._region
        if not (self.endpoint or region):
            region = pyarrow.fs.resolve_s3_region(bucket)
        more: dict[str, Any] = {}
        if keys:
            more = {"access_key": keys[0], "secret_key": keys[1], "session_token": keys[2] or None}
        if certificates := self._session.get_config_variable("ca_bundle"):
            more["tls_ca_file_path"] = certificates
        return pyarrow.fs.S3FileSystem(
            endpoint_override=self.endpoint or None,
            region=region,
            connect_timeout=CONNECT_S,
            request_timeout=SILENCE_S,
            retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
            **more,
        )


def _no_credentials(error: Exception) -> StorageRefused:
    return StorageRefused(
        f"There are no credentials for S3: {error}\nExpected what AWS's own tools take: AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or this machine's role. Try `aws sts get-caller-identity`."
    )


def refused(uri: str, error: OSError, done: str = "used") -> StorageRefused:
    """What S3 does not do, however often it is asked, in words."""
    name, status = reason(error)
    where = endpoint() or AMAZON
    if name in ("REQUEST_TIME_TOO_SKEWED", "ACCESS_DENIED") and abs(off_s := _clock_off_s()) > CLOCK_OFF_S:
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
