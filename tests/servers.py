"""A tracking server as users start it, and a browser that looks at it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from mvray.tracking.tracker import Tracker

ROOT = Path(__file__).parent.parent


class MlflowServer:
    """`mvray ui --server` over a folder of its own: `start`, `kill` (-9, all of it) and `start` again.

    ``arguments`` are further options, ``more_environ`` further variables of its environment.
    """

    def __init__(self, arguments: Sequence[str] = (), more_environ: Mapping[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mvray-server-"))
        self.port, self.address, self.start_s = 5740, "", 0.0
        self.output: list[str] = []
        self._arguments, self._more_environ = list(arguments), dict(more_environ or {})
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns when it answers; at the same address as before."""
        started = time.monotonic()
        command = [sys.executable, "-m", "mvray.cli", "ui", "--server", "--folder", str(self.folder / "data")]
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
        self._process = subprocess.Popen(
            [*command, "--port", str(self.port), *self._arguments],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environ | self._more_environ,
        )
        assert self._process.stdout is not None
        self.output = []
        for line in self._process.stdout:
            self.output.append(line.rstrip())
            if "MLFLOW_TRACKING_PASSWORD" in line:
                break
        else:
            raise RuntimeError(f"the server did not start: {self.output}")
        self.address = (self.folder / "data/address").read_text()
        self.port = int(self.address.rpartition(":")[2])
        self.start_s = time.monotonic() - started

    @property
    def password(self) -> str:
        return (self.folder / "data/admin_password").read_text().strip()

    @property
    def environ(self) -> dict[str, str]:
        """What its clients need in their environment."""
        return {
            "MLFLOW_TRACKING_URI": self.address,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }

    def processes(self) -> list[psutil.Process]:
        """Those of MLflow itself."""
        assert self._process is not None
        return psutil.Process(self._process.pid).children(recursive=True)

    def kill(self, leave_mlflow: bool = False) -> None:
        """Kill -9 of the command and, unless ``leave_mlflow``, of MLflow's processes."""
        assert self._process is not None
        processes = self.processes()
        self._process.kill()
        for process in [] if leave_mlflow else processes:
            process.kill()
        self._process.communicate()

    def end(self) -> None:
        """Ctrl-C, and its data goes."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.communicate(timeout=120)
        shutil.rmtree(self.folder)


def has_asked(tracker: Tracker) -> None:
    """Wait until its server has not answered, or not as it should, once."""
    while not tracker._delivery.error:
        time.sleep(0.1)


class Browser:
    """Headless Chromium, driven through its own pipe protocol."""

    def __init__(self, profile: Path) -> None:
        options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-component-update"
        options += " --disable-background-networking --disable-sync --remote-debugging-pipe --window-size=1400,1000"
        options += f" --user-data-dir={profile}"
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        self._process = subprocess.Popen(
            # Its pipes are file descriptors 3 and 4; not sh, which knows those below 10 alone.
            ["bash", "-c", f'exec "$0" "$@" 3<&{read} 4>&{write}', "chromium", *options.split(), "about:blank"],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._buffer, self._count, self._session = b"", 0, ""
        pages = [t for t in self._ask("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self._ask("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]

    def open(self, url: str) -> None:
        self._ask("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    def wait_for(self, script: str, timeout_s: float = 60.0) -> None:
        """Until the expression is true."""
        until = time.monotonic() + timeout_s
        while not self.run(script):
            if time.monotonic() > until:
                raise AssertionError(f"{script}: not so after {timeout_s} s; the page says {self.text()[:2000]!r}")
            time.sleep(0.3)

    def text(self) -> str:
        return str(self.run("document.body ? document.body.innerText : ''"))

    def picture(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode(self._ask("Page.captureScreenshot")["data"])

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                more = os.read(self._read, 1 << 20)
                if not more:
                    raise RuntimeError("Chromium has ended")
                self._buffer += more
            line, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result


def client_of(server):
    from mlflow.tracking import MlflowClient

    return MlflowClient(server.address)
