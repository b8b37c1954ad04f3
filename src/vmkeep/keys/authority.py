"""The authorities of a fleet, in a file of the server's home (0600, as other keys): one that signs, and the one before.

After a rotation both are trusted until the former one is retired. The former has signed the present one as well
(``across``), so that hosts which know only the former verify servers of the present one; its own key is gone by then.
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Final

from cryptography import x509

from vmkeep.errors import InvalidRequest
from vmkeep.filesystem import file_error, replace_file, write_new_file
from vmkeep.identity.certificates import (
    Authority,
    certificate_pem,
    is_signed_by,
    key_pem,
    public_key_of,
    read_certificate,
    read_key,
)
from vmkeep.keys.keyfile import read_key_file
from vmkeep.values import dataclass

_FORMAT: Final = "vmkeep authority"


@dataclass(frozen=True, slots=True)
class Authorities:
    """What signs certificates now, and what did before, None when that is not trusted any more."""

    present: Authority
    former: x509.Certificate | None = None
    across: x509.Certificate | None = None

    @property
    def trusted(self) -> tuple[x509.Certificate, ...]:
        """Whose certificates count, the present one first."""
        return (self.present.certificate,) if self.former is None else (self.present.certificate, self.former)

    @property
    def secret(self) -> bytes:
        """What the servers of a fleet have in common and nobody else has."""
        return key_pem(self.present.key).encode()

    def rotated(self, at: dt.datetime) -> Authorities:
        """Return them with a new one that signs. Raises InvalidRequest while the one before the present is trusted."""
        if self.former is not None:
            raise InvalidRequest(
                "The authority was rotated before, and the former one is trusted still",
                hint="Retire that first, when every host has a certificate of the present one: `vmkeep ca retire`.",
            )
        drawn = Authority.draw(at)
        return Authorities(drawn, self.present.certificate, self.present.vouch_for(drawn.certificate, at))

    def retired(self) -> Authorities:
        """Return them without the former one. Raises InvalidRequest when there is none."""
        if self.former is None:
            raise InvalidRequest(
                "There is no former authority", hint="`vmkeep ca rotate` makes the present one former."
            )
        return Authorities(self.present)

    @classmethod
    def load(cls, path: Path) -> Authorities:
        """Read the file. Raises KeyMissing, PermissionRefused or StoreError, and InvalidRequest for a damaged one."""
        text = read_key_file(path, "authority")
        try:
            value = json.loads(text)
            if value["format"] != _FORMAT or value["version"] != 1:
                raise ValueError("format")
            present = Authority(read_key(value["key"]), read_certificate(value["certificate"]))
            if public_key_of(present.certificate) != present.key.public_key():
                raise ValueError("another key")
            former, across = (read_certificate(value[name]) if value[name] else None for name in ("former", "across"))
            if former is not None and (across is None or not is_signed_by(across, former)):
                raise ValueError("another authority")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidRequest):
            # Without its cause: a parser's exception may quote what it could not parse.
            raise InvalidRequest(
                f"{path} is not an authority of vmkeep, or it was damaged",
                path=str(path),
                hint="Put a copy of it back. Without one every host has to be invited anew.",
            ) from None
        return cls(present, former, across)

    @classmethod
    def load_or_draw(cls, path: Path, at: dt.datetime) -> Authorities:
        """Read the file, which is made when there is none. Raises as ``load`` does."""
        if not path.exists():
            try:
                write_new_file(path, cls(Authority.draw(at))._content())
            except FileExistsError:
                pass  # another process was first
            except OSError as error:
                raise file_error(error, path) from error
        return cls.load(path)

    def replace(self, path: Path) -> None:
        """Write them in the place of those that are there. Raises NoSpace, PermissionRefused or StoreError."""
        try:
            replace_file(path, self._content())
        except OSError as error:
            raise file_error(error, path) from error

    def _content(self) -> bytes:
        value = {
            "format": _FORMAT,
            "version": 1,
            "key": key_pem(self.present.key),
            "certificate": certificate_pem(self.present.certificate),
            "former": certificate_pem(self.former) if self.former else "",
            "across": certificate_pem(self.across) if self.across else "",
        }
        return json.dumps(value, sort_keys=True).encode() + b"\n"
