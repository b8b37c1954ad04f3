"""A state version that somebody chose, read and held against what the catalogue accepted under its id."""

from __future__ import annotations

from vmkeep.custody.states import ChosenVersion
from vmkeep.errors import IntegrityError
from vmkeep.repository.record import StateVersion
from vmkeep.repository.repository import Repository


def read_chosen(repository: Repository, vm_uuid: str, chosen: ChosenVersion) -> tuple[StateVersion, bytes]:
    """Return the version and its content.

    Raises ObjectMissing, ObjectDamaged, and IntegrityError for an object of another VM or kind, or with another
    content: who else has the repository's key may have put it there.
    """
    version, content = repository.state(chosen.id)
    if (version.vm_uuid, version.kind, version.sha256) != (vm_uuid, chosen.kind, chosen.sha256):
        raise IntegrityError(
            f"state version {chosen.id} in the repository is not the {chosen.kind} state that was kept of the VM under "
            "that id",
            vm=vm_uuid,
        )
    return version, content
