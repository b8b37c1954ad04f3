"""State that belongs to no VM, put into the repository as a version of the VM that it was of."""

from __future__ import annotations

from pathlib import Path

from vmkeep.custody.orphans import state_in
from vmkeep.custody.states import NewVersion
from vmkeep.errors import InvalidRequest
from vmkeep.filesystem import file_error
from vmkeep.host.operation import Operation
from vmkeep.host.orphans.deletion import require_same
from vmkeep.host.tasks.orphans import KeepOrphan
from vmkeep.host.vm.orphans import orphan_now
from vmkeep.statefiles.capture import capture


def keep_orphan(operation: Operation, task: KeepOrphan) -> NewVersion:
    """Keep a file of an orphan; see the task."""
    orphan = task.orphan
    seen = next(file for file in orphan.files if file.name == task.file)
    path = Path(orphan.place_of(seen))
    file = state_in(orphan, task.file)
    try:
        require_same(orphan, orphan_now(orphan, operation.connected(), operation.settings))
    except OSError as error:
        raise file_error(error, path, "read") from error
    if file is None:
        raise InvalidRequest(f"{path} is no state of a VM", path=str(path), hint="Copy it, if you may need it.")
    read = capture(orphan.kind, path, file=file, vm=task.vm_uuid, qcow2=path.suffix == ".qcow2")
    if read.sha256 != seen.sha256:
        raise InvalidRequest(
            f"{path} has changed since it was looked at: it was not kept",
            path=str(path),
            hint="Something writes to it. Look at it again: `vmkeep orphans list`.",
        )
    version = operation.repository().put_state(
        read.content,
        vm_uuid=task.vm_uuid,
        kind=read.kind,
        generation=task.generation,
        file=read.file,
        owner=read.owner,
        group=read.group,
        mode=read.mode,
    )
    return NewVersion(version.kind, version.id, version.generation, version.sha256, version.size_bytes, version.created)
