"""A fleet in one process: a server with both listeners and a clock of its own, and homes of hosts."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from vmkeep.catalog import MemoryCatalog
from vmkeep.config import Settings, load_settings
from vmkeep.flows.registrar import Registrar
from vmkeep.flows.server_key import prepare_server, server_files
from vmkeep.identity.tokens import Token
from vmkeep.keys.authority import Authorities
from vmkeep.server.admission import Admissions
from vmkeep.server.application import make_application
from vmkeep.server.certificates import presented_by
from vmkeep.server.enrolment import enrolment_routes, renewal_routes
from vmkeep.server.listeners import Address, Listener, Listeners

LOOPBACK = Address("127.0.0.1", 0)


class ClockedCatalog(MemoryCatalog):
    """A catalogue whose clock is so many seconds ahead."""

    ahead_seconds = 0.0

    def clock(self) -> str:
        return (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self.ahead_seconds)).isoformat(timespec="microseconds")


class Fleet:
    """A server, from its home. ``tls_at``: the time by which its own certificates are made."""

    def __init__(self, directory: Path, *, tls_at: dt.datetime | None = None) -> None:
        self.directory = directory
        self.catalog = ClockedCatalog()
        self.settings = home(directory / "server")
        self.registrar = Registrar(self.settings, self.catalog)
        if tls_at is not None:
            Authorities.load_or_draw(self.settings.authority_path, tls_at)
        self.tls_at = tls_at
        prepare_server(self.settings, ["127.0.0.1"], tls_at)
        files = server_files(self.settings)
        self.admissions = Admissions(self.registrar)
        self.agents_router = APIRouter()
        self.polling = threading.Event()
        self._add_poll()
        people = make_application()
        agents = make_application([self.agents_router])
        self.listeners = Listeners(
            [
                Listener(people, LOOPBACK, files.key, files.key),
                Listener(agents, LOOPBACK, files.key, files.key, clients=files.clients),
            ]
        )
        self.people, self.agents = map(str, self.listeners.addresses)
        people.include_router(enrolment_routes(self.registrar, self.agents))
        agents.include_router(renewal_routes(self.registrar, self.admissions, self.agents))
        self._started = threading.Event()
        serving = {"ready": self._started.set, "tend": self.tend}
        self._thread = threading.Thread(target=self.listeners.serve, kwargs=serving)

    def _add_poll(self) -> None:
        @self.agents_router.get("/poll")
        async def poll(asked: Request) -> None:
            presented = presented_by(asked)
            await run_in_threadpool(self.admissions.admit, presented)
            self.polling.set()
            await self.admissions.until_refused(presented)

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(20)

    def stop(self) -> None:
        self.listeners.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def tend(self) -> bool:
        """Do what `vmkeep serve` does each minute."""
        return prepare_server(self.settings, ["127.0.0.1"], self.tls_at)

    def read_certificates_again(self) -> None:
        self.tend()
        self.listeners.read_again()

    def invite(self, name: str, seconds: float = 3600) -> Token:
        return self.registrar.invite(name, self.people, seconds, "a test")[1]

    def host(self, name: str) -> Settings:
        """Return the settings of a host, whose home is made at the first call."""
        return home(self.directory / name)

    @contextmanager
    def days_ahead(self, days: float) -> Iterator[None]:
        """Let the server's clock be so far from the real one."""
        before = self.catalog.ahead_seconds
        self.catalog.ahead_seconds = days * 86_400
        try:
            yield
        finally:
            self.catalog.ahead_seconds = before


def home(path: Path) -> Settings:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return replace(load_settings(home=path, environ={}), run_dir=path / "run")
