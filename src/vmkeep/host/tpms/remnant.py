"""State that a deletion had to leave behind: tried again, by its content, of a VM that may be gone by now."""

from __future__ import annotations

from pathlib import PurePosixPath

from vmkeep.custody.orphans import Orphan, OrphanFile
from vmkeep.definition import parse_definition
from vmkeep.errors import InvalidRequest
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.tpms import DeleteLeftTpmState, LeftTpmStateDeleted
from vmkeep.host.tpms.device import place_of_tpm
from vmkeep.host.tpms.state import delete_files, is_named, now, require_readable, version_content
from vmkeep.host.vm.claims import claims_of_vms
from vmkeep.hypervisor import Hypervisor


def delete_left_tpm_state(operation: Operation, task: DeleteLeftTpmState) -> LeftTpmStateDeleted:
    """Delete what was left; see the task."""
    hypervisor = operation.connected()
    if task.directory in _places_of(hypervisor, task.vm_uuid):
        return LeftTpmStateDeleted(superseded=True, at=now())
    for version in task.kept:
        version_content(operation, task.vm_uuid, version)
    found = require_readable(task.directory)
    if found is None:
        return LeftTpmStateDeleted(at=now())
    hashes = {file.path: file.sha256 for file in task.files}

    def may_go(file: OrphanFile) -> bool:
        if not file.has_content:
            return True
        return file.sha256 is not None and hashes.get(found.place_of(file)) == file.sha256

    # libvirt is asked last: nothing but the deletion itself comes after its answer.
    _refuse_named(operation, task.directory)
    named = is_named(hypervisor.uri, task.vm_uuid, task.directory)
    ended = delete_files(task.directory, may_go, expected=found, named=named)
    before = {task.directory, *map(found.place_of, found.files)}
    return LeftTpmStateDeleted(
        removed=tuple(sorted(before - ended.there)),
        replaced=_replaced(task, found, ended.there),
        failed=ended.failed,
        at=now(),
    )


def _replaced(task: DeleteLeftTpmState, found: Orphan, there: frozenset[str]) -> tuple[str, ...]:
    """Return sentences about the places of what was to go at which something else lies: it is never deleted."""
    by_place = {found.place_of(file): file for file in found.files}
    told = []
    for file in task.files:
        present = by_place.get(file.path)
        if present is not None and file.sha256 and present.sha256 != file.sha256 and file.path in there:
            told.append(f"{file.path} is another file than the one that was to go, and stays")
    strange = {str(PurePosixPath(task.directory, each.partition(" is a ")[0])): each for each in found.strange}
    told += [
        f"{task.directory}: {strange[file.path]}, in place of the file that was to go, and stays"
        for file in task.files
        if file.path in strange
    ]
    return tuple(told)


def _places_of(hypervisor: Hypervisor, vm_uuid: str) -> frozenset[str]:
    """Return where the TPM of a VM has its state, as it runs and as it will start; nothing for one that is gone."""
    domain = hypervisor.find_uuid(vm_uuid)
    if domain is None:
        return frozenset()
    definitions = (parse_definition(domain.definition_xml(inactive=inactive)) for inactive in (False, True))
    return frozenset(place_of_tpm(hypervisor, each)[0] for each in definitions if each.tpm is not None)


def _refuse_named(operation: Operation, directory: str) -> None:
    place = PurePosixPath(directory)
    claims = claims_of_vms(operation.connected(), operation.settings)
    if claims.doubts:
        raise InvalidRequest(
            f"{claims.doubts[0]}; so it is not known who else needs {directory}",
            path=directory,
            hint="Nothing was deleted. Mend what cannot be read, and try again.",
        )
    for named in map(PurePosixPath, claims.paths):
        if place == named or place in named.parents:
            raise InvalidRequest(
                f"a definition of this host names {named} for a TPM: what lies there stays",
                path=directory,
                hint="Is it another VM's, or a snapshot's of this one?",
            )
