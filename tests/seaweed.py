"""A real S3 server for tests: SeaweedFS on loopback, with one bucket and one pair of keys."""

from __future__ import annotations

import json
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

from nodes import free_ports
from processes import Service, start

BUCKET = "mvray-tests"
WEED = Path(sys.executable).parent / "weed"
PORTS = [f"-{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
JWT_VARIABLES = ("JWT_SIGNING", "JWT_SIGNING_READ", "JWT_FILER_SIGNING", "JWT_FILER_SIGNING_READ")


class SeaweedFS:
    """One bucket below ``folder``. ``ports`` has a number for each of PORTS, ``environ`` what S3's clients need."""

    def __init__(self, folder: Path, bucket: str = BUCKET) -> None:
        self._folder, self._bucket = folder, bucket
        self._keys = {"accessKey": "tester", "secretKey": "tests-only"}
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self.ports['-s3.port']}"
        self.environ = {
            "AWS_ACCESS_KEY_ID": self._keys["accessKey"],
            "AWS_SECRET_ACCESS_KEY": self._keys["secretKey"],
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def start(self) -> Service:
        """Returns when the bucket is there. End it by killing: in order takes it half a minute."""
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "tests", "credentials": [self._keys], "actions": actions}
        (self._folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        settings: dict[str, object] = {**self.ports, "-dir": self._folder, "-s3.config": self._folder / "s3.json"}
        settings |= {"-ip": "127.0.0.1", "-ip.bind": "127.0.0.1", "-disableHttp": "true"}
        settings |= {"-s3.autoCreateBucket": "false", "-s3.port.iceberg": 0, "-s3.port.lance": 0}
        settings |= {"-master.telemetry": "false", "-master.volumeSizeLimitMB": 64, "-volume.max": 200}
        key = secrets.token_hex(16)
        command = [WEED, "server", "-s3", *(f"{name}={value}" for name, value in settings.items())]
        environ = {f"WEED_{variable}_KEY": key for variable in JWT_VARIABLES}
        service = start("SeaweedFS", command, self._folder, environ)
        try:
            service.wait_until(self._has_bucket)
        except BaseException:
            service.end(timeout_s=0)
            raise
        return service

    def client(self) -> Any:
        """boto3's."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self._keys["accessKey"],
            aws_secret_access_key=self._keys["secretKey"],
            config=Config(connect_timeout=3, read_timeout=30, retries={"total_max_attempts": 1}),
        )

    def _has_bucket(self) -> bool:
        """Make the bucket where it is missing; False while the server is not ready for that."""
        from botocore.exceptions import BotoCoreError, ClientError

        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.ports["-s3.port"])):
                return False
        client = self.client()
        try:
            if self._bucket not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=self._bucket)
            return True
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
