"""Where disks are, and how a definition uses them."""

from __future__ import annotations

from tests.rig import MiB
from tests.zoo.row import NOT_TRIED, Edit, Image, Promise, Refused, Row

_READ_ONLY = Image("vdb", 2 * MiB, elements=("<readonly/>",), mode="scan", written=False, in_place=False)
_REFUSED = Promise(
    running=Refused("disk-unsupported", "vdb"),
    off=Refused("disk-unsupported", "vdb"),
    revert=Refused("disk-unsupported", "vdb"),  # of the safety point
)
# There is no such thing to start the VM with.
_OFF_ONLY = Promise(
    running=NOT_TRIED,
    off=Refused("disk-unsupported", "vdb"),
    snapshot=NOT_TRIED,
    revert=NOT_TRIED,
    files=NOT_TRIED,
    as_vm=NOT_TRIED,
    in_place=NOT_TRIED,
)
_BOOT = ("<boot order='1'/>",)

ROWS = (
    Row(
        "pool-volume",
        "a volume of a storage pool (`<source pool=... volume=...>`)",
        (Image(place="volume"),),
        promise=Promise(snapshot=Refused("invalid-request", "not a regular file")),
    ),
    Row(
        "block-device",
        "raw on a block device",
        (Image(place="block", format="raw", mode="scan"),),
        promise=Promise(snapshot=Refused("invalid-request", "not a regular file")),
    ),
    Row(
        "network-nbd",
        "a network disk (NBD), beside a file",
        (
            Image(),
            Image("vdb", place="nbd", format="raw", mode="scan", in_place=False),
        ),
        promise=Promise(
            off=Refused("disk-unsupported", "vdb"),
            in_place=Refused("disk-unsupported", "vdb"),
            revert=Refused("disk-unsupported", "vdb"),  # of the safety point
        ),
    ),
    Row("read-only", "a read-only disk beside another", (Image(), _READ_ONLY), sample=True),
    Row(
        "shareable",
        "a shareable raw disk beside another",
        (
            Image(),
            Image("vdb", format="raw", elements=("<shareable/>",), mode="scan"),
        ),
        promise=Promise(snapshot=Refused("disk-unsupported", "vdb")),
    ),
    Row(
        "no-disk",
        "no disk at all, UEFI and TPM",
        (),
        firmware="uefi",
        tpm="<backend type='emulator' version='2.0'/>",
        promise=Promise(snapshot=Refused("invalid-request", "no disk")),
    ),
    Row(
        "cdrom-empty",
        "an empty CD drive",
        (Image(), Image("sda", bus="sata", device="cdrom", medium=False, format="raw")),
    ),
    Row(
        "cdrom-medium",
        "a CD in its drive",
        (
            Image(),
            Image(
                "sda",
                2 * MiB,
                "raw",
                "sata",
                device="cdrom",
                elements=("<readonly/>",),
                mode="scan",
                written=False,
                in_place=False,
            ),
        ),
    ),
    Row(
        "boot-order", "boot order in the disks", (Image(elements=_BOOT), Image("vdb", elements=("<boot order='2'/>",)))
    ),
    Row("link", "the image is a symbolic link", (Image(place="link"),)),
    Row("raw-link", "a raw image behind a symbolic link", (Image(place="link", format="raw", mode="scan"),)),
    Row("twenty-disks", "twenty disks", tuple(Image(f"vd{letter}", MiB) for letter in "abcdefghijklmnopqrst")),
    Row("gaps", "targets with gaps, not in order", (Image("vdz"), Image("vdaa"), Image("vdc"))),
    Row(
        "startup-optional",
        "a CD with `startupPolicy='optional'` whose file is missing",
        (
            Image(),
            Image("sda", bus="sata", device="cdrom", medium=False, format="raw"),
        ),
        edits=(
            Edit(
                "devices/disk[@device='cdrom']",
                children=("<source file='{place}/no-such.iso' startupPolicy='optional'/>",),
            ),
        ),
    ),
    Row(
        "startup-optional-disk",
        "a disk with `startupPolicy='optional'` whose file is missing",
        devices=(
            (
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
                "<source file='{place}/no-such.qcow2' startupPolicy='optional'/><target dev='vdb' bus='virtio'/></disk>"
            ),
        ),
        promise=Promise(revert=Refused("invalid-request", "--force")),
        remark="kept without it, and every point says so",
    ),
    Row(
        "slice",
        "a part of a file (`<slices>`)",
        (
            Image(),
            Image("vdb", 2 * MiB, "raw", slice_at=MiB, mode="scan"),
        ),
        edits=(
            Edit(
                "devices/disk[target/@dev='vdb']/source",
                children=("<slices><slice type='storage' offset='1048576' size='2097152'/></slices>",),
            ),
        ),
        promise=Promise(
            off=Refused("header-refused", "vdb"),
            in_place=Refused("header-refused", "vdb"),
            revert=Refused("disk-unsupported", "part of its image"),
        ),
        remark="off and in place were tried with a snapshot over the part",
    ),
    Row(
        "transient-disk",
        "a transient disk beside another",
        (
            Image(),
            Image("vdb", 2 * MiB, elements=("<transient/>",), mode="scan", written=False, in_snapshot=False),
        ),
        promise=Promise(snapshot=Refused("disk-unsupported", "vdb")),
    ),
    Row(
        "snapshot-no",
        "a disk that is left out of snapshots (`snapshot='no'`)",
        (
            Image(),
            Image("vdb", 2 * MiB, in_snapshot=False),
        ),
        edits=(Edit("devices/disk[target/@dev='vdb']", (("snapshot", "no"),)),),
    ),
    Row(
        "same-file-twice",
        "two shareable disks on one file",
        (
            Image(),
            Image("vdb", 2 * MiB, "raw", elements=("<shareable/>",), mode="scan", file="twice.raw"),
        ),
        devices=(
            (
                "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{place}/twice.raw'/>"
                "<target dev='vdc' bus='virtio'/><shareable/></disk>"
            ),
        ),
        promise=Promise(
            running=Refused("disk-unsupported", "vdc"),
            off=Refused("disk-unsupported", "vdc"),
            snapshot=Refused("invalid-request", "vdc"),
        ),
    ),
    Row(
        "folder-as-disk",
        "a directory as a disk (`<disk type='dir'>`)",
        devices=(
            (
                "<disk type='dir' device='disk'><driver name='qemu' type='fat'/><source dir='{place}'/>"
                "<target dev='vdb' bus='virtio'/><readonly/></disk>"
            ),
        ),
        promise=_REFUSED,
    ),
    Row(
        "nvme",
        "an NVMe device of the host",
        devices=(
            (
                "<disk type='nvme' device='disk'><driver name='qemu' type='raw'/>"
                "<source type='pci' managed='yes' namespace='1'>"
                "<address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source>"
                "<target dev='vdb' bus='virtio'/></disk>"
            ),
        ),
        promise=_OFF_ONLY,
    ),
    Row(
        "vhostuser",
        "a vhost-user disk",
        devices=(
            (
                "<disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/>"
                "<source type='unix' path='/nowhere/sock'/>"
                "<target dev='vdb' bus='virtio'/></disk>"
            ),
        ),
        edits=(
            Edit("/domain", children=("<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",)),
        ),
        promise=_OFF_ONLY,
    ),
    Row(
        "network-rbd",
        "a network disk (Ceph RBD)",
        devices=(
            (
                "<disk type='network' device='disk'><driver name='qemu' type='raw'/>"
                "<source protocol='rbd' name='pool/image'>"
                "<host name='127.0.0.1' port='6789'/></source><target dev='vdb' bus='virtio'/></disk>"
            ),
        ),
        promise=_OFF_ONLY,
    ),
    Row(
        "network-iscsi",
        "a network disk (iSCSI)",
        devices=(
            (
                "<disk type='network' device='disk'><driver name='qemu' type='raw'/>"
                "<source protocol='iscsi' name='iqn.2013-07.com.example:iscsi/1'>"
                "<host name='127.0.0.1' port='3260'/></source>"
                "<target dev='vdb' bus='virtio'/></disk>"
            ),
        ),
        promise=_OFF_ONLY,
    ),
    Row(
        "shared-folder",
        "a shared folder (9p)",
        devices=(
            "<filesystem type='mount' accessmode='squash'><source dir='{place}'/><target dir='share'/></filesystem>",
        ),
        remark="the folder is the host's, and not in a point",
    ),
)
