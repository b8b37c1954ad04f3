"""Images that libvirt sees and vmkeep does not, because the two are in different mount namespaces.

A container, a systemd unit with PrivateMounts= or ProtectHome=, or a mount made in a session of its own hides a
directory from one of them. To take such an image for one that is gone would be wrong in every way: a backup would be
refused for a wrong reason, and a restore in place would make a new image where the VM never looks.
"""

from __future__ import annotations

from pathlib import Path

from vmkeep.definition import Definition, SourceKind
from vmkeep.errors import HostFileMissing, HypervisorError
from vmkeep.hypervisor import Domain


def refuse_unseen_images(domain: Domain, definition: Definition) -> None:
    """Raise HostFileMissing for the first image that is not there for us, and whose size libvirt can tell.

    While the VM is off libvirt opens the image for that. While it runs QEMU has it open, so it may have been deleted.
    """
    for disk in definition.disks:
        if disk.removable or disk.source is None or disk.source_kind not in (SourceKind.FILE, SourceKind.BLOCK):
            continue
        try:
            Path(disk.source).stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            try:
                domain.disk_capacity_bytes(disk.target)
            except HypervisorError:
                continue  # it is gone for libvirt as well
            raise HostFileMissing(
                f"the image of disk {disk.target}, {disk.source}, is not there for vmkeep, and libvirt uses it",
                vm=domain.name,
                disk=disk.target,
                path=disk.source,
                hint="vmkeep and libvirtd must see the same files. Run vmkeep outside of a container, and without "
                "PrivateMounts= or the like in its unit (`findmnt -T` beside `nsenter -m -t $(pidof libvirtd) findmnt "
                "-T` shows the difference). If the file was deleted while the VM runs, copy the disk inside the guest.",
            ) from error
        except OSError:
            continue  # it is there, and why it cannot be read is told by whoever reads it
