"""Deleting state that belongs to no VM: looked at again right before, and only what was seen."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vmkeep.custody.orphans import Orphan
from vmkeep.custody.states import ChosenVersion
from vmkeep.errors import IntegrityError, InvalidRequest, VmBusy
from vmkeep.filesystem import file_error
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.orphans import DeleteOrphan, OrphanDeleted
from vmkeep.host.vm.orphans import orphan_now
from vmkeep.repository import Repository
from vmkeep.statefiles.remains import delete


def delete_orphan(operation: Operation, task: DeleteOrphan) -> OrphanDeleted:
    """Delete an orphan; see the task."""
    if task.kept:
        _require_versions(operation.repository(), task.kept)
    path = Path(task.orphan.path)
    try:
        # libvirt is asked last: nothing but the deletion itself comes after its answer.
        require_same(task.orphan, orphan_now(task.orphan, operation.connected(), operation.settings))
        removed = delete(task.orphan)
    except OSError as error:
        raise file_error(error, path, "deleted") from error
    return OrphanDeleted(removed.paths, removed.left)


def _require_versions(repository: Repository, kept: tuple[ChosenVersion, ...]) -> None:
    """Raise IntegrityError unless each version can be read, and has the content that the catalogue knows."""
    for version in kept:
        _, content = repository.state(version.id)
        if hashlib.sha256(content).hexdigest() != version.sha256:
            raise IntegrityError(
                f"the {version.kind} version {version.id} in the repository has another content than the catalogue "
                "knows: nothing was deleted",
                hint="`vmkeep verify` says what else is damaged.",
            )


def require_same(before: Orphan, now: Orphan | None) -> None:
    """Raise InvalidRequest unless an orphan is what it was, and VmBusy when a swtpm has it."""
    if now is None:
        raise InvalidRequest(
            f"{before.path} belongs to a VM or to an operation by now, or is gone: nothing was done to it",
            path=before.path,
            hint="`vmkeep orphans list` shows what belongs to no VM.",
        )
    if now.in_use:
        raise VmBusy(f"a swtpm works in {before.path}", path=before.path, hint="Nothing was done to it.")
    if now != before:
        raise InvalidRequest(
            f"{before.path} has changed since it was looked at: nothing was done to it",
            path=before.path,
            hint="Something writes to it. Look at it again: `vmkeep orphans list`.",
        )
