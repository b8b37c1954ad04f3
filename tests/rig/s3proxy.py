"""A proxy between vmkeep and an S3 server that does to requests what a network and a busy server do.

It forwards what it gets as it is, the name of the host too, so signatures hold. A fault has its turn for one request.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Fault(Enum):
    LOST_ANSWER = auto()
    """The server does it, and the connection breaks before the answer."""
    BROKEN_REQUEST = auto()
    """The connection breaks in the middle of what is sent; the server gets none of it."""
    CUT_ANSWER = auto()
    """The connection breaks in the middle of the answer."""
    SLOW_DOWN = auto()
    """503, with S3's words for it."""
    TOO_MANY = auto()
    """429."""
    CONFLICT = auto()
    """409, as AWS answers one of two that create at once; nothing is stored."""
    INTERNAL = auto()
    """500 although the server has done it."""
    STALE = auto()
    """What this request was answered the last time."""
    MUTE = auto()
    """No answer at all, for as long as the proxy lives."""
    LIST_AGAIN = auto()
    """The first page of a list, whatever page was asked for."""


_STATUS = {
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.TOO_MANY: (429, "TooManyRequests"),
    Fault.CONFLICT: (409, "ConditionalRequestConflict"),
    Fault.INTERNAL: (500, "InternalError"),
}
Choose = Callable[[str, str], Fault | None]


@dataclass
class Proxy:
    """``choose`` is asked for each request, by method and path with query; ``seen`` are all that came."""

    target: str
    choose: Choose = lambda _method, _path: None
    seen: list[tuple[str, str]] = field(default_factory=list)
    answers: dict[tuple[str, str], tuple[int, list[tuple[str, str]], bytes]] = field(default_factory=dict)
    endpoint: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    def once(self, fault: Fault, method: str, part: str = "", *, times: int = 1) -> None:
        """Let the next request of a method, with ``part`` in its path, meet a fault, so many times."""
        left = [times]
        lock = threading.Lock()

        def choose(asked: str, path: str) -> Fault | None:
            with lock:
                if asked == method and part in path and left[0] > 0:
                    left[0] -= 1
                    return fault
            return None

        self.choose = choose


def _listening(inside: int | None) -> socket.socket:
    """Return a socket that listens on the loopback of this machine, or of the network that a process is in."""
    made: list[socket.socket] = []

    def make() -> None:
        if inside is not None:
            network = os.open(f"/proc/{inside}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            failed = ctypes.CDLL(None, use_errno=True).setns(network, 0x40000000)  # CLONE_NEWNET, of this thread alone
            os.close(network)
            assert failed == 0, os.strerror(ctypes.get_errno())
        made.append(socket.create_server(("127.0.0.1", 0), backlog=64))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


@contextmanager
def proxy(target: str, *, inside: int | None = None, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """Run a proxy before a server's endpoint; it is met in the network of the process ``inside``, if one is named."""
    made = Proxy(target)

    class Handler(_Handler):
        here = made

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = _listening(inside)
    server.daemon_threads = True
    port = server.socket.getsockname()[1]
    made.endpoint = f"http://127.0.0.1:{port}"
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        made.endpoint = f"https://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.ended.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    here: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        asked = (self.command, self.path)
        self.here.seen.append(asked)
        fault = self.here.choose(*asked)
        length = int(self.headers.get("content-length") or 0)
        if fault is Fault.BROKEN_REQUEST:
            self.rfile.read(length // 2)
            return self._break()
        body = self.rfile.read(length)
        if fault is Fault.MUTE:
            self.here.ended.wait(600)
            return self._break()
        if fault in _STATUS and fault is not Fault.INTERNAL:
            return self._fail(fault)
        if fault is Fault.STALE and asked in self.here.answers:
            return self._answer(*self.here.answers[asked])
        first = ("GET", "&".join(part for part in self.path.split("&") if not part.startswith("start-after")))
        if fault is Fault.LIST_AGAIN and first in self.here.answers:
            return self._answer(*self.here.answers[first])
        answer = self._forward(body)
        if fault is Fault.INTERNAL:
            return self._fail(fault)
        if fault is Fault.LOST_ANSWER:
            return self._break()
        self.here.answers[asked] = answer
        self._answer(*answer, cut=fault is Fault.CUT_ANSWER)
        return None

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve  # noqa: N815

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        address = urlsplit(self.here.target)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        told = {name.lower(): value for name, value in headers}.get("content-length")
        self.send_header("Content-Length", told if self.command == "HEAD" and told else str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self._break()

    def _fail(self, fault: Fault) -> None:
        status, code = _STATUS[fault]
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no \x1b[31m secret</Message></Error>"
        self._answer(status, [("Content-Type", "application/xml")], text.encode())

    def _break(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
