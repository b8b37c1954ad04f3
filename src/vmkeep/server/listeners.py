"""The sockets of a server and the loop that serves them: TLS 1.3 on each, client certificates where they are asked for.

Both end together: nothing new is accepted, requests under way have ``GRACE_SECONDS``, then they are cut. An agent whose
poll is cut asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from vmkeep.errors import InvalidRequest, VmkeepError
from vmkeep.logs import get_logger
from vmkeep.server.certificates import CertifiedProtocol
from vmkeep.values import dataclass

GRACE_SECONDS: Final = 5
TEND_SECONDS: Final = 60
_KEEP_ALIVE_SECONDS: Final = 60
_MOST_CONNECTIONS: Final = 4096
_LONGEST_PORT: Final = 65535
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: ``port`` 0 takes one that is free."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return ``HOST:PORT`` or ``[IPV6]:PORT`` as an address. Raises InvalidRequest."""
        host, separator, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        ambiguous = ":" in bare and bare == host
        digits = port.isascii() and port.isdigit() and len(port) <= len(str(_LONGEST_PORT))
        if not separator or not bare or ambiguous or not digits or int(port) > _LONGEST_PORT:
            raise InvalidRequest(
                f"{text} is no address to listen at", hint="Write HOST:PORT, as 0.0.0.0:8444, or [::]:8444."
            )
        return cls(bare, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Listener:
    """One socket: its application, its certificate, and the authority of its clients (None: none is asked for)."""

    application: ASGIApp
    address: Address
    certificate: Path
    key: Path
    clients: Path | None = None


class _Server(uvicorn.Server):
    """One of several in a process: the signals are the command's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Listeners:
    """All sockets of a server. They are bound when this is made, served by ``serve``, and ended by ``stop``."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        """Raises InvalidRequest for a certificate that cannot be used, or an address that cannot be had."""
        # Without a handler Python prints tracebacks of faults; with one, they are in the log of --debug alone.
        logging.getLogger("uvicorn").addHandler(logging.NullHandler())
        self._listeners = list(listeners)
        self._servers = [_Server(_configured(listener)) for listener in listeners]
        self._sockets: list[socket.socket] = []
        try:
            for listener in listeners:
                self._sockets.append(_bound(listener.address))
        except BaseException:
            self.close()
            raise

    @property
    def addresses(self) -> list[Address]:
        """Where they listen, in the order in which they were given."""
        return [Address(*bound.getsockname()[:2]) for bound in self._sockets]

    def serve(self, *, ready: Callable[[], None] = lambda: None, tend: Callable[[], bool] | None = None) -> None:
        """Serve until ``stop`` is called; the sockets are closed then. ``ready``: connections are taken.

        ``tend`` is called every ``TEND_SECONDS``, in the loop; when it returns True the files of certificates are read
        again, and count for connections from then on.
        """
        try:
            asyncio.run(self._serve(ready, tend))
        finally:
            self.close()

    def stop(self) -> None:
        """Let ``serve`` end. From any thread, or from the handler of a signal."""
        for server in self._servers:
            server.should_exit = True

    def close(self) -> None:
        for bound in self._sockets:
            bound.close()

    def read_again(self) -> None:
        """Let connections from now on have the certificates that lie in the files now. Raises InvalidRequest."""
        for listener, server in zip(self._listeners, self._servers, strict=True):
            if server.config.ssl is not None:
                _load(server.config.ssl, listener)

    async def _tend(self, tend: Callable[[], bool]) -> None:
        while True:
            await asyncio.sleep(TEND_SECONDS)
            try:
                if tend():
                    self.read_again()
            except VmkeepError as error:  # what is there goes on, and the next turn tries again
                _log.error("certificates not renewed", error=error.message)

    async def _serve(self, ready: Callable[[], None], tend: Callable[[], bool] | None) -> None:
        serving = [
            asyncio.create_task(server.serve(sockets=[bound]))
            for server, bound in zip(self._servers, self._sockets, strict=True)
        ]
        try:
            while not all(server.started or server.should_exit for server in self._servers):
                await asyncio.sleep(0.01)
                if any(task.done() for task in serving):
                    break
            else:
                ready()
            # One that ends by itself ends the other: half a server looks alive and is not.
            tending = asyncio.create_task(self._tend(tend)) if tend is not None else None
            await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
            if tending is not None:
                tending.cancel()
        finally:
            self.stop()
            await asyncio.gather(*serving)


def _configured(listener: Listener) -> uvicorn.Config:
    config = uvicorn.Config(
        listener.application,
        http=CertifiedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_context_factory=lambda _config, _default: _tls(listener),
    )
    config.load()
    return config


def _tls(listener: Listener) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load(context, listener)
    if listener.clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load(context: ssl.SSLContext, listener: Listener) -> None:
    try:
        # A key that has a passphrase would be asked for at the terminal of a service.
        context.load_cert_chain(listener.certificate, listener.key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        raise _unusable(f"The certificate {listener.certificate} and its key {listener.key}", error) from error
    if listener.clients is not None:
        try:
            context.load_verify_locations(listener.clients)
        except (OSError, ValueError) as error:
            raise _unusable(f"The authority of agents, {listener.clients},", error) from error


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")


def _unusable(what: str, error: Exception) -> InvalidRequest:
    return InvalidRequest(f"{what} cannot be used: {error}", hint="Name files in PEM, and a key without a passphrase.")


def _bound(address: Address) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family)
    except (OSError, UnicodeError) as error:
        raise InvalidRequest(
            f"{address} cannot be listened at: {error}",
            hint="Name an address of this machine, and a port that is free.",
        ) from error
