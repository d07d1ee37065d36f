"""Processes that tests start for real: servers with a log of their own, and copies of this process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pwd
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil


@dataclass
class Service:
    """One running process and those that it started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    ending: int = signal.SIGTERM

    def wait_until(self, ready: Callable[[], bool], timeout_s: float = 90.0) -> None:
        """Until ``ready()``. Raises RuntimeError with the end of the log where it ends before, or takes too long."""
        until = time.monotonic() + timeout_s
        while not ready():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self.name} did not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)

    def end(self, timeout_s: float = 20.0) -> None:
        """End it in order, or at once where that takes longer."""
        with contextlib.suppress(psutil.NoSuchProcess):
            main = psutil.Process(self.process.pid)
            processes = [*main.children(recursive=True), main]
            main.send_signal(self.ending)
            for process in psutil.wait_procs(processes, timeout=timeout_s)[1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()


def start(
    name: str,
    command: Sequence[str | Path],
    folder: Path,
    environ: Mapping[str, str] | None = None,
    ending: int = signal.SIGTERM,
    user: str | None = None,
) -> Service:
    """Start ``command``, as ``user`` if one is named; its output goes to ``folder``/NAME.log."""
    log = folder / f"{name.lower()}.log"
    account: dict[str, object] = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
    with log.open("ab") as out:
        process = subprocess.Popen(
            list(command),
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            **account,  # type: ignore[call-overload]
        )
    return Service(name, process, log, ending)


def forked(run: Callable[[Connection], None]) -> tuple[BaseProcess, Connection]:
    """A copy of this process that does ``run``, and the end of a pipe to it: a new one would import torch again."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=run, args=(theirs,), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's of other threads, which a copy lacks
        process.start()
    theirs.close()
    return process, ours
