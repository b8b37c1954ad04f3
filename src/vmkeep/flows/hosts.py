"""The installations that sign points in a repository: met, told of, and what their points are good for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmkeep.catalog import Catalog, CatalogPoint, KnownHostKey, Trust
from vmkeep.errors import HostDistrusted
from vmkeep.flows.premises import MetHost
from vmkeep.keys.signing import is_same_machine
from vmkeep.repository import PointRecord
from vmkeep.repository.signatures import signature_of


def meet_hosts(catalog: Catalog, records: Iterable[PointRecord]) -> tuple[MetHost, ...]:
    """Pin the keys that signed these points; return those that were never met. Nobody is trusted by this."""
    met: dict[str, MetHost] = {}
    known = {key.fingerprint: key for key in catalog.host_keys()}
    for record in records:
        signature = signature_of(record)
        if signature is None or signature.fingerprint in known:
            continue
        key = KnownHostKey(signature.fingerprint, signature.key, signature.installation, record.host)
        former = next((old.fingerprint for old in known.values() if old.installation == key.installation), None)
        known[key.fingerprint] = key
        if catalog.see_host_key(key):
            met[key.fingerprint] = MetHost(key.fingerprint, key.installation, key.host, former)
    return tuple(met.values())


def told_of_host(met: MetHost) -> str:
    """Return what a person must hear of a key that is new here."""
    decide = (
        f"Compare it with what `vmkeep host list` says there, then `vmkeep host trust {met.fingerprint}`, or "
        "`vmkeep host distrust`"
    )
    if met.former is not None:
        return (
            f"host {met.host} signs its points with another key than before: {met.fingerprint} in place of "
            f"{met.former}. Its key was lost and made anew, or somebody who has the repository's key poses as it. "
            f"{decide}"
        )
    return f"host {met.host} signs its points with a key that is new here, {met.fingerprint}. {decide}"


def note_copies(catalog: Catalog, records: Iterable[PointRecord]) -> frozenset[str]:
    """Return which of these points, that are not known here, a copy of this very home has made on another machine.

    That there is one is noted in the catalogue, for `vmkeep doctor`.
    """
    own = {key.fingerprint: key for key in catalog.host_keys() if key.trust is Trust.OWN}
    copies = set()
    for record in records:
        signature = signature_of(record)
        key = None if signature is None else own.get(signature.fingerprint)
        if signature is None or key is None or is_same_machine(signature.machine, key.machine):
            continue
        copies.add(record.id)
        if key.copied_to != record.host:
            catalog.note_copy(key.fingerprint, record.host)
    return frozenset(copies)


def refuse_distrusted(catalog: Catalog, point_id: str) -> None:
    """Raise HostDistrusted for a point of a host that is shut out: what it holds becomes no VM here."""
    found = catalog.find_point(point_id)
    if found.trust is Trust.DISTRUSTED:
        raise HostDistrusted(
            f"point {found.id} was made on host {found.host} and is signed with key {found.signed_by}, which is "
            "distrusted here",
            vm=found.vm_name,
        )


def told_of_maker(point: CatalogPoint) -> str | None:
    """Return what a person must hear of who made a point, before it is used; None where that is proved.

    None as well of a point that was known here before points were signed.
    """
    if point.is_vouched_for:
        return None
    if point.trust is Trust.UNSIGNED:
        return f"point {point.id} is not signed: nothing proves that host {point.host} made it"
    if point.trust is Trust.DISTRUSTED:
        return (
            f"point {point.id} was made on host {point.host}, whose key {point.signed_by} is distrusted: take what is "
            "in it for the work of whoever has that host"
        )
    return (
        f"point {point.id} says that it was made on host {point.host}, and is signed with key {point.signed_by}, which "
        f"nobody has trusted here (`vmkeep host trust {point.signed_by}`)"
    )


def told_of_base(history: Sequence[CatalogPoint]) -> str | None:
    """Return what is to be told when the newest point of a VM is none to read a new one against (newest first)."""
    newest = next(iter(history), None)
    if newest is None or newest.is_vouched_for:
        return None
    return f"{told_of_maker(newest)}. Nothing is read against it, so disks may be read whole"
