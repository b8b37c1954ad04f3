"""How a host becomes one of a fleet, and how it stays one: enrolment, renewal, and coming back.

Nothing of this host is sent before the server has proved that it is the one: at first by the fingerprint in the token,
later by the authorities that were told over a connection that was proved.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from vmkeep.agent.credentials import Credentials
from vmkeep.agent.requests import ask, clock_error_seconds, clock_text, is_time, split_address
from vmkeep.config import Settings, prepare_home
from vmkeep.errors import (
    AuthorityMismatch,
    ClockAstray,
    HostRefused,
    InvalidRequest,
    OperationRuns,
    ServerUnreachable,
    TargetExists,
)
from vmkeep.identity.certificates import (
    draw_key,
    fingerprint,
    host_of,
    is_signed_by,
    key_pem,
    make_request,
    public_key_of,
    read_certificate,
    read_key,
)
from vmkeep.identity.proofs import sign_return
from vmkeep.identity.tokens import Token
from vmkeep.locks import FileLock
from vmkeep.values import dataclass

_MOST_AUTHORITIES: Final = 4
_LONGEST_NAME: Final = 63


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. ``renewed``: there is another certificate now. ``clock``: what is wrong with it, or ""."""

    credentials: Credentials
    renewed: bool
    clock: str


def enrol(settings: Settings, token: Token) -> Outcome:
    """Make this host one of the fleet that a token names. The key is made here, and never leaves.

    May be run again with the same token when the answer was lost. Raises TargetExists on a host that is enrolled,
    AuthorityMismatch, HostRefused, ServerUnreachable, ClockAstray, and what writing a key raises.
    """
    split_address(token.server)
    path = settings.agent_key_path
    with _alone(settings):
        known = Credentials.load(path) if path.exists() else None
        if known is not None and known.certificate:
            raise TargetExists(
                f"This host is enrolled already, as {known.name} at {known.server}",
                path=str(path),
                hint=f"To enrol it anew, revoke it at the server, and move {path} away.",
            )
        authority = _pinned(token)
        key = known.key if known is not None and known.invite == token.hash else key_pem(draw_key())
        waiting = Credentials(token.server, "", "", "", (authority,), key, "", token.hash).save(path)
        body = {"secret": token.secret.hex(), "request": make_request(read_key(key)).decode()}
        answer = _asked(waiting, "/enrol/v1/hosts", body)
        new = taken(waiting, answer, key).promoted().save(path)  # the server gives it but once
        with contextlib.suppress(ServerUnreachable):
            ask(new.agents, new.tls(), "GET", "/agent/v1/standing")
        return Outcome(new, renewed=True, clock=clock_text(clock_error_seconds(answer)))


def renew(settings: Settings) -> Outcome:
    """Get the next certificate when half of the term is over, by the certificate, or by its key when it has ended.

    The server's clock decides. Raises KeyMissing on a host that is not enrolled, otherwise as ``enrol`` does.
    """
    path = settings.agent_key_path
    with _alone(settings):
        held = Credentials.load(path)
        if not held.certificate:
            raise InvalidRequest(
                "This host is not enrolled: nobody answered it", hint="Run `vmkeep agent enrol` again with its token."
            )
        told = _asked(held, "/enrol/v1/nonces", {})
        if not is_time(told.get("server_time")):
            raise ServerUnreachable(f"What answers at {held.server} tells no time: it is no server of a fleet")
        now, clock = str(told.get("server_time", "")), clock_text(clock_error_seconds(told))
        if held.next_certificate:
            if now >= held.promoted().described().ends:
                held = held.promoted().save(path)  # its key proves who this is, used or not
            else:
                try:
                    return _used(path, held, clock)
                except HostRefused:  # another one was given since; the one in use may count still
                    held = replace(held, next_key="", next_certificate="").save(path)
        certificate = held.described()
        if not held.next_key and not certificate.is_half_over(now):
            return Outcome(held, renewed=False, clock=clock)
        held = replace(held, next_key=held.next_key or key_pem(draw_key())).save(path)
        request = make_request(read_key(held.next_key)).decode()
        if now < certificate.ends:
            answer = ask(held.agents, held.tls(), "POST", "/agent/v1/renewals", {"request": request})
        else:
            nonce = str(told.get("nonce", ""))
            parts = (held.host, certificate.serial, nonce)
            proof = sign_return(read_key(held.key), *parts, request.encode()).hex()
            body = dict(zip(("host", "serial", "nonce"), parts, strict=True))
            answer = _asked(held, "/enrol/v1/returns", {**body, "request": request, "signature": proof})
        if answer.get("certificate") == held.certificate:  # the server says that it is not time
            return Outcome(replace(held, next_key="").save(path), renewed=False, clock=clock)
        return _used(path, taken(held, answer, held.next_key).save(path), clock)


def _pinned(token: Token) -> str:
    """Return the authority that the token names, as the server tells it. Nothing is sent that is not public."""
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    told = ask(token.server, blind, "GET", "/enrol/v1/authority")
    for pem in authorities_of(told):
        if fingerprint(read_certificate(pem)) == token.authority:
            return pem
    raise AuthorityMismatch(
        f"What answers at {token.server} has not the authority {token.authority[:16]}… that the token names"
    )


def _asked(credentials: Credentials, path: str, body: Mapping[str, object]) -> dict[str, Any]:
    """Ask on the people's listener, whose server is proved; where the clock is in the way, say by how much."""
    try:
        return ask(credentials.server, credentials.tls(shown=False), "POST", path, body)
    except ClockAstray as error:
        blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        blind.check_hostname = False
        blind.verify_mode = ssl.CERT_NONE
        told = clock_text(clock_error_seconds(ask(credentials.server, blind, "GET", "/enrol/v1/authority")))
        if not told:
            raise ServerUnreachable(
                f"The certificate of {credentials.server} has ended",
                hint="Nothing was sent to it. A server renews its own while it runs: restart `vmkeep serve`.",
            ) from error
        # Whoever answers is not proved, so this is told and nothing is done by it.
        raise ClockAstray(f"{error.message}: {told}, as far as that can be believed") from error


def taken(held: Credentials, answer: Mapping[str, Any], key: str) -> Credentials:
    """Return the credentials with what the server gave for a key. Raises ServerUnreachable for what cannot be."""
    try:
        authorities = tuple(authorities_of(answer))
        made = read_certificate(str(answer["certificate"]))
        signed = any(is_signed_by(made, read_certificate(each)) for each in authorities)
        ours = public_key_of(made) == read_key(key).public_key() and host_of(made) == answer["host"]
        if not signed or not ours or held.host not in ("", answer["host"]):
            raise InvalidRequest("another certificate")
        agents, name = str(answer["agents"]), str(answer["name"])[:_LONGEST_NAME]
        split_address(agents)
    except (KeyError, InvalidRequest, HostRefused) as error:
        raise ServerUnreachable(
            f"The server {held.server} gave a certificate that is not of this host",
            hint="Nothing of it was kept. See that server and agent are of releases that belong together.",
        ) from error
    return replace(
        held,
        agents=agents,
        host=str(answer["host"]),
        name=name,
        authorities=authorities,
        next_key=key,
        next_certificate=str(answer["certificate"]),
    )


def _used(path: Path, held: Credentials, clock: str) -> Outcome:
    """Use the next certificate, which stands in the file, and then keep it alone: the one before counts until then."""
    new = held.promoted()
    ask(new.agents, new.tls(), "GET", "/agent/v1/standing")
    return Outcome(new.save(path), renewed=True, clock=clock)


def authorities_of(answer: Mapping[str, Any]) -> list[str]:
    """Return the authorities that an answer tells. Raises ServerUnreachable or InvalidRequest."""
    told = answer.get("authorities")
    if not isinstance(told, list) or not 0 < len(told) <= _MOST_AUTHORITIES:
        raise ServerUnreachable("What answers tells no authority: it is no server of a fleet")
    for each in told:
        if not isinstance(each, str):
            raise ServerUnreachable("What answers tells an authority that is none: it is no server of a fleet")
        read_certificate(each)
    return told


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Let no other process of this host enrol or renew meanwhile. Raises OperationRuns."""
    prepare_home(settings)
    lock = FileLock.try_acquire(settings.locks_dir / "agent.lock")
    if lock is None:
        raise OperationRuns("Another process of this host enrols or renews just now", hint="Let it end, then look.")
    try:
        yield
    finally:
        lock.release()
