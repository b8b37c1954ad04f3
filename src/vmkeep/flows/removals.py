"""What is recorded of a TPM that was removed, reset or given a new key: the proof of what was deleted, and what must
still be deleted.

The catalogue has both first, in one transaction; the repository gets the proof as soon as it can be reached. So a
removal whose repository is away is as well recorded as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from vmkeep.catalog import Catalog, CatalogDeletion
from vmkeep.custody.orphans import KeptContent, Orphan
from vmkeep.custody.tombstones import (
    Protection,
    Tombstone,
    TombstoneFile,
    TombstoneKind,
    TombstoneState,
    tombstone_id,
)
from vmkeep.errors import IntegrityError, TargetExists, VmkeepError
from vmkeep.flows.plan import Plan
from vmkeep.flows.secret_holders import secret_holders
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.survey import Identify
from vmkeep.host.tasks.tpms import LookAtTpmSecret, NotDeleted, SecretJudged, TpmFound, TpmStateDeleted
from vmkeep.repository import (
    DeletedFile,
    DeletedSecret,
    DeletionEvent,
    DeletionRecord,
    KeptVersion,
    Renewal,
    Repository,
    SecretHolder,
)
from vmkeep.repository.deletions import MOST_FILES, MOST_VERSIONS, as_line, as_path
from vmkeep.values import dataclass

_MOST_HOLDERS = 100


@dataclass(frozen=True, slots=True)
class Removal:
    """What a removal found and did. ``seen`` is what lay there, ``kept`` the versions that some of it is.

    ``renewal`` says what took the place of the state that was deleted; None where the VM has no TPM any more.
    """

    operation: str
    found: TpmFound
    seen: Orphan | None
    kept: tuple[KeptContent, ...]
    deleted: TpmStateDeleted
    secret: SecretJudged
    renewal: Renewal | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether there was neither a TPM nor anything left of one."""
        return not self.found.element and self.seen is None


def tpm_kept_until(catalog: Catalog, vm_uuid: str) -> str | None:
    """Return until when versions of a VM's TPM are kept that was removed; None for a VM that may have one.

    A VM has one again when it was given one, and when a version came since. What a host says that nobody trusts decides
    nothing: it would let versions go.
    """
    removal = last_removal(catalog, vm_uuid)
    return None if removal is None else term_of(catalog, vm_uuid, removal.created, removal.kept_until)


def term_of(catalog: Catalog, vm_uuid: str, removed: str, until: str | None) -> str | None:
    """Return the term that a removal gives the versions of a VM's TPM: none when one of them is younger."""
    newest = catalog.newest_state(vm_uuid, "tpm")
    return None if newest is not None and newest.created > removed else until


def last_removal(catalog: Catalog, vm_uuid: str) -> CatalogDeletion | None:
    """Return the last removal of a VM's TPM, as far as somebody vouches for it; None when it was given one since.

    One that was reset or given a new key was there.
    """
    vouched = [each for each in catalog.deletions(vm_uuid) if each.is_vouched_for]
    removal = next((each for each in reversed(vouched) if each.event == DeletionEvent.REMOVAL), None)
    if (
        removal is None
        or removal.document.get("renewal") is not None
        or any(each.of == removal.id and each.event == DeletionEvent.RETURNED for each in vouched)
    ):
        return None
    return removal


def until_days(days: int, since: str) -> str:
    """Return the end of a term, ISO 8601 in UTC."""
    return (datetime.fromisoformat(since) + timedelta(days=days)).isoformat(timespec="microseconds")


# -- what must still be deleted ----------------------------------------------------------------------------------


def tombstones_of(host: Host, removal: Removal, at: str) -> tuple[Tombstone, ...]:
    """Return what a removal leaves to be done on its host: files that the system did not let go, and the secret."""
    found, failed = removal.found, [each for each in removal.deleted.failed if _is_text(each.path)]
    made = []
    if failed:
        files = tuple(_left_file(each, removal.kept) for each in failed if each.path != found.directory)
        made.append(
            replace(
                _tombstone(host, removal, TombstoneKind.STATE, found.directory, at),
                files=files,
                protection=protection_of(host, failed, found.secret),
                last_error=as_line(failed[0].why),
            )
        )
    if found.secret and removal.secret.may_go_later:
        secret = _tombstone(host, removal, TombstoneKind.SECRET, found.secret, at)
        made.append(replace(secret, protection=_of_secret(host, found.secret), last_error=as_line(removal.secret.why)))
    return tuple(made)


def protection_of(host: Host, failed: Iterable[NotDeleted], secret: str) -> Protection:
    """Return what protects files that could not be deleted, the least protected of them."""
    encrypted = {each.encrypted for each in failed if each.sha256}
    if not encrypted:
        return Protection.EMPTY
    if False in encrypted:
        return Protection.NONE
    return Protection.UNKNOWN if None in encrypted or not secret else _of_secret(host, secret)


def _of_secret(host: Host, secret: str) -> Protection:
    kept = host.ask(LookAtTpmSecret(secret))
    if not kept.held:
        return Protection.AWAY
    if kept.ephemeral:
        return Protection.MEMORY
    return Protection.SEALED if kept.sealed else Protection.BESIDE


def _tombstone(host: Host, removal: Removal, kind: TombstoneKind, place: str, at: str) -> Tombstone:
    identity = host.ask(Identify())
    return Tombstone(
        id=tombstone_id(removal.operation, kind, place),
        origin=removal.operation,
        kind=kind,
        host_uuid=identity.uuid,
        host_name=identity.name,
        vm_uuid=removal.found.vm_uuid,
        vm_name=removal.found.vm_name,
        place=place,
        since=at,
        secret=removal.found.secret,
    )


def _left_file(failed: NotDeleted, kept: Iterable[KeptContent]) -> TombstoneFile:
    version = next((each.version_id for each in kept if failed.sha256 and each.sha256 == failed.sha256), "")
    return TombstoneFile(failed.path, failed.sha256, failed.size_bytes, version, as_line(failed.why))


def _is_text(path: str) -> bool:
    # What is no UTF-8 was named by somebody else than libvirt and swtpm, and no catalogue holds it. It is told.
    return path.isprintable() and "\ufffd" not in path and path.encode("utf-8", "replace").decode() == path


# -- the proof ---------------------------------------------------------------------------------------------------


def proof_of(
    catalog: Catalog, host: Host, removal: Removal, tombstones: Iterable[Tombstone], at: str, until: str | None
) -> CatalogDeletion:
    """Return the proof of a removal, which is stored later. ``until`` is the term that its versions have from ``at``
    on; None where they have none.
    """
    found = removal.found
    identity = host.ask(Identify())
    record = DeletionRecord(
        id=removal.operation,
        of=None,
        event=DeletionEvent.REMOVAL,
        vm_uuid=found.vm_uuid,
        vm_name=found.vm_name,
        host=identity.name,
        host_uuid=identity.uuid,
        created=at,
        files=_files(removal),
        secret=_secret(catalog, removal),
        versions=_versions(catalog, found.vm_uuid, until),
        kept_until=until,
        tombstones=tuple(each.id for each in tombstones),
        renewal=removal.renewal,
    )
    return as_row(record)


def fact_about(tombstone: Tombstone, removals: Iterable[CatalogDeletion]) -> CatalogDeletion | None:
    """Return the fact that a tombstone came to its end; None for one that belongs to no removal, or is open."""
    removal = next((each for each in removals if each.id == tombstone.origin and each.of is None), None)
    if removal is None or tombstone.is_open or tombstone.ended is None:
        return None
    if tombstone.state is TombstoneState.WAIVED:
        event = DeletionEvent.WAIVED
    else:
        event = DeletionEvent.SUPERSEDED if tombstone.ending == "superseded" else DeletionEvent.SETTLED
    gone = tombstone.ended if event is DeletionEvent.SETTLED else None
    outcome = {"deleted": "deleted", "gone": "gone"}.get(tombstone.ending, "failed")
    files: tuple[DeletedFile, ...] = ()
    secret = None
    if tombstone.kind is TombstoneKind.STATE:
        files = tuple(
            DeletedFile(
                as_path(file.path),
                file.sha256 or None,
                file.size_bytes,
                file.version_id or None,
                outcome,
                gone,
                "" if gone else file.why,
            )
            for file in tombstone.files[:MOST_FILES]
        )
    else:
        secret = DeletedSecret(tombstone.place, "undefined" if gone else "stays", gone)
    return as_row(
        DeletionRecord(
            id=tombstone_id(tombstone.id, tombstone.kind, tombstone.state),
            of=removal.id,
            event=event,
            vm_uuid=tombstone.vm_uuid,
            vm_name=tombstone.vm_name,
            host=tombstone.host_name,
            host_uuid=tombstone.host_uuid,
            created=tombstone.ended,
            files=files,
            secret=secret,
            tombstones=(tombstone.id,),
            who=as_line(tombstone.who),
            why=as_line(tombstone.why),
        )
    )


def fact_of_return(host: Host, removal: CatalogDeletion, vm_name: str, at: str) -> CatalogDeletion:
    """Return the fact that a VM whose TPM was removed was given one again: its versions are kept as before."""
    identity = host.ask(Identify())
    return as_row(
        DeletionRecord(
            id=tombstone_id(removal.id, TombstoneKind.STATE, DeletionEvent.RETURNED),
            of=removal.id,
            event=DeletionEvent.RETURNED,
            vm_uuid=removal.vm_uuid,
            vm_name=vm_name,
            host=identity.name,
            host_uuid=identity.uuid,
            created=at,
        )
    )


def as_row(record: DeletionRecord, *, stored: bool = False) -> CatalogDeletion:
    """Return the catalogue's row for a proof or a fact."""
    return CatalogDeletion(
        id=record.id,
        of=record.of,
        event=str(record.event),
        vm_uuid=record.vm_uuid,
        created=record.created,
        document=record.as_json(),
        kept_until=record.kept_until,
        stored=stored,
        signed_by=None if record.signature is None else record.signature.fingerprint,
    )


def store_deletions(catalog: Catalog, repository: Repository, told: Callable[[str], None]) -> None:
    """Put into the repository what it has not yet: each once, whoever was killed in between.

    Raises what the repository raises; the rest is put by the next one.
    """
    for row in catalog.unstored_deletions():
        record = DeletionRecord.from_json(row.document, f"the proof of deletion {row.id}")
        try:
            stored = repository.deletions.put(record)
        except TargetExists:
            try:
                stored = repository.deletions.get(record.id)
            except IntegrityError as error:
                told(f"the proof of deletion {record.id} cannot be stored: {error.message}")
                continue
            if stored != record:
                told(f"the repository holds another proof of deletion as {record.id}: this one was not stored")
                continue
        signature = stored.signature
        catalog.note_deletion_stored(record.id, None if signature is None else signature.fingerprint)


def store_proofs(plan: Plan) -> None:
    """Do so as a step, which fails for nothing: what keeps a proof from being stored is told, and it is done later."""
    services = plan.services
    try:
        services.with_repository(lambda repository: store_deletions(services.catalog, repository, services.warn))
    except VmkeepError as error:
        services.warn(f"the proof of deletion could not be stored, and will be by a later command: {error.message}")


def _files(removal: Removal) -> tuple[DeletedFile, ...]:
    if removal.seen is None:
        return ()
    deleted, failed = removal.deleted, {each.path: each.why for each in removal.deleted.failed}
    versions = {each.sha256: each.version_id for each in removal.kept}
    told = []
    for file in removal.seen.files[:MOST_FILES]:
        place = removal.seen.place_of(file)
        gone = place in deleted.removed
        if not gone and place not in failed and not any(place in sentence for sentence in deleted.left):
            continue  # of a directory that others use as well, and none of the TPM's
        outcome = "deleted" if gone else "failed" if place in failed else "left"
        why = "" if gone else failed.get(place, "it is no version that is kept, or changed meanwhile")
        told.append(
            DeletedFile(
                as_path(place),
                file.sha256,
                file.size_bytes,
                versions.get(file.sha256 or ""),
                outcome,
                deleted.at if gone else None,
                as_line(why),
            )
        )
    return tuple(told)


def _secret(catalog: Catalog, removal: Removal) -> DeletedSecret | None:
    found, judged = removal.found, removal.secret
    if not found.secret:
        return None
    terms = {pin.id: pin.until for pin in catalog.pins_of_vm(found.vm_uuid)}
    holders = [each for each in secret_holders(catalog, found.vm_uuid) if each.uuid == found.secret]
    outcome = "undefined" if judged.can_go else "failed" if judged.may_go_later else "stays"
    return DeletedSecret(
        found.secret,
        outcome,
        (judged.at or removal.deleted.at or None) if judged.can_go else None,
        as_line(judged.why),
        tuple(SecretHolder(each.kind, each.id, terms.get(each.id)) for each in holders[:_MOST_HOLDERS]),
    )


def _versions(catalog: Catalog, vm_uuid: str, until: str | None) -> tuple[KeptVersion, ...]:
    holders = catalog.holders(vm_uuid)
    pinned = {version for pin in catalog.pins_of_vm(vm_uuid) for version in pin.versions}
    kept = (state for state in catalog.states_of_vm(vm_uuid) if state.kind == "tpm")
    found = [
        KeptVersion(
            state.id,
            state.generation,
            state.sha256,
            state.size_bytes,
            holders.get(state.id, ())[:_MOST_HOLDERS],
            None if state.id in holders else until,
        )
        for state in kept
        if state.id in holders or state.id in pinned
    ]
    return tuple(found[:MOST_VERSIONS])
