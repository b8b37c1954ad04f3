"""What the settings say of providers: what holds a key outside of vmkeep's home, and how it is reached.

Each is a table ``[key.NAME]`` of the settings file. No secret stands in it: those are in files, which are looked at
when they are read (``vmkeep.keys.provider``). The id of such a key is that of its name, as nothing else of it may be
known; so every host whose settings name the key alike finds it among the recipients of a repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from vmkeep.errors import InvalidRequest
from vmkeep.values import dataclass

TRANSIT, PKCS11, KMIP = "transit", "pkcs11", "kmip"
DEFAULT_TIMEOUT_SECONDS: Final = 10
MOST_TIMEOUT_SECONDS: Final = 120
_FILE, _TEXT = "file", "text"
# What each kind takes, whether it is needed, and as what.
_FIELDS: Final[Mapping[str, Mapping[str, tuple[str, bool]]]] = {
    TRANSIT: {
        "address": (_TEXT, True),
        "key": (_TEXT, True),
        "mount": (_TEXT, False),
        "namespace": (_TEXT, False),
        "token_file": (_FILE, False),
        "role_id": (_TEXT, False),
        "secret_id_file": (_FILE, False),
        "ca_file": (_FILE, False),
    },
    PKCS11: {"module": (_FILE, True), "token": (_TEXT, True), "key": (_TEXT, True), "pin_file": (_FILE, True)},
    KMIP: {
        "address": (_TEXT, True),
        "key": (_TEXT, True),
        "certificate_file": (_FILE, True),
        "private_key_file": (_FILE, True),
        "ca_file": (_FILE, True),
    },
}
_COMMON: Final = ("provider", "label", "timeout_seconds")
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_EXAMPLE: Final = (
    'Write it like this: [key.vault], and below it provider = "transit", address = "https://HOST:8200", ...'
)


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """One table ``[key.NAME]``. ``fields`` are texts by name; ``timeout_seconds`` bounds each call."""

    name: str
    kind: str
    fields: Mapping[str, str]
    timeout_seconds: int = DEFAULT_TIMEOUT_SECONDS

    def text(self, field: str, default: str = "") -> str:
        return self.fields.get(field, default)

    @property
    def identity(self) -> Mapping[str, str]:
        """What tells the key from others, on whichever host: the addresses and files by which it is reached do not."""
        key = {
            TRANSIT: f"{self.text('mount', TRANSIT)}/{self.text('key')}",
            PKCS11: f"{self.text('token')}/{self.text('key')}",
            KMIP: self.text("key"),
        }[self.kind]
        return {"key": key, "kind": self.kind, "label": self.text("label")}


def read_providers(where: str, tables: object) -> tuple[ProviderSettings, ...]:
    """Return what the tables ``[key.NAME]`` of the settings file ``where`` say; raises InvalidRequest naming each."""
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise InvalidRequest(f"{where}: setting 'key' must hold one table for each provider", path=where, hint=_EXAMPLE)
    return tuple(_provider(where, name, table) for name, table in tables.items())


def _provider(where: str, name: str, table: Mapping[str, object]) -> ProviderSettings:
    kind = table.get("provider")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise _wrong(where, name, f"'provider' must be one of {', '.join(_FIELDS)}")
    known = _FIELDS[kind]
    for field, value in table.items():
        if field not in known and field not in _COMMON:
            hint = f"Those of {kind} are: {', '.join([*_COMMON, *known])}."
            raise _wrong(where, name, f"unknown setting {field!r}", hint)
        refusal = _refusal(field, value, file=known.get(field, ("", False))[0] == _FILE)
        if refusal:
            raise _wrong(where, name, f"{field!r} must be {refusal}")
    missing = [field for field, (_, needed) in known.items() if needed and field not in table]
    if missing:
        raise _wrong(where, name, f"{missing[0]!r} is missing")
    settings = ProviderSettings(
        name,
        kind,
        {field: value for field, value in table.items() if isinstance(value, str) and field != "provider"},
        int(str(table.get("timeout_seconds", DEFAULT_TIMEOUT_SECONDS))),
    )
    problem = _problem(settings)
    if problem:
        raise _wrong(where, name, problem)
    return settings


def _wrong(where: str, name: str, message: str, hint: str = _EXAMPLE) -> InvalidRequest:
    return InvalidRequest(f"{where}: key {name!r}: {message}", path=where, hint=hint)


def _refusal(field: str, value: object, *, file: bool) -> str:
    """Return what a value would have to be; empty for one that can be meant."""
    if field == "timeout_seconds":
        number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_TIMEOUT_SECONDS
        return "" if number else f"a whole number from 1 to {MOST_TIMEOUT_SECONDS}"
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        return "text in quotes"
    return "the absolute path of a file" if file and not value.startswith("/") else ""


def _problem(settings: ProviderSettings) -> str:
    """Return what cannot be meant; empty for nothing."""
    if settings.kind == TRANSIT:
        address = urlsplit(settings.text("address"))
        if not address.hostname or not (
            address.scheme == "https" or (address.scheme == "http" and address.hostname in _LOOPBACK)
        ):
            return "'address' must begin with https:// (http:// is for this host itself alone)"
        if address.username is not None or address.password is not None:
            return "'address' must hold no password: it belongs in a file"
        by_role = "role_id" in settings.fields and "secret_id_file" in settings.fields
        if by_role == ("token_file" in settings.fields):
            return "it needs either 'token_file', or 'role_id' and 'secret_id_file'"
    if settings.kind == KMIP and address_of(settings) is None:
        return "'address' must be HOST or HOST:PORT"
    return ""


def address_of(settings: ProviderSettings) -> tuple[str, int] | None:
    """Return host and port of a KMIP server, 5696 unless one is named; None for what is no address."""
    address = urlsplit(f"//{settings.text('address')}")
    try:
        port = address.port
    except ValueError:
        return None
    if not address.hostname or address.path or address.query or address.username is not None:
        return None
    return address.hostname, port or 5696
