"""The key of a TPM's state: a new one made, and a state given it."""

from __future__ import annotations

import os
from typing import Final

from vmkeep.custody.states import NewVersion, SealedSecret
from vmkeep.errors import IntegrityError, StateUnsupported
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.tpms import MakeTpmKey, RekeyTpmState, TpmStateRekeyed
from vmkeep.host.tpms.device import DOING
from vmkeep.host.tpms.state import version_content
from vmkeep.host.vm.held import domain_of, hold
from vmkeep.host.vm.reencryption import reencrypt_tpm
from vmkeep.host.vm.trial import try_tpm
from vmkeep.repository import PointSecret

_KEY_BYTES: Final = 32
"""As many as the AES key has that swtpm derives from it."""


def make_tpm_key(operation: Operation, task: MakeTpmKey) -> SealedSecret:
    """Seal a new secret; see the task."""
    vm = task.vm or domain_of(operation.connected(), task.vm_uuid).name
    secret = PointSecret(
        usage="vtpm",
        uuid=task.secret,
        usage_id=f"vmkeep-{task.secret}",  # libvirt wants one that no other secret has
        description=f"TPM of VM {vm}",
        ephemeral=False,
        value=os.urandom(_KEY_BYTES),
    )
    pin_id, _ = operation.repository().pins.seal(task.vm_uuid, (secret,))
    return SealedSecret(pin_id, "", secret.usage, secret.uuid)


def rekey_tpm_state(operation: Operation, task: RekeyTpmState) -> TpmStateRekeyed:
    """Give a version another key; see the task."""
    hypervisor, repository = operation.connected(), operation.repository()
    domain = domain_of(hypervisor, task.vm_uuid)
    hold(operation, domain, DOING)
    version, content = version_content(operation, task.vm_uuid, task.version)
    if not version.file.endswith("tpm2-00.permall"):
        raise StateUnsupported(
            f"the TPM of VM {domain.name!r} is a TPM 1.2: its state is not given another key",
            vm=domain.name,
            hint="`vmkeep tpm reset` gives the VM a new TPM with a new key.",
        )
    old = hypervisor.secrets.value(task.old) if task.old else None
    held = () if task.new is None else repository.secrets(repository.holder(task.new.point, task.new.pin))
    secret = next((each for each in held if task.new is not None and each.uuid == task.new.uuid), None)
    if task.new is not None and secret is None:
        raise IntegrityError(f"the new secret {task.new.uuid} is not in its envelope", vm=domain.name)
    new = None if secret is None else secret.value
    made = reencrypt_tpm(content, old, new)
    trial = try_tpm(made, version.file, new)
    if trial.loads is False:
        raise IntegrityError(
            f"the TPM state of VM {domain.name!r} does not open with its new key: {trial.why}",
            vm=domain.name,
            hint="Nothing was changed.",
        )
    put = repository.put_state(
        made,
        vm_uuid=domain.uuid,
        kind="tpm",
        generation=task.generation,
        file=version.file,
        owner=version.owner,
        group=version.group,
        mode=version.mode,
    )
    kept = NewVersion(put.kind, put.id, put.generation, put.sha256, put.size_bytes, put.created)
    if secret is None:
        return TpmStateRekeyed(kept)
    pin_id, _ = repository.pins.seal(domain.uuid, (secret,))
    return TpmStateRekeyed(kept, SealedSecret(pin_id, put.id, secret.usage, secret.uuid))
