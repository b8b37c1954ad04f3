"""TPM states tried with the secret that libvirt has for them, which goes nowhere but to the swtpm that tries."""

from __future__ import annotations

import hashlib

from vmkeep.custody.states import SecretSource
from vmkeep.custody.tpmfile import is_encrypted
from vmkeep.definition import Definition, DefinitionError, parse_definition
from vmkeep.errors import IntegrityError
from vmkeep.host.tasks.states import StateTried, TryState
from vmkeep.host.vm.trial import Trial, try_tpm
from vmkeep.hypervisor import Hypervisor, Secret
from vmkeep.repository import Repository


def try_with_secret(content: bytes, file: str, definition: Definition | None, hypervisor: Hypervisor) -> Trial:
    """Let swtpm load a TPM state of a VM. ``definition`` None: of one that is not defined here, in plain."""
    passphrase = None
    tpm = None if definition is None else definition.tpm
    if tpm is not None and tpm.secret_uuid is not None:
        secret = hypervisor.secrets.read(tpm.secret_uuid)
        if not isinstance(secret, Secret):
            return Trial(None, f"libvirt does not give out the secret {tpm.secret_uuid} ({secret})")
        passphrase = secret.value
    return try_tpm(content, file, passphrase)


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
        return _with_kept_secret(repository, content, version.file, task.secret)
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


def _with_kept_secret(repository: Repository, content: bytes, file: str, source: SecretSource) -> StateTried:
    held = repository.secrets(repository.holder(source.point, source.pin))
    value = next((secret.value for secret in held if secret.uuid == source.uuid), None)
    trial = try_tpm(content, file, value)
    return StateTried(trial.loads, trial.why)
