"""An S3 server for artifacts: SeaweedFS on loopback, with keys."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from mvray.tracking.server.processes import Service, answers, free_ports, start

BUCKET = "mlflow"
TIMEOUT_S = 90.0
PORTS = [f"-{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]


def program() -> Path | None:
    """Where `weed` is: beside this Python, or on PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    return Path(found) if found else None


class Objects:
    """One bucket, "mlflow", below ``folder``/objects. ``keys`` has access_key, secret_key and signing_key."""

    def __init__(self, folder: Path, keys: dict[str, str]) -> None:
        self._folder, self._keys = folder, keys
        self._data = folder / "objects"
        self.endpoint = ""

    def start(self) -> Service:
        """Start it; returns when the bucket is there."""
        weed = program()
        assert weed is not None, "the caller has looked"
        self._data.mkdir(exist_ok=True)
        pair = {"accessKey": self._keys["access_key"], "secretKey": self._keys["secret_key"]}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        config = self._folder / "s3.json"
        config.touch(0o600)
        config.write_text(json.dumps({"identities": [{"name": BUCKET, "credentials": [pair], "actions": actions}]}))
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.endpoint = f"http://127.0.0.1:{ports['-s3.port']}"
        settings: dict[str, object] = {**ports, "-dir": self._data, "-ip": "127.0.0.1", "-ip.bind": "127.0.0.1"}
        settings |= {"-s3.config": config, "-s3.autoCreateBucket": "false", "-s3.port.iceberg": 0, "-s3.port.lance": 0}
        settings |= {"-master.telemetry": "false", "-master.volumeSizeLimitMB": 1024, "-volume.max": 0}
        settings |= {"-volume.preStopSeconds": 0}
        # Its other ports take no key of their own accord; its gRPC takes none at all (SECURITY.md).
        kinds = ("JWT_SIGNING", "JWT_SIGNING_READ", "JWT_FILER_SIGNING", "JWT_FILER_SIGNING_READ")
        environ = {f"WEED_{kind}_KEY": self._keys["signing_key"] for kind in kinds}
        command: list[str | Path] = [weed, "server", "-s3", *(f"{name}={value}" for name, value in settings.items())]
        # Each write is in the kernel's hands when it is confirmed. Ending in order takes it half a minute.
        service = start("SeaweedFS", command, self._folder, {**os.environ, **environ}, patience_s=2.0)
        try:
            service.wait_until(lambda: answers(ports["-s3.port"]) and self._has_bucket(), TIMEOUT_S)
        except BaseException:
            service.end()
            raise
        return service

    def environ(self) -> dict[str, str]:
        """What AWS's clients need to find it."""
        return {
            "AWS_ACCESS_KEY_ID": self._keys["access_key"],
            "AWS_SECRET_ACCESS_KEY": self._keys["secret_key"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint,
        }

    def _has_bucket(self) -> bool:
        """Make the bucket where it is missing; False while the server is not ready for that."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self._keys["access_key"],
            aws_secret_access_key=self._keys["secret_key"],
            config=Config(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 1}),
        )
        try:
            if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=BUCKET)
            return True
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
