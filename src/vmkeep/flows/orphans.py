"""State on a host that belongs to no VM: beside the versions that are kept, and deleted so that nothing is lost.

No flow of DBOS: each orphan is deleted in one task, and what a kill leaves of it is found again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from uuid import uuid4

from vmkeep.catalog import Catalog
from vmkeep.catalog.texts import now
from vmkeep.commandline import command_line
from vmkeep.custody.orphans import (
    JudgedFile,
    Keeping,
    KeptContent,
    Orphan,
    OrphanSecret,
    judge_orphan,
    vm_of_variables,
)
from vmkeep.custody.states import ChosenVersion
from vmkeep.custody.tombstones import Tombstone, TombstoneFile, TombstoneKind, tombstone_id
from vmkeep.errors import InvalidRequest, VmkeepError
from vmkeep.filesystem import OF_STORAGE
from vmkeep.flows.services import held_vm
from vmkeep.flows.vm_states import doubtful_versions, newest_states
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.orphans import DeleteOrphan, LookForOrphans, OrphanDeleted
from vmkeep.host.tasks.survey import Identify
from vmkeep.values import dataclass

_DOING = "deletion of state that belongs to no VM"


@dataclass(frozen=True, slots=True)
class KnownOrphan:
    """An orphan, and what is known of it. ``vm_uuid`` and ``vm`` are whose it was; empty where nobody knows."""

    orphan: Orphan
    vm_uuid: str
    vm: str
    files: tuple[JudgedFile, ...]

    @property
    def is_kept(self) -> bool:
        """Whether nothing is lost with it."""
        return not self.orphan.strange and all(judged.keeping is not Keeping.NOT_KEPT for judged in self.files)


@dataclass(frozen=True, slots=True)
class KnownOrphans:
    """What belongs to no VM of a host. ``problems`` are sentences about what could not be looked at."""

    orphans: tuple[KnownOrphan, ...]
    secrets: tuple[OrphanSecret, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OrphanEnd:
    """What became of an orphan that was to be deleted; ``error`` is why it was not begun."""

    orphan: KnownOrphan
    removed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    error: VmkeepError | None = None

    @property
    def is_done(self) -> bool:
        """Whether all of it is gone."""
        return self.error is None and not self.left


def find_orphans(catalog: Catalog, host: Host) -> KnownOrphans:
    """Return what belongs to no VM of the host, with what the catalogue knows of it. Raises what the host raises."""
    found = host.ask(LookForOrphans())
    if not found.orphans:
        return KnownOrphans((), found.secrets, found.problems)
    names = {vm.uuid: vm.name for vm in catalog.vms()}
    hashes = frozenset(file.sha256 for orphan in found.orphans for file in orphan.files if file.sha256 is not None)
    versions = tuple(content for uuid in names for content in contents_of(catalog, uuid, hashes))
    known = tuple(_known(orphan, names, versions) for orphan in found.orphans)
    return KnownOrphans(known, found.secrets, found.problems)


def choose_orphans(found: KnownOrphans, wanted: Sequence[str], *, all_kept: bool) -> tuple[KnownOrphan, ...]:
    """Return the orphans that are named, each by its path or by the UUID of its VM; or all that are kept.

    Raises InvalidRequest for a name of none.
    """
    if all_kept:
        return tuple(each for each in found.orphans if each.is_kept)
    chosen: dict[str, KnownOrphan] = {}
    for name in wanted:
        named = [each for each in found.orphans if _is_called(each.orphan, name)]
        if not named:
            raise _none_of(name, found)
        chosen |= {each.orphan.path: each for each in named}
    return tuple(chosen.values())


def refuse_loss(chosen: Iterable[KnownOrphan]) -> None:
    """Raise InvalidRequest for an orphan whose content is not kept."""
    for each in chosen:
        if each.is_kept:
            continue
        lost = [each.orphan.place_of(judged.file) for judged in each.files if judged.keeping is Keeping.NOT_KEPT]
        what = "; ".join(each.orphan.strange) if not lost else f"{lost[0]} is no version that is kept"
        raise InvalidRequest(
            f"{each.orphan.path} would be lost: {what}",
            vm=each.vm or None,
            path=each.orphan.path,
            hint="Nothing was deleted. Copy it if you may need it; with --unkept it is deleted all the same.",
        )


def delete_orphans(
    catalog: Catalog, host: Host, chosen: Iterable[KnownOrphan], ended: Callable[[OrphanEnd], None]
) -> tuple[OrphanEnd, ...]:
    """Delete orphans one by one, each looked at again right before; ``ended`` is told of each. None stops others.

    What of a TPM's state the system did not let go gets a tombstone, as far as it is kept.
    """
    ends = []
    for each in chosen:
        try:
            answer = _delete(host, each)
        except VmkeepError as error:
            end = OrphanEnd(each, error=error)
        else:
            end = OrphanEnd(each, answer.removed, answer.left)
        ended(end)
        ends.append(end)
        if not end.is_done:
            left = _left_files(end)
            if left:
                catalog.add_tombstones([_tombstone(host, each, left)])
    return tuple(ends)


def _left_files(end: OrphanEnd) -> tuple[TombstoneFile, ...]:
    """Return what of a TPM's state the system refused to delete; what changed or came since is no such thing."""
    known = end.orphan
    refused = isinstance(end.error, OF_STORAGE)
    if known.orphan.kind != "tpm" or (end.error is not None and not refused):
        return ()
    left = []
    for judged in known.files:
        place = known.orphan.place_of(judged.file)
        why = (
            end.error.message
            if end.error is not None
            else next((s for s in end.left if s.startswith(f"{place}: ")), "")
        )
        if judged.version is not None and place not in end.removed and why:
            version = judged.version
            left.append(TombstoneFile(place, version.sha256, judged.file.size_bytes, version.version_id, why))
    return tuple(left)


def _tombstone(host: Host, known: KnownOrphan, files: tuple[TombstoneFile, ...]) -> Tombstone:
    identity, origin = host.ask(Identify()), uuid4().hex
    return Tombstone(
        id=tombstone_id(origin, TombstoneKind.STATE, known.orphan.path),
        origin=origin,
        kind=TombstoneKind.STATE,
        host_uuid=identity.uuid,
        host_name=identity.name,
        vm_uuid=known.vm_uuid,
        vm_name=known.vm or known.vm_uuid,
        place=known.orphan.path,
        since=now(),
        files=files,
        last_error=files[0].why,
    )


def _delete(host: Host, known: KnownOrphan) -> OrphanDeleted:
    kept = {
        judged.version.version_id: ChosenVersion(judged.version.kind, judged.version.version_id, judged.version.sha256)
        for judged in known.files
        if judged.version is not None
    }
    task = DeleteOrphan(known.orphan, tuple(kept.values()))
    if not known.vm_uuid:
        return host.ask(task)
    with held_vm(host, known.vm_uuid, known.vm or known.vm_uuid, _DOING):
        return host.ask(task)


def _is_called(orphan: Orphan, name: str) -> bool:
    return (orphan.vm_uuid and name.lower() == orphan.vm_uuid) or _absolute(name) == orphan.path


def _absolute(name: str) -> str:
    """Return a path without dots, and with no link followed."""
    return str(Path(name)) if name.startswith("/") else name


def _none_of(name: str, found: KnownOrphans) -> InvalidRequest:
    if any(secret.uuid == name.lower() for secret in found.secrets):
        return InvalidRequest(
            f"{name} is a secret of libvirt's, which vmkeep does not delete: state elsewhere may be encrypted with it",
            hint=f"If nothing needs it: `{command_line('virsh secret-undefine', name.lower())}`.",
        )
    return InvalidRequest(
        f"{name!r} is no state that belongs to no VM: nothing was deleted",
        hint="; ".join(found.problems) or "`vmkeep orphans list` shows what belongs to no VM, with its path.",
    )


def _known(orphan: Orphan, names: dict[str, str], versions: tuple[KeptContent, ...]) -> KnownOrphan:
    owners = [orphan.vm_uuid] if orphan.vm_uuid else _owners(orphan, names)
    # The TPM of another VM that is the same is that VM's: only its own versions keep it. Variables may be anybody's.
    counting = [version for version in versions if not orphan.vm_uuid or version.vm_uuid == orphan.vm_uuid]
    files = judge_orphan(orphan, counting, owners)
    held = next((judged.version.vm_uuid for judged in files if judged.version is not None), "")
    uuid = owners[0] if len(owners) == 1 else held
    return KnownOrphan(orphan, uuid, names.get(uuid, ""), files)


def _owners(orphan: Orphan, names: dict[str, str]) -> list[str]:
    named = vm_of_variables(Path(orphan.path).name)
    return [uuid for uuid, name in names.items() if name == named]


def contents_of(catalog: Catalog, vm_uuid: str, hashes: frozenset[str]) -> Iterable[KeptContent]:
    """Yield the versions of a VM that have such contents, and that something holds which somebody vouches for."""
    versions = catalog.states_of_vm(vm_uuid)
    newest = newest_states(catalog, vm_uuid)
    versions = tuple(version for version in versions if version.sha256 in hashes)
    if not versions:
        return
    doubtful = doubtful_versions(catalog, vm_uuid)
    for version in versions:
        if version.id in doubtful or not catalog.pins(version.id):
            continue
        yield KeptContent(
            version.id,
            vm_uuid,
            version.kind,
            version.generation,
            version.sha256,
            newest.get(version.kind) == version,
            version.conflict,
        )
