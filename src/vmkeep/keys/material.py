"""What a repository asks of a key, whichever provider holds it."""

from __future__ import annotations

from typing import Final, Protocol

KEY_FILE: Final = "key-file"
"""The kind of a key that is a file."""


class KeyMaterial(Protocol):
    """A key that wraps other keys; a PKCS#11 or vault key never leaves its device, so no secret is exposed here.

    ``kind`` names the provider as it stands in envelopes ("key-file"); ``key_id`` is 32 hexadecimal digits.
    """

    @property
    def kind(self) -> str: ...

    @property
    def key_id(self) -> str: ...

    def wrap(self, secret: bytes, associated_data: bytes) -> bytes:
        """Return the secret sealed so that only this key opens it, and only with the same associated data."""
        ...

    def unwrap(self, wrapped: bytes, associated_data: bytes) -> bytes:
        """Return the secret; raises WrongKey when the key or the associated data is not the one it was sealed with."""
        ...
