"""The token by which a host is invited: where the server is, which authority it has, and a secret that counts once.

The text is ``vmkeep1-`` and base64 (RFC 4648, section 5, without padding) of: the secret, 32 bytes; the SHA-256 of the
authority's certificate, 32 bytes; the address in ASCII; and CRC-32 of all of it, 4 bytes, against a text that was cut
or mistyped. The checksum protects against nobody. The server keeps only a hash of the secret.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import zlib
from collections.abc import Callable
from dataclasses import field
from typing import Final

from vmkeep.errors import InvalidRequest
from vmkeep.values import dataclass

_PREFIX: Final = "vmkeep1-"
_SECRET_BYTES: Final = 32
_HASH_BYTES: Final = 32
_CHECKSUM_BYTES: Final = 4
_MOST_ADDRESS: Final = 262
_MOST_TEXT: Final = 600


@dataclass(frozen=True, slots=True)
class Token:
    """An invite in the hand of who may use it. ``authority`` is the fingerprint of the server's authority."""

    server: str
    authority: str
    secret: bytes = field(repr=False)

    @classmethod
    def draw(cls, server: str, authority: str, *, random: Callable[[int], bytes] = secrets.token_bytes) -> Token:
        """Make a new one. ``server`` is ``HOST:PORT``."""
        return cls(server, authority, random(_SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Token:
        """Return the token that a text is. Raises InvalidRequest, which does not tell the text: it is a secret."""
        text = "".join(text.split())
        try:
            if not text.startswith(_PREFIX) or len(text) > _MOST_TEXT or not text.isascii():
                raise ValueError("form")
            coded = text.removeprefix(_PREFIX)
            content = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
            body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
            server = body[_SECRET_BYTES + _HASH_BYTES :].decode("ascii")
            if zlib.crc32(body).to_bytes(_CHECKSUM_BYTES) != checksum or not 0 < len(server) <= _MOST_ADDRESS:
                raise ValueError("content")
            if not server.isprintable() or " " in server:
                raise ValueError("address")
        except ValueError:
            # Without its cause: a decoder's exception may quote what it could not decode.
            raise InvalidRequest(
                "This is no token of `vmkeep host invite`, or it was cut", hint="Give the whole text as it was printed."
            ) from None
        return cls(server, body[_SECRET_BYTES : _SECRET_BYTES + _HASH_BYTES].hex(), body[:_SECRET_BYTES])

    def text(self) -> str:
        """Return what is handed over; whoever has it can enrol as the host, once."""
        body = self.secret + bytes.fromhex(self.authority) + self.server.encode("ascii")
        content = body + zlib.crc32(body).to_bytes(_CHECKSUM_BYTES)
        return _PREFIX + base64.urlsafe_b64encode(content).decode("ascii").rstrip("=")

    @property
    def hash(self) -> str:
        """What the server keeps of it."""
        return invite_hash(self.secret)


def invite_hash(secret: bytes) -> str:
    """Return what the server keeps of an invite's secret. It has 256 bits, so a plain hash gives nothing away."""
    return hashlib.sha256(b"vmkeep invite\n" + secret).hexdigest()
