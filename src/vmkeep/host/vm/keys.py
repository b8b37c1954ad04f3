"""The passphrases of encrypted disks, asked of libvirt's secrets when an image is opened and kept nowhere.

The rule of who needs one: nobody while QEMU has the image open, and everybody else. A private secret is told to QEMU
alone, so its disk can be read only while the VM runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vmkeep.definition import DefinedDisk, Definition, DefinitionError, parse_definition
from vmkeep.errors import DiskUnsupported, HypervisorUnavailable, InvalidRequest, SecretMissing, SecretPrivate
from vmkeep.hypervisor import Hypervisor
from vmkeep.planning import KeyState
from vmkeep.repository import PointRecord
from vmkeep.transfer.imagekey import ImageKey

_GIVE = (
    "Define a secret of this name (`virsh secret-define FILE`) and set its value (`virsh secret-set-value UUID --file "
    "FILE --plain`)."
)
_ANEW = (
    "For a restore the value may be new if the old one is lost, because images are encrypted anew; images that are "
    "there already open with the old one only."
)


def key_of(hypervisor: Hypervisor, secret: str, *, vm: str | None, disk: str) -> ImageKey | None:
    """Return what opens an image that is encrypted with the libvirt secret of this name; None for no name.

    Raises SecretMissing or SecretPrivate, with what to do.
    """
    if not secret:
        return None
    try:
        return ImageKey(hypervisor.secrets.value(secret))
    except SecretMissing as error:
        raise SecretMissing(
            f"disk {disk} is encrypted with the libvirt secret {secret}, which this host does not have, or has no "
            "value for",
            vm=vm,
            disk=disk,
            hint=f"{_GIVE} {_ANEW}",
        ) from error
    except SecretPrivate as error:
        raise SecretPrivate(
            f"disk {disk} is encrypted with the libvirt secret {secret}, which is private: libvirt tells its value to "
            "nobody",
            vm=vm,
            disk=disk,
            hint="Undefine it (`virsh secret-undefine`) and define it anew with private='no' and the same value.",
        ) from error


def key_of_disk(hypervisor: Hypervisor, definition: Definition, target: str) -> ImageKey | None:
    """Return what opens a disk of the definition; None for one that is plain."""
    disk = definition.disk(target)
    return None if disk is None else key_of(hypervisor, secret_of(disk), vm=definition.name, disk=target)


def secret_of(disk: DefinedDisk) -> str:
    """Return the name of the secret that opens a disk; empty for one that is plain, or encrypted in another way."""
    return "" if disk.encryption is None else disk.encryption.secret or ""


def key_state(hypervisor: Hypervisor, disk: DefinedDisk, *, running: bool) -> KeyState:
    """Return whether the disk can be opened; no value is kept."""
    if disk.encryption is None:
        return KeyState.KNOWN
    if disk.encryption.secret is None:
        return KeyState.UNUSABLE
    if running:
        return KeyState.KNOWN
    try:
        hypervisor.secrets.value(disk.encryption.secret)
    except SecretMissing:
        return KeyState.MISSING
    except SecretPrivate:
        return KeyState.PRIVATE
    return KeyState.KNOWN


def _encrypted_with(definition: Definition, target: str) -> str:
    """Return the name of the secret of a disk of a point; empty for one that was plain.

    Raises DiskUnsupported for one that was encrypted in a way that vmkeep cannot make again.
    """
    disk = definition.disk(target)
    if disk is None or disk.encryption is None:
        return ""
    if disk.encryption.secret is None:
        raise DiskUnsupported(
            f"disk {target} was encrypted in another way than by QEMU with LUKS and one passphrase, which vmkeep "
            "cannot make again",
            vm=definition.name,
            disk=target,
            hint="`vmkeep restore POINT --output DIR --decrypt` writes it as a plain image.",
        )
    return disk.encryption.secret


class RestoredKeys:
    """The keys of what a restore writes. libvirt is asked only for a disk that was encrypted."""

    def __init__(self, connect: Callable[[], Hypervisor], vm: str) -> None:
        self._connect = connect
        self._vm = vm

    def key(self, secret: str, target: str) -> ImageKey | None:
        """Return what a disk is encrypted with; None for no secret. Raises SecretMissing, SecretPrivate."""
        if not secret:
            return None
        plain = "`vmkeep restore POINT --output DIR --decrypt` writes the disk as a plain image."
        try:
            return key_of(self._connect(), secret, vm=self._vm, disk=target)
        except HypervisorUnavailable as error:
            raise SecretMissing(
                f"disk {target} is encrypted with the libvirt secret {secret}, and libvirt cannot be asked for it: "
                f"{error.message}",
                vm=self._vm,
                disk=target,
                hint=f"Start libvirt. {plain}",
            ) from error
        except (SecretMissing, SecretPrivate) as error:
            error.hint = f"{error.hint} {plain}"
            raise


def secrets_of_point(record: PointRecord, connect: Callable[[], Hypervisor]) -> dict[str, str]:
    """Return the names of the secrets of the point's disks that were encrypted, by target; each value can be had."""
    try:
        then = parse_definition(record.definition)
    except DefinitionError as error:
        raise InvalidRequest(
            f"the definition in point {record.id} cannot be read, so nobody knows which disks were encrypted: {error}",
            vm=record.vm_name,
            hint="`--output DIR --decrypt` writes all disks as plain images.",
        ) from error
    keys = RestoredKeys(connect, record.vm_name)
    secrets = {disk.target: _encrypted_with(then, disk.target) for disk in record.disks}
    for target, secret in secrets.items():
        keys.key(secret, target)
    return {target: secret for target, secret in secrets.items() if secret}


def told_of_encryption(record: PointRecord, secrets: Mapping[str, str]) -> tuple[str, ...]:
    """Say what the images of disks that were encrypted are now."""
    told = [
        f"The image of disk {target} is encrypted: the value of the libvirt secret {secret} opens it."
        for target, secret in secrets.items()
    ]
    try:
        then = parse_definition(record.definition)
    except DefinitionError:
        return tuple(told)
    for disk in record.disks:
        before = then.disk(disk.target)
        if before is not None and before.encryption is not None and disk.target not in secrets:
            told.append(
                f"Disk {disk.target} was encrypted, and its image here is plain. domain.xml still says <encryption>."
            )
    return tuple(told)
