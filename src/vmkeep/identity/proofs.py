"""How a host whose certificate has ended proves that it is the one: by the old key, over a nonce of the server.

A nonce is the time and a code that only holders of the authority's key can make, so that any server of a fleet can
check what another has given out, and nothing is kept for whoever asks. It counts for five minutes. The signature covers
the request for the new certificate as well: who plays it again within that time gets the certificate that was made,
of which he has no key.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from vmkeep.errors import HostRefused

NONCE_SECONDS: Final = 300
_CONTEXT: Final = b"vmkeep come back 1\n"
_CODE_CONTEXT: Final = b"vmkeep 2026 nonce of the enrolment listener"
_NONCE_CHARACTERS: Final = 2 * (8 + 16 + 32)


def make_nonce(secret: bytes, at: str, *, random: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """Return a nonce of this time, in hexadecimal. ``secret`` is what the servers of a fleet have in common."""
    seconds = int(datetime.fromisoformat(at).timestamp())
    body = seconds.to_bytes(8) + random(16)
    return (body + _code(secret, body)).hex()


def check_nonce(secret: bytes, nonce: str, at: str) -> None:
    """Raise HostRefused for a nonce that no server of the fleet made, or one that is too old."""
    try:
        content = bytes.fromhex(nonce) if len(nonce) == _NONCE_CHARACTERS else b""
    except ValueError:
        content = b""
    body, code = content[:24], content[24:]
    if not content or not hmac.compare_digest(_code(secret, body), code):
        raise HostRefused("The nonce is not one of this server", hint="Run `vmkeep agent renew` again.")
    age = datetime.fromisoformat(at).timestamp() - int.from_bytes(body[:8])
    if not -NONCE_SECONDS <= age <= NONCE_SECONDS:
        raise HostRefused("The nonce is too old", hint="Run `vmkeep agent renew` again.")


def sign_return(key: ec.EllipticCurvePrivateKey, host_id: str, serial: str, nonce: str, request: bytes) -> bytes:
    """Return the signature by which a host comes back; ``request`` is that for its new certificate, as it is sent."""
    return key.sign(_signed(host_id, serial, nonce, request), ec.ECDSA(hashes.SHA256()))


def check_return(
    key: ec.EllipticCurvePublicKey, host_id: str, serial: str, nonce: str, request: bytes, signature: bytes
) -> None:
    """Raise HostRefused for a signature that the key of the old certificate has not made over all of this."""
    try:
        key.verify(signature, _signed(host_id, serial, nonce, request), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise HostRefused(
            "The proof by the key of the former certificate does not hold", hint="Ask for a new invite."
        ) from None


def _signed(host_id: str, serial: str, nonce: str, request: bytes) -> bytes:
    parts = (host_id.encode(), serial.encode(), nonce.encode(), request)
    return _CONTEXT + b"".join(hashlib.sha256(part).digest() for part in parts)


def _code(secret: bytes, body: bytes) -> bytes:
    return hmac.digest(hashlib.sha256(_CODE_CONTEXT + secret).digest(), body, "sha256")
