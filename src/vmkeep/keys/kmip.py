"""Keys of a KMIP server, over TLS with certificates on both sides. Needs the extra ``kmip`` (PyKMIP).

The key is an AES key that is active and may encrypt and decrypt; the settings name its unique identifier. What is
sealed is encrypted with AES-CBC, which every such server knows; that it is whole is proved by what it seals
(``vmkeep.keys.provider``), as for the other kinds.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from vmkeep.errors import HostFileMissing, KeyUnknown, ProviderRefused, ProviderUnreachable, VmkeepError, WrongKey
from vmkeep.filesystem import file_error
from vmkeep.keys.provider import extra_missing
from vmkeep.ownership import refuse_exposed_file
from vmkeep.providers import ProviderSettings, address_of

try:
    with warnings.catch_warnings():
        # PyKMIP 0.11 names ciphers that it does not use here and that cryptography is about to move.
        warnings.simplefilter("ignore")
        from kmip.core import enums
        from kmip.pie import exceptions
        from kmip.pie.client import ProxyKmipClient
        from kmip.services.kmip_client import KMIPProtocol, KMIPProxy
except ImportError:
    KMIPProxy = object

NONCE_BYTES: Final = 16
_FILES: Final = (("certificate_file", False), ("private_key_file", True), ("ca_file", False))
_NO_KEY: Final = ("ITEM_NOT_FOUND", "INVALID_OBJECT_TYPE")
_NOT_OPENED: Final = ("CRYPTOGRAPHIC_FAILURE", "INVALID_FIELD", "GENERAL_FAILURE")


class KmipKey:
    """A key of a KMIP server. The server's certificate must be of the host that the settings name."""

    def __init__(self, settings: ProviderSettings) -> None:
        if KMIPProxy is object:
            raise extra_missing(settings, "PyKMIP")
        self._settings = settings
        self._key = settings.text("key")
        for field, secret in _FILES:
            path = Path(settings.text(field))
            refuse_exposed_file(path, f"{field} of [key.{settings.name}]", secret=secret)
            if not path.is_file():
                raise HostFileMissing(f"{path}, {field} of [key.{settings.name}], is not there", path=str(path))
        # PyKMIP logs what it sends, keys as well, when it is asked to log enough.
        logging.getLogger("kmip").setLevel(logging.CRITICAL)
        self._client = ProxyKmipClient(config="vmkeep", config_file=os.devnull)
        self._client.proxy = _Connection(settings)
        with self._translated():
            self._client.open()

    def seal(self, plain: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        with self._translated():
            sealed = self._client.encrypt(
                plain, uid=self._key, cryptographic_parameters=_parameters(), iv_counter_nonce=nonce
            )
            return nonce + bytes(sealed[0])

    def open(self, sealed: bytes) -> bytes:
        nonce, body = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        with self._translated(opening=True):
            return bytes(
                self._client.decrypt(
                    body, uid=self._key, cryptographic_parameters=_parameters(), iv_counter_nonce=nonce
                )
            )

    def close(self) -> None:
        with suppress(Exception):
            self._client.close()

    @contextmanager
    def _translated(self, *, opening: bool = False) -> Iterator[None]:
        try:
            yield
        except VmkeepError:
            raise
        except exceptions.KmipOperationFailure as error:
            raise self._translation(error, opening=opening) from error
        except ssl.SSLError as error:
            raise self._error(
                ProviderRefused,
                f"and this host do not accept each other's certificate: {error.reason or error}",
                hint="Correct `ca_file`, `certificate_file` or `address`, if it is the right server.",
            ) from error
        except OSError as error:
            text = error.strerror or str(error) or type(error).__name__
            raise self._error(ProviderUnreachable, f"did not answer: {text}") from error
        except (exceptions.ClientConnectionFailure, exceptions.ClientConnectionNotOpen, EOFError) as error:
            raise self._error(ProviderUnreachable, f"did not answer: {error}") from error
        except Exception as error:  # PyKMIP raises whatever it stumbles over in an answer, KMIPServerError among it
            words = " ".join(str(error).split())[:200] or type(error).__name__
            raise self._error(ProviderRefused, f"gave an answer that cannot be read: {words}") from error

    def _translation(self, error: Any, *, opening: bool) -> VmkeepError:
        reason = getattr(error.reason, "name", str(error.reason))
        text = f"{' '.join(str(error.message).split())} ({reason})"[:300]
        if reason in _NO_KEY or "Could not locate object" in text:
            return self._error(KeyUnknown, f"has no key {self._key}: {text}")
        if opening and reason in _NOT_OPENED:
            return self._error(WrongKey, f"does not open what was sealed with key {self._key}: {text}")
        return self._error(ProviderRefused, f"refused: {text}")

    def _error(self, kind: type[VmkeepError], what: str, *, hint: str | None = None) -> VmkeepError:
        address = self._settings.text("address")
        return kind(f"the KMIP server {address} of [key.{self._settings.name}] {what}", hint=hint)


class _Connection(KMIPProxy):  # type: ignore[misc]  # PyKMIP has no types
    """PyKMIP's connection, made as it should be: it would neither look at the server's name nor bound the handshake."""

    def __init__(self, settings: ProviderSettings) -> None:
        super().__init__(config="vmkeep", config_file=os.devnull)
        self._settings = settings
        self.timeout = settings.timeout_seconds

    def open(self) -> None:
        place = address_of(self._settings)
        assert place is not None
        context = _context(self._settings)
        plain = socket.create_connection(place, timeout=self._settings.timeout_seconds)
        try:
            self.socket = context.wrap_socket(plain, server_hostname=place[0])
        except BaseException:
            plain.close()
            raise
        self.protocol = KMIPProtocol(self.socket)


def _context(settings: ProviderSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    key = settings.text("private_key_file")
    with _loading(settings, "ca_file") as path:
        context.load_verify_locations(path)
    with _loading(settings, "certificate_file") as path:
        context.load_cert_chain(path, key, password="")  # one with a password would be asked for on the terminal
    return context


@contextmanager
def _loading(settings: ProviderSettings, field: str) -> Iterator[str]:
    path = settings.text(field)
    try:
        yield path
    except ssl.SSLError as error:
        words = f"{path}, {field} of [key.{settings.name}], holds no certificate that fits: {error.reason}"
        raise ProviderRefused(words, path=path, hint="Nothing was sent. All of them must be PEM.") from error
    except OSError as error:
        raise file_error(error, Path(path), "read") from error


def _parameters() -> dict[str, Any]:
    return {
        "cryptographic_algorithm": enums.CryptographicAlgorithm.AES,
        "block_cipher_mode": enums.BlockCipherMode.CBC,
        "padding_method": enums.PaddingMethod.PKCS5,
    }
