"""Whether a point's record is that of the point known here under its id, and the keyring the one that was in force.

What a person names, a list shows and a question asks for is the catalogue's. What is restored, built on or verified is
the repository's, and whoever has its key can put another record in the place of one: of another VM, for instance. So
the catalogue keeps the digest of each point that was written here or adopted, and every record that is read goes by it.

Earlier generations of the keyring stay in the storage. Who held a key that was removed, and can delete the later ones,
would have what is written sealed for that key again.
"""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from vmkeep.catalog import Catalog, CatalogPoint, KnownKeyring
from vmkeep.errors import KeyringReplaced, PointChanged, VmkeepError
from vmkeep.filesystem import OF_STORAGE
from vmkeep.logs import get_logger

if TYPE_CHECKING:
    from vmkeep.repository import PointRecord
    from vmkeep.repository.keyring import Keyring

_log = get_logger(__name__)


def recognise(catalog: Catalog, record: PointRecord) -> None:
    """Raise PointChanged unless the record is that of the point known under its id, or no point is.

    A point that an older release recorded has no digest: it gets that of the first record that says all that the
    catalogue knows of it. Raises what reading the catalogue raises.
    """
    digest = catalog.digest(record.id)
    if digest is None or digest == record.digest:
        return
    known = catalog.point(record.id)
    if known is None:
        return  # forgotten in between
    said = record.as_json()
    if "definition" not in known.document:
        del said["definition"]  # it may hold passwords, and stays in the repository
    if not digest and said == known.document:
        with suppress(VmkeepError):  # a home that cannot be written, or is busy: the next who reads it notes it
            catalog.note_digest(record.id, record.digest)
        return
    raise PointChanged(
        f"point {record.id} in the repository is not the one that is known here: {_difference(known, record, said)}",
        vm=known.vm_name,
    )


def _difference(known: CatalogPoint, record: PointRecord, said: dict[str, Any]) -> str:
    """Say what differs, the VM first: that is whose disks a restore would write."""
    if record.vm_uuid != known.vm_uuid:
        return (
            f"it says that it is of VM {record.vm_name!r} ({record.vm_uuid}), and the point is of VM "
            f"{known.vm_name!r} ({known.vm_uuid})"
        )
    differing = sorted(name for name in {*said, *known.document} if said.get(name) != known.document.get(name))
    if differing == ["signature"]:
        return "its signature differs, so another host made it, or its definition is another one"
    return f"its {', '.join(differing) or 'definition'} differ{'' if len(differing) > 1 else 's'}"


def known_keyring(keyring: Keyring) -> KnownKeyring:
    """Return a keyring as the catalogue remembers it; the same whichever of its keys has opened it."""
    domain = next(each for each in keyring.value["domains"] if each["name"] == "default")
    data_keys = tuple(sorted(each["id"] for each in domain["data_keys"]))
    return KnownKeyring(keyring.generation, sha256(keyring.to_bytes()).hexdigest(), domain["active"], data_keys)


def fault_of_keyring(catalog: Catalog, repository_id: str, keyring: Keyring) -> str:
    """Return why a keyring cannot be the one in force, by the one that was met before; empty for one that can."""
    known = catalog.repository()
    if known is None or known.id != repository_id or known.keyring is None:
        return ""
    return known.keyring.fault_of(known_keyring(keyring))


def meet_keyring(catalog: Catalog, repository_id: str, keyring: Keyring) -> None:
    """Remember the keyring that is in force in the repository of a catalogue.

    Raises KeyringReplaced for an older or another one than was in force before.
    """
    fault = fault_of_keyring(catalog, repository_id, keyring)
    if fault:
        raise KeyringReplaced(f"the repository's keyring is not the one that was in force: {fault}", path="keyring/")
    known, found = catalog.repository(), known_keyring(keyring)
    if known is not None and known.id == repository_id and known.keyring != found:
        try:
            catalog.see_keyring(repository_id, found)
        except OF_STORAGE as error:  # that keeps nothing from being read
            _log.warning("the keyring that is in force could not be remembered", error=error.message)
