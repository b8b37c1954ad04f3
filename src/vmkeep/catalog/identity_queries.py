"""Rows of hosts' identities: moved whole, by compare-and-set, with what was done about them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from vmkeep.catalog import models
from vmkeep.errors import CatalogError
from vmkeep.identity.hosts import CertificateState, HostCertificate, HostEvent, HostIdentity, HostStatus

_identities = models.host_identities
_certificates = models.host_certificates
_events = models.host_events


def all_listed(connection: Connection) -> tuple[HostIdentity, ...]:
    """Return all that are not forgotten, by name."""
    chosen = select(_identities).where(_identities.c.taken_name.is_not(None)).order_by(_identities.c.name)
    certificates: dict[str, list[HostCertificate]] = defaultdict(list)
    for row in connection.execute(select(_certificates).order_by(_certificates.c.place)):
        certificates[row.identity_id].append(_certificate(row))
    return tuple(_identity(row, certificates[row.id]) for row in connection.execute(chosen).all())


def get(connection: Connection, host_id: str) -> HostIdentity | None:
    return _read(connection, _identities.c.id == host_id)


def invited(connection: Connection, invite: str) -> HostIdentity | None:
    """Return the host whose invite has this hash; nobody for an empty one, which means that there is none."""
    return _read(connection, _identities.c.invite == invite) if invite else None


def move(connection: Connection, known: HostIdentity | None, to: HostIdentity, event: HostEvent) -> None:
    """Put an identity in the place of ``known`` unless that is another by now. Raises CatalogError."""
    row = {
        "id": to.id,
        "name": to.name,
        "taken_name": None if to.status is HostStatus.FORGOTTEN else to.name,
        "status": str(to.status),
        "revision": to.revision,
        "changed_at": to.changed_at,
        "invite": to.invite,
        "invite_until": to.invite_until,
        "invite_serial": to.invite_serial,
    }
    if not to.follows(known):
        raise refusal(to)
    if known is None:
        if get(connection, to.id) is not None:
            raise refusal(to)
        connection.execute(insert(_identities).values(row))
    else:
        mine = (_identities.c.id == known.id, _identities.c.revision == known.revision)
        if connection.execute(update(_identities).where(*mine).values(row)).rowcount != 1:
            raise refusal(to)
    _write_certificates(connection, to)
    connection.execute(
        insert(_events).values(
            identity_id=to.id,
            revision=to.revision,
            at=to.changed_at,
            what=event.what,
            who=event.who,
            serial=event.serial,
        )
    )


def refusal(to: HostIdentity) -> CatalogError:
    """Return the error of a change that came second, or that none may make."""
    return CatalogError(
        f"Host {to.name} cannot become {to.status}: it was changed meanwhile",
        hint="Run the command again: it looks at the host as it is now.",
    )


def events(connection: Connection, host_id: str) -> tuple[HostEvent, ...]:
    chosen = select(_events).where(_events.c.identity_id == host_id).order_by(_events.c.revision)
    return tuple(HostEvent(row.what, row.who, row.serial, row.revision, row.at) for row in connection.execute(chosen))


def _write_certificates(connection: Connection, to: HostIdentity) -> None:
    """Write what is new of them, and leave out what is left out. Of one that is there only the state changes."""
    present = {row.serial: row for row in _rows_of(connection, to.id)}
    for place, each in enumerate(to.certificates):
        known = present.pop(each.serial, None)
        if known is None:
            row = {name: getattr(each, name) for name in each.__slots__} | {"state": str(each.state)}
            connection.execute(insert(_certificates).values(identity_id=to.id, place=place, **row))
        elif (known.state, known.place) != (str(each.state), place):
            mine = _certificates.c.serial == each.serial
            connection.execute(update(_certificates).where(mine).values(state=str(each.state), place=place))
    for serial in present:
        connection.execute(delete(_certificates).where(_certificates.c.serial == serial))


def _rows_of(connection: Connection, host_id: str) -> list[Row[Any]]:
    chosen = select(_certificates).where(_certificates.c.identity_id == host_id).order_by(_certificates.c.place)
    return list(connection.execute(chosen).all())


def _read(connection: Connection, meant: Any) -> HostIdentity | None:
    row = connection.execute(select(_identities).where(meant)).first()
    return None if row is None else _identity(row, [_certificate(each) for each in _rows_of(connection, row.id)])


def _identity(row: Row[Any], certificates: list[HostCertificate]) -> HostIdentity:
    return HostIdentity(
        row.id,
        row.name,
        HostStatus(row.status),
        row.revision,
        row.changed_at,
        row.invite,
        row.invite_until,
        row.invite_serial,
        tuple(certificates),
    )


def _certificate(row: Row[Any]) -> HostCertificate:
    return HostCertificate(
        row.serial, CertificateState(row.state), row.key, row.begins, row.ends, row.authority, row.pem
    )
