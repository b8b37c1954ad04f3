"""A connection to one libvirt daemon."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID, uuid4

import libvirt
from lxml import etree

from vmkeep.definition.tree import set_text
from vmkeep.errors import HypervisorHangs, HypervisorUnavailable, PermissionRefused
from vmkeep.hypervisor import answers
from vmkeep.hypervisor.domain import Domain
from vmkeep.hypervisor.secrets import Secrets
from vmkeep.hypervisor.translation import libvirt_errors, translate
from vmkeep.xmltext import parse_xml, serialise_xml

_TRIAL_NAME: Final = "vmkeep-reads-this"
_NAME_REFUSED: Final = re.compile(r"invalid char in name")

_CLOSING_SECONDS = 2.0


class Hypervisor:
    """One libvirt connection. Its calls may be made from several threads."""

    def __init__(self, connection: libvirt.virConnect, uri: str, line: answers.Line) -> None:
        self._connection = connection
        self._line = line
        self._identity: tuple[str, str] | None = None
        self.uri = uri
        self.secrets = Secrets(connection)

    @classmethod
    def connect(cls, uri: str) -> Hypervisor:
        """Open ``uri`` for reading and writing.

        Raises HypervisorUnavailable when no daemon answers and PermissionRefused when it does not let us in.
        """
        try:
            connection, line = answers.connected(libvirt.open, uri)
            return cls(connection, uri, line)
        except libvirt.libvirtError as error:
            text = str(error)
            # A socket that one may not open is VIR_ERR_SYSTEM_ERROR with only the text to tell it by.
            if "Permission denied" in text or "authentication" in text:
                raise PermissionRefused(f"libvirt at {uri} refused the connection: {text}", path=uri) from error
            raise HypervisorUnavailable(f"libvirt at {uri} cannot be reached: {text}", path=uri) from error

    @classmethod
    def look(cls, uri: str) -> Hypervisor:
        """Open ``uri`` for reading only, which asks nobody for a password. Raises HypervisorUnavailable."""
        try:
            connection, line = answers.connected(libvirt.openReadOnly, uri)
            return cls(connection, uri, line)
        except libvirt.libvirtError as error:
            text = str(error)
            raise HypervisorUnavailable(f"libvirt at {uri} cannot be reached: {text}", path=uri) from error

    def close(self) -> None:
        """Close the connection; what runs on the host goes on. A daemon that does not answer is left alone."""
        if self._line.given_up is not None:
            return
        # The daemon is gone, and with it the connection; or it hangs, and the end of this process closes it.
        with suppress(libvirt.libvirtError, HypervisorHangs), answers.impatient(_CLOSING_SECONDS):
            self._connection.close()

    def is_lost(self) -> bool:
        """Return whether the connection was closed, as by a libvirtd that ended. The daemon is not asked for that."""
        if self._line.given_up is not None:
            return False  # it hangs, which another connection would meet as well
        try:
            return self._connection.isAlive() == 0
        except libvirt.libvirtError:
            return True

    def identity(self) -> tuple[str, str]:
        """Return the host's UUID, as libvirt knows it, and its name.

        libvirt is asked once: a point that is copied can be stored also when libvirtd hangs by then.
        """
        if self._identity is None:
            with libvirt_errors("tell the host's identity"):
                capabilities = etree.fromstring(self._connection.getCapabilities().encode())
                self._identity = capabilities.findtext("host/uuid") or "", self._connection.getHostname()
        return self._identity

    def versions(self) -> tuple[int, int]:
        """Return the versions of libvirt and of QEMU, each as major * 1,000,000 + minor * 1,000 + release."""
        with libvirt_errors("tell its version"):
            return self._connection.getLibVersion(), self._connection.getVersion()

    def domains(self) -> tuple[Domain, ...]:
        """Return all VMs, running or not, by name."""
        with libvirt_errors("list the VMs"):
            handles = [Domain(handle) for handle in self._connection.listAllDomains()]
        return tuple(sorted(handles, key=lambda domain: domain.name))

    def active_uuids(self) -> frozenset[str]:
        """Return the UUIDs of the VMs that run, are paused or are otherwise on; libvirt is asked once for all."""
        with libvirt_errors("list the VMs that run"):
            active = self._connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            return frozenset(handle.UUIDString() for handle in active)

    def domain(self, name_or_uuid: str) -> Domain:
        """Return the VM of that name, or of that UUID when no VM has it as its name; raises VmNotFound."""
        found = self.find(name_or_uuid)
        if found is None:
            with libvirt_errors("find the VM", name_or_uuid):
                return Domain(self._connection.lookupByName(name_or_uuid))
        return found

    def find(self, name_or_uuid: str) -> Domain | None:
        """Return the VM, or None when the host has none of that name or UUID."""
        return self._found((self._connection.lookupByName, self._by_uuid), name_or_uuid)

    def find_uuid(self, uuid: str) -> Domain | None:
        """Return the VM of that UUID, or None: one that is only called so is another VM."""
        return self._found((self._by_uuid,), uuid)

    def _found(self, lookups: Sequence[Callable[[str], libvirt.virDomain]], name_or_uuid: str) -> Domain | None:
        for lookup in lookups:
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

    def capabilities(self) -> str:
        """Return libvirt's XML about the host and the kinds of VM that it runs."""
        with libvirt_errors("tell what the host can do"):
            return self._connection.getCapabilities()

    def domain_capabilities(self, kind: str, arch: str, machine: str | None) -> str:
        """Return libvirt's XML about what it supports in a VM of that kind ("kvm"); ``machine`` None: the default."""
        with libvirt_errors("tell what it supports"):
            return self._connection.getDomainCapabilities(None, arch, machine, kind)

    def refusal(self, xml: str) -> str | None:
        """Let libvirt read a definition as for defining it, and return its words if it refuses; nothing is defined.

        There is no call for that. But a name with a line end is refused after all else was read and checked (seen on
        9.0 and 11.3), so the copy that libvirt gets has one.
        """
        trial = parse_xml(xml)
        name = trial.find("name")
        if name is None:
            return "the domain has no name"
        set_text(name, f"{_TRIAL_NAME}\n")
        uuid = trial.find("uuid")
        if uuid is None:
            uuid = etree.SubElement(trial, "uuid")
        set_text(uuid, str(uuid4()))
        for entry in trial.findall("sysinfo/system/entry[@name='uuid']"):
            set_text(entry, uuid.text or "")  # libvirt refuses two that differ
        try:
            defined = self._connection.defineXML(serialise_xml(trial))
        except libvirt.libvirtError as error:
            text = str(error)
            if error.get_error_code() in (libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_NO_CONNECT):
                raise translate(error, "read the definition", None) from error
            return None if _NAME_REFUSED.search(text) else text
        defined.undefine()  # a libvirt that takes such a name: then it is at least there for no longer than this
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
