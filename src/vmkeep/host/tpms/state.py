"""The state of a TPM whose device is gone, or not there yet: deleted as far as it is kept, and put in place."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Final

from vmkeep.custody.encryption import is_encrypted
from vmkeep.custody.orphans import Orphan, OrphanFile, state_in
from vmkeep.custody.states import ChosenVersion
from vmkeep.definition import parse_definition
from vmkeep.errors import IntegrityError, InvalidRequest, TargetExists
from vmkeep.filesystem import file_error
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.tpms import (
    DeleteTpmState,
    InstallTpmState,
    LetTpmGo,
    NotDeleted,
    TpmRemains,
    TpmRemainsFound,
    TpmStateDeleted,
    WithdrawTpmState,
)
from vmkeep.host.tpms.device import DOING
from vmkeep.host.vm.claims import claims_of_vms
from vmkeep.host.vm.found_states import read_state_file
from vmkeep.host.vm.held import domain_of, hold, let_go
from vmkeep.hypervisor import Domain
from vmkeep.repository import StateVersion
from vmkeep.repository.chosen import read_chosen
from vmkeep.statefiles.installation import publish, remove, stage_file, stage_tpm, withdraw
from vmkeep.statefiles.location import StateRoots, swtpm_owner
from vmkeep.statefiles.remains import delete, inventory
from vmkeep.values import dataclass

# What swtpm makes in its directory (swtpm_nvstore_dir.c): its states, each while it is written and as it was before,
# and a lock.
_SWTPMS: Final = re.compile(r"\.lock|(?:TMP2?-00\.|tpm2?-00\.)(?:permall|volatilestate|savestate)(?:\.bak)?")


def tpm_remains(task: TpmRemains) -> TpmRemainsFound:
    """Tell what lies in a directory of swtpm's; see the task."""
    return TpmRemainsFound(require_readable(task.directory))


def delete_tpm_state(operation: Operation, task: DeleteTpmState) -> TpmStateDeleted:
    """Delete what is a version that is kept; see the task."""
    hypervisor, seen = operation.connected(), task.seen
    domain = domain_of(hypervisor, task.vm_uuid)
    hold(operation, domain, DOING)
    hashes = {version_content(operation, task.vm_uuid, version)[0].sha256 for version in task.kept}
    _refuse_while_needed(operation, domain, seen.path)
    named = is_named(hypervisor.uri, domain.uuid, seen.path)
    marks = {file.name: file.mark for file in seen.files}
    ended = delete_files(seen.path, lambda file: _may_go(file, marks, hashes), expected=seen, named=named)
    places = [*(seen.place_of(file) for file in seen.files), seen.path]
    removed = tuple(place for place in places if place not in ended.there)
    return TpmStateDeleted(removed, (*ended.left, *(each.why for each in ended.failed)), ended.failed, now())


@dataclass(frozen=True, slots=True)
class FilesEnded:
    """What a deletion left: ``there`` are the paths that are there still, ``left`` sentences about what may not go,
    ``failed`` what may and did not.
    """

    there: frozenset[str]
    left: tuple[str, ...]
    failed: tuple[NotDeleted, ...]


def is_named(uri: str, vm_uuid: str, directory: str) -> bool:
    """Return whether a directory of a TPM's state is one that its definition names.

    Such a one may hold anything else as well, and is not libvirt's to remove.
    """
    return StateRoots.of(uri).tpm_directory(vm_uuid) != Path(directory)


def delete_files(directory: str, may_go: Callable[[OrphanFile], bool], *, expected: Orphan, named: bool) -> FilesEnded:
    """Delete what may go in a directory of swtpm's, and the directory itself when nothing else is in it.

    Of one that is ``named`` by a definition only what swtpm makes there is looked at, and the directory stays.

    What the system refuses is told and not raised: whoever asks has kept what he deletes, and goes on without. Where
    not even that can be looked at, all of ``expected`` that may go counts as left. Raises VmBusy while a swtpm has it.
    """

    def is_ours(file: OrphanFile) -> bool:
        return not (named and _is_foreign(file))

    seen = expected
    said: tuple[str, ...] = ()
    left: list[str] = []
    try:
        found = look(directory)
        if found is None:
            return FilesEnded(frozenset(), (), ())
        seen = found
        going = tuple(file for file in found.files if is_ours(file) and may_go(file))
        left = [_told(found, file) for file in found.files if is_ours(file) and file not in going]
        left += [f"{directory}: {strange}" for strange in found.strange if not named]
        chosen = replace(found, files=going)
        said = tuple(_without_folders(chosen, folders=not named)) if left else delete(chosen, folders=not named).left
    except OSError as error:
        said = tuple(f"{place}: {error.strerror or error}" for place in (*map(seen.place_of, seen.files), directory))
    try:
        after = look(directory)
    except OSError:
        after = seen  # as far as anybody knows
    if after is None:
        return FilesEnded(frozenset(), tuple(left), ())
    names = {file.name for file in after.files}
    failed = [
        _not_deleted(seen, file, _reason(seen.place_of(file), said))
        for file in seen.files
        if file.name in names and is_ours(file) and may_go(file)
    ]
    if not failed and not left and not named:
        failed = [NotDeleted(directory, why=_on_host(directory, _reason(directory, said)))]
    there = frozenset({directory, *(after.place_of(file) for file in after.files)})
    return FilesEnded(there, tuple(left), tuple(failed))


def _reason(place: str, said: Iterable[str]) -> str:
    told = (each.removeprefix(place).lstrip(": ") for each in said if each.startswith((f"{place}: ", f"{place} ")))
    return next(told, "it is there again")


def _not_deleted(orphan: Orphan, file: OrphanFile, why: str) -> NotDeleted:
    place = orphan.place_of(file)
    encrypted = None
    if file.has_content:
        with suppress(OSError):
            content = read_state_file(Path(place), "tpm")
            encrypted = None if content is None else is_encrypted(content)
    sha256 = (file.sha256 or "") if file.has_content else ""
    return NotDeleted(place, sha256, file.size_bytes, _on_host(place, why), encrypted)


def _on_host(place: str, why: str) -> str:
    return f"{place} on host {socket.gethostname()} could not be deleted: {why}"


def now() -> str:
    """Return the present instant, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def install_tpm_state(operation: Operation, task: InstallTpmState) -> None:
    """Put a version in place; see the task."""
    domain = domain_of(operation.connected(), task.vm_uuid)
    hold(operation, domain, DOING)
    version, content = version_content(operation, task.of_vm or task.vm_uuid, task.version)
    directory = Path(task.directory)
    main = directory / task.file
    try:
        here = read_state_file(main, "tpm")
    except OSError as error:
        raise file_error(error, main) from error
    if here is not None:
        if here == content:
            remove(_staged(main, operation).with_suffix(".published"))  # of an attempt that was killed
            return
        raise _in_the_way(main, domain)
    owner = swtpm_owner(version.owner)
    if main.parent.is_dir():
        # What could not be deleted lies there: it stays, and the state goes beside it.
        staged, final = _staged(main, operation), main
        stage_file(staged, content, owner=owner[0], group=owner[1], mode=0o600)
    elif directory.exists():
        raise _in_the_way(directory, domain)
    else:
        staged, final = _staged(directory, operation), directory
        stage_tpm(staged, task.file, content, owner=owner)
    publish(staged, final, aside=staged.with_suffix(".replaced"), marker=staged.with_suffix(".published"), force=False)
    if final is main:
        remove(staged.with_suffix(".published"))


def withdraw_tpm_state(operation: Operation, task: WithdrawTpmState) -> None:
    """Remove what was put in place; see the task."""
    directory = Path(task.directory)
    staged = _staged(directory, operation)
    aside, marker = staged.with_suffix(".replaced"), staged.with_suffix(".published")
    withdraw(staged, directory, aside=aside, marker=marker)


def let_tpm_go(operation: Operation, task: LetTpmGo) -> None:
    """End what was begun; see the task."""
    if task.directory:
        remove(_staged(Path(task.directory), operation).with_suffix(".published"))
    let_go(operation)


def look(directory: str) -> Orphan | None:
    """Return what lies in a directory of swtpm's; None where nothing does. Raises OSError."""
    path = Path(directory)
    try:
        return inventory(path.parent, path.name, "tpm")
    except FileNotFoundError:
        return None


def require_readable(directory: str) -> Orphan | None:
    """Return what lies in a directory of swtpm's; None where nothing does. Raises an error that names it."""
    try:
        return look(directory)
    except OSError as error:
        raise file_error(error, Path(directory)) from error


def version_content(operation: Operation, vm_uuid: str, version: ChosenVersion) -> tuple[StateVersion, bytes]:
    """Return a version, read from the repository. Raises IntegrityError when it is not what the catalogue knows."""
    found, content = read_chosen(operation.repository(), vm_uuid, version)
    if hashlib.sha256(content).hexdigest() != version.sha256:
        raise IntegrityError(
            f"the tpm version {version.id} in the repository has another content than the catalogue knows",
            vm=vm_uuid,
            hint="`vmkeep verify` says what else is damaged.",
        )
    return found, content


def _refuse_while_needed(operation: Operation, domain: Domain, directory: str) -> None:
    """Raise InvalidRequest when the VM, as it runs or will start, has a TPM, or another definition names the place."""
    hypervisor = operation.connected()
    for inactive in (False, True):
        if parse_definition(domain.definition_xml(inactive=inactive)).tpm is not None:
            raise InvalidRequest(
                f"VM {domain.name!r} has a TPM: somebody put it back, or started the VM before. Its state stays",
                vm=domain.name,
                path=directory,
                hint="Shut the VM down, and run the command again.",
            )
    claims = claims_of_vms(hypervisor, operation.settings)
    roots = StateRoots.of(hypervisor.uri)
    # Where libvirt keeps the TPM of a VM no definition says.
    others = {str(roots.tpm_directory(uuid)) for uuid in claims.vms - {domain.uuid}}
    places = {PurePosixPath(directory), PurePosixPath(os.path.realpath(directory))}
    for named in map(PurePosixPath, claims.paths | others | set(map(os.path.realpath, others))):
        if any(place == named or place in named.parents or named in place.parents for place in places):
            raise InvalidRequest(
                f"a definition of this host names {named} for a TPM: what lies there stays",
                vm=domain.name,
                path=directory,
                hint="Is it another VM's, or a snapshot's of this one?",
            )


def _may_go(file: OrphanFile, marks: dict[str, str], hashes: set[str]) -> bool:
    return marks.get(file.name) == file.mark and (not file.has_content or file.sha256 in hashes)


def _is_foreign(file: OrphanFile) -> bool:
    """Return whether a file, in a directory that a definition names, is none that swtpm makes there."""
    return _SWTPMS.fullmatch(file.name) is None


def _told(orphan: Orphan, file: OrphanFile) -> str:
    place = orphan.place_of(file)
    kind = ""
    if state_in(orphan, file.name) is not None or PurePosixPath(file.name).name.endswith("permall"):
        kind = f" ({_encryption(Path(place))})"
    return f"{place} on host {socket.gethostname()} is no version that is kept, and stays{kind}"


def _encryption(path: Path) -> str:
    try:
        content = read_state_file(path, "tpm")
    except OSError:
        content = None
    if content is None:
        return "whether it is encrypted could not be read"
    return "encrypted" if is_encrypted(content) else "not encrypted"


def _without_folders(going: Orphan, *, folders: bool) -> Iterator[str]:
    """Delete files; yield what was not deleted, but for the directories in which something stays."""
    ended = delete(going, folders=folders)
    names = {f"{going.path}/{name}" if name else going.path for name, _ in going.folders}
    yield from (told for told in ended.left if told.partition(": ")[0] not in names)


def _in_the_way(path: Path, domain: Domain) -> TargetExists:
    return TargetExists(
        f"{path} is there already, and is not what is to be put in its place: nothing was replaced",
        vm=domain.name,
        path=str(path),
        hint="Move it away, or keep it first.",
    )


def _staged(final: Path, operation: Operation) -> Path:
    # The names of operations, which nobody takes for orphans (custody/orphans.py).
    return final.with_name(f".{final.name}.{operation.id[:12]}.partial")
