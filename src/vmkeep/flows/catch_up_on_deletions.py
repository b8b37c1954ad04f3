"""Let the catalogue take over proofs of deletion of the repository that it does not know.

As with pins (``flows.catch_up_on_pins``): the names are listed, and those are read that were never seen. They are few,
so those of all VMs are. What must still be deleted is no part of it: that is known where it lies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vmkeep.catalog import Catalog
from vmkeep.errors import IntegrityError, ObjectMissing
from vmkeep.flows.hosts import meet_signers

if TYPE_CHECKING:
    from vmkeep.repository import DeletionRecord


class HeldDeletions(Protocol):
    """The part of a repository that is asked."""

    def ids(self) -> list[str]: ...

    def get(self, deletion_id: str) -> DeletionRecord: ...


class HoldsDeletions(Protocol):
    """A repository, as far as its proofs of deletion."""

    @property
    def deletions(self) -> HeldDeletions: ...


def catch_up_on_deletions(catalog: Catalog, repository: HoldsDeletions) -> tuple[str, ...]:
    """Take over what is not known; return sentences about what could not be. Raises what listing the repository raises.

    Nobody is trusted by this: of what an unknown host signed nothing is decided.
    """
    stored = repository.deletions.ids()
    known = {each.id for each in catalog.deletions()} if stored else frozenset()
    told: list[str] = []
    found: list[DeletionRecord] = []
    for deletion_id in stored:
        if deletion_id in known:
            continue
        try:
            found.append(repository.deletions.get(deletion_id))
        except ObjectMissing:
            continue  # deleted meanwhile
        except IntegrityError as error:
            told.append(f"a proof of deletion in the repository could not be taken over: {error.message}")
    if not found:
        return tuple(told)
    from vmkeep.flows.removals import as_row

    meet_signers(catalog, ((record.signature, record.host) for record in found))
    for record in found:
        catalog.record_deletion(as_row(record, stored=True))
    return tuple(told)
