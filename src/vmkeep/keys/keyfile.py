"""A key kept in a file of its own on the host: the provider of a single machine.

The key id is derived from the secret, so a file whose secret was damaged is found when it is loaded and is
not mistaken for a repository that cannot be opened. docs/internals/repository-format.md specifies the wrapping.
"""

from __future__ import annotations

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
from vmkeep.filesystem import file_error, write_new_file
from vmkeep.values import dataclass

SECRET_BYTES = 32
SALT_BYTES = 32
KEY_ID_CONTEXT = "vmkeep 2026 key file v1 key id"
WRAP_INFO = b"vmkeep key-file wrap v1"


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
        return "key-file"

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
    def load(cls, path: Path) -> KeyFile:
        """Read a key file. Raises KeyMissing, PermissionRefused, or InvalidRequest for what is not a sound key file."""
        text = read_key_file(path, "key file")
        try:
            value = json.loads(text)
            if value["format"] != "vmkeep key" or value["version"] != 1:
                raise ValueError("format")
            key_id, secret = str(value["key_id"]), bytes.fromhex(value["secret"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(
                f"{path} is not a vmkeep key file, or it was damaged",
                path=str(path),
                hint="Import the key again from the text that `vmkeep key export` printed.",
            ) from error
        return cls(key_id, secret, path)

    @classmethod
    def find(cls, directory: Path, key_id: str) -> KeyFile:
        """Read the key of that id from the directory; raises KeyMissing, and otherwise as ``load`` does."""
        if len(key_id) != 32 or not set(key_id) <= set("0123456789abcdef"):
            raise InvalidRequest(f"{key_id!r} is not a key id")
        path = directory / f"{key_id}.key"
        try:
            key = cls.load(path)
        except KeyMissing as error:
            raise KeyMissing(f"key {key_id} is not in {directory}", path=str(path)) from error
        if key.key_id != key_id:
            raise WrongKey(f"{path} holds another key ({key.key_id})", path=str(path))
        return key

    def save(self, directory: Path) -> KeyFile:
        """Store the key as DIRECTORY/<key id>.key (0600, in a 0700 directory), durably; never over another file.

        Raises TargetExists, NoSpace or PermissionRefused.
        """
        path = directory / f"{self.key_id}.key"
        fields = {"format": "vmkeep key", "key_id": self.key_id, "secret": self.secret.hex(), "version": 1}
        content = json.dumps(fields, sort_keys=True).encode() + b"\n"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            directory.chmod(0o700)
            write_new_file(path, content)
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

    def _wrapping_key(self, salt: bytes) -> bytes:
        return HKDF(algorithm=SHA256(), length=32, salt=salt, info=WRAP_INFO).derive(self.secret)
