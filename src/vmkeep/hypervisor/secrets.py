"""libvirt's secrets: what VMs need to open what is encrypted: disk images, a vTPM's state.

Their values are read through libvirt's API only; a private one is told to nobody but QEMU. Nothing here puts a value
into an error, a log or a repr.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import libvirt
from lxml import etree
from lxml.builder import E

from vmkeep.definition import USAGE, USAGE_ELEMENTS, secret_definition
from vmkeep.errors import SecretMissing, SecretPrivate
from vmkeep.hypervisor.translation import libvirt_errors
from vmkeep.values import dataclass

# libvirt's word for what a secret is for, and the number of the API.
_USAGES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "volume": libvirt.VIR_SECRET_USAGE_TYPE_VOLUME,
        "vtpm": libvirt.VIR_SECRET_USAGE_TYPE_VTPM,
    }
)


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret with its value. ``usage_id`` is the name or path of what it is for, unique within its usage."""

    uuid: str
    usage: str
    usage_id: str
    description: str
    ephemeral: bool
    value: bytes = field(repr=False)


class Withheld(StrEnum):
    """Why libvirt does not give a secret's value out."""

    ABSENT = "absent"
    """There is no secret of that UUID."""
    EMPTY = "empty"
    """It is defined, and has no value: that of an ephemeral one is gone when the daemon has ended."""
    PRIVATE = "private"
    """It is private."""
    REFUSED = "refused"
    """This user may not read it."""
    FOREIGN = "foreign"
    """It is for something that vmkeep does not know."""


class Secrets:
    """The secrets of one libvirt."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        self._connection = connection

    def value(self, name: str) -> bytes:
        """Return the value of a secret. ``name`` is a UUID, or ``usage:`` and the name of its use.

        Raises SecretMissing when libvirt has no such secret or no value for it, SecretPrivate when it tells the value
        to nobody.
        """
        try:
            return self._named(name).value()
        except libvirt.libvirtError as error:
            why = _reason_withheld(error)
            if why is Withheld.ABSENT:
                raise SecretMissing(f"libvirt does not have the secret {name}, or has no value for it") from error
            if why is Withheld.PRIVATE:
                raise SecretPrivate(
                    f"the libvirt secret {name} is private: libvirt tells its value to nobody"
                ) from error
            with libvirt_errors(f"tell the value of the secret {name}"):
                raise

    def read(self, uuid: str) -> Secret | Withheld:
        """Return the secret with its value, or why libvirt does not give the value out."""
        try:
            handle = self._connection.secretLookupByUUIDString(uuid)
            described = etree.fromstring(handle.XMLDesc().encode())
            usage = str(described.xpath("string(usage/@type)"))
            if usage not in _USAGES:
                return Withheld.FOREIGN
            value = _value_if_set(handle)
        except libvirt.libvirtError as error:
            withheld = _reason_withheld(error)
            if withheld is not None:
                return withheld
            with libvirt_errors(f"read the secret {uuid}"):
                raise
        if value is None:
            return Withheld.EMPTY
        return Secret(
            uuid=handle.UUIDString(),
            usage=usage,
            usage_id=described.findtext(f"usage/{USAGE_ELEMENTS[usage]}") or "",
            description=described.findtext("description") or "",
            ephemeral=described.get("ephemeral") == "yes",
            value=value,
        )

    def usage(self, uuid: str) -> str | None:
        """Return libvirt's word for what a secret is for, "none" where it has none; None for one that is not there."""
        try:
            described = etree.fromstring(self._connection.secretLookupByUUIDString(uuid).XMLDesc().encode())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
                return None
            with libvirt_errors(f"read the secret {uuid}"):
                raise
        return str(described.xpath("string(usage/@type)")) or "none"

    def is_ephemeral(self, uuid: str) -> bool | None:
        """Return whether libvirt has a secret in its memory only; None for one that is not there."""
        try:
            described = etree.fromstring(self._connection.secretLookupByUUIDString(uuid).XMLDesc().encode())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
                return None
            with libvirt_errors(f"read the secret {uuid}"):
                raise
        return described.get("ephemeral") == "yes"

    def listed(self, usage: str) -> dict[str, str]:
        """Return the secrets of a usage ("vtpm"), the name of each one's use by its UUID; never a value."""
        found: dict[str, str] = {}
        with libvirt_errors("list the secrets"):
            for handle in self._connection.listAllSecrets():
                if handle.usageType() == _USAGES[usage]:
                    found[handle.UUIDString()] = handle.usageID()
        return found

    def keep(self, secret: Secret) -> None:
        """Define a secret that libvirt does not have, or has without a value, and set its value. It is persistent.

        The caller has looked: a secret of that UUID which has a value would get another one.
        """
        with libvirt_errors(f"define the secret {secret.uuid}"):
            if self._is_there(lambda: self._connection.secretLookupByUUIDString(secret.uuid)):
                self._connection.secretLookupByUUIDString(secret.uuid).setValue(secret.value)
                return
            taken = self._is_there(lambda: self._connection.secretLookupByUsage(_USAGES[secret.usage], secret.usage_id))
            handle = self._connection.secretDefineXML(secret_xml(secret, usage_taken=taken))
            try:
                handle.setValue(secret.value)
            except libvirt.libvirtError:
                handle.undefine()
                raise

    def keep_in_memory(self, uuid: str, description: str, value: bytes) -> None:
        """Give libvirt a secret that is only in its memory, and that it tells to nobody but its QEMU."""
        definition = E.secret(E.uuid(uuid), E.description(description), ephemeral="yes", private="yes")
        with libvirt_errors("keep a secret"):
            self._connection.secretDefineXML(etree.tostring(definition, encoding="unicode")).setValue(value)

    def forget(self, uuid: str) -> bool:
        """Undefine a secret; return False when there is none."""
        try:
            self._connection.secretLookupByUUIDString(uuid).undefine()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
                return False
            with libvirt_errors(f"undefine the secret {uuid}"):
                raise
        return True

    def _named(self, name: str) -> libvirt.virSecret:
        if name.startswith(USAGE):
            # The kind of use that QEMU's driver of libvirt looks a disk's secret up with.
            return self._connection.secretLookupByUsage(libvirt.VIR_SECRET_USAGE_TYPE_VOLUME, name.removeprefix(USAGE))
        return self._connection.secretLookupByUUIDString(name)

    @staticmethod
    def _is_there(look_up: Callable[[], libvirt.virSecret]) -> bool:
        try:
            look_up()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
                return False
            raise
        return True


def _value_if_set(handle: libvirt.virSecret) -> bytes | None:
    try:
        return handle.value()
    except libvirt.libvirtError as error:
        # The same number as for a secret that is not there; this one is.
        if error.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
            return None
        raise


def _reason_withheld(error: libvirt.libvirtError) -> Withheld | None:
    """Return what an error says about a secret's value; None for one that says nothing about it."""
    code = error.get_error_code()
    if code == libvirt.VIR_ERR_NO_SECRET:
        return Withheld.ABSENT
    if code == libvirt.VIR_ERR_INVALID_SECRET:  # "secret is private", on 9.0
        return Withheld.PRIVATE
    if code in (libvirt.VIR_ERR_OPERATION_DENIED, libvirt.VIR_ERR_ACCESS_DENIED):
        return Withheld.REFUSED
    return None


def secret_xml(secret: Secret, *, usage_taken: bool = False) -> str:
    """Return the definition of a persistent secret with the usage of this one.

    ``usage_taken``: another secret has the usage, which libvirt gives to one only; a VM names its secret by the UUID,
    so that becomes part of it.
    """
    usage_id = f"{secret.usage_id} {secret.uuid}" if usage_taken else secret.usage_id
    return secret_definition(secret.uuid, secret.usage, usage_id, secret.description)
