"""Rows of the keys that sign points: pinned as they were met first, trusted by people, never changed."""

from __future__ import annotations

from sqlalchemy import Connection, Row, func, insert, select, update

from vmkeep.catalog import models, texts
from vmkeep.catalog.records import KnownHostKey, Trust
from vmkeep.errors import InvalidRequest

keys = models.host_keys
SHORTEST_PREFIX = 8


def see(connection: Connection, key: KnownHostKey) -> bool:
    """Pin a key; return whether it was not known. What is known stays as it is, but for a key of one's own."""
    row = {
        "fingerprint": key.fingerprint,
        "key": key.key,
        "installation": key.installation,
        "host": key.host,
        "seen_at": texts.now(),
        "trust": str(key.trust),
        "machine": key.machine,
    }
    known = by_fingerprint(connection, key.fingerprint)
    if known is None:
        connection.execute(insert(keys).values(row))
        return True
    if not key.is_known_as(known):
        values = {"trust": str(key.trust), "machine": key.machine}
        connection.execute(update(keys).where(keys.c.fingerprint == key.fingerprint).values(values))
    return False


def by_fingerprint(connection: Connection, fingerprint: str) -> KnownHostKey | None:
    row = connection.execute(select(keys).where(keys.c.fingerprint == fingerprint)).first()
    return None if row is None else _key(row)


def all_keys(connection: Connection) -> tuple[KnownHostKey, ...]:
    """Return all keys that were ever met, in that order."""
    chosen = select(keys).order_by(keys.c.seen_at, keys.c.fingerprint)
    return tuple(_key(row) for row in connection.execute(chosen))


def named(connection: Connection, text: str) -> KnownHostKey:
    """Return the key that a fingerprint, or the beginning of one, means; raises InvalidRequest."""
    wanted = text.lower()
    hint = "`vmkeep host list` shows the fingerprints of the hosts that sign points here."
    if len(wanted) < SHORTEST_PREFIX or not set(wanted) <= set("0123456789abcdef"):
        raise InvalidRequest(f"{text!r} is neither a fingerprint nor {SHORTEST_PREFIX} characters of one", hint=hint)
    fits = select(keys).where(keys.c.fingerprint >= wanted, keys.c.fingerprint < wanted + "g")
    found = [_key(row) for row in connection.execute(fits.order_by(keys.c.fingerprint).limit(2))]
    if len(found) != 1:
        what = "several keys" if found else "no key that was met here"
        raise InvalidRequest(f"{text!r} is the beginning of {what}", hint=hint)
    return found[0]


def set_trust(connection: Connection, fingerprint: str, trust: Trust) -> None:
    connection.execute(update(keys).where(keys.c.fingerprint == fingerprint).values(trust=str(trust)))


def note_copy(connection: Connection, fingerprint: str, host: str | None) -> None:
    connection.execute(update(keys).where(keys.c.fingerprint == fingerprint).values(copied_to=host))


def points_of_each(connection: Connection) -> dict[str, int]:
    """Return how many points each key has signed, by fingerprint; unsigned ones stand under the empty one."""
    signed_by = func.coalesce(models.points.c.signed_by, "")
    return {row[0]: row[1] for row in connection.execute(select(signed_by, func.count()).group_by(signed_by))}


def _key(row: Row[tuple[object, ...]]) -> KnownHostKey:
    return KnownHostKey(
        row.fingerprint, row.key, row.installation, row.host, Trust(row.trust), row.seen_at, row.machine, row.copied_to
    )
