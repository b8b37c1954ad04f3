"""libvirt's secrets: the values that open encrypted disk images. A value is never logged and never in an error."""

from __future__ import annotations

import libvirt
from lxml import etree

from vmkeep.definition import USAGE
from vmkeep.errors import SecretMissing, SecretPrivate
from vmkeep.hypervisor.translation import libvirt_errors


def secret_value(connection: libvirt.virConnect, name: str) -> bytes:
    """Return the value of a secret. ``name`` is a UUID, or ``usage:`` and the name of its use.

    Raises SecretMissing when libvirt has no such secret or no value for it, SecretPrivate when it tells the value to
    nobody.
    """
    try:
        return _find(connection, name).value()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
            raise SecretMissing(f"libvirt does not have the secret {name}, or has no value for it") from error
        if error.get_error_code() == libvirt.VIR_ERR_INVALID_SECRET:
            raise SecretPrivate(f"the libvirt secret {name} is private: libvirt tells its value to nobody") from error
        with libvirt_errors(f"tell the value of the secret {name}"):
            raise


def define_passing_secret(connection: libvirt.virConnect, uuid: str, description: str, value: bytes) -> None:
    """Give libvirt a secret that is only in its memory, and that it tells to nobody but its QEMU."""
    definition = etree.Element("secret", ephemeral="yes", private="yes")
    etree.SubElement(definition, "uuid").text = uuid
    etree.SubElement(definition, "description").text = description
    with libvirt_errors("keep a secret"):
        connection.secretDefineXML(etree.tostring(definition, encoding="unicode")).setValue(value)


def undefine_secret(connection: libvirt.virConnect, uuid: str) -> bool:
    """Remove a secret; return False when there is none."""
    try:
        connection.secretLookupByUUIDString(uuid).undefine()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
            return False
        with libvirt_errors("remove a secret"):
            raise
    return True


def _find(connection: libvirt.virConnect, name: str) -> libvirt.virSecret:
    if name.startswith(USAGE):
        # The kind of use that QEMU's driver of libvirt looks a disk's secret up with.
        return connection.secretLookupByUsage(libvirt.VIR_SECRET_USAGE_TYPE_VOLUME, name.removeprefix(USAGE))
    return connection.secretLookupByUUIDString(name)
