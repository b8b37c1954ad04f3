"""The snapshots of one VM as far as a revert needs them: their XML, which one is current, and libvirt's own revert.

libvirt 9.0 reverts to internal snapshots only. For external ones a flow gives the VM new overlays; of libvirt it needs
the memory put back from its file, and the mark of the current snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence

import libvirt
from lxml import etree

from vmkeep.commandline import command_line
from vmkeep.errors import MomentNotFound
from vmkeep.hypervisor.domain import Domain
from vmkeep.hypervisor.translation import libvirt_errors


class Reversion:
    """Snapshots of one VM. Methods raise MomentNotFound for a snapshot that is not there, else HypervisorError."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._handle = domain.handle

    def snapshots(self) -> dict[str, str]:
        """Return the XML of all snapshots by name, with their passwords."""
        with libvirt_errors("list the snapshots", self._domain.name):
            return {
                snapshot.getName(): snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
                for snapshot in self._handle.listAllSnapshots()
            }

    def snapshot_xml(self, name: str) -> str:
        """Return the XML of one snapshot, with its passwords."""
        found = self._find(name)
        with libvirt_errors(f"read snapshot {name}", self._domain.name):
            return found.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)

    def current(self) -> str | None:
        """Return the name of the snapshot that the VM's state descends from, as libvirt knows it."""
        with libvirt_errors("tell the current snapshot", self._domain.name):
            return self._handle.snapshotCurrent().getName() if self._handle.hasCurrentSnapshot() else None

    def redefine(self, xml: str, *, disk_only: bool, current: bool) -> None:
        """Make a snapshot that exists what ``xml`` says, and with ``current`` the current one. Disks stay untouched.

        The current one must be told to be that again.
        """
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT if current else 0
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY if disk_only else 0
        with libvirt_errors("redefine a snapshot", self._domain.name):
            self._handle.snapshotCreateXML(xml, flags)

    def revert(self, name: str, *, paused: bool) -> None:
        """Let libvirt revert to an internal snapshot. It sets the definition to that of the snapshot as well.

        ``paused`` is for one with memory: the processors stand still afterwards, whatever they did then.
        """
        found = self._find(name)
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED if paused else 0
        with libvirt_errors(f"revert to snapshot {name}", self._domain.name):
            self._handle.revertToSnapshot(found, flags)

    def delete_internal(self, name: str, targets: Sequence[str]) -> None:
        """Delete a snapshot in the images of a running VM that libvirt does not list: it is listed for that."""
        root = etree.Element("domainsnapshot")
        for tag, text in (("name", name), ("state", "shutoff"), ("creationTime", "1")):
            etree.SubElement(root, tag).text = text
        etree.SubElement(root, "memory", snapshot="no")
        disks = etree.SubElement(root, "disks")
        for target in targets:
            etree.SubElement(disks, "disk", name=target, snapshot="internal")
        with libvirt_errors(f"delete the snapshot {name}", self._domain.name):
            flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
            root.append(etree.fromstring(self._handle.XMLDesc(flags).encode()))
            xml = etree.tostring(root, encoding="unicode")
            self._handle.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE).delete()

    def _find(self, name: str) -> libvirt.virDomainSnapshot:
        try:
            return self._handle.snapshotLookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
                with libvirt_errors(f"find snapshot {name}", self._domain.name):
                    raise
            vm = self._domain.name
            raise MomentNotFound(
                f"VM {vm!r} has no snapshot {name!r}",
                vm=vm,
                hint=f"`{command_line('vmkeep snapshot list', vm)}` shows them.",
            ) from error
