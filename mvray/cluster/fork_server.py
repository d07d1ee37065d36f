"""Ray's worker processes on one machine, forked from one process that has imported everything.

A Ray worker spends five CPU seconds on imports (torch 1.9, what its optimisers load 1.5, Ray 1.3) before
it does anything. On two cores that is most of the time from a command to its first training step, and
every worker pays it anew. Here one process imports all that while Ray's own processes start, and forks
a child for every worker that Ray asks for.

Ray starts a worker with a command line, and this file is in it (local_ray.start):

    raylet      runs   python fork_server.py SOCKET [what Ray would give its own script]
    fork_server.py   hands arguments, environment and output files over to the process behind SOCKET, and ends
    that one    forks; the child is Ray's default_worker.py with those arguments

Where nobody answers at SOCKET, or Ray wants a runtime environment for the worker, fork_server.py becomes
Ray's own script, so that the worker starts as it always did, only later.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import random
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

FIRST = ("torch", "torch._dynamo", "mvray.training.loop", "mvray.pipeline.generate")
"""torch imports torch._dynamo when the first optimiser is made."""
THEN = (
    "ray._private.node",
    "ray.train.v2._internal.execution.controller",
    "ray.train.v2._internal.execution.worker_group.worker",
    "ray.train.torch",
    "mvray.cluster.worker_group",
)
"""Ray's core reads its environment when it is imported, so these wait for what Ray gives to workers."""
NO_JOB = {"RAY_JOB_ID": "ffffffff"}
"""What Ray gives to workers that it starts ahead; they hear of the job with their first task."""
LENGTH = struct.Struct("!I")
TAKEN = b"."
PATIENCE_S = 120
"""For the imports: from a cold disk they can take a minute. Ray must wait longer for a worker."""


class ForkServer:
    """The process that forks workers, behind the Unix socket ``address``.

    It ends when its standard input is closed, so with this process at the latest, and takes the
    socket and its folder with it.
    """

    def __init__(self) -> None:
        self.address = Path(tempfile.mkdtemp(prefix="mvray-")) / "workers"  # for this user's eyes only
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.address))
            listening.listen(64)
            serving = f"from mvray.cluster.fork_server import serve; serve({listening.fileno()}, {str(self.address)!r})"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", serving],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what goes wrong here is seen when the worker starts the usual way
                pass_fds=[listening.fileno()],
                start_new_session=True,  # Ctrl-C at the terminal is for the command
            )

    def stop(self) -> None:
        """End it; its workers end with Ray."""
        self._process.kill()
        self._process.communicate()
        _remove(self.address)


def _remove(address: Path) -> None:
    with contextlib.suppress(OSError):
        address.unlink()
        address.parent.rmdir()


def serve(listening_fd: int, address: str) -> None:
    """Import, then fork a worker for every request, until standard input is closed."""
    for name in FIRST:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    listening = socket.socket(fileno=listening_fd)
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            _remove(Path(address))
            return
        connection, _ = listening.accept()
        with connection:
            request = _received(connection)
            if request is None:
                continue
            settings, files = request
            if "ray" not in sys.modules and not _prepared(settings["environment"]):
                return  # all workers start the usual way
            worker = os.fork()
            if worker == 0:
                listening.close()
                connection.close()
                _become_worker(settings, files)
            if not _answered(connection):
                os.kill(worker, signal.SIGKILL)
        for file in files:
            os.close(file)


def _prepared(environment: dict[str, str]) -> bool:
    """Import Ray without drawing from its random numbers; False where children would draw the same ones."""
    os.environ.update({**environment, **NO_JOB})
    import ray.actor

    def draw_id() -> ray.ActorClassID:
        return ray.ActorClassID(os.urandom(ray.ActorClassID.size()))

    # Classes under @ray.remote take an id when their modules are imported.
    with patch.object(ray.actor, "ActorClassID", types.SimpleNamespace(from_random=draw_id)):
        for name in THEN:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that children leave the pages of what is imported shared
    return len({_id_of_a_child() for _ in range(2)}) == 2


def _id_of_a_child() -> bytes:
    """An id that a forked process makes: the names of Ray's objects are such, and must differ."""
    from ray import WorkerID

    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, WorkerID.from_random().binary())
        os._exit(0)
    os.close(writing)
    id_bytes = os.read(reading, 100)
    os.close(reading)
    return id_bytes


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """What a fork_server.py hands over, with its standard output and error; None where it was killed meanwhile."""
    with contextlib.suppress(OSError, ValueError, struct.error):
        head, files, _, _ = socket.recv_fds(connection, LENGTH.size, 2)
        (length,) = LENGTH.unpack(head)
        with connection.makefile("rb") as content:
            return json.loads(content.read(length)), files
    return None


def _answered(connection: socket.socket) -> bool:
    """Tell fork_server.py that it may end; False where it was killed meanwhile, so that nobody waits for the worker."""
    with contextlib.suppress(OSError):
        connection.sendall(TAKEN)
        return True
    return False


def _become_worker(settings: dict[str, Any], files: list[int]) -> NoReturn:
    """In the forked child: be what fork_server.py was started as."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), *files)):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update({**settings["environment"], **NO_JOB})
    import numpy

    random.seed()
    numpy.random.seed()
    with contextlib.suppress(OSError), Path("/proc/self/oom_score_adj").open("w") as score:
        score.write("1000")  # as Ray has it for workers: they can be started again
    sys.argv[:] = [str(_ray("workers/default_worker.py")), *settings["arguments"]]
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


def _ray(path: str) -> Path:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "_private" / path


def _hand_over(address: str, arguments: list[str]) -> bool:
    """Ask for a worker; False where nobody answers."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(address)
        content = json.dumps({"arguments": arguments, "environment": dict(os.environ)}).encode()
        socket.send_fds(connection, [LENGTH.pack(len(content))], [1, 2])
        connection.sendall(content)
        return connection.recv(1) == TAKEN
    return False


def main() -> None:
    """What Ray runs to start a worker. The two options are those of Ray's own setup_worker.py."""
    address, *arguments = sys.argv[1:]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language", default="")
    options, rest = parser.parse_known_args(arguments)
    plain = options.serialized_runtime_env_context == "{}" and options.language == "PYTHON"
    if not (plain and _hand_over(address, rest)):
        script, worker = _ray("workers/setup_worker.py"), _ray("workers/default_worker.py")
        os.execv(  # noqa: S606
            sys.executable, [sys.executable, str(script), str(worker), *arguments]
        )


if __name__ == "__main__":
    del sys.path[0]  # this file's folder, in which others have the names of modules
    main()
