"""The server's two listeners, spoken to over TLS: who is let in, what is answered, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Body, Request

from tests.integration.server.authority import Authority
from vmkeep.errors import InvalidRequest, StoreError
from vmkeep.server.application import make_application
from vmkeep.server.certificates import presented_by
from vmkeep.server.limits import DEFAULT_MOST_BYTES
from vmkeep.server.listeners import Address, Listener, Listeners

LOOPBACK = Address("127.0.0.1", 0)
URI = "vmkeep://host/one"
_routes = APIRouter()


@_routes.get("/who")
async def _who(request: Request) -> dict[str, str]:
    presented = presented_by(request)
    return {"identity": presented.identity, "serial": presented.serial}


@_routes.get("/fault")
async def _fault() -> None:
    raise RuntimeError("the words of a fault")


@_routes.post("/echo")
async def _echo(number: Annotated[int, Body(embed=True)]) -> int:
    return number


def _not_ready() -> None:
    raise StoreError("the store is away")


class Running:
    """A server with both listeners, and an authority of its own."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory)
        certificate, key = self.authority.sign("server")
        people = make_application([_routes])
        agents = make_application([_routes], checks=[_not_ready])
        self.listeners = Listeners(
            [
                Listener(people, LOOPBACK, certificate, key),
                Listener(agents, LOOPBACK, certificate, key, clients=self.authority.path),
            ]
        )
        started = threading.Event()
        self.thread = threading.Thread(target=self.listeners.serve, kwargs={"ready": started.set})
        self.thread.start()
        assert started.wait(20)
        self.people, self.agents = (f"https://{address}" for address in self.listeners.addresses)

    def tls(self, shown: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.path))
        if shown is not None:
            context.load_cert_chain(*shown)
        return context


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("server"))
    yield running
    running.listeners.stop()
    running.thread.join(20)
    assert not running.thread.is_alive()


@pytest.fixture(scope="module")
def people(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.people, verify=server.tls()) as client:
        yield client


def test_server_is_alive_and_says_whether_it_is_ready(server: Running, people: httpx.Client) -> None:
    assert people.get("/health").json()["status"] == "alive"
    assert people.get("/ready").json() == {"status": "ready"}
    shown = server.authority.sign("ready", uris=(URI,))
    answer = httpx.get(f"{server.agents}/ready", verify=server.tls(shown))
    assert answer.status_code == StoreError.http_status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "store-error"
    assert answer.json()["detail"] == "the store is away"


def test_certificate_of_an_agent_reaches_the_application(server: Running) -> None:
    shown = server.authority.sign("one", uris=(URI,))
    told = httpx.get(f"{server.agents}/who", verify=server.tls(shown)).json()
    assert told["identity"] == URI
    assert int(told["serial"], 16) > 0


@pytest.mark.parametrize("uris", [(), (URI, "vmkeep://host/two")])
def test_certificate_that_does_not_name_one_host_is_refused(server: Running, uris: tuple[str, ...]) -> None:
    shown = server.authority.sign(f"with-{len(uris)}", uris=uris)
    answer = httpx.get(f"{server.agents}/who", verify=server.tls(shown))
    assert (answer.status_code, answer.json()["code"]) == (403, "host-refused")


def test_agent_without_certificate_is_refused_by_tls(server: Running) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.agents}/health", verify=server.tls())


def test_certificate_of_another_authority_is_refused_by_tls(server: Running, tmp_path: Path) -> None:
    shown = Authority(tmp_path, "another").sign("one", uris=(URI,))
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.agents}/health", verify=server.tls(shown))


def test_people_show_no_certificate_and_are_told_so_where_one_is_needed(people: httpx.Client) -> None:
    assert people.get("/who").json()["code"] == "host-refused"


def test_older_tls_is_refused(server: Running) -> None:
    context = server.tls()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.people}/health", verify=context)


def test_fault_is_told_without_its_words_or_traceback(people: httpx.Client) -> None:
    answer = people.get("/fault")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal-error")
    assert "Traceback" not in answer.text
    assert "the words of a fault" not in answer.text


def test_wrong_request_is_a_problem_that_does_not_repeat_what_was_sent(people: httpx.Client) -> None:
    assert people.post("/echo", json={"number": 3}).json() == 3
    answer = people.post("/echo", json={"number": "hunter2"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert "body.number" in answer.json()["detail"]
    assert "hunter2" not in answer.text
    assert people.get("/nowhere").headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("announced", [True, False])
def test_request_that_is_too_long_is_refused(server: Running, *, announced: bool) -> None:
    body = b'{"number": 3}' + b" " * DEFAULT_MOST_BYTES
    content = body if announced else iter([body[:1000], body[1000:]])
    answer = httpx.post(
        f"{server.people}/echo", verify=server.tls(), content=content, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "request-too-large")


def test_files_and_addresses_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).sign("server")
    wrong = tmp_path / "missing.pem"
    with pytest.raises(InvalidRequest, match=r"missing\.pem"):
        Listeners([Listener(make_application(), LOOPBACK, wrong, key)])
    with pytest.raises(InvalidRequest, match=r"authority of agents.*missing\.pem"):
        Listeners([Listener(make_application(), LOOPBACK, certificate, key, clients=wrong)])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(InvalidRequest, match=str(address)):
            Listeners([Listener(make_application(), address, certificate, key)])


def test_command_says_where_it_listens_and_ends_by_sigterm(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("server")
    told = [f"--certificate={certificate}", f"--key={key}", f"--agents-authority={authority.path}"]
    free = ["--listen=127.0.0.1:0", "--listen-agents=127.0.0.1:0"]
    environ = {"VMKEEP_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [str(Path(sys.executable).with_name("vmkeep")), "serve", "--json", *told, *free]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, text=True) as served:
        try:
            assert served.stdout is not None
            listening = json.loads(served.stdout.readline())["listening"]
            tls = ssl.create_default_context(cafile=str(authority.path))
            assert httpx.get(f"https://{listening['people']}/health", verify=tls).status_code == 200
            served.send_signal(signal.SIGTERM)
            assert served.wait(20) == 0
        finally:
            served.kill()  # one that still runs would be waited for without end
