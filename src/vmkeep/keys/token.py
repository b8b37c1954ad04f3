"""Keys of a PKCS#11 token: a smart card, a hardware security module, or SoftHSM. Needs the extra ``pkcs11``.

The key is a secret key for AES that the token may encrypt and decrypt with (CKM_AES_GCM). It should be made on the
token itself, sensitive and not extractable, and be on a second token as well: what is lost with the only one is lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from vmkeep.errors import KeyUnknown, ProviderRefused, ProviderUnreachable, VmkeepError, WrongKey
from vmkeep.keys.provider import extra_missing, read_secret_file
from vmkeep.ownership import refuse_exposed_file
from vmkeep.providers import ProviderSettings

try:
    import pkcs11
except ImportError:
    pkcs11 = None  # type: ignore[assignment]  # told when a key is asked for

NONCE_BYTES: Final = 12
TAG_BITS: Final = 128
_AWAY: Final = (
    *("DeviceError", "DeviceMemory", "DeviceRemoved", "FunctionFailed", "HostMemory", "NoSuchToken", "SessionClosed"),
    *("SessionCount", "SessionHandleInvalid", "TokenNotPresent", "TokenNotRecognised"),
)
_PIN: Final = ("PinExpired", "PinIncorrect", "PinInvalid", "PinLenRange", "PinLocked", "UserPinNotInitialized")
_DATA: Final = ("DataInvalid", "EncryptedDataInvalid", "EncryptedDataLenRange", "GeneralError", "FunctionFailed")


class TokenKey:
    """A key of a token, through the module that its maker wrote. That module runs in this process, with its rights."""

    def __init__(self, settings: ProviderSettings) -> None:
        if pkcs11 is None:
            raise extra_missing(settings, "python-pkcs11")
        self._settings = settings
        module = settings.text("module")
        refuse_exposed_file(Path(module), f"module of [key.{settings.name}]", secret=False)
        if not Path(module).is_file():
            raise self._error(KeyUnknown, f"the module {module} is not there", hint="Correct `module` in the settings.")
        # Read first: a PIN that cannot be read is told before the token is asked, and never counts as a wrong one.
        pin = read_secret_file(settings, "pin_file")
        with self._translated(f"the module {module} does not work"):
            token = pkcs11.lib(module).get_token(token_label=settings.text("token"))
        try:
            self._session = token.open(user_pin=pin)
        except pkcs11.UserAlreadyLoggedIn:
            # By another session of this process, and a login holds for all of them.
            self._session = token.open()
        except (pkcs11.PKCS11Error, RuntimeError) as error:
            raise self._translation(error, "the token cannot be used") from error
        try:
            with self._translated("the token was asked for the key"):
                self._key: Any = self._session.get_key(
                    object_class=pkcs11.ObjectClass.SECRET_KEY, label=settings.text("key")
                )
        except BaseException:
            self.close()
            raise

    def seal(self, plain: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        with self._translated("the token did not encrypt"):
            sealed = self._key.encrypt(
                plain, mechanism=pkcs11.Mechanism.AES_GCM, mechanism_param=pkcs11.GCMParams(nonce, b"", TAG_BITS)
            )
            return nonce + bytes(sealed)

    def open(self, sealed: bytes) -> bytes:
        nonce, body = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        with self._translated("the token did not decrypt", opening=True):
            plain = self._key.decrypt(
                body, mechanism=pkcs11.Mechanism.AES_GCM, mechanism_param=pkcs11.GCMParams(nonce, b"", TAG_BITS)
            )
            return bytes(plain)

    def close(self) -> None:
        with suppress(Exception):
            self._session.close()

    @contextmanager
    def _translated(self, what: str, *, opening: bool = False) -> Iterator[None]:
        try:
            yield
        # RuntimeError: a module that cannot be loaded.
        except (pkcs11.PKCS11Error, RuntimeError, OSError) as error:
            raise self._translation(error, what, opening=opening) from error

    def _translation(self, error: Exception, what: str, *, opening: bool = False) -> VmkeepError:
        kind = type(error).__name__
        text = f"{what}: {' '.join(str(error).split()) or kind}"[:300]
        if opening and kind in _DATA:  # a tag that is wrong has no error of its own in PKCS#11
            return self._error(WrongKey, text)
        if kind in ("NoSuchKey", "MultipleObjectsReturned"):
            number = "no key" if kind == "NoSuchKey" else "more than one key"
            return self._error(KeyUnknown, f"the token has {number} {self._settings.text('key')!r}")
        if kind in ("KeyHandleInvalid", "ObjectHandleInvalid"):
            return self._error(KeyUnknown, f"the token has lost the key {self._settings.text('key')!r}")
        if kind == "NoSuchToken":
            return self._error(ProviderUnreachable, "there is no such token")
        if kind in _PIN:
            hint = "It was tried once. Correct the file; a token locks itself after a few wrong ones."
            return self._error(ProviderRefused, f"the token refused the PIN of `pin_file` ({kind})", hint=hint)
        return self._error(ProviderUnreachable if kind in _AWAY else ProviderRefused, text)

    def _error(self, kind: type[VmkeepError], what: str, *, hint: str | None = None) -> VmkeepError:
        return kind(f"token {self._settings.text('token')!r} of [key.{self._settings.name}]: {what}", hint=hint)
