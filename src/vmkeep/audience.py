"""What the settings say of who hears of runs of jobs: the table ``[tell]`` of the settings file.

No secret stands in it. The addresses of webhooks and pings are in files, which are looked at when they are read
(``vmkeep.flows.telling``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vmkeep.errors import InvalidRequest
from vmkeep.values import dataclass

FAILURES, ALL = "failures", "all"
"""Of which runs mails and webhooks tell."""
_FILES: Final = ("webhook_url_file", "ping_url_file")
_FIELDS: Final = ("of", "mail_to", *_FILES)
_EXAMPLE: Final = 'Write it like this: [tell], and below it mail_to = "root", or ping_url_file = "/etc/vmkeep/ping"'
# What could begin a second receiver, or an option.
_NOT_IN_ADDRESSES: Final = frozenset(" ,;:<>()[]\\\"'")


@dataclass(frozen=True, slots=True)
class Audience:
    """Who hears of runs, and ``of`` which: of ``failures``, or of ``all``. A ping is sent for each."""

    of: str = FAILURES
    mail_to: str | None = None
    webhook_url_file: Path | None = None
    ping_url_file: Path | None = None


def read_audience(where: str, table: object) -> Audience:
    """Return what the table ``[tell]`` of the settings file ``where`` says; raises InvalidRequest naming the field."""
    if not isinstance(table, dict):
        raise _wrong(where, "it must be a table")
    texts: Mapping[str, object] = table
    for field, value in texts.items():
        if field not in _FIELDS:
            raise _wrong(where, f"unknown setting {field!r}", f"Those of it are: {', '.join(_FIELDS)}.")
        if not isinstance(value, str) or not value or not value.isprintable():
            raise _wrong(where, f"{field!r} must be text in quotes")
        if field in _FILES and not value.startswith("/"):
            raise _wrong(where, f"{field!r} must be the absolute path of a file")
    if texts.get("of", FAILURES) not in (FAILURES, ALL):
        raise _wrong(where, f"'of' must be {FAILURES!r} or {ALL!r}")
    mail_to = None if "mail_to" not in texts else str(texts["mail_to"])
    if mail_to is not None and (not mail_to.isascii() or mail_to.startswith("-") or set(mail_to) & _NOT_IN_ADDRESSES):
        raise _wrong(where, "'mail_to' must be one address of mail, or the name of a user of this host")
    webhook, ping = (None if field not in texts else Path(str(texts[field])) for field in _FILES)
    return Audience(str(texts.get("of", FAILURES)), mail_to, webhook, ping)


def _wrong(where: str, message: str, hint: str = _EXAMPLE) -> InvalidRequest:
    return InvalidRequest(f"{where}: [tell]: {message}", path=where, hint=hint)
