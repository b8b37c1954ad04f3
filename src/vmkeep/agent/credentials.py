"""What a host has to speak to its server: its key, its certificate, and the authorities it trusts. One file, 0600.

The file is always whole. A key that is to follow stands in it before anything of it is sent, and the one in use stays
until the next was used, so that a death or a lost answer at any moment leaves a key that counts.
"""

from __future__ import annotations

import json
import os
import ssl
from dataclasses import field, replace
from pathlib import Path
from typing import Final

from vmkeep.errors import InvalidRequest
from vmkeep.filesystem import file_error, replace_file
from vmkeep.identity.certificates import described, read_certificate, read_key
from vmkeep.identity.hosts import HostCertificate
from vmkeep.keys.keyfile import read_key_file
from vmkeep.values import dataclass

_FORMAT: Final = "vmkeep agent"
_TEXTS: Final = ("host", "name", "server", "agents", "key", "certificate", "next_key", "next_certificate", "invite")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Keys and certificates are PEM. ``certificate`` is empty before the host is enrolled, ``next_key`` unless one is
    to follow, and ``next_certificate`` until the server gave it. ``server`` and ``agents`` are its listeners
    (HOST:PORT). ``invite`` is the hash of the token's secret.
    """

    server: str
    agents: str
    host: str
    name: str
    authorities: tuple[str, ...]
    key: str = field(repr=False)
    certificate: str
    invite: str
    next_key: str = field(default="", repr=False)
    next_certificate: str = ""

    @classmethod
    def load(cls, path: Path) -> Credentials:
        """Read the file. Raises KeyMissing, PermissionRefused or StoreError, and InvalidRequest for a damaged one."""
        text = read_key_file(path, "key of a host")
        try:
            value = json.loads(text)
            if value["format"] != _FORMAT or value["version"] != 1:
                raise ValueError("format")
            texts = {name: value[name] for name in _TEXTS}
            authorities = tuple(value["authorities"])
            if not authorities or not all(isinstance(each, str) for each in (*texts.values(), *authorities)):
                raise ValueError("fields")
            read_key(texts["key"])
            for each in (*authorities, *filter(None, [texts["certificate"], texts["next_certificate"]])):
                read_certificate(each)
        except (ValueError, KeyError, TypeError, RecursionError, InvalidRequest):
            # Without its cause: a parser's exception may quote what it could not parse.
            raise InvalidRequest(
                f"{path} is not the key of a host, or it was damaged",
                path=str(path),
                hint="Move it away, and enrol with a new invite: `vmkeep host revoke` and `vmkeep host invite`.",
            ) from None
        return cls(authorities=authorities, **texts)

    def save(self, path: Path) -> Credentials:
        """Write them in the place of those that are there. Raises NoSpace, PermissionRefused or StoreError."""
        value = {name: getattr(self, name) for name in (*_TEXTS, "authorities")}
        text = json.dumps(value | {"format": _FORMAT, "version": 1}, sort_keys=True)
        try:
            replace_file(path, text.encode() + b"\n")
        except OSError as error:
            raise file_error(error, path) from error
        return self

    def promoted(self) -> Credentials:
        """Return them with the next key and certificate in use."""
        return replace(self, key=self.next_key, certificate=self.next_certificate, next_key="", next_certificate="")

    def described(self) -> HostCertificate:
        """Return the certificate in use as the server knows it. Raises InvalidRequest before the host is enrolled."""
        return described(read_certificate(self.certificate), "")

    def tls(self, *, shown: bool = True) -> ssl.SSLContext:
        """Return what a connection to the server is made with: it must be one of these authorities.

        ``shown``: with this host's certificate.
        """
        context = trusting(self.authorities)
        if shown:
            # Python takes keys from files alone; this one is in memory, and has no name.
            descriptor = os.memfd_create("vmkeep-host-key", os.MFD_CLOEXEC)
            try:
                os.write(descriptor, (self.key + self.certificate).encode())
                context.load_cert_chain(f"/proc/self/fd/{descriptor}")
            finally:
                os.close(descriptor)
        return context


def trusting(authorities: tuple[str, ...]) -> ssl.SSLContext:
    """Return a context of TLS 1.3 that takes servers of these authorities, and of nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 and later do by themselves
    context.load_verify_locations(cadata="".join(authorities))
    return context
