"""Disks, storage, run store and ports."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mvray.cli.doctor.finding import GB, Finding
from mvray.errors import ClusterError
from mvray.storage import Storage

DISK_LOW_GB, DISK_EMPTY_GB = 10, 1
RAY_DISK_SHARE = 0.95
"""Ray writes no more objects to a disk that is fuller than this."""
PORTS = {5000: "mvray ui", 6379: "a Ray head", 8265: "Ray's dashboard"}


def disk(storage_uri: str) -> Iterator[Finding]:
    places = {"Ray's temporary files": Path(tempfile.gettempdir())}
    folder = Storage(storage_uri).local()
    if folder is not None:
        places["the storage"] = next(path for path in (folder, *folder.parents) if path.exists())
    for use, place in places.items():
        usage = shutil.disk_usage(place)
        text = f"{usage.free / GB:.1f} GB free of {usage.total / GB:.1f} GB at {place} ({use})"
        remedy = f"Free some space there, or use another disk: {'--storage' if use == 'the storage' else 'TMPDIR'}."
        if usage.free < DISK_EMPTY_GB * GB:
            yield Finding("disk", "bad", text, remedy)
        elif usage.used > RAY_DISK_SHARE * usage.total and use != "the storage":
            yield Finding("disk", "warn", f"{text}. Ray spills no objects to a disk that is 95 % full.", remedy)
        elif usage.free < DISK_LOW_GB * GB:
            yield Finding("disk", "warn", text, remedy)
        else:
            yield Finding("disk", "ok", text)


def storage(storage_uri: str) -> Iterator[Finding]:
    try:
        storage = Storage(storage_uri)
        folder = storage.local()
        new = folder is not None and not folder.exists()
        storage.check()
    except ClusterError as error:
        remedy = "Name a place that can be written with --storage: a folder or s3://BUCKET/PREFIX."
        yield Finding("storage", "bad", str(error), remedy)
        return
    if new and folder is not None:
        folder.rmdir()  # the probe made it
    yield Finding("storage", "ok", f"{storage.uri} can be written")


def tracking(tracking_uri: str) -> Iterator[Finding]:
    from mvray.tracking import check

    try:
        yield Finding("tracking", "ok", check(tracking_uri))
    except ClusterError as error:
        remedy = (
            "Start it, or correct MLFLOW_TRACKING_URI; unset, runs are kept in the storage. Training does not wait."
        )
        yield Finding("tracking", "bad", str(error), remedy)


def ports() -> Iterator[Finding]:
    in_use = [f"{port} ({user})" for port, user in PORTS.items() if listening("127.0.0.1", port)]
    if in_use:
        yield Finding("ports", "info", f"in use: {', '.join(in_use)}; `mvray ui` takes the next free one")
    else:
        yield Finding("ports", "ok", f"free: {', '.join(f'{port} ({user})' for port, user in PORTS.items())}")


def listening(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(3)
        return probe.connect_ex((host, port)) == 0
