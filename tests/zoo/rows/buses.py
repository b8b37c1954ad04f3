"""Buses, controllers, and how QEMU does the disks' I/O."""

from __future__ import annotations

from tests.rig import KiB, MiB
from tests.zoo.row import Edit, Image, Promise, Refused, Row

_SCSI = "<controller type='scsi' index='0' model='{model}'/>"
_LIMITS = "<iotune><total_bytes_sec>104857600</total_bytes_sec><total_iops_sec>5000</total_iops_sec></iotune>"
_THREADS = Edit("/domain", children=("<iothreads>2</iothreads>",))
_SCSI_IN_A_THREAD = "<controller type='scsi' index='0' model='virtio-scsi'><driver iothread='1'/></controller>"


def _driver(**attributes: str) -> tuple[tuple[str, str], ...]:
    return tuple(attributes.items())


def _scsi(model: str) -> tuple[str, ...]:
    return (_SCSI.format(model=model),)


_PC = Edit("os/type", (("machine", "pc"),))

ROWS = (
    Row("virtio", "virtio-blk, qcow2", sample=True),
    Row("virtio-scsi", "virtio-scsi, qcow2", (Image("sda", bus="scsi"),), devices=_scsi("virtio-scsi")),
    Row("scsi-lsi", "LSI 53C895A SCSI controller", (Image("sda", bus="scsi"),), devices=_scsi("lsilogic")),
    Row("scsi-sas", "LSI SAS 1068 controller", (Image("sda", bus="scsi"),), devices=_scsi("lsisas1068")),
    Row("scsi-pvscsi", "VMware paravirtual SCSI controller", (Image("sda", bus="scsi"),), devices=_scsi("vmpvscsi")),
    Row("sata", "SATA", (Image("sda", bus="sata"),)),
    Row("ide", "IDE, machine `pc`", (Image("hda", bus="ide"),), edits=(_PC,)),
    Row("usb", "USB storage", (Image("sda", bus="usb"),), devices=("<controller type='usb' model='qemu-xhci'/>",)),
    Row(
        "floppy",
        "a floppy drive with a medium, beside a disk",
        (
            Image(),
            Image("fda", 1440 * KiB, "raw", "fdc", device="floppy", mode="scan", written=False),
        ),
        edits=(_PC,),
    ),
    Row(
        "mixed",
        "virtio, SATA and SCSI in one VM, one raw",
        (
            Image(),
            Image("sda", bus="sata", format="raw", mode="scan"),
            Image("sdb", bus="scsi"),
            Image("vdb", 3 * MiB),
        ),
        devices=_scsi("virtio-scsi"),
        sample=True,
    ),
    Row(
        "iothread",
        "virtio-blk in an I/O thread",
        (
            Image(driver=_driver(iothread="1"), fragile=True),
            Image("vdb", driver=_driver(iothread="2"), fragile=True),
        ),
        edits=(_THREADS,),
        sample=True,
    ),
    Row(
        "iothread-scsi",
        "virtio-scsi in an I/O thread",
        (Image("sda", bus="scsi", fragile=True),),
        edits=(_THREADS,),
        devices=(_SCSI_IN_A_THREAD,),
    ),
    Row(
        "iothread-iotune",
        "an I/O thread and limits on one disk",
        (Image(driver=_driver(iothread="1"), elements=(_LIMITS,), fragile=True),),
        edits=(_THREADS,),
        promise=Promise(running=Refused("disk-unsupported", "virsh blkdeviotune")),
        promise_of_libvirt_11=Promise(),
        remark="it is the QEMU before 9.0 that cannot ([known faults](known-faults.md))",
    ),
    Row("iotune", "limits (`iotune`)", (Image(elements=(_LIMITS,)),)),
    Row(
        "iotune-group",
        "two disks that share a group of limits",
        (
            Image(elements=(_LIMITS.replace("</iotune>", "<group_name>both</group_name></iotune>"),)),
            Image("vdb", elements=(_LIMITS.replace("</iotune>", "<group_name>both</group_name></iotune>"),)),
        ),
    ),
    Row(
        "queues",
        "several queues (`queues='4'`) and packed rings",
        (Image(driver=_driver(queues="4", packed="on")),),
        edits=(Edit("vcpu", (("current", "1"),)),),
    ),
    Row("cache-none", "`cache='none' io='native'`", (Image(driver=_driver(cache="none", io="native")),)),
    Row(
        "cache-writethrough",
        "`cache='writethrough' io='threads'`",
        (Image(driver=_driver(cache="writethrough", io="threads")),),
    ),
    Row("cache-directsync", "`cache='directsync'`", (Image(driver=_driver(cache="directsync")),)),
    Row("cache-unsafe", "`cache='unsafe'`", (Image(driver=_driver(cache="unsafe")),)),
    Row("io-uring", "`io='io_uring'`", (Image(driver=_driver(io="io_uring")),)),
    Row("detect-zeroes", "`detect_zeroes='unmap'`", (Image(driver=_driver(detect_zeroes="unmap")),)),
    Row(
        "discard-ignored",
        "`discard='ignore'`, raw and qcow2",
        (
            Image(driver=_driver(discard="ignore")),
            Image("vdb", format="raw", driver=_driver(discard="ignore"), mode="scan"),
        ),
    ),
    Row(
        "copy-on-read",
        "`copy_on_read='on'` above a backing file",
        (Image(layers=("qcow2",), driver=_driver(copy_on_read="on")),),
    ),
    Row(
        "policy-report",
        "`error_policy='report'`",
        (Image(driver=_driver(error_policy="report", rerror_policy="ignore")),),
    ),
    Row("policy-enospace", "`error_policy='enospace'`", (Image(driver=_driver(error_policy="enospace")),)),
    Row(
        "block-4096",
        "blocks of 4096 bytes, qcow2 and raw",
        (
            Image(block_bytes=4096, elements=("<blockio logical_block_size='4096' physical_block_size='4096'/>",)),
            Image(
                "vdb",
                format="raw",
                block_bytes=4096,
                mode="scan",
                elements=("<blockio logical_block_size='4096' physical_block_size='4096'/>",),
            ),
        ),
    ),
    Row(
        "block-512e",
        "512 bytes on 4096 physical",
        (Image(elements=("<blockio logical_block_size='512' physical_block_size='4096'/>",)),),
    ),
    Row(
        "serial",
        "serial, WWN, product and alias of its own",
        (
            Image(
                "sda",
                bus="scsi",
                elements=(
                    "<serial>WD-1234 567</serial>",
                    "<wwn>5000c50015ea71ac</wwn>",
                    "<product>zoo</product>",
                    "<alias name='ua-my-disk'/>",
                ),
            ),
        ),
        devices=_scsi("virtio-scsi"),
    ),
)
