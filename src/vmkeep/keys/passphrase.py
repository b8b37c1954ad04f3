"""A passphrase that wraps other keys. It is made slow to guess by scrypt: 128 MiB and about 0.3 s for each guess."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from dataclasses import field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from vmkeep.errors import InvalidRequest, WrongKey
from vmkeep.values import dataclass

SCRYPT: Final = (17, 8, 1)
"""log2 of scrypt's n, r and p. Whoever writes a file could ask for gigabytes and minutes, or for so little that the
passphrase is guessed: so no others are ever worked for."""
SALT_BYTES: Final = 32


def passphrase_cipher(passphrase: str, salt: bytes) -> AESGCM:
    """Return the cipher of a passphrase; raises InvalidRequest for one that is no UTF-8."""
    # The same passphrase typed on another keyboard or system may arrive composed differently.
    try:
        words = unicodedata.normalize("NFC", passphrase).encode()
    except UnicodeEncodeError:
        raise InvalidRequest("the passphrase has characters that cannot be written as UTF-8") from None
    log2_n, r, p = SCRYPT
    return AESGCM(Scrypt(salt=salt, length=32, n=1 << log2_n, r=r, p=p).derive(words))


@dataclass(frozen=True, slots=True)
class Passphrase:
    """A passphrase as the key of something: what it wraps is as long as what a key file wraps."""

    words: str = field(repr=False)

    @property
    def kind(self) -> str:
        return "passphrase"

    @property
    def key_id(self) -> str:
        return "0" * 32

    def wrap(self, secret: bytes, associated_data: bytes, *, random: Callable[[int], bytes] = os.urandom) -> bytes:
        """Return salt and ciphertext; each salt, and so each key and its nonce, is used once. Raises InvalidRequest."""
        if not self.words:
            raise InvalidRequest("the passphrase cannot be empty")
        salt = random(SALT_BYTES)
        return salt + passphrase_cipher(self.words, salt).encrypt(bytes(12), secret, associated_data)

    def unwrap(self, wrapped: bytes, associated_data: bytes) -> bytes:
        """Return what ``wrap`` sealed; raises WrongKey, InvalidRequest."""
        salt, sealed = wrapped[:SALT_BYTES], wrapped[SALT_BYTES:]
        try:
            return passphrase_cipher(self.words, salt).decrypt(bytes(12), sealed, associated_data)
        except (InvalidTag, ValueError) as error:
            raise WrongKey("the passphrase does not open this", hint="Check the passphrase.") from error
