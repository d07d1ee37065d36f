"""The Ray cluster that a job runs on: joined where there is one, else started on this machine.

Ray takes about ten seconds to start, so it is started in a thread while the job is planned, and not
at all when nothing is left to do or with ``--workers 0``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mvray.cluster import local_ray, node_versions, placement, ray_internals
from mvray.errors import ClusterError
from mvray.experiment import Job
from mvray.storage import Storage

OBJECT_STORE_BYTES = 1 << 30
HEAD_EVERY_S = 3.0
HEAD_GONE_S = 90.0
LEAVE_S = 5.0
LOST = 75
"""Exit code of a process that has lost its cluster (EX_TEMPFAIL)."""
HEADROOM_CPUS = 2
"""Logical CPUs beyond the machine's on a local cluster: Ray Data's own tasks deadlock without them.
A worker group that waits for work holds its CPUs too, so Ray is told of as many more as one group has."""


class Connection:
    """Ray, as this process reaches it. ``workers`` overrides every Train step's (0: this process, no Ray).

    A cluster that is to be joined may take ``patience_s`` to answer.
    """

    def __init__(
        self,
        storage: Storage,
        workers: int | None = None,
        say: Callable[[str], None] = print,
        patience_s: float = 0.0,
    ) -> None:
        self.workers = workers
        self.say = say
        self.is_local = not os.environ.get("RAY_ADDRESS")
        self.is_lean = self.is_local and local_ray.is_lean()
        """Whether Ray is started here with the acceleration of local_ray.py."""
        self.aborted = threading.Event()
        """Steps that run look at it and end."""
        self._storage, self._patience_s = storage, patience_s
        self._own: local_ray.LocalRay | None = None
        self._cpus = self._most_gpus = 0
        self._has_signals = False
        self._head = self._id = ""
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._started, self._stopped = threading.Event(), threading.Event()
        self._leaving = threading.Event()
        self._watcher: threading.Thread | None = None

    def start(self, job: Job) -> None:
        """Begin to start or join Ray, without waiting for it."""
        if self.workers == 0 or self._thread is not None:
            return
        workers = max((step.group_size for step in job.walk()), default=0) or 1
        self._thread = threading.Thread(target=self._start, args=(workers,), name="ray-start", daemon=True)
        self._thread.start()

    def _start(self, workers: int) -> None:
        try:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            folder = Path.cwd()
            import ray

            logging.getLogger("ray").setLevel(logging.ERROR)  # for Ray's start; `_quiet` sets the rest after it
            ray_internals.never_connect_unasked()
            address = os.environ.get("RAY_ADDRESS")
            if not address:
                self._cpus = max(os.cpu_count() or 1, workers) + HEADROOM_CPUS
            if not address and self.is_lean:
                self._own = local_ray.start(self._cpus + workers, OBJECT_STORE_BYTES)
                address = self._own.address
            # From here on for this process alone: notices about Ray's own actors.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            with unheard("Set ray log level from environment variable"):
                if address:
                    self._join(address)
                else:
                    ray.init(
                        address="local",
                        num_cpus=self._cpus + workers,
                        object_store_memory=OBJECT_STORE_BYTES,
                        include_dashboard=True,  # Ray Train's cleaning of placement groups asks it
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                    )
            if not self.is_local:
                node_versions.check_nodes()
                os.chdir(folder)  # nodes that share a disk unpack sent code there once more, over what was there
            import ray.train  # here, where it is not imported in two threads at once

            if not self.is_local:
                self._head = ray.get_runtime_context().gcs_address
                self._id = ray_internals.cluster_id(self._head)
                self._watcher = threading.Thread(target=self._watch, name="head", daemon=True)
                self._watcher.start()

            _quiet()
        except BaseException as error:
            self._error = error
        self._started.set()
        # Ray's processes end when the thread that started them does (Linux's PDEATHSIG), so it stays.
        self._stopped.wait()

    def _join(self, address: str) -> None:
        import ray

        until = time.monotonic() + self._patience_s
        while True:
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
                return
            except (ConnectionError, RuntimeError, TimeoutError, ValueError):
                ray.shutdown()
                if time.monotonic() > until or self.aborted.is_set():
                    raise
            time.sleep(HEAD_EVERY_S)

    def _watch(self) -> None:
        """End this process when the cluster was lost: in its place there is another, or nothing for long.

        Ray's core would do so too, but only after a minute, and without a word. A head that keeps its state elsewhere
        (Redis) comes back as the same cluster, and everything goes on.
        """
        seen_at = time.monotonic()
        while not self._leaving.wait(HEAD_EVERY_S):
            cluster_id = ray_internals.cluster_id(self._head)
            if cluster_id == self._id:
                seen_at = time.monotonic()
            elif cluster_id or time.monotonic() - seen_at > HEAD_GONE_S:
                self.end_if_lost()

    def end_if_lost(self) -> None:
        """End this process where the cluster that it joined is gone (cli/supervisor.py starts another)."""
        if not self._id or self._leaving.is_set() or (cluster_id := ray_internals.cluster_id(self._head)) == self._id:
            return
        self.say(f"The Ray cluster at {self._head} {'was started anew' if cluster_id else 'does not answer'}.")
        os._exit(LOST)

    def ready(self) -> None:
        """Wait until Ray answers; nobody may import ray before.

        Raises ClusterError where it could not be started or joined.
        """
        if self._thread is not None:
            self._started.wait()
        if self._error is not None:
            if isinstance(self._error, ClusterError):
                raise self._error
            where = os.environ.get("RAY_ADDRESS", "this machine")
            raise ClusterError(
                f"Ray could not be started on or joined at {where}: {self._error}. `mvray doctor` says what is wrong; "
                "--workers 0 runs the job in this process without Ray."
            )

    def keep_signals(self) -> None:
        """Let Python have SIGTERM again, from whose handler Ray's core took it over. Only the main thread may."""
        on_main = threading.current_thread() is threading.main_thread()
        if self._started.is_set() and on_main and not self._has_signals:
            self._has_signals = True
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))

    def room(self) -> tuple[float, float]:
        """CPUs and GPUs of the whole cluster, or as many as its autoscaler may bring where that is more."""
        if self.workers == 0:
            return 1.0, 0.0
        import ray

        self.ready()
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        if self.is_local:
            return self._cpus or resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        most = placement.most()
        cpus, gpus = (max(resources.get(name, 0.0), most.get(name, 0.0)) for name in ("CPU", "GPU"))
        return cpus, gpus

    def gpus(self) -> int:
        """As many as the cluster has, had in this run, or can have by its autoscaler's configuration.

        A lost node must not turn training with GPUs into training without.
        """
        self._most_gpus = max(self._most_gpus, int(self.room()[1]))
        return self._most_gpus

    def scratch(self) -> str:
        """Where Ray Train keeps its own small files; results are never there."""
        return self._storage.full(".ray-train")

    def _before_leaving(self) -> None:
        """End what still asks Ray for something."""

    def stop(self) -> None:
        """Leave the cluster; a local one ends."""
        if self._thread is None:
            return
        self._started.wait()
        self._leaving.set()
        import ray

        if ray.is_initialized():
            self._before_leaving()
        if self._watcher is not None:
            self._watcher.join(LEAVE_S)
        ray.shutdown()
        if self._own is not None:
            self._own.stop()
        self._stopped.set()


@contextlib.contextmanager
def unheard(notice: str) -> Iterator[None]:
    """Keep lines with ``notice`` off the terminal; Ray's core writes them straight to file descriptor 2."""
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            captured.seek(0)
            for line in captured:
                if notice.encode() not in line:
                    os.write(2, line)


def _quiet() -> None:
    """Ray's own progress and notices stay in its log files; errors still show."""
    ray_internals.keep_last_words_off_the_terminal()
    for name in ("ray", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)
