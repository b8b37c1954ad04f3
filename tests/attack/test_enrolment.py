"""What somebody tries who would be a host of a fleet, or stand between one and its server."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from tests.rig.fleet import Fleet
from vmkeep.agent import enrolment
from vmkeep.agent.credentials import Credentials, trusting
from vmkeep.agent.requests import ask
from vmkeep.config import Settings
from vmkeep.errors import (
    AuthorityMismatch,
    HostRefused,
    InvalidRequest,
    ServerUnreachable,
    VmkeepError,
)
from vmkeep.identity.certificates import (
    Authority,
    certificate_pem,
    draw_key,
    host_of,
    key_pem,
    make_request,
    read_certificate,
    read_key,
)
from vmkeep.identity.hosts import HostStatus
from vmkeep.identity.proofs import sign_return
from vmkeep.identity.tokens import Token

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    started = Fleet(tmp_path_factory.mktemp("fleet"))
    started.start()
    yield started
    started.stop()


@pytest.fixture
def blind() -> ssl.SSLContext:
    """TLS of somebody who proves nothing and asks for no proof."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def enrolled(fleet: Fleet, name: str, *, days_ago: float = 0) -> Settings:
    host = fleet.host(name)
    with fleet.days_ahead(-days_ago):
        enrolment.enrol(host, fleet.invite(name))
    return host


def credentials(host: Settings) -> Credentials:
    return Credentials.load(host.agent_key_path)


def test_token_that_was_used_admits_nobody_else(fleet: Fleet) -> None:
    token = fleet.invite("alpha")
    enrolment.enrol(fleet.host("alpha"), token)
    with pytest.raises(HostRefused, match="used already"):
        enrolment.enrol(fleet.host("thief"), token)
    assert credentials(fleet.host("alpha")).name == "alpha"


def test_of_many_who_use_one_token_at_once_one_is_admitted(fleet: Fleet) -> None:
    token = fleet.invite("many")
    start = threading.Barrier(6)

    def attempt(number: int) -> str:
        start.wait()
        try:
            fleet.registrar.enrol(token.secret, make_request(draw_key()), str(number))
        except HostRefused as error:
            return error.code
        return "admitted"

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(attempt, range(6)))
    assert sorted(outcomes) == ["admitted"] + ["host-refused"] * 5
    assert len(fleet.registrar.named("many").certificates) == 1


def test_token_that_ended_was_replaced_or_never_was_admits_nobody(fleet: Fleet) -> None:
    with fleet.days_ahead(-1):
        ended = fleet.invite("late")
    replaced = fleet.invite("again")
    fleet.invite("again")
    for name, token in {
        "ended": ended,
        "replaced": replaced,
        "made-up": Token.draw(fleet.people, ended.authority),
    }.items():
        with pytest.raises(HostRefused):
            enrolment.enrol(fleet.host(f"by-{name}"), token)
    assert fleet.registrar.named("late").status is HostStatus.INVITED


def test_who_stands_in_between_is_told_no_secret(fleet: Fleet, tmp_path: Path) -> None:
    between = Fleet(tmp_path)
    between.start()
    try:
        token = fleet.invite("between")
        diverted = replace(token, server=between.people)  # whoever answers has another authority
        with pytest.raises(AuthorityMismatch, match="that the token names"):
            enrolment.enrol(fleet.host("between"), diverted)
        assert not fleet.host("between").agent_key_path.exists()
        tampered = replace(token, authority=between.registrar.authorities().present.fingerprint)
        with pytest.raises(AuthorityMismatch):
            enrolment.enrol(fleet.host("between"), tampered)
    finally:
        between.stop()
    assert enrolment.enrol(fleet.host("between"), token).renewed


def test_who_tells_the_right_authority_and_cannot_prove_it_is_sent_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """The authority's certificate is public: whoever stands in between can tell it, without having its key."""
    false = Authority.draw(NOW)
    key = draw_key()
    served = false.for_server(key.public_key(), [], NOW, 1)
    shown = tmp_path / "shown.pem"
    shown.write_text(key_pem(key) + certificate_pem(served))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown)
    true = ask(fleet.people, _blind(), "GET", "/enrol/v1/authority")["authorities"]
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_tell_false, args=(listening, context, true, heard))
        thread.start()
        token = replace(fleet.invite("proof"), server=f"127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(ServerUnreachable, match="no certificate of this fleet"):
            enrolment.enrol(fleet.host("proof"), token)
        thread.join(20)
    assert len(heard) == 1
    assert heard[0].startswith(b"GET /enrol/v1/authority")
    assert token.secret.hex().encode() not in b"".join(heard)


def _blind() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _tell_false(listening: socket.socket, context: ssl.SSLContext, true: list[str], heard: list[bytes]) -> None:
    import json

    content = json.dumps({"authorities": true}).encode()
    for _ in range(2):
        plain, _address = listening.accept()
        with suppress(OSError), context.wrap_socket(plain, server_side=True) as spoken:
            said = spoken.recv(65536)
            if said:
                heard.append(said)
            spoken.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(content), content))
        plain.close()


def test_names_and_rights_that_a_request_asks_for_are_not_given(fleet: Fleet, blind: ssl.SSLContext) -> None:
    key = draw_key()
    other = enrolled(fleet, "victim")
    uri = f"urn:vmkeep:host:{credentials(other).host}"
    asked = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "victim")]))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    body = {"secret": fleet.invite("greedy").secret.hex(), "request": asked.decode()}
    made = read_certificate(ask(fleet.people, blind, "POST", "/enrol/v1/hosts", body)["certificate"])
    assert host_of(made) == fleet.registrar.named("greedy").id
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert "victim" not in made.subject.rfc4514_string()


@pytest.mark.parametrize("field", ["secret", "request"])
@pytest.mark.parametrize("value", ["", "zz", "0" * 9000, "\0", None, 7, ["a"], {"a": 1}])
def test_nonsense_in_place_of_a_field_is_answered_with_a_problem(
    fleet: Fleet, blind: ssl.SSLContext, field: str, value: object
) -> None:
    body = {"secret": "00" * 32, "request": make_request(draw_key()).decode(), field: value}
    with pytest.raises((InvalidRequest, HostRefused)) as raised:
        ask(fleet.people, blind, "POST", "/enrol/v1/hosts", body)
    assert raised.value.hint


def _shown(authority: Authority, host_id: str) -> tuple[str, str]:
    key = draw_key()
    return key_pem(key), authority.for_host(key.public_key(), host_id, NOW, 1).pem


def test_certificate_of_another_authority_and_one_that_nobody_recorded_admit_nobody(fleet: Fleet) -> None:
    held = credentials(enrolled(fleet, "target"))
    for authority, refusal in (
        (Authority.draw(NOW), ServerUnreachable),  # TLS refuses it
        (fleet.registrar.authorities().present, HostRefused),  # signed with a stolen key: its serial is not known
    ):
        key, pem = _shown(authority, held.host)
        false = replace(held, key=key, certificate=pem)
        with pytest.raises(refusal):
            ask(held.agents, false.tls(), "GET", "/agent/v1/standing")


def test_host_is_no_server_for_others(fleet: Fleet, tmp_path: Path) -> None:
    held = credentials(enrolled(fleet, "false-server"))
    shown = tmp_path / "host.pem"
    shown.write_text(held.key + held.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            plain, _address = listening.accept()
            with suppress(OSError), context.wrap_socket(plain, server_side=True):
                pass
            plain.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ServerUnreachable, match="no certificate of this fleet"):
            ask(f"127.0.0.1:{listening.getsockname()[1]}", trusting(held.authorities), "GET", "/")
        thread.join(20)


def test_revocation_ends_an_open_poll_and_every_later_request(fleet: Fleet) -> None:
    held = credentials(enrolled(fleet, "polling"))
    fleet.polling.clear()
    ended: list[VmkeepError] = []

    def poll() -> None:
        try:
            ask(held.agents, held.tls(), "GET", "/poll")
        except VmkeepError as error:
            ended.append(error)

    thread = threading.Thread(target=poll)
    thread.start()
    assert fleet.polling.wait(20)
    fleet.registrar.revoke("polling", "a test")
    revoked = time.monotonic()
    thread.join(20)
    assert [error.code for error in ended] == ["host-refused"]
    assert time.monotonic() - revoked < 10  # it is asked each second; the rest is for a machine that is busy
    for method, path, body in (("GET", "/agent/v1/standing", None), ("POST", "/agent/v1/renewals", {"request": "x"})):
        with pytest.raises(HostRefused, match="revoked"):
            ask(held.agents, held.tls(), method, path, body)


def test_renewal_that_is_played_again_makes_no_other_certificate(fleet: Fleet) -> None:
    held = credentials(enrolled(fleet, "replayed", days_ago=15))
    request = make_request(draw_key()).decode()
    answers = [ask(held.agents, held.tls(), "POST", "/agent/v1/renewals", {"request": request}) for _ in range(3)]
    assert len({answer["certificate"] for answer in answers}) == 1
    assert len(fleet.registrar.named("replayed").certificates) == 2


def test_of_two_who_renew_at_once_one_goes_on_and_the_other_shows(fleet: Fleet) -> None:
    """A thief of the key renews beside the host: who uses the new certificate first shuts the other out, visibly."""
    held = credentials(enrolled(fleet, "twice", days_ago=15))
    keys = [draw_key(), draw_key()]
    start = threading.Barrier(2)

    def renewal(number: int) -> str:
        start.wait()
        body = {"request": make_request(keys[number]).decode()}
        return str(ask(held.agents, held.tls(), "POST", "/agent/v1/renewals", body)["certificate"])

    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(renewal, range(2)))
    assert ask(held.agents, held.tls(), "GET", "/agent/v1/standing")["name"] == "twice"
    admitted = []
    for key, pem in zip(keys, made, strict=True):
        new = replace(held, key=key_pem(key), certificate=pem)
        with suppress(HostRefused):
            ask(held.agents, new.tls(), "GET", "/agent/v1/standing")
            admitted.append(new)
    assert len(admitted) == 1
    with pytest.raises(HostRefused, match="superseded"):
        ask(held.agents, held.tls(), "GET", "/agent/v1/standing")
    assert "refused" in [each.what for each in fleet.registrar.events(fleet.registrar.named("twice"))]


def _forge_host(held: Credentials, nonce: str, request: str) -> dict[str, str]:
    return _returned(held, nonce, request) | {"host": "0" * 32}


def _forge_serial(held: Credentials, nonce: str, request: str) -> dict[str, str]:
    return _returned(held, nonce, request) | {"serial": "1"}


def _forge_nonce(held: Credentials, nonce: str, request: str) -> dict[str, str]:
    return _returned(held, nonce, request) | {"nonce": "0" * len(nonce)}


def _exchange_request(held: Credentials, nonce: str, request: str) -> dict[str, str]:
    return _returned(held, nonce, request) | {"request": make_request(draw_key()).decode()}


def _sign_with_another_key(held: Credentials, nonce: str, request: str) -> dict[str, str]:
    return _returned(replace(held, key=key_pem(draw_key())), nonce, request)


def _returned(held: Credentials, nonce: str, request: str) -> dict[str, str]:
    serial = held.described().serial
    signature = sign_return(read_key(held.key), held.host, serial, nonce, request.encode()).hex()
    return {"host": held.host, "serial": serial, "nonce": nonce, "request": request, "signature": signature}


@pytest.mark.parametrize("forge", [_forge_host, _forge_serial, _forge_nonce, _exchange_request, _sign_with_another_key])
def test_nobody_comes_back_as_a_host_without_its_old_key(
    fleet: Fleet, blind: ssl.SSLContext, forge: Callable[[Credentials, str, str], dict[str, str]]
) -> None:
    name = forge.__name__.strip("_").replace("_", "-")
    held = credentials(enrolled(fleet, name, days_ago=40))
    nonce = ask(fleet.people, blind, "POST", "/enrol/v1/nonces", {})["nonce"]
    request = make_request(draw_key()).decode()
    before = fleet.registrar.named(name)
    with pytest.raises(HostRefused):
        ask(fleet.people, blind, "POST", "/enrol/v1/returns", forge(held, nonce, request))
    assert fleet.registrar.named(name) == before
    right = _returned(held, nonce, request)
    first, again = (ask(fleet.people, blind, "POST", "/enrol/v1/returns", right)["certificate"] for _ in range(2))
    assert first == again  # played again it is the same one, of the same key
