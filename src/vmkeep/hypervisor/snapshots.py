"""What is done with the snapshots of one VM in libvirt besides what is done with any moment (``hypervisor.moments``).

They are made, with the memory of a VM that runs, and reverted to: libvirt 9.0 reverts to internal snapshots only, and
for external ones a flow gives the VM new overlays.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import libvirt
from lxml import etree

from vmkeep.hypervisor.domain import Domain
from vmkeep.hypervisor.translation import libvirt_errors

_BYTES_TOTAL, _BYTES_LEFT = "memory_total", "memory_remaining"  # what was processed does not count zero pages


class DomainSnapshots:
    """Methods raise VmNotFound once the VM is gone, HypervisorError for libvirt's refusals."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    def names(self) -> frozenset[str]:
        """Return the names of the snapshots that libvirt lists."""
        with libvirt_errors("list the snapshots", self._domain.name):
            return frozenset(snapshot.getName() for snapshot in self._domain.handle.listAllSnapshots())

    def definition(self, name: str) -> str | None:
        """Return what libvirt records of a snapshot, with all passwords; None when there is none of that name."""
        try:
            return self._domain.handle.snapshotLookupByName(name).getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
                return None
            with libvirt_errors(f"read snapshot {name}", self._domain.name):
                raise

    def create(self, xml: str, *, disk_only: bool, reuse: bool) -> None:
        """Make a snapshot, of all its disks or of none. ``reuse``: the external files are there already."""
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY if disk_only else 0
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT if reuse else 0
        with libvirt_errors("make the snapshot", self._domain.name):
            self._domain.handle.snapshotCreateXML(xml, flags)

    def say_it_ran(self, name: str) -> None:
        """Let libvirt record that the VM ran when a snapshot with memory was made.

        vmkeep had suspended it before, and what libvirt saw then ("paused") decides whether the VM runs after a revert.
        """
        text = self.definition(name)
        if text is None:
            return
        root = etree.fromstring(text.encode())
        state = root.find("state")
        if state is None or state.text != "paused":
            return
        state.text = "running"
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
        with libvirt_errors(f"define snapshot {name} again", self._domain.name):
            if self._domain.handle.snapshotLookupByName(name).isCurrent():
                flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
            self._domain.handle.snapshotCreateXML(etree.tostring(root, encoding="unicode"), flags)

    def saved_bytes(self) -> tuple[int, int]:
        """Return how much of the memory is saved, and of how much; zeros where libvirt does not tell."""
        with suppress(libvirt.libvirtError):
            stats = self._domain.handle.jobStats()
            total = int(stats.get(_BYTES_TOTAL, 0))
            return total - int(stats.get(_BYTES_LEFT, total)), total
        return 0, 0

    def abort(self) -> None:
        """End the saving of memory that is under way: the snapshot is not made then. Nothing happens without one."""
        with suppress(libvirt.libvirtError):
            self._domain.handle.abortJob()

    def revert(self, name: str, *, paused: bool) -> None:
        """Let libvirt revert to an internal snapshot. It sets the definition to that of the snapshot as well.

        ``paused`` is for one with memory: the processors stand still afterwards, whatever they did then.
        """
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED if paused else 0
        with libvirt_errors(f"revert to snapshot {name}", self._domain.name):
            self._domain.handle.revertToSnapshot(self._domain.handle.snapshotLookupByName(name), flags)

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
            root.append(etree.fromstring(self._domain.handle.XMLDesc(flags).encode()))
            xml = etree.tostring(root, encoding="unicode")
            self._domain.handle.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE).delete()
