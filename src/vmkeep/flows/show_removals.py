"""Proofs of deletion as they are shown: read from the repository, proved, and told by whom they are signed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vmkeep.catalog import Catalog, CatalogDeletion, Trust
from vmkeep.commandline import command_line
from vmkeep.errors import InvalidRequest, ObjectDamaged, ObjectMissing
from vmkeep.repository import DeletionEvent, DeletionRecord, Repository
from vmkeep.repository.layout import DELETIONS
from vmkeep.values import dataclass

_SHORTEST_ID = 8


@dataclass(frozen=True, slots=True)
class Proved:
    """A proof or a fact about one. ``stored`` False: the repository has it not yet, and it is not signed.

    ``signed_by`` is the fingerprint of the key that signed it, None for none; the signature is right.
    """

    record: DeletionRecord
    stored: bool
    signed_by: str | None
    trust: Trust


@dataclass(frozen=True, slots=True)
class RemovalShown:
    """A removal with what was learned of it since, the oldest first."""

    removal: Proved
    facts: tuple[Proved, ...] = ()


def list_removals(
    catalog: Catalog, vm: str | None = None
) -> tuple[tuple[CatalogDeletion, tuple[CatalogDeletion, ...]], ...]:
    """Return what the catalogue has of removals, each with the facts about it, the oldest first.

    ``vm`` is a name that the VM had then, or its UUID, or the beginning of a removal's id.
    """
    rows = catalog.deletions()
    removals = [each for each in rows if each.of is None and (vm is None or _is_called(each, vm))]
    return tuple((each, tuple(fact for fact in rows if fact.of == each.id)) for each in removals)


def show_removals(catalog: Catalog, repository: Callable[[], Repository], named: str) -> tuple[RemovalShown, ...]:
    """Return the removals that a VM or an id means, each proved as the repository has it.

    Raises InvalidRequest for a name of none, ObjectMissing for a proof that is gone, and ObjectDamaged for one whose
    signature is wrong or that is another one than was known here.
    """
    found = list_removals(catalog, named)
    if not found:
        raise InvalidRequest(
            f"no TPM is known to have been removed of {named!r}",
            hint="`vmkeep tpm removal list` shows them; `vmkeep init --adopt` takes over those of a repository.",
        )
    trusts = {key.fingerprint: key.trust for key in catalog.host_keys()}
    return tuple(
        RemovalShown(
            _proved(removal, repository, trusts),
            tuple(_proved(fact, repository, trusts) for fact in facts),
        )
        for removal, facts in found
    )


def _proved(row: CatalogDeletion, repository: Callable[[], Repository], trusts: dict[str, Trust]) -> Proved:
    if not row.stored:
        record = DeletionRecord.from_json(row.document, f"the proof of deletion {row.id}")
        return Proved(record, stored=False, signed_by=None, trust=Trust.UNSIGNED)
    where = DELETIONS + row.id
    try:
        record = repository().deletions.get(row.id)
    except ObjectMissing as error:
        raise ObjectMissing(
            f"the proof of deletion {row.id} is not in the repository any more: somebody deleted it",
            path=where,
            hint=f"`{command_line('vmkeep tpm removal list')}` shows what this installation knows of it.",
        ) from error
    signed_by = None if record.signature is None else record.signature.fingerprint
    if record.as_json() != row.document or signed_by != row.signed_by:
        raise ObjectDamaged(
            f"the proof of deletion {row.id} is another one than was known here: somebody put it in its place",
            path=where,
            hint="Believe nothing that it says. Whoever did this has the repository's key: look at the hosts that have "
            "it (`vmkeep host list`).",
        )
    return Proved(record, stored=True, signed_by=signed_by, trust=_trust(signed_by, trusts))


def _trust(signed_by: str | None, trusts: dict[str, Trust]) -> Trust:
    return Trust.UNSIGNED if signed_by is None else trusts.get(signed_by, Trust.UNKNOWN)


def _is_called(row: CatalogDeletion, text: str) -> bool:
    wanted = text.lower()
    is_id = len(wanted) >= _SHORTEST_ID and row.id.startswith(wanted)
    return is_id or row.vm_uuid == wanted or row.document.get("vm_name") == text


def still_open(shown: RemovalShown) -> Sequence[str]:
    """Return the tombstones of a removal about which no fact says that they are at their end."""
    over = {each for fact in shown.facts for each in fact.record.tombstones if fact.record.event in _ENDS}
    return [each for each in shown.removal.record.tombstones if each not in over]


_ENDS = (DeletionEvent.SETTLED, DeletionEvent.WAIVED, DeletionEvent.SUPERSEDED)
