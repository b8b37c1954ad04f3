"""The certificate that a client showed, handed to the application.

No ASGI server does that by itself (uvicorn 0.54; Kludex/uvicorn#3132 is to bring it, with these names): the leaf,
in DER, stands in ``scope["extensions"]["tls"]["client_cert"]``. TLS has checked its chain, its term and that the client
holds its key; not whether it was revoked, which TLS cannot say at once.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Protocol

from cryptography import x509
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from vmkeep.errors import HostRefused
from vmkeep.values import dataclass


class CertifiedProtocol(H11Protocol):
    """uvicorn's HTTP, with the client's certificate in the scope of each request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn itself
        super().connection_made(transport)
        held: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self.app: Any = _with_certificate(self.app, held.getpeercert(binary_form=True) if held is not None else None)


@dataclass(frozen=True, slots=True)
class Presented:
    """What a client's certificate says: ``identity`` is its one URI, ``serial`` in hexadecimal digits."""

    identity: str
    serial: str


class Admission(Protocol):
    """Who may speak as a host. Asked at each request, since a certificate that was revoked is valid until it ends."""

    def admit(self, presented: Presented) -> str:
        """Return the id of the host. Raises HostRefused where host or serial are unknown, revoked or retired."""
        ...


def presented_by(connection: HTTPConnection) -> Presented:
    """Return what the client of a request has shown. Raises HostRefused for none, or one without exactly one URI."""
    leaf = connection.scope.get("extensions", {}).get("tls", {}).get("client_cert")
    if leaf is None:
        raise HostRefused("No client certificate was shown")
    try:
        certificate = x509.load_der_x509_certificate(leaf)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise HostRefused("The client certificate names no host") from error
    if len(uris) != 1:
        raise HostRefused(f"The client certificate has {len(uris)} URIs, and must have one")
    return Presented(uris[0], f"{certificate.serial_number:x}")


def _with_certificate(application: ASGIApp, leaf: bytes | None) -> ASGIApp:
    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        extensions = {**scope.get("extensions", {}), "tls": {"client_cert": leaf}}
        await application({**scope, "extensions": extensions}, receive, send)

    return called
