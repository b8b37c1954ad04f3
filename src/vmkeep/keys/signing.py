"""The key with which an installation signs its points, and by which others tell it from installations of its name.

It is Ed25519 (RFC 8032), and it never leaves its home: it is not what opens a repository, so nobody else needs it, and
`vmkeep key export` does not hold it. The file says as well on which machine it was used last, so that a home which was
copied with its host is recognised (docs/adr/0026-points-are-signed.md).
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import field, replace
from pathlib import Path
from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vmkeep.errors import InvalidRequest, TargetExists
from vmkeep.filesystem import file_error, replace_file, write_new_file
from vmkeep.keys.keyfile import read_key_file
from vmkeep.values import dataclass

SEED_BYTES: Final = 32
FINGERPRINT_CONTEXT: Final = "vmkeep 2026 host key fingerprint"
MACHINE_CONTEXT: Final = "vmkeep 2026 host machine"
_FORMAT: Final = "vmkeep signing key"
_HALF: Final = 16
_UNKNOWN_HALF: Final = "0" * _HALF
_MACHINE_FILES: Final = (Path("/etc/machine-id"), Path("/sys/class/dmi/id/product_uuid"))


def fingerprint_of(public_key: bytes) -> str:
    """Return what a person compares of a public key: 32 hexadecimal digits."""
    return blake3(public_key, derive_key_context=FINGERPRINT_CONTEXT).hexdigest(16)


def is_signed(public_key: bytes, text: bytes, signature: bytes) -> bool:
    """Return whether the owner of a public key has signed a text."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


def this_machine(files: tuple[Path, Path] = _MACHINE_FILES) -> str:
    """Return what tells this machine from others, without saying which one it is: 32 hexadecimal digits.

    The halves are of /etc/machine-id, which a copy of a whole disk takes with it, and of the UUID of the (virtual)
    hardware, which it does not, and which root alone may read. Zeros stand for what cannot be read.
    """
    halves = []
    for path in files:
        text = ""
        with suppress(OSError, UnicodeDecodeError):
            text = path.read_text("ascii").strip().lower()
        halves.append(blake3(text.encode(), derive_key_context=MACHINE_CONTEXT).hexdigest(8) if text else _UNKNOWN_HALF)
    return "".join(halves)


def is_same_machine(one: str, other: str) -> bool:
    """Return whether two values of ``this_machine`` may be of one machine: no half that both know differs."""
    pairs = ((one[at : at + _HALF], other[at : at + _HALF]) for at in (0, _HALF))
    return all(_UNKNOWN_HALF in pair or "" in pair or pair[0] == pair[1] for pair in pairs)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, and the id of the installation that it belongs to: 32 hexadecimal digits, drawn at first use.

    ``machine`` and ``host`` are where it was used last, and ``home`` is the folder; "" in a file of an older release.
    """

    installation: str
    seed: bytes = field(repr=False)
    machine: str
    host: str
    path: Path | None = None
    home: str = ""

    @property
    def public_key(self) -> bytes:
        return self._private().public_key().public_bytes_raw()

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.public_key)

    def sign(self, text: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return self._private().sign(text)

    @classmethod
    def draw(
        cls,
        *,
        machine: str,
        host: str,
        home: str = "",
        installation: str | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> SigningKey:
        """Make a new key that is stored nowhere yet; of a new installation unless one is given, whose key is lost."""
        return cls(installation or random(16).hex(), random(SEED_BYTES), machine, host, home=home)

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read the file. Raises KeyMissing, PermissionRefused or StoreError, and InvalidRequest for a damaged one."""
        text = read_key_file(path, "signing key")
        try:
            value = json.loads(text)
            if value["format"] != _FORMAT or value["version"] != 1:
                raise ValueError("format")
            key = cls(
                _hex(value["installation"], 16).hex(),
                _hex(value["secret"], SEED_BYTES),
                _hex(value["machine"], 16).hex(),
                str(value["host"]),
                path,
                str(value.get("home", "")),
            )
            if key.public_key != _hex(value["public"], 32):
                raise ValueError("another key")
        except (ValueError, KeyError, TypeError, RecursionError):
            # Without its cause: a parser's exception may quote what it could not parse.
            raise InvalidRequest(f"{path} is not a signing key of vmkeep, or it was damaged", path=str(path)) from None
        return key

    def save(self, path: Path) -> SigningKey:
        """Store the key (0600), durably; never over another file.

        Raises TargetExists, NoSpace, PermissionRefused or StoreError.
        """
        try:
            write_new_file(path, self._content())
        except FileExistsError as error:
            raise TargetExists(f"there is a signing key {path} already", path=str(path)) from error
        except OSError as error:
            raise file_error(error, path) from error
        return replace(self, path=path)

    def replace(self, path: Path) -> SigningKey:
        """Store the key in the place of one that was kept aside; at no time there is none. Raises as ``used_on``."""
        try:
            replace_file(path, self._content())
        except OSError as error:
            raise file_error(error, path) from error
        return replace(self, path=path)

    def used_on(self, machine: str, host: str, home: str) -> SigningKey:
        """Note in the file that the key is used on another machine, or in another folder, now.

        Raises as ``save`` does, but TargetExists.
        """
        assert self.path is not None
        moved = replace(self, machine=machine, host=host, home=home)
        try:
            replace_file(self.path, moved._content())
        except OSError as error:
            raise file_error(error, self.path) from error
        return moved

    def _content(self) -> bytes:
        value = {
            "format": _FORMAT,
            "home": self.home,
            "host": self.host,
            "installation": self.installation,
            "machine": self.machine,
            "public": self.public_key.hex(),
            "secret": self.seed.hex(),
            "version": 1,
        }
        return json.dumps(value, sort_keys=True).encode() + b"\n"

    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)


def put_aside(path: Path, ending: str) -> Path:
    """Give a key file another name beside it, over none that is there, and return that. Raises OSError."""
    aside = keep_aside(path, ending)
    path.unlink()
    return aside


def keep_aside(path: Path, ending: str) -> Path:
    """Give a key file a second name beside it, over none that is there, and return that. Raises OSError."""
    number = 0
    while True:
        aside = path.with_name(f"{path.name}.{ending}{f'-{number}' if number else ''}")
        try:
            os.link(path, aside)
        except FileExistsError:
            if aside.samefile(path):
                return aside  # of an attempt that was killed
            number += 1
            continue
        return aside


def _hex(text: object, size_bytes: int) -> bytes:
    value = bytes.fromhex(text) if isinstance(text, str) else b""
    if len(value) != size_bytes:
        raise ValueError("length")
    return value
