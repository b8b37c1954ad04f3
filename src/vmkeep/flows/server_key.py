"""What a server shows: a certificate of its own authority, and the authorities whose hosts it takes, in files."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography import x509

from vmkeep.config import Settings
from vmkeep.filesystem import file_errors, replace_file
from vmkeep.identity.certificates import certificate_pem, draw_key, is_signed_by, key_pem
from vmkeep.keys.authority import Authorities
from vmkeep.values import dataclass

SERVER_DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """``key`` holds the server's key and its certificates, ``clients`` the authorities of hosts; both are PEM."""

    key: Path
    clients: Path


def prepare_server(settings: Settings, names: Sequence[str], now: dt.datetime | None = None) -> bool:
    """Make the files of ``server_files`` as they must be now; return whether anything of them was made anew.

    ``names`` are those by which people reach the server. Raises as reading and writing of keys does.
    """
    now = now or dt.datetime.now(dt.UTC)
    authorities = Authorities.load_or_draw(settings.authority_path, now)
    files = server_files(settings)
    clients = "".join(map(certificate_pem, authorities.trusted)).encode()
    changed = _written(files.clients, clients)
    if not _will_do(files.key, authorities, names, now):
        key = draw_key()
        made = authorities.present.for_server(key.public_key(), names, now, SERVER_DAYS)
        chain = [made] if authorities.across is None else [made, authorities.across]
        changed |= _written(files.key, (key_pem(key) + "".join(map(certificate_pem, chain))).encode())
    return changed


def server_files(settings: Settings) -> ServerFiles:
    return ServerFiles(settings.server_key_path, settings.authorities_path)


def _will_do(path: Path, authorities: Authorities, names: Sequence[str], now: dt.datetime) -> bool:
    with suppress(OSError, ValueError):
        served, *between = x509.load_pem_x509_certificates(path.read_bytes())
        told = served.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        known = {*told.get_values_for_type(x509.DNSName), *map(str, told.get_values_for_type(x509.IPAddress))}
        begins, ends = served.not_valid_before_utc, served.not_valid_after_utc
        return (
            set(names) <= known
            and is_signed_by(served, authorities.present.certificate)
            and between == ([] if authorities.across is None else [authorities.across])
            and begins <= now < begins + (ends - begins) / 2
        )
    return False


def _written(path: Path, content: bytes) -> bool:
    with file_errors(path):
        if path.exists() and path.read_bytes() == content:
            return False
        replace_file(path, content)
    return True
