"""Kept versions of a TPM's state, tried."""

from __future__ import annotations

import hashlib

from vmkeep.custody.encryption import is_encrypted
from vmkeep.definition import DefinitionError, parse_definition
from vmkeep.errors import IntegrityError
from vmkeep.host.tasks.states import StateTried, TryState
from vmkeep.host.vm.trial import try_with_kept_secret, try_with_secret
from vmkeep.hypervisor import Hypervisor
from vmkeep.repository import Repository


def try_version(hypervisor: Hypervisor, repository: Repository, task: TryState) -> StateTried:
    """Try a version; see the task."""
    version, content = repository.state(task.version.id)
    if hashlib.sha256(content).hexdigest() != task.version.sha256 or version.vm_uuid != task.vm_uuid:
        raise IntegrityError(
            f"the version {task.version.id} in the repository is not what the catalogue knows of it",
            vm=task.vm_uuid,
            hint="`vmkeep verify --all` says what else is damaged.",
        )
    if task.secret is not None and is_encrypted(content):
        trial = try_with_kept_secret(content, version.file, task.secret, repository)
        return StateTried(trial.loads, trial.why)
    domain = hypervisor.find_uuid(task.vm_uuid)
    definition = None
    if domain is not None:
        try:
            definition = parse_definition(domain.definition_xml())
        except DefinitionError as error:
            return StateTried(None, f"the definition of the VM cannot be read: {error}")
    trial = try_with_secret(content, version.file, definition, hypervisor)
    if trial.loads is False and domain is None:
        return StateTried(None, f"{trial.why}; no VM here says with which secret it may be encrypted")
    return StateTried(trial.loads, trial.why)
