"""The state of a TPM whose device is gone, or not there yet: deleted as far as it is kept, and put in place."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
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
from vmkeep.statefiles.remains import Removed, delete, inventory

# What swtpm makes in its directory (swtpm_nvstore_dir.c): its states, each while it is written and as it was before,
# and a lock.
_SWTPMS: Final = re.compile(r"\.lock|(?:TMP2?-00\.|tpm2?-00\.)(?:permall|volatilestate|savestate)(?:\.bak)?")


def tpm_remains(task: TpmRemains) -> TpmRemainsFound:
    """Tell what lies in a directory of swtpm's; see the task."""
    return TpmRemainsFound(_inventory(task.directory))


def delete_tpm_state(operation: Operation, task: DeleteTpmState) -> TpmStateDeleted:
    """Delete what is a version that is kept; see the task."""
    hypervisor, seen = operation.connected(), task.seen
    domain = domain_of(hypervisor, task.vm_uuid)
    hold(operation, domain, DOING)
    hashes = {version_content(operation, task.vm_uuid, version)[0].sha256 for version in task.kept}
    _refuse_while_needed(operation, domain, seen.path)
    # A directory that the definition names may hold anything else as well, and is not libvirt's to remove.
    named = StateRoots.of(hypervisor.uri).tpm_directory(domain.uuid) != Path(seen.path)
    now = _inventory(seen.path)
    left: list[str] = []
    if now is not None:
        marks = {file.name: file.mark for file in seen.files}
        going = tuple(file for file in now.files if _may_go(file, marks, hashes, named=named))
        left = [_told(now, file) for file in now.files if file not in going and not (named and _is_foreign(file))]
        left += [f"{seen.path}: {strange}" for strange in now.strange if not named]
        try:
            whole = delete(replace(now, files=going), folders=not named)
            left += whole.left if not left else _but_of_folders(now, whole)
        except OSError as error:
            raise file_error(error, Path(seen.path), "deleted") from error
    after = _inventory(seen.path)
    there = set() if after is None else {after.place_of(file) for file in after.files} | {after.path}
    places = [*(seen.place_of(file) for file in seen.files), seen.path]
    return TpmStateDeleted(tuple(place for place in places if place not in there), tuple(left))


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


def _inventory(directory: str) -> Orphan | None:
    path = Path(directory)
    try:
        return inventory(path.parent, path.name, "tpm")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise file_error(error, path) from error


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


def _may_go(file: OrphanFile, marks: dict[str, str], hashes: set[str], *, named: bool) -> bool:
    if named and _is_foreign(file):
        return False
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


def _but_of_folders(now: Orphan, ended: Removed) -> Iterator[str]:
    """Yield what was not deleted, but for the directories in which something stays."""
    folders = {f"{now.path}/{name}" if name else now.path for name, _ in now.folders}
    yield from (told for told in ended.left if told.partition(": ")[0] not in folders)


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
