"""The installations that sign points in a repository: met, told of, and what their points are good for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from vmkeep.catalog import Catalog, CatalogPoint, KnownHostKey, Trust
from vmkeep.catalog.records import trust_of
from vmkeep.commandline import command_line
from vmkeep.errors import HostDistrusted, VmkeepError
from vmkeep.flows.installation import MetHost, Premises
from vmkeep.flows.own_key import pin_own_key
from vmkeep.flows.patience import patiently
from vmkeep.host.tasks.survey import Progress
from vmkeep.keys.signing import is_same_machine
from vmkeep.repository.signatures import FIELD, HostKey, Signature


def meet_hosts(catalog: Catalog, points: Iterable[CatalogPoint]) -> tuple[MetHost, ...]:
    """Pin the keys that signed points which were read just now; return those that were never met.

    Nobody is trusted by this.
    """
    keys: dict[str, KnownHostKey] = {}
    for point in points:
        signature = point.document.get(FIELD)
        if point.signed_by and signature is not None and point.signed_by not in keys:
            key = KnownHostKey(point.signed_by, signature["key"], signature["installation"], point.host)
            keys[point.signed_by] = key
    return _meet(catalog, keys.values())


def meet_signers(catalog: Catalog, signers: Iterable[tuple[Signature | None, str]]) -> tuple[MetHost, ...]:
    """Pin keys that signed what was read just now, with the names of their hosts; return as ``meet_hosts`` does."""
    keys = {
        signature.fingerprint: KnownHostKey(signature.fingerprint, signature.key, signature.installation, host)
        for signature, host in signers
        if signature is not None
    }
    return _meet(catalog, keys.values())


def look_for_hosts(premises: Premises, watch: Callable[[Progress], None]) -> str | None:
    """Pin the keys that the repository holds; return why it could not be asked, None when it was."""
    catalog = premises.catalog
    with catalog.copy_written():  # where the home cannot be written, what is met is for this command alone
        pin_own_key(premises.settings, catalog)
        if catalog.repository() is None:
            return None
        try:
            limit_seconds = premises.settings.stalled_after_seconds
            keys = patiently(lambda: premises.repository.host_keys(), limit_seconds, watch=watch)
        except VmkeepError as error:
            return error.message
        meet_keys(catalog, keys)
    return None


def meet_keys(catalog: Catalog, keys: Iterable[HostKey]) -> None:
    """Pin keys that a repository holds. Nobody is trusted by this."""
    _meet(catalog, (KnownHostKey(key.fingerprint, key.key, key.installation, key.host) for key in keys))


def _meet(catalog: Catalog, keys: Iterable[KnownHostKey]) -> tuple[MetHost, ...]:
    known = {key.fingerprint for key in catalog.host_keys()}
    new = [key for key in keys if key.fingerprint not in known and catalog.see_host_key(key)]
    met = {key.fingerprint for key in new}
    return tuple(host for host in undecided(catalog) if host.fingerprint in met)


def undecided(catalog: Catalog) -> tuple[MetHost, ...]:
    """Return the hosts that sign points, and that nobody here has trusted or distrusted yet."""
    keys = catalog.host_keys()
    return tuple(
        MetHost(key.fingerprint, key.installation, key.host, former_key(key, keys))
        for key in keys
        if key.trust is Trust.UNKNOWN
    )


def former_key(key: KnownHostKey, keys: Sequence[KnownHostKey]) -> str | None:
    """Return the fingerprint of the key that an installation had before this one, as they were met."""
    earlier = [old.fingerprint for old in keys[: keys.index(key)] if old.installation == key.installation]
    return earlier[-1] if earlier else None


def told_of_host(met: MetHost) -> str:
    """Return what a person must hear of a key that is new here."""
    trust = command_line("vmkeep host trust", met.fingerprint)
    decide = f"Compare it with what `vmkeep host list` says there, then `{trust}`, or `vmkeep host distrust`"
    if met.former is not None:
        return (
            f"host {met.host} signs its points with another key than before: {met.fingerprint} in place of "
            f"{met.former}. Its key was lost and made anew, or somebody who has the repository's key poses as it. "
            f"{decide}"
        )
    return f"host {met.host} signs its points with a key that is new here, {met.fingerprint}. {decide}"


def judged(catalog: Catalog, points: Iterable[CatalogPoint]) -> list[CatalogPoint]:
    """Return points that were read just now with what the catalogue thinks of who signed them."""
    keys = {key.fingerprint: key for key in catalog.host_keys()}
    found = []
    for point in points:
        key = keys.get(point.signed_by or "")
        trust = trust_of(point.signed_by, None if key is None else key.trust)
        found.append(replace(point, trust=trust, installation=None if key is None else key.installation))
    return found


def note_copies(catalog: Catalog, points: Iterable[CatalogPoint]) -> frozenset[str]:
    """Return which of these points, that are not known here, a copy of this very home has made on another machine.

    That there is one is noted in the catalogue, for `vmkeep doctor`.
    """
    own = {key.fingerprint: key for key in catalog.host_keys() if key.trust is Trust.OWN}
    copies = set()
    for point in points:
        key = own.get(point.signed_by or "")
        if key is None or is_same_machine(point.document[FIELD]["machine"], key.machine):
            continue
        copies.add(point.id)
        if key.copied_to != point.host:
            catalog.note_copy(key.fingerprint, point.host)
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
    trust = command_line("vmkeep host trust", point.signed_by or "")
    return (
        f"point {point.id} says that it was made on host {point.host}, and is signed with key {point.signed_by}, which "
        f"nobody has trusted here (`{trust}`)"
    )


def told_of_base(history: Sequence[CatalogPoint]) -> str | None:
    """Return what is to be told when the newest point of a VM is none to read a new one against (newest first)."""
    newest = next(iter(history), None)
    if newest is None or newest.is_vouched_for:
        return None
    return f"{told_of_maker(newest)}. Nothing is read against it, so disks may be read whole"
