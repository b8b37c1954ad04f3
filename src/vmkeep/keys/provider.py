"""Keys that a provider holds: they wrap what they are given, and never leave it.

What a provider does is told in two calls (``Device``): seal 32 bytes, and open what it sealed. All that an envelope
promises beyond that is made here, alike for each kind (docs/internals/repository-format.md, section 3): the secret is
sealed with a key that is drawn for it and used once, with the associated data, and the provider seals that key. So no
provider needs to know of associated data, and none can be made to open something else than was asked for.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vmkeep.errors import HostFileMissing, InvalidRequest, ProviderUnreachable, ToolMissing, WrongKey
from vmkeep.filesystem import file_error
from vmkeep.keys.material import KeyMaterial
from vmkeep.ownership import refuse_exposed_file
from vmkeep.providers import KMIP, PKCS11, TRANSIT, ProviderSettings

if TYPE_CHECKING:
    from typing import Self

PROVIDER_KEY_CONTEXT: Final = "vmkeep 2026 provider key id"
WRAP_INFO: Final = b"vmkeep provider wrap v1"
INNER_BYTES: Final = 32
SEALED_BYTES_LIMIT: Final = 8192
SECRET_FILE_BYTES_LIMIT: Final = 65536
_LENGTH: Final = struct.Struct("<H")
_PAUSE_SECONDS: Final = 0.2
R = TypeVar("R")


class Device(Protocol):
    """What a provider does with the key that its settings name. Each call ends within the settings' time.

    Every call raises ProviderUnreachable, when asking again may help; ProviderRefused; and KeyUnknown.
    """

    def seal(self, plain: bytes) -> bytes:
        """Return 32 bytes sealed, as at most ``SEALED_BYTES_LIMIT``."""
        ...

    def open(self, sealed: bytes) -> bytes:
        """Return what ``seal`` sealed; raises WrongKey as well, for what this key did not seal."""
        ...

    def close(self) -> None:
        """Let go of the connection. Raises nothing."""
        ...


class KeyProvider(KeyMaterial, Protocol):
    """A recipient's key, whichever way it is held. ``where`` tells people where that is."""

    @property
    def where(self) -> str: ...

    def check(self) -> None:
        """Prove that the key is at hand, by sealing and opening something; raises what ``wrap`` and ``unwrap`` do."""
        ...


def provider_key_id(settings: ProviderSettings) -> str:
    """Return the id of the key that the settings name: 32 hexadecimal digits. Nothing is asked for it."""
    from json import dumps

    text = dumps(dict(settings.identity), sort_keys=True, separators=(",", ":")).encode()
    return blake3(text, derive_key_context=PROVIDER_KEY_CONTEXT).hexdigest(16)


class ProviderKey:
    """The key that a table ``[key.NAME]`` names. The device is opened when it is first asked for something."""

    def __init__(
        self,
        settings: ProviderSettings,
        device: Callable[[ProviderSettings], Device] | None = None,
        *,
        random: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self.key_id = provider_key_id(settings)
        self._make = device or _device
        self._device: Device | None = None
        self._random = random
        self._clock = clock
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def kind(self) -> str:
        return self.settings.kind

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def where(self) -> str:
        place = self.settings.text("address") or f"{self.settings.text('module')}, token {self.settings.text('token')}"
        return f"key {self.settings.identity['key']} at {place}"

    def wrap(self, secret: bytes, associated_data: bytes) -> bytes:
        """Return the secret sealed: length and bytes of the provider's part, then ours. Raises as ``Device``."""
        inner = self._random(INNER_BYTES)
        sealed = self._asked(lambda device: device.seal(inner))
        if not 0 < len(sealed) <= SEALED_BYTES_LIMIT:
            raise WrongKey(f"{self.where} gave back {len(sealed)} bytes for {INNER_BYTES}: it is no key of this kind")
        return _LENGTH.pack(len(sealed)) + sealed + _cipher(inner).encrypt(bytes(12), secret, associated_data)

    def unwrap(self, wrapped: bytes, associated_data: bytes) -> bytes:
        """Return what ``wrap`` sealed. Raises WrongKey, and as ``Device``."""
        size = _LENGTH.unpack(wrapped[: _LENGTH.size])[0] if len(wrapped) > _LENGTH.size else 0
        sealed, body = wrapped[_LENGTH.size :][:size], wrapped[_LENGTH.size + size :]
        if not 0 < size <= SEALED_BYTES_LIMIT or len(sealed) != size or len(body) < 16:
            raise self._wrong()
        inner = self._asked(lambda device: device.open(sealed))
        if len(inner) != INNER_BYTES:
            raise self._wrong()
        try:
            return _cipher(inner).decrypt(bytes(12), body, associated_data)
        except InvalidTag as error:
            raise self._wrong() from error

    def check(self) -> None:
        """Seal something and open it. Raises as ``wrap`` and ``unwrap``."""
        self.unwrap(self.wrap(b"vmkeep", b"check"), b"check")

    def close(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            device.close()

    def _asked(self, call: Callable[[Device], R]) -> R:
        """Ask the device, again while it is away, for as long as one call may take: each call may be made twice."""
        until = self._clock() + self.settings.timeout_seconds
        pause = _PAUSE_SECONDS
        while True:
            try:
                if self._device is None:
                    self._device = self._make(self.settings)
                return call(self._device)
            except ProviderUnreachable:
                self.close()
                if self._clock() + pause >= until:
                    raise
                self._sleep(pause)
                pause *= 2
            except BaseException:
                self.close()
                raise

    def _wrong(self) -> WrongKey:
        return WrongKey(
            f"{self.where} does not open this envelope: it is another key of that name, or the envelope was changed",
            hint=f"Look at the settings of [key.{self.name}]. Another recipient's key opens the repository too.",
        )


def read_secret_file(settings: ProviderSettings, field: str) -> str:
    """Return the first line of a file that the settings name.

    Raises HomeExposed when others than its owner may read or change it, HostFileMissing, InvalidRequest for an empty
    one, PermissionRefused or StoreError.
    """
    return first_line(Path(settings.text(field)), f"{field} of [key.{settings.name}]")


def first_line(path: Path, what: str) -> str:
    """Return the first line of a file with a secret; raises as ``read_secret_file``."""
    refuse_exposed_file(path, what, secret=True)
    try:
        with path.open("rb") as file:
            text = file.read(SECRET_FILE_BYTES_LIMIT).decode()
    except FileNotFoundError as error:
        raise HostFileMissing(f"{path}, {what}, is not there", path=str(path)) from error
    except UnicodeDecodeError:
        raise InvalidRequest(f"{path}, {what}, is not a text", path=str(path)) from None
    except OSError as error:
        raise file_error(error, path, "read") from error
    line = text.partition("\n")[0].strip("\r")
    if not line:
        raise InvalidRequest(f"{path}, {what}, is empty", path=str(path), hint="Its first line is what is used.")
    return line


def extra_missing(settings: ProviderSettings, package: str) -> ToolMissing:
    """Return the error for a provider whose Python package is not installed."""
    return ToolMissing(
        f"[key.{settings.name}]: keys of kind {settings.kind} need the Python package {package}, which is not here",
        hint=f"Install vmkeep with VMKEEP_SETUP_PROVIDERS=yes, or its extra {settings.kind}. Nothing was begun.",
    )


def _device(settings: ProviderSettings) -> Device:
    if settings.kind == TRANSIT:
        from vmkeep.keys.transit import TransitKey

        return TransitKey(settings)
    if settings.kind == PKCS11:
        from vmkeep.keys.token import TokenKey

        return TokenKey(settings)
    assert settings.kind == KMIP
    from vmkeep.keys.kmip import KmipKey

    return KmipKey(settings)


def _cipher(inner: bytes) -> AESGCM:
    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=None, info=WRAP_INFO).derive(inner))
