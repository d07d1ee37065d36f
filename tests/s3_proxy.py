"""A proxy before an S3 server that misbehaves when it is told to, for tests of faults."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, str]
"""HTTP status and S3's code for it."""
SLOW_DOWN: Answer = (503, "SlowDown")


class S3Proxy:
    """Hands requests on. ``answer`` says which are refused instead, and with what; ``delay_s`` holds all of them up.

    ``gone`` refuses connections until ``back``; those that are open are cut. ``refused`` and ``served`` count.
    """

    def __init__(self, endpoint: str) -> None:
        self.target = endpoint.removeprefix("http://")
        self.answer: Callable[[str, str], Answer | None] = lambda method, path: None
        self.delay_s = 0.0
        self.cut_after: int | None = None
        """Bytes of an answer's body after which the connection breaks."""
        self.date = ""
        """The time that refusals tell, in HTTP's form."""
        self.refused = self.served = 0
        self._port = 0
        self._server: _Server | None = None
        self.back()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def back(self) -> None:
        self._server = _Server(self, self._port)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def gone(self) -> None:
        if self._server is not None:
            self._server.alive = False
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    close = gone


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close, allow_reuse_address = True, False, True

    def __init__(self, proxy: S3Proxy, port: int) -> None:
        self.proxy, self.alive = proxy, True
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: object, address: object) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _hand_on(self) -> None:
        proxy = self.server.proxy
        body = self._body()
        if proxy.delay_s:
            time.sleep(proxy.delay_s)
        if not self.server.alive:
            self.close_connection = True
            return
        if refusal := proxy.answer(self.command, self.path):
            proxy.refused += 1
            status, code = refusal
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>told to</Message></Error>".encode()
            dated = [("Date", proxy.date)] if proxy.date else []
            self._send(status, [("Content-Type", "application/xml"), *dated], text)
            return
        proxy.served += 1
        with closing(http.client.HTTPConnection(proxy.target, timeout=60)) as upstream:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "expect":  # answered already
                    upstream.putheader(name, value)
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            self._send(answer.status, answer.getheaders(), answer.read())

    def _body(self) -> bytes:
        """As it was sent, with the lengths of its pieces where it comes in pieces."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        lines = []
        while lines[-2:-1] != [b"0\r\n"]:
            size = self.rfile.readline()
            lines += [size, self.rfile.read(int(size, 16) + 2)]
        return b"".join(lines)

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        has_length = False
        for name, value in headers:
            has_length |= name.lower() == "content-length"
            if name.lower() not in ("transfer-encoding", "connection") and not (
                name.lower() == "content-length" and self.command != "HEAD"
            ):
                self.send_header(name, value)
        if self.command != "HEAD" or not has_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server.proxy.cut_after
        if cut is not None and len(body) > cut:
            self.wfile.write(body[:cut])
            self.close_connection = True
            return
        self.wfile.write(body)

    def __getattr__(self, name: str) -> object:
        if name.startswith("do_"):
            return self._hand_on
        raise AttributeError(name)

    def log_message(self, *_: object) -> None:
        pass
