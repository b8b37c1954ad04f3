"""A connection to one libvirt daemon."""

from __future__ import annotations

from uuid import UUID

import libvirt
from lxml import etree

from vmkeep.errors import HypervisorUnavailable, PermissionRefused
from vmkeep.hypervisor.domain import Domain
from vmkeep.hypervisor.secrets import Secrets
from vmkeep.hypervisor.translation import libvirt_errors


class Hypervisor:
    """One libvirt connection. Its calls may be made from several threads."""

    def __init__(self, connection: libvirt.virConnect, uri: str) -> None:
        self._connection = connection
        self.uri = uri
        self.secrets = Secrets(connection)

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

    @classmethod
    def look(cls, uri: str) -> Hypervisor:
        """Open ``uri`` for reading only, which asks nobody for a password. Raises HypervisorUnavailable."""
        try:
            return cls(libvirt.openReadOnly(uri), uri)
        except libvirt.libvirtError as error:
            text = error.get_error_message()
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

    def pool_folders(self) -> tuple[str, ...]:
        """Return the folders of the active storage pools; none where libvirt does not tell."""
        try:
            texts = [pool.XMLDesc() for pool in self._connection.listAllStoragePools() if pool.isActive()]
        except libvirt.libvirtError:
            return ()
        roots = [etree.fromstring(text.encode()) for text in texts]
        # Of other kinds (logical, disk, rbd) the target is no folder that somebody puts files into.
        folders = [root.findtext("target/path") for root in roots if root.get("type") in ("dir", "fs", "netfs")]
        return tuple(folder for folder in folders if folder)

    def qemu_label(self) -> str | None:
        """Return the label of the model dac that QEMU gets: "+UID:+GID"; None where libvirt gives it none."""
        with libvirt_errors("tell its capabilities"):
            capabilities = etree.fromstring(self._connection.getCapabilities().encode())
        for model in capabilities.iterfind("host/secmodel"):
            if model.findtext("model") == "dac":
                return next((each.text for each in model.findall("baselabel") if each.text), None)
        return None

    def define(self, xml: str, vm: str) -> Domain:
        """Define a VM of ``xml``, without starting it; raises HypervisorError with libvirt's reason."""
        with libvirt_errors("define the VM", vm):
            return Domain(self._connection.defineXML(xml))

    def saved_definition(self, path: str, vm: str) -> str:
        """Return the definition in a file of saved memory, with its passwords; HypervisorError when it is none."""
        with libvirt_errors(f"read the memory in {path}", vm):
            return self._connection.saveImageGetXMLDesc(path, libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)

    def restore_memory(self, path: str, xml: str, vm: str) -> None:
        """Start a VM from a file of saved memory as ``xml`` says, and leave it paused: no instruction was executed.

        The definition that it has for its next start stays.
        """
        with libvirt_errors(f"restore the memory in {path}", vm):
            self._connection.restoreFlags(path, xml, libvirt.VIR_DOMAIN_SAVE_PAUSED)
