"""A key as text that can be printed, kept in a safe, and typed or scanned in again.

The text carries a checksum of its own: a slip of the pen is told apart from a wrong passphrase.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import struct
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmkeep.errors import InvalidRequest, WrongKey
from vmkeep.keys.keyfile import KeyFile
from vmkeep.keys.passphrase import SCRYPT, passphrase_cipher
from vmkeep.values import dataclass

BEGIN = "-----BEGIN VMKEEP KEY-----"
END = "-----END VMKEEP KEY-----"
LINE_LENGTH = 64
# Version, log2 of scrypt's n, r, p, salt, nonce.
_HEADER = struct.Struct(">BBBB16s12s")
_WRITTEN = ((1, *SCRYPT),)
"""Version and parameters of every text that a release of vmkeep has printed."""
_CHECK_BYTES = 8
_KEY_ID = re.compile("[0-9a-f]{32}")
_SEALED_BYTES = 32 + 16


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A key sealed with a passphrase, in whichever form it is written; the key id is in clear."""

    key_id: str
    content: bytes

    @property
    def armored(self) -> str:
        """The text between BEGIN and END lines, to be copied or scanned."""
        text = base64.b64encode(self.content).decode()
        lines = [text[start : start + LINE_LENGTH] for start in range(0, len(text), LINE_LENGTH)]
        return "\n".join([BEGIN, f"Key: {self.key_id}", "", *lines, END, ""])


def seal_key(key: KeyFile, passphrase: str, *, random: Callable[[int], bytes] = os.urandom) -> SealedKey:
    """Return the key sealed with a passphrase. Raises InvalidRequest for an empty one."""
    if not passphrase:
        raise InvalidRequest("the passphrase of an exported key cannot be empty")
    header = _HEADER.pack(1, *SCRYPT, random(16), random(12))
    sealed = _cipher(header, passphrase).encrypt(header[-12:], key.secret, _associated(header, key.key_id))
    body = header + sealed
    return SealedKey(key.key_id, body + _check(body, key.key_id))


def export_key(key: KeyFile, passphrase: str, *, random: Callable[[int], bytes] = os.urandom) -> str:
    """Return the key sealed with a passphrase, as text between BEGIN and END lines; the key id is in clear."""
    return seal_key(key, passphrase, random=random).armored


def import_key(text: str, passphrase: str) -> KeyFile:
    """Return the key of an exported text, or of the lines of a page; it is not stored yet (``KeyFile.save`` does that).

    Raises InvalidRequest when the text is incomplete or was miscopied, WrongKey when the passphrase is wrong.
    """
    from vmkeep.keys.paper import PAPER_BEGIN, parse_lines

    key_id, content = parse_lines(text) if PAPER_BEGIN in text else _parse(text)
    body = _proved(key_id, content)
    header, sealed = body[: _HEADER.size], body[_HEADER.size :]
    try:
        secret = _cipher(header, passphrase).decrypt(header[-12:], sealed, _associated(header, key_id))
    except InvalidTag as error:
        raise WrongKey(
            f"the passphrase does not open key {key_id}", hint="Check the passphrase: the text itself is complete."
        ) from error
    return KeyFile(key_id, secret)


def _parse(text: str) -> tuple[str, bytes]:
    lines = [line.strip() for line in text.splitlines()]
    if BEGIN not in lines or END not in lines[lines.index(BEGIN) :]:
        raise InvalidRequest(f"this is not an exported key: the line {BEGIN} or {END} is missing")
    begin = lines.index(BEGIN)
    inside = [line for line in lines[begin + 1 : lines.index(END, begin)] if line]
    if not inside or not inside[0].startswith("Key:"):
        raise InvalidRequest("the exported key lacks its line Key:")
    key_id = inside[0].removeprefix("Key:").strip().lower()
    if _KEY_ID.fullmatch(key_id) is None:
        raise InvalidRequest("the exported key's line Key: was damaged or miscopied: it has 32 hexadecimal digits")
    try:
        content = base64.b64decode("".join(inside[1:]), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("the text of the exported key was damaged or miscopied") from error
    return key_id, content


def _proved(key_id: str, content: bytes) -> bytes:
    body, check = content[:-_CHECK_BYTES], content[-_CHECK_BYTES:]
    if len(body) != _HEADER.size + _SEALED_BYTES or check != _check(body, key_id):
        raise InvalidRequest("the text of the exported key was damaged or miscopied: its checksum is wrong")
    # The checksum needs no secret: whoever wrote the text may ask for gigabytes and minutes of scrypt, or for so little
    # that the passphrase is guessed. So nothing but what was ever written is worked for.
    if _HEADER.unpack(body[: _HEADER.size])[:4] not in _WRITTEN:
        raise InvalidRequest(
            "the exported key was written by a newer vmkeep, or by nobody: it asks for work that was never asked for",
            hint="Use the vmkeep that printed it. No passphrase was tried.",
        )
    return body


def _cipher(header: bytes, passphrase: str) -> AESGCM:
    return passphrase_cipher(passphrase, _HEADER.unpack(header)[4])


def _associated(header: bytes, key_id: str) -> bytes:
    return b"vmkeep key export v1\n" + key_id.encode() + b"\n" + header


def _check(body: bytes, key_id: str) -> bytes:
    return hashlib.sha256(b"vmkeep key export v1\n" + key_id.encode() + b"\n" + body).digest()[:_CHECK_BYTES]
