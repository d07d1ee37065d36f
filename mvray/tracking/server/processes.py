"""The server's processes: each with a log of its own, ended in order, and found again after a kill."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from mvray.errors import ClusterError

MARK = "MVRAY_SERVER_FOLDER"
"""In the environment of each process that belongs to a server folder, so that a later start finds what was left."""
POLL_S, PATIENCE_S = 0.1, 20.0
LOG_SHOWN = 2000


@dataclass
class Service:
    """One running process and those that it started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    ending: int = signal.SIGTERM
    patience_s: float = PATIENCE_S

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Until ``ready()``. Raises ClusterError with the end of the log where it ends before, or takes too long."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise ClusterError(f"{self.name} ended while it started. {self.last_words()}")
            if ready():
                return
            time.sleep(POLL_S)
        raise ClusterError(f"{self.name} did not answer within {timeout_s:.0f} s. {self.last_words()}")

    def last_words(self) -> str:
        said = self.log.read_text(errors="replace")[-LOG_SHOWN:].strip()
        return f"The end of {self.log}:\n{said}" if said else f"It wrote nothing to {self.log}."

    def end(self) -> None:
        """End it in order, or at once where that takes longer than ``patience_s``."""
        with contextlib.suppress(psutil.NoSuchProcess):
            main = psutil.Process(self.process.pid)
            _end([*main.children(recursive=True), main], self.ending, self.process.pid, self.patience_s)
        self.process.wait()


def start(
    name: str,
    command: Sequence[str | Path],
    folder: Path,
    environ: Mapping[str, str] | None = None,
    ending: int = signal.SIGTERM,
    user: str | None = None,
    patience_s: float = PATIENCE_S,
) -> Service:
    """Start ``command``, as ``user`` if one is named; its output goes to ``folder``/logs/NAME.log.

    ``environ`` is its whole environment; this process's where none is given.
    """
    log = folder / "logs" / f"{name.lower()}.log"
    log.parent.mkdir(exist_ok=True)
    others: dict[str, object] = {"user": user, "group": _group_of(user), "extra_groups": []} if user else {}
    with log.open("ab") as out:
        process = subprocess.Popen(
            list(command),
            env={**(os.environ if environ is None else environ), MARK: str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,  # Ctrl-C reaches mvray alone, which ends them in order
            **others,  # type: ignore[call-overload]
        )
    return Service(name, process, log, ending, patience_s)


def end_left(folder: Path) -> None:
    """End what a killed server of this ``folder`` left running."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == str(folder):
                left.append(process)
    _end(left, signal.SIGTERM, patience_s=5.0)


def end_one(pid: int, ending: int) -> None:
    """End a process that is not a child of this one, and what it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        main = psutil.Process(pid)
        _end([*main.children(recursive=True), main], ending, pid)


def _end(
    processes: list[psutil.Process], ending: int, first: int | None = None, patience_s: float = PATIENCE_S
) -> None:
    """Ask process ``first``, or all, to end; kill what is still there after ``patience_s``."""
    for process in processes:
        if first is None or process.pid == first:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(ending)
    _, alive = psutil.wait_procs(processes, timeout=patience_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=PATIENCE_S)


def _group_of(user: str | None) -> int | None:
    import pwd

    return pwd.getpwnam(user).pw_gid if user else None


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
