"""Tracking: what is logged reaches MLflow, however long its server is away.

A Tracker appends each event to a local outbox (outbox.py) and returns at once; a thread delivers them to
the MLflow store (mlflow_store.py). Passwords and keys are taken out before.
"""

from __future__ import annotations

import io
import logging
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from PIL import Image

from mvray.tracking.mlflow_store import HANDLE, HOST, PID, PROCESS_STARTED, MlflowStore, without_password
from mvray.tracking.outbox import Delivery, Event, Outbox
from mvray.tracking.outbox_backup import OutboxCopy, fetch, forget
from mvray.tracking.redact import redacted_all
from mvray.tracking.system_metrics import load

if TYPE_CHECKING:
    from mvray.storage import Storage

HELD_EVENTS, HELD_BYTES = 10_000, 64 << 20
"""What may be in memory while the disk takes nothing: events, and the contents of files."""

SMALL_IMAGE_PX = 256
"""The longer side of the copies that MLflow shows before a picture is opened."""

log = logging.getLogger(__name__)


class _OutboxWriter:
    """Puts events into an outbox in the order in which they come; while the disk takes none, they wait in memory."""

    def __init__(self, outbox: Outbox, held_events: int, held_bytes: int) -> None:
        self._outbox, self._held_events, self._held_bytes = outbox, held_events, held_bytes
        self._mutex = threading.Lock()
        self._held: list[tuple[Event, bytes | None]] = []
        self._lost: Counter[str] = Counter()
        self._error = ""

    def put(self, event: Event, content: bytes | None = None) -> None:
        """``content`` is that of the file that the event names, where it names one."""
        with self._mutex:
            self._held.append((event, content))
            self._write()
            while self._held and (oldest := self._one_too_many()) is not None:
                self._lost[self._held.pop(oldest)[0]["kind"]] += 1

    def close(self) -> None:
        """Try a last time, and say what is lost."""
        with self._mutex:
            self._write()
            self._lost.update(event["kind"] for event, _ in self._held)
            self._held.clear()
            if self._lost:
                counted = ", ".join(f"{number} {kind}" for kind, number in sorted(self._lost.items()))
                self._warn("Lost for MLflow, as %s could not be written: %s.", counted)

    def _write(self) -> None:
        try:
            while self._held:
                event, content = self._held[0]
                if content is not None:
                    self._held[0] = ({**event, "content": self._outbox.keep(content)}, None)
                self._outbox.append(self._held[0][0])
                del self._held[0]
        except OSError as error:
            reason = error.strerror or str(error)
            if reason != self._error:
                self._warn("%s cannot be written (%s): what is for MLflow waits in memory until it can be.", reason)
            self._error = reason
        else:
            self._error = ""  # the next failure is reported again

    def _one_too_many(self) -> int | None:
        """Which to give up, as there are too many: the oldest metrics or file, without which a run still is one."""
        big = sum(len(content) for _, content in self._held if content is not None) > self._held_bytes
        if not big and len(self._held) <= self._held_events:
            return None
        kinds = () if big else ("metrics",)
        return next((i for i, (event, content) in enumerate(self._held) if content or event["kind"] in kinds), 0)

    def _warn(self, text: str, *more: str) -> None:
        log.disabled = False  # MLflow's database migrations switch off every logger there is
        log.warning(text, self._outbox.folder, *more)


class Tracker:
    """Logs the runs of one job execution to the MLflow store ``uri``, without ever waiting for it.

    ``outbox`` is a local folder that executions share: each keeps its events in a sub-folder of its
    own and delivers what killed ones left there. Runs that a killed execution on this host left
    open are closed as KILLED. Delivery begins ``delay_s`` after the start, so that importing MLflow
    does not compete with the start of training. What waits is also copied to ``refuge`` every two
    minutes, where one is given: this node's disk may go with it. While the disk takes nothing, ``held_events`` and
    files of ``held_bytes`` wait in memory at most. Methods may be called from any thread.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        outbox: Path,
        delay_s: float = 0.0,
        refuge: Storage | None = None,
        held_events: int = HELD_EVENTS,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        self._experiment = experiment
        self._seen: set[tuple[str, str, int]] = set()
        self._ended = threading.Event()
        self._watchers: list[threading.Thread] = []
        self._delivery = Delivery(MlflowStore(uri).take)
        self._outbox = Outbox.create(outbox, without_password(uri))
        self._writer = _OutboxWriter(self._outbox, held_events, held_bytes)
        self._copy = OutboxCopy(self._outbox, refuge) if refuge else None
        self._put("stale", "")
        delivery = (outbox, without_password(uri), delay_s, refuge)
        self._thread = threading.Thread(target=self._deliver, args=delivery, name="mvray-tracking", daemon=True)
        self._thread.start()

    def start_run(
        self,
        name: str,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> str:
        """Open a run and return the handle by which the other methods know it.

        A run without ``parent`` is tagged with this process. A run with the tags ``mvray.step_id``
        and ``mvray.reused`` = "true" is linked to the run that made that step.
        """
        handle = uuid.uuid4().hex
        process = psutil.Process()
        own = {HOST: socket.gethostname(), PID: str(process.pid), PROCESS_STARTED: str(process.create_time())}
        tags = {"mlflow.user": process.username(), **({} if parent else own), **(tags or {}), HANDLE: handle}
        shown = {key: str(value) for key, value in (params or {}).items()}
        self._put("start", handle, name=name, parent=parent, tags=tags, params=shown)
        return handle

    def metrics(self, handle: str, values: Mapping[str, float], step: int, time_s: float | None = None) -> None:
        """Log named numbers at ``step``. What the run has at that step already is left as it is."""
        new = {key: float(value) for key, value in values.items() if (handle, key, int(step)) not in self._seen}
        self._seen.update((handle, key, int(step)) for key in new)
        if new:
            self._put("metrics", handle, values=new, step=int(step), measured_s=time_s or time.time())

    def tags(self, handle: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        self._put("tags", handle, tags=dict(tags))

    def data(
        self, handle: str, name: str, fingerprint: str, source: str, context: str, facts: Mapping[str, Any]
    ) -> None:
        """Name the data set that the run reads for ``context`` ("training"); ``facts`` are shown beside it."""
        about = {"name": name, "fingerprint": fingerprint, "source": source, "context": context}
        self._put("data", handle, **about, facts=dict(facts))

    def artifact(self, handle: str, local_path: Path, folder: str = "") -> None:
        """Log a small file; a copy is kept until it has been delivered."""
        self.figure(handle, local_path.read_bytes(), f"{folder}/{local_path.name}".lstrip("/"))

    def figure(self, handle: str, content: bytes, path: str) -> None:
        """Log bytes, such as a PNG, as the artifact ``path`` ("heatmaps/plain.png")."""
        self._put("file", handle, content, path=path)

    def image(self, handle: str, picture_png: bytes, key: str, step: int) -> None:
        """Log a PNG as the image ``key`` of ``step``: MLflow's page of a run shows those of a key by their steps.

        A key "validation/samples" stands beside the metrics that begin as it does.
        """
        # The names, the small copy and the tag are those of mlflow.MlflowClient.log_image.
        name = f"images/{key.replace('/', '~')}+step+{step}+timestamp+{int(1000 * time.time())}+{uuid.uuid4()}"
        small, file = Image.open(io.BytesIO(picture_png)).convert("RGB"), io.BytesIO()
        small.thumbnail((SMALL_IMAGE_PX, SMALL_IMAGE_PX))
        small.save(file, "WEBP")
        self.figure(handle, picture_png, f"{name}.png")
        self.figure(handle, file.getvalue(), f"{name}+compressed.webp")
        self.tags(handle, {"mlflow.loggedImages": "True"})

    def end_run(self, handle: str, status: str = "FINISHED") -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        assert status in ("FINISHED", "FAILED", "KILLED"), status
        self._put("end", handle, status=status)

    def watch_machine(self, handle: str, interval_s: float = 10.0) -> None:
        """Log load, memory and GPUs of this node under "system/" until the Tracker is closed."""

        def watch() -> None:
            load()  # the CPU is measured since the call before
            step = 0
            while not self._ended.wait(interval_s):
                self.metrics(handle, load(), step)
                step += 1

        self._watchers.append(threading.Thread(target=watch, name="mvray-system-metrics", daemon=True))
        self._watchers[-1].start()

    def close(self, timeout_s: float = 60.0) -> str:
        """Deliver what is left, at most 15 s where nobody answers. Returns "" or a sentence that says what waits.

        What the disk never took is lost; a warning says how much that is.
        """
        self._ended.set()
        for watcher in self._watchers:
            watcher.join()
        self._writer.close()
        self._delivery.hurry(timeout_s)
        self._thread.join(timeout_s + 1)
        sentence = self._outbox.report()
        copied = self._copy.close() if self._copy else ""
        if not sentence:
            self._outbox.remove()
        elif not self._thread.is_alive():
            self._outbox.close()
        return " ".join(part for part in (sentence, copied, self._delivery.error) if part) if sentence else ""

    def _put(self, kind: str, handle: str, file: bytes | None = None, /, **more: Any) -> None:
        event = {"kind": kind, "run": handle, "experiment": self._experiment, "time_s": time.time(), **more}
        self._writer.put(redacted_all(event) if kind in ("start", "tags", "data") else event, file)
        self._delivery.wake()

    def _deliver(self, outbox: Path, address: str, delay_s: float, refuge: Storage | None) -> None:
        self._ended.wait(delay_s)
        if refuge:
            fetch(refuge, outbox, address)
        # One attempt: what cannot be delivered must not hold up the runs of this execution.
        self._delivery.deliver_left(outbox, address, patient=False)
        if refuge:
            forget(refuge, outbox, address)
        self._delivery.deliver(self._outbox, wait_for_more=True)


def deliver(
    outbox: Path, uri: str, timeout_s: float = 60.0, refuge: Storage | None = None, former: str = ""
) -> tuple[int, str]:
    """Send to ``uri`` what earlier executions left in ``outbox`` and in ``refuge``, also what was meant for the
    address ``former``. Returns how many events went, and "" or what still waits, in words."""
    delivery = Delivery(MlflowStore(uri).take)
    delivery.hurry(timeout_s)
    sentences = []
    for address in dict.fromkeys(without_password(name) for name in (uri, former) if name):
        if refuge:
            fetch(refuge, outbox, address)
        sentences.append(delivery.deliver_left(outbox, address))
        if refuge:
            forget(refuge, outbox, address)
    sentence = " ".join(part for part in sentences if part)
    return delivery.sent, f"{sentence} {delivery.error}".strip() if sentence else ""
