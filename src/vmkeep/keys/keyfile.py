"""A key kept in a file of its own on the host: the provider of a single machine. The file may have a passphrase.

The key id is derived from the secret, so a file whose secret was damaged is found when it is loaded and is
not mistaken for a repository that cannot be opened. docs/internals/repository-format.md specifies the wrapping.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import field
from pathlib import Path

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vmkeep.errors import InvalidRequest, KeyMissing, TargetExists, WrongKey
from vmkeep.filesystem import file_error, replace_file, write_new_file
from vmkeep.keys.material import KEY_FILE
from vmkeep.keys.passphrase import Passphrase
from vmkeep.values import dataclass

SECRET_BYTES = 32
SALT_BYTES = 32
KEY_ID_CONTEXT = "vmkeep 2026 key file v1 key id"
WRAP_INFO = b"vmkeep key-file wrap v1"
_PROTECTED = b"vmkeep key file v2\n"


def read_key_file(path: Path, what: str) -> bytes:
    """Return what the file of a key holds; raises KeyMissing, PermissionRefused or StoreError."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise KeyMissing(f"there is no {what} {path}", path=str(path)) from error
    except OSError as error:
        raise file_error(error, path, "read") from error


def key_id_of(secret: bytes) -> str:
    """Return the id that belongs to a secret: 32 hexadecimal digits that tell nothing about it."""
    return blake3(secret, derive_key_context=KEY_ID_CONTEXT).hexdigest(16)


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A 256-bit secret, its id, and the file it was read from (None for one that was never stored)."""

    key_id: str
    secret: bytes = field(repr=False)
    path: Path | None = None

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES or key_id_of(self.secret) != self.key_id:
            raise InvalidRequest(
                f"key {self.key_id}: the secret does not belong to that key id; the key was damaged",
                path=str(self.path) if self.path else None,
                hint="Import the key again from the text that `vmkeep key export` printed.",
            )

    @property
    def kind(self) -> str:
        return KEY_FILE

    @property
    def where(self) -> str:
        """Where the key is, for people."""
        return str(self.path) if self.path else "nowhere yet"

    def check(self) -> None:
        """Nothing: a key that was read was proved."""

    @classmethod
    def generate(cls, directory: Path, *, random: Callable[[int], bytes] = secrets.token_bytes) -> KeyFile:
        """Make a new key and store it in the directory; raises as ``save`` does."""
        return cls.draw(random=random).save(directory)

    @classmethod
    def draw(cls, *, random: Callable[[int], bytes] = secrets.token_bytes) -> KeyFile:
        """Make a new key that is stored nowhere yet."""
        secret = random(SECRET_BYTES)
        return cls(key_id_of(secret), secret)

    @classmethod
    def load(cls, path: Path, passphrase: Callable[[], str] | None = None) -> KeyFile:
        """Read a key file. ``passphrase`` is called for one that has a passphrase.

        Raises KeyMissing, PermissionRefused, or InvalidRequest for what is not a sound key file; of one with a
        passphrase WrongKey when it is another one, InvalidRequest when there is none to be had, and what ``passphrase``
        raises.
        """
        text = read_key_file(path, "key file")
        try:
            value = json.loads(text)
            key_id, version = str(value["key_id"]), value["version"]
            if value["format"] != "vmkeep key" or version not in (1, 2):
                raise ValueError("format")
            secret = bytes.fromhex(value["secret"]) if version == 1 else b""
            sealed = base64.b64decode(value["sealed"], validate=True) if version == 2 else b""
        except (ValueError, KeyError, TypeError, RecursionError):
            # Without its cause: a parser's exception may quote what it could not parse.
            raise InvalidRequest(
                f"{path} is not a vmkeep key file, or it was damaged",
                path=str(path),
                hint="Import the key again from the text that `vmkeep key export` printed.",
            ) from None
        if version == 2:
            secret = _unsealed(path, key_id, sealed, passphrase)
        return cls(key_id, secret, path)

    @classmethod
    def find(cls, directory: Path, key_id: str, passphrase: Callable[[], str] | None = None) -> KeyFile:
        """Read the key of that id from the directory; raises KeyMissing, and otherwise as ``load`` does."""
        if len(key_id) != 32 or not set(key_id) <= set("0123456789abcdef"):
            raise InvalidRequest(f"{key_id!r} is not a key id")
        path = directory / f"{key_id}.key"
        try:
            key = cls.load(path, passphrase)
        except KeyMissing as error:
            raise KeyMissing(f"key {key_id} is not in {directory}", path=str(path)) from error
        if key.key_id != key_id:
            raise WrongKey(f"{path} holds another key ({key.key_id})", path=str(path))
        return key

    @classmethod
    def has_passphrase(cls, path: Path) -> bool:
        """Return whether a key file has a passphrase; raises as reading it does."""
        try:
            return bool(json.loads(read_key_file(path, "key file"))["version"] == 2)
        except (ValueError, KeyError, TypeError, RecursionError):
            return False

    def protect(self, passphrase: str | None) -> None:
        """Write the file anew, with that passphrase, or without one; at no time is there none, or half of one.

        Raises InvalidRequest for an empty one, PermissionRefused, NoSpace or StoreError.
        """
        assert self.path is not None
        content = self._content() if passphrase is None else self._sealed_content(passphrase)
        try:
            replace_file(self.path, content)
        except OSError as error:
            raise file_error(error, self.path) from error

    def save(self, directory: Path) -> KeyFile:
        """Store the key as DIRECTORY/<key id>.key (0600, in a 0700 directory), durably; never over another file.

        Raises TargetExists, NoSpace or PermissionRefused.
        """
        path = directory / f"{self.key_id}.key"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            directory.chmod(0o700)
            write_new_file(path, self._content())
        except FileExistsError as error:
            raise TargetExists(
                f"there is a key file {path} already", path=str(path), hint="Nothing was changed; the key is kept."
            ) from error
        except OSError as error:
            raise file_error(error, path) from error
        return KeyFile(self.key_id, self.secret, path)

    def wrap(self, secret: bytes, associated_data: bytes, *, random: Callable[[int], bytes] = os.urandom) -> bytes:
        """Return salt and ciphertext; the key and so the nonce are used once, whatever number of secrets is wrapped."""
        salt = random(SALT_BYTES)
        return salt + AESGCM(self._wrapping_key(salt)).encrypt(bytes(12), secret, associated_data)

    def unwrap(self, wrapped: bytes, associated_data: bytes) -> bytes:
        """Return what ``wrap`` sealed; raises WrongKey."""
        salt, sealed = wrapped[:SALT_BYTES], wrapped[SALT_BYTES:]
        try:
            return AESGCM(self._wrapping_key(salt)).decrypt(bytes(12), sealed, associated_data)
        except (InvalidTag, ValueError) as error:
            raise WrongKey(f"key {self.key_id} does not open this envelope") from error

    def _content(self) -> bytes:
        fields = {"format": "vmkeep key", "key_id": self.key_id, "secret": self.secret.hex(), "version": 1}
        return json.dumps(fields, sort_keys=True).encode() + b"\n"

    def _sealed_content(self, passphrase: str) -> bytes:
        sealed = Passphrase(passphrase).wrap(self.secret, _PROTECTED + self.key_id.encode())
        fields = {
            "format": "vmkeep key",
            "key_id": self.key_id,
            "sealed": base64.b64encode(sealed).decode(),
            "version": 2,
        }
        return json.dumps(fields, sort_keys=True).encode() + b"\n"

    def _wrapping_key(self, salt: bytes) -> bytes:
        return HKDF(algorithm=SHA256(), length=32, salt=salt, info=WRAP_INFO).derive(self.secret)


def _unsealed(path: Path, key_id: str, sealed: bytes, passphrase: Callable[[], str] | None) -> bytes:
    if passphrase is None:
        raise InvalidRequest(f"the key file {path} has a passphrase, and none was given", path=str(path))
    try:
        return Passphrase(passphrase()).unwrap(sealed, _PROTECTED + key_id.encode())
    except WrongKey as error:
        raise WrongKey(
            f"the passphrase does not open the key file {path}",
            path=str(path),
            hint="Correct the file that the setting key_passphrase_file names.",
        ) from error
