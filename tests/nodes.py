"""A Ray cluster of real `ray start` processes on this machine, a loopback address each, for tests of its faults."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

RAY = Path(sys.executable).parent / "ray"
PORTS = ("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export", "runtime-env-agent")
START_S = 150


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, below those that the system hands out by itself."""
    found: list[int] = []
    while len(found) < count:
        port = random.randint(20_000, 32_000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("", port))
            found += [port] if port not in found else []
    return found


@dataclass
class Net:
    """Node 1 is the head, without CPUs; every node has the number in its address, 127.0.0.N."""

    folder: Path
    environ: Mapping[str, str]
    port: int
    dashboard: int | None = None
    """The port of the head's dashboard, where there is to be one: jobs are submitted to it."""
    cpus: int = 1
    nodes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    again: dict[int, Callable[[], None]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, number: int, wait: bool = True, prefix: tuple[str, ...] = (), **environ: str) -> None:
        """Start node ``number``, behind the command ``prefix``. One by one: two would give their sockets one name."""
        self.again[number] = lambda: self.start(number, False, prefix, **environ)
        own: dict[str, object] = {
            f"--{name}-port": port for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)
        }
        # Ports that are not given, Ray's processes tell one another by files, for which they wait 15 s and no longer.
        own |= {"--node-ip-address": f"127.0.0.{number}", "--object-store-memory": 80_000_000}
        # Code that was sent lies there; a node deletes it when it needs it no more.
        own |= {"--temp-dir": self.folder / str(number)}
        if number == 1:
            own |= {"--port": self.port, "--num-cpus": 0}
            own |= {"--include-dashboard": str(self.dashboard is not None).lower()}
            own |= {"--dashboard-port": self.dashboard} if self.dashboard else {}
        else:
            own |= {"--address": self.address, "--num-cpus": self.cpus}
        arguments = [str(part) for pair in own.items() for part in pair]
        with (self.folder.parent / f"node-{number}.log").open("wb") as log:
            self.nodes[number] = subprocess.Popen(
                [*prefix, str(RAY), "start", "--block", *(["--head"] if number == 1 else []), *arguments],
                env={**self.environ, **environ},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            self.wait(number)

    def wait(self, *numbers: int) -> None:
        """Until these nodes have joined."""
        for number in numbers:
            log, until = self.folder.parent / f"node-{number}.log", time.monotonic() + START_S
            while b"This command will now block" not in log.read_bytes():
                assert time.monotonic() < until, log.read_text()
                if self.nodes[number].poll() is not None:  # Ray gives its processes 30 s, few on a busy machine
                    self.again[number]()
                time.sleep(0.1)

    def workers(self, count: int) -> list[int]:
        """The numbers of ``count`` nodes beside the head: what is missing is started, what is too many is killed."""
        for number, process in list(self.nodes.items()):
            if process.poll() is not None:
                self.kill(number)
        alive = sorted(number for number in self.nodes if number != 1)
        for number in alive[count:]:
            self.kill(number)
        return alive[:count] + [self.one_more() for _ in range(count - len(alive))]

    def one_more(self, **environ: str) -> int:
        """The number of a node that is started now, with a number that no node has had."""
        number = max(self.again, default=0) + 1
        self.start(number, **environ)
        return number

    def kill(self, number: int) -> None:
        """As when a machine is switched off."""
        process = self.nodes.pop(number)
        everything: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by itself: it was drained, or lost its head
            everything = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in everything:
            if one.is_running():
                one.kill()
        process.wait()

    def stop(self) -> None:
        for number in sorted(self.nodes, reverse=True):
            if self.nodes[number].poll() is None:
                self.kill(number)
            else:
                del self.nodes[number]

    def processes(self, name: str) -> list[psutil.Process]:
        """Ray's processes of this cluster whose command line has ``name``."""
        return [process for number in self.nodes for process in self._on(number) if name in command_of(process)]

    def hosts(self, name: str) -> list[int]:
        """The nodes with such processes."""
        return [number for number in self.nodes if any(name in command_of(process) for process in self._on(number))]

    def _on(self, number: int) -> list[psutil.Process]:
        node = self.nodes[number]
        return psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []


@contextlib.contextmanager
def net_of_nodes(cpus: int = 1, dashboard: bool = False, **environ: str) -> Iterator[Net]:
    """A cluster with token authentication, without nodes yet; this process's environment leads to it meanwhile.

    To its dashboard where there is one, as for `mvray submit`. ``environ`` takes the place of what leads to other
    clusters and servers; the nodes have it, too.
    """
    from ray._private.authentication import authentication_token_setup as tokens

    before = dict(os.environ)
    short = Path(tempfile.mkdtemp(prefix="mv"))  # Ray's sockets have paths of 107 letters at most
    net = None
    try:
        for name in [name for name in os.environ if name.startswith(("AWS_", "RAY_", "MLFLOW_"))]:
            del os.environ[name]
        os.environ |= environ
        tokens.enable_token_auth_by_default()
        tokens.ensure_token_if_auth_enabled(create_token_if_missing=True)
        port, served = free_ports(2)
        net = Net(short / "r", environ_of_nodes(), port, served if dashboard else None, cpus)
        if dashboard:
            os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{served}"
        else:
            os.environ["RAY_ADDRESS"] = net.address
        yield net
    finally:
        if net:
            net.stop()
        shutil.rmtree(short, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)


def command_of(process: psutil.Process) -> str:
    """Its command line; "" when it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def environ_of_nodes() -> dict[str, str]:
    """With which nodes find mvray and the tests' toys, on one thread per worker."""
    here = Path(__file__).parent
    folders = [path for path in sorted(here.iterdir()) if path.is_dir()]  # a test's own functions are sent by name
    path = os.pathsep.join(map(str, (here.parent, here, *folders)))
    wanted = {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1"}
    wanted["PATH"] = os.pathsep.join([str(RAY.parent), os.environ["PATH"]])  # `python` starts what was submitted
    return {**os.environ, **wanted}
