"""How hosts get their certificates: the first one and a later one on the people's listener, the next on the agents'.

What is asked for is public, hostile, or both. Answers carry the server's time, so that a host learns how wrong its
clock is. None of them is a secret: a certificate is of use to who has its key.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from vmkeep.errors import InvalidRequest
from vmkeep.flows.registrar import Certified, Registrar
from vmkeep.identity.certificates import LONGEST_REQUEST, certificate_pem
from vmkeep.server.admission import Admissions
from vmkeep.server.certificates import presented_by

_Hex = Annotated[str, Body(pattern="^[0-9a-f]*$", max_length=512)]
_Request = Annotated[str, Body(max_length=LONGEST_REQUEST)]


def enrolment_routes(registrar: Registrar, agents_address: str) -> APIRouter:
    """Return what hosts ask that have no certificate which counts. ``agents_address`` is what they are told."""
    router = APIRouter(prefix="/enrol/v1")

    @router.get("/authority")
    def authority() -> dict[str, Any]:
        trusted = registrar.authorities().trusted
        return {"authorities": list(map(certificate_pem, trusted)), "server_time": registrar.now()}

    @router.post("/hosts")
    def enrol(asked: Request, secret: _Hex, request: _Request) -> dict[str, Any]:
        made = registrar.enrol(bytes.fromhex(_whole(secret)), request.encode(), _who(asked))
        return _told(made, agents_address)

    @router.post("/nonces")
    def nonce() -> dict[str, Any]:
        return {"nonce": registrar.nonce(), "server_time": registrar.now()}

    @router.post("/returns")
    def come_back(
        asked: Request, host: _Hex, serial: _Hex, nonce: _Hex, request: _Request, signature: _Hex
    ) -> dict[str, Any]:
        proof = bytes.fromhex(_whole(signature))
        made = registrar.come_back(host, serial, nonce, request.encode(), proof, _who(asked))
        return _told(made, agents_address)

    return router


def renewal_routes(registrar: Registrar, admissions: Admissions, agents_address: str) -> APIRouter:
    """Return what hosts ask about themselves by the certificate that they have."""
    router = APIRouter(prefix="/agent/v1")

    @router.get("/standing")
    def standing(asked: Request) -> dict[str, Any]:
        presented = presented_by(asked)
        host = registrar.admit(admissions.admit(presented), presented.serial, _who(asked))
        return {"host": host.id, "name": host.name, "serial": presented.serial, "server_time": registrar.now()}

    @router.post("/renewals")
    def renew(asked: Request, request: Annotated[str, Body(embed=True, max_length=LONGEST_REQUEST)]) -> dict[str, Any]:
        presented = presented_by(asked)
        host_id = admissions.admit(presented)
        made = registrar.renew(host_id, presented.serial, request.encode(), _who(asked))
        return _told(made, agents_address)

    return router


def _told(made: Certified, agents_address: str) -> dict[str, Any]:
    return {
        "host": made.host.id,
        "name": made.host.name,
        "certificate": made.certificate.pem,
        "authorities": list(made.authorities),
        "agents": agents_address,
        "server_time": made.server_time,
    }


def _who(asked: Request) -> str:
    return f"a host at {ipaddress.ip_address(asked.client.host)}" if asked.client is not None else "a host"


def _whole(digits: str) -> str:
    if len(digits) % 2:
        raise InvalidRequest("Half a byte was sent", hint="Correct the request.")
    return digits
