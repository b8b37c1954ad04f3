"""A secret of its own for the TPM of a second VM: libvirt's secrets are named by one VM each, and go with it."""

from __future__ import annotations

from vmkeep.errors import SecretMissing, SecretPrivate
from vmkeep.host.vm.secrets import secrets_in_use
from vmkeep.hypervisor import Hypervisor, Secret, Withheld


def give_own_secret(hypervisor: Hypervisor, uuid: str, vm: str, *, value_of: str) -> None:
    """Define a secret for the TPM of a VM, with the value of another one.

    The state of a TPM that was copied opens with the value that it was written with; swtpm 0.7 has no command to write
    it with another one. A secret of that UUID which has a value is done already. Raises as ``readable_secret``.
    """
    if isinstance(hypervisor.secrets.read(uuid), Secret):
        return
    value = readable_secret(hypervisor, value_of, vm).value
    hypervisor.secrets.keep(Secret(uuid, "vtpm", f"{vm} {uuid}", f"TPM of VM {vm}", ephemeral=False, value=value))


def readable_secret(hypervisor: Hypervisor, uuid: str, vm: str) -> Secret:
    """Return a secret of a TPM. Raises SecretPrivate and SecretMissing when libvirt does not tell its value."""
    found = hypervisor.secrets.read(uuid)
    if isinstance(found, Secret):
        return found
    if found is Withheld.PRIVATE:
        raise SecretPrivate(
            f"libvirt's secret {uuid}, which the TPM state is encrypted with, is private: a copy would not open",
            vm=vm,
            hint="Undefine it (`virsh secret-undefine`) and define it anew with private='no' and the same value; or "
            "make a blank TPM.",
        )
    raise SecretMissing(
        f"libvirt does not give out its secret {uuid}, which the TPM state is encrypted with ({found}): a copy would "
        "not open",
        vm=vm,
        hint="Define it and set its value (`virsh secret-define`, `virsh secret-set-value`); or make a blank TPM.",
    )


def forget_own_secret(hypervisor: Hypervisor, uuid: str) -> None:
    """Undo ``give_own_secret``; a secret that a VM names by now stays."""
    if uuid and uuid not in secrets_in_use(hypervisor):
        hypervisor.secrets.forget(uuid)
