"""What the S3 server of the tests, and of infra/compose.yaml, does for those who have no key."""

from __future__ import annotations

import urllib.error
import urllib.request
import uuid

import pytest
from seaweed import BUCKET, SeaweedFS

pytestmark = pytest.mark.slow

WRITES = [
    ("master", "GET", "/col/delete?collection=" + BUCKET),  # as SeaweedFS has it, GET deletes
    ("master", "DELETE", "/col/delete?collection=" + BUCKET),
    ("master", "GET", "/dir/assign?collection=" + BUCKET),  # gives a token for a volume
    ("master", "POST", "/submit"),
    ("master", "GET", "/vol/vacuum?garbageThreshold=0.001"),
    ("filer", "DELETE", f"/buckets/{BUCKET}?recursive=true"),
    ("filer", "POST", f"/buckets/{BUCKET}/from-outside"),
    ("volume", "GET", "/admin/assign_volume?volume=99"),
    ("volume", "DELETE", "/1,01637037d6"),
    ("volume", "POST", "/1,01637037d6"),
    ("s3", "DELETE", f"/{BUCKET}"),
    ("s3", "PUT", f"/{BUCKET}/from-outside"),
]


def test_no_port_changes_data_without_a_key(s3_server: SeaweedFS) -> None:
    client, key = s3_server.client(), uuid.uuid4().hex
    client.put_object(Bucket=BUCKET, Key=key, Body=b"artifact" * 10_000)
    for part, method, path in WRITES:
        address = f"http://127.0.0.1:{s3_server.ports[f'-{part}.port']}{path}"
        request = urllib.request.Request(address, data=b"x" if method == "POST" else None, method=method)
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request, timeout=20)  # noqa: S310  our own server
        assert refusal.value.code in (401, 403, 404), (part, method, path)
        refusal.value.close()
    assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"artifact" * 10_000
    with pytest.raises(client.exceptions.NoSuchKey):
        client.get_object(Bucket=BUCKET, Key="from-outside")
    client.delete_object(Bucket=BUCKET, Key=key)
    client.close()
