"""A connection to one libvirt daemon."""

from __future__ import annotations

from uuid import UUID

import libvirt
from lxml import etree

from vmkeep.errors import HypervisorUnavailable, PermissionRefused
from vmkeep.hypervisor import secrets
from vmkeep.hypervisor.domain import Domain
from vmkeep.hypervisor.secret import USAGES, Secret, Withheld, read_secret, reason_withheld, secret_xml
from vmkeep.hypervisor.translation import libvirt_errors


class Hypervisor:
    """One libvirt connection. Its calls may be made from several threads."""

    def __init__(self, connection: libvirt.virConnect, uri: str) -> None:
        self._connection = connection
        self.uri = uri

    @classmethod
    def connect(cls, uri: str) -> Hypervisor:
        """Open ``uri`` for reading and writing.

        Raises HypervisorUnavailable when no daemon answers and PermissionRefused when it does not let us in.
        """
        try:
            return cls(libvirt.open(uri), uri)
        except libvirt.libvirtError as error:
            text = error.get_error_message()
            # A socket that one may not open is VIR_ERR_SYSTEM_ERROR with only the text to tell it by.
            if "Permission denied" in text or "authentication" in text:
                raise PermissionRefused(f"libvirt at {uri} refused the connection: {text}", path=uri) from error
            raise HypervisorUnavailable(f"libvirt at {uri} cannot be reached: {text}", path=uri) from error

    def close(self) -> None:
        """Close the connection; what runs on the host goes on."""
        try:
            self._connection.close()
        except libvirt.libvirtError:
            return  # the daemon is gone, and with it the connection

    def identity(self) -> tuple[str, str]:
        """Return the host's UUID, as libvirt knows it, and its name."""
        with libvirt_errors("tell the host's identity"):
            capabilities = etree.fromstring(self._connection.getCapabilities().encode())
            return capabilities.findtext("host/uuid") or "", self._connection.getHostname()

    def versions(self) -> tuple[int, int]:
        """Return the versions of libvirt and of QEMU, each as major * 1,000,000 + minor * 1,000 + release."""
        with libvirt_errors("tell its version"):
            return self._connection.getLibVersion(), self._connection.getVersion()

    def has_secret(self, uuid: str) -> bool:
        """Return whether libvirt knows the secret of that UUID."""
        try:
            self._connection.secretLookupByUUIDString(uuid)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
                return False
            with libvirt_errors("look for a secret"):
                raise
        return True

    def secret_value(self, name: str) -> bytes:
        """Return the value of a secret; see ``vmkeep.hypervisor.secrets``. Raises SecretMissing, SecretPrivate."""
        return secrets.secret_value(self._connection, name)

    def define_passing_secret(self, uuid: str, description: str, value: bytes) -> None:
        """Keep a value in libvirt's memory under this UUID; libvirt tells it to nobody but its QEMU."""
        secrets.define_passing_secret(self._connection, uuid, description, value)

    def undefine_secret(self, uuid: str) -> bool:
        """Remove a secret; return False when there is none."""
        return secrets.undefine_secret(self._connection, uuid)

    def secret(self, uuid: str) -> Secret | Withheld:
        """Return the secret with its value, or why libvirt does not give the value out."""
        try:
            return read_secret(self._connection.secretLookupByUUIDString(uuid))
        except libvirt.libvirtError as error:
            withheld = reason_withheld(error)
            if withheld is not None:
                return withheld
            with libvirt_errors(f"read the secret {uuid}"):
                raise

    def keep_secret(self, secret: Secret) -> None:
        """Define a secret that libvirt does not have, or has without a value, and set its value. It is persistent.

        The caller has looked: a secret of that UUID which has a value would get another one.
        """
        with libvirt_errors(f"define the secret {secret.uuid}"):
            if self.has_secret(secret.uuid):
                self._connection.secretLookupByUUIDString(secret.uuid).setValue(secret.value)
                return
            handle = self._connection.secretDefineXML(secret_xml(secret, usage_taken=self._is_usage_taken(secret)))
            try:
                handle.setValue(secret.value)
            except libvirt.libvirtError:
                handle.undefine()
                raise

    def _is_usage_taken(self, secret: Secret) -> bool:
        """Return whether another secret has this usage."""
        try:
            self._connection.secretLookupByUsage(USAGES[secret.usage], secret.usage_id)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
                return False
            raise
        return True

    def forget_secret(self, uuid: str) -> None:
        """Undefine a secret; one that is gone is fine."""
        try:
            self._connection.secretLookupByUUIDString(uuid).undefine()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
                return
            with libvirt_errors(f"undefine the secret {uuid}"):
                raise

    def domains(self) -> tuple[Domain, ...]:
        """Return all VMs, running or not, by name."""
        with libvirt_errors("list the VMs"):
            handles = [Domain(handle) for handle in self._connection.listAllDomains()]
        return tuple(sorted(handles, key=lambda domain: domain.name))

    def domain(self, name_or_uuid: str) -> Domain:
        """Return the VM of that name, or of that UUID when no VM has it as its name; raises VmNotFound."""
        found = self.find(name_or_uuid)
        if found is None:
            with libvirt_errors("find the VM", name_or_uuid):
                return Domain(self._connection.lookupByName(name_or_uuid))
        return found

    def find(self, name_or_uuid: str) -> Domain | None:
        """Return the VM, or None when the host has none of that name or UUID."""
        for lookup in (self._connection.lookupByName, self._by_uuid):
            try:
                return Domain(lookup(name_or_uuid))
            except ValueError:
                continue
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    with libvirt_errors("find the VM", name_or_uuid):
                        raise
        return None

    def _by_uuid(self, text: str) -> libvirt.virDomain:
        return self._connection.lookupByUUIDString(str(UUID(text)))

    def volume_path(self, pool: str, volume: str) -> tuple[str, bool] | None:
        """Return where a storage volume is on this host and whether it is a block device; None when it is not known.

        A pool that is not active does not tell its volumes.
        """
        try:
            found = self._connection.storagePoolLookupByName(pool).storageVolLookupByName(volume)
            return found.path(), found.info()[0] == libvirt.VIR_STORAGE_VOL_BLOCK
        except libvirt.libvirtError:
            return None

    def define(self, xml: str, vm: str) -> Domain:
        """Define a VM of ``xml``, without starting it; raises HypervisorError with libvirt's reason."""
        with libvirt_errors("define the VM", vm):
            return Domain(self._connection.defineXML(xml))
