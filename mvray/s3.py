"""The connection to S3, by AWS's own conventions.

Credentials, region, endpoint and certificates are what botocore finds: the environment, profiles in
``~/.aws`` (also with role_arn, SSO or credential_process), a pod's or an instance's role. Credentials that
expire are fetched again in time. Requests themselves are Arrow's, which does not hold Python's lock.
"""

from __future__ import annotations

import email.utils
import http.client
import os
import threading
import time
import urllib.parse
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mvray.errors import StorageRefused
from mvray.patience import reason

if TYPE_CHECKING:
    import pyarrow.fs

CONNECT_S, SILENCE_S = 3.0, 20.0
"""A connection must stand after the first; a request in which nothing arrives for the second has failed."""
ATTEMPTS = 3
"""How often one request is sent before it counts as failed; patience.py begins there."""
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
    from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError, NoCredentialsError

    try:
        answer = _login().client.get_object(Bucket=bucket, Key=key)
        return bytes(answer["Body"].read())
    except ClientError as error:
        code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == 404:
            raise FileNotFoundError(f"s3://{bucket}/{key} is not there: {code}.") from error
        raise OSError(f"s3://{bucket}/{key}: AWS Error {code} (HTTP status {status}): {error}") from error
    except (NoCredentialsError, CredentialRetrievalError) as error:
        raise _no_credentials(error) from error
    except BotoCoreError as error:  # nobody answers, or the connection broke
        raise ConnectionError(f"s3://{bucket}/{key}: {error}") from error


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
    def client(self) -> Any:
        from botocore.config import Config

        retries = {"total_max_attempts": ATTEMPTS, "mode": "standard"}
        config = Config(connect_timeout=CONNECT_S, read_timeout=SILENCE_S, retries=retries)
        if self.endpoint:
            config = config.merge(Config(s3={"addressing_style": "path"}))  # as Arrow
        with self._lock:
            return self._session.create_client("s3", endpoint_url=self.endpoint or None, config=config)

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

        region = os.environ.get("AWS_REGION") or self._session.get_config_variable("region")
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
            allow_delayed_open=True,  # small objects in one request
            background_writes=False,  # else all parts of a large object are copied and wait in memory
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
