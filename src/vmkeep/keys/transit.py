"""Keys of the transit engine of OpenBao, or of Vault, which has the same interface. Needs the extra ``transit`` (hvac).

The key is one that encrypts (aes256-gcm96, the default, or chacha20-poly1305). A policy that allows ``update`` on
``transit/encrypt/KEY`` and ``transit/decrypt/KEY`` is enough. Versions of the key are the server's own affair: what an
older one sealed opens until the server is told otherwise (``min_decryption_version``).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from vmkeep.errors import HostFileMissing, KeyUnknown, ProviderRefused, ProviderUnreachable, VmkeepError, WrongKey
from vmkeep.keys.provider import extra_missing, read_secret_file
from vmkeep.ownership import refuse_exposed_file
from vmkeep.providers import TRANSIT, ProviderSettings

try:
    import hvac
    import requests
except ImportError:
    hvac = None

_AWAY: Final = ("VaultDown", "BadGateway", "InternalServerError", "RateLimitExceeded", "VaultNotInitialized")
_NO_KEY: Final = ("encryption key not found", "no existing key", "no handler for route")


class TransitKey:
    """A key of a transit engine, by HTTPS. The server's certificate is proved, with ``ca_file`` or the system's."""

    def __init__(self, settings: ProviderSettings) -> None:
        if hvac is None:
            raise extra_missing(settings, "hvac")
        self._settings = settings
        self._key = settings.text("key")
        self._mount = settings.text("mount", TRANSIT)
        authorities = settings.text("ca_file")
        if authorities:
            refuse_exposed_file(Path(authorities), f"ca_file of [key.{settings.name}]", secret=False)
            if not Path(authorities).is_file():
                raise HostFileMissing(
                    f"{authorities}, ca_file of [key.{settings.name}], is not there", path=authorities
                )
        session = requests.Session()
        # Neither ~/.netrc nor a proxy or authorities of the environment: the settings say whom to speak to.
        session.trust_env = False
        session.verify = authorities or True
        self._client = hvac.Client(
            url=settings.text("address"),
            token="",  # hvac would look for one in the environment and in ~/.vault-token
            namespace=settings.text("namespace") or None,
            timeout=settings.timeout_seconds,
            session=session,
            verify=authorities or True,
            allow_redirects=False,
        )
        try:
            self._log_in()
        except BaseException:
            self.close()
            raise

    def seal(self, plain: bytes) -> bytes:
        self._require_key()
        with self._translated():
            answer = self._client.secrets.transit.encrypt_data(
                name=self._key, plaintext=base64.b64encode(plain).decode(), mount_point=self._mount
            )
            return str(answer["data"]["ciphertext"]).encode()

    def open(self, sealed: bytes) -> bytes:
        if not sealed.isascii():
            raise self._error(WrongKey, "was not asked: what was sealed is no text of a transit engine")
        with self._translated(opening=True):
            answer = self._client.secrets.transit.decrypt_data(
                name=self._key, ciphertext=sealed.decode(), mount_point=self._mount
            )
            return base64.b64decode(answer["data"]["plaintext"], validate=True)

    def _require_key(self) -> None:
        """Raise KeyUnknown when there is no such key: for who may create one, the server makes it by encrypting."""
        with self._translated(), suppress(hvac.exceptions.Forbidden):  # who may not read it may mostly not create it
            self._client.secrets.transit.read_key(name=self._key, mount_point=self._mount)

    def close(self) -> None:
        with suppress(Exception):
            self._client.adapter.close()

    def _log_in(self) -> None:
        if self._settings.text("token_file"):
            self._client.token = read_secret_file(self._settings, "token_file")
            return
        secret = read_secret_file(self._settings, "secret_id_file")
        with self._translated():
            self._client.auth.approle.login(role_id=self._settings.text("role_id"), secret_id=secret)

    @contextmanager
    def _translated(self, *, opening: bool = False) -> Iterator[None]:
        """Translate the errors of one call. Nothing of the request goes into a message."""
        try:
            yield
        except VmkeepError:
            raise
        except (KeyError, TypeError, ValueError, UnicodeDecodeError, binascii.Error) as error:
            if isinstance(error, requests.RequestException):
                raise self._unreachable(error) from error
            raise self._error(ProviderRefused, "gave an answer that is none of a transit engine") from error
        except requests.exceptions.SSLError as error:
            raise self._error(
                ProviderRefused,
                f"did not prove who it is: {_reason(error)}",
                hint="Nothing was sent to it. Correct `ca_file` or `address`, if it is the right server.",
            ) from error
        except (requests.RequestException, OSError) as error:
            raise self._unreachable(error) from error
        except hvac.exceptions.VaultError as error:
            raise self._translation(error, opening=opening) from error

    def _translation(self, error: Any, *, opening: bool) -> VmkeepError:
        texts = "; ".join(str(text) for text in error.errors or [error])[:300]
        kind = type(error).__name__
        if kind in _AWAY:
            # Sealed, standing by, starting, or too busy: the server itself says so.
            return self._error(ProviderUnreachable, f"cannot serve now: {texts}")
        if kind == "InvalidPath" or any(words in texts for words in _NO_KEY):
            return self._error(KeyUnknown, f"has no key {self._mount}/{self._key}: {texts}")
        if kind == "InvalidRequest" and opening:
            return self._error(WrongKey, f"does not open what was sealed with {self._mount}/{self._key}: {texts}")
        return self._error(ProviderRefused, f"refused: {texts}")

    def _unreachable(self, error: Exception) -> VmkeepError:
        return self._error(ProviderUnreachable, f"did not answer: {_reason(error)}")

    def _error(self, kind: type[VmkeepError], what: str, *, hint: str | None = None) -> VmkeepError:
        return kind(f"the server {self._settings.text('address')} of [key.{self._settings.name}] {what}", hint=hint)


def _reason(error: BaseException) -> str:
    """Return the innermost of the causes that requests and urllib3 wrap into each other."""
    inner: Any = error
    while True:
        below = getattr(inner, "reason", None) or (inner.args[0] if inner.args else None)
        if not isinstance(below, BaseException):
            return (" ".join(str(inner).split()) or type(inner).__name__)[:300]
        inner = below
