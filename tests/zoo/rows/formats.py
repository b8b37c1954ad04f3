"""Formats of images, and what QEMU can do with them."""

from __future__ import annotations

from tests.rig import KiB, MiB
from tests.zoo.row import NOT_TRIED, Edit, Image, Promise, Refused, Row

_SCAN = "read whole each time"
_LUKS_SNAPSHOT = Promise(snapshot=Refused("disk-unsupported", "vda"), revert=NOT_TRIED)

ROWS = (
    Row(
        "qcow2-v2",
        "qcow2 of version 2 (plain `virsh vol-create-as`)",
        (Image(options=("compat=0.10",), mode="scan"),),
        remark=f"holds no bitmaps: {_SCAN}",
        sample=True,
    ),
    Row("qcow2-4k", "qcow2, clusters of 4 KiB", (Image(options=("cluster_size=4k",)),)),
    Row("qcow2-2m", "qcow2, clusters of 2 MiB", (Image(options=("cluster_size=2M",)),)),
    Row(
        "qcow2-extended-l2", "qcow2 with extended L2 entries", (Image(options=("extended_l2=on", "cluster_size=128k")),)
    ),
    Row("qcow2-lazy", "qcow2 with lazy refcounts", (Image(options=("lazy_refcounts=on",)),)),
    Row("qcow2-refcount-64", "qcow2 with refcounts of 64 bits", (Image(options=("refcount_bits=64",)),)),
    Row("qcow2-compressed", "qcow2 with compressed clusters", (Image(compressed=True),)),
    Row("qcow2-zstd", "qcow2 compressed with zstd", (Image(compressed=True, options=("compression_type=zstd",)),)),
    Row("qcow2-metadata", "qcow2, `preallocation=metadata`", (Image(options=("preallocation=metadata",)),)),
    Row("qcow2-falloc", "qcow2, `preallocation=falloc`", (Image(options=("preallocation=falloc",)),)),
    Row("qcow2-full", "qcow2 that is full", (Image(full=True),)),
    Row("qcow2-data-file", "qcow2 with an external data file", (Image(options=("data_file={image}.data",)),)),
    Row(
        "qcow2-data-file-raw",
        "the same, `data_file_raw=on`",
        (Image(options=("data_file={image}.data", "data_file_raw=on")),),
    ),
    Row(
        "qcow2-internal",
        "qcow2 with an internal snapshot of `qemu-img`",
        (Image(prepared=(("snapshot", "-c", "old", "{image}"),)),),
    ),
    Row(
        "qcow2-foreign-bitmap",
        "qcow2 with a bitmap of another tool",
        (Image(prepared=(("bitmap", "--add", "{image}", "theirs"),)),),
    ),
    Row("backing-raw", "qcow2 above a raw image", (Image(layers=("raw",)),)),
    Row("backing-qcow2", "qcow2 above qcow2", (Image(layers=("qcow2",)),)),
    Row("chain-of-3", "a chain of raw, qcow2 and qcow2", (Image(layers=("raw", "qcow2")),), sample=True),
    Row("chain-of-5", "a chain of five", (Image(layers=("qcow2",) * 4),)),
    Row("raw-sparse", "raw, sparse", (Image(format="raw", mode="scan"),), remark=_SCAN),
    Row("raw-full", "raw, full", (Image(format="raw", full=True, mode="scan"),), remark=_SCAN),
    Row(
        "odd-size",
        "sizes that are no multiple of 64 KiB, qcow2 and raw",
        (
            Image(size_bytes=5 * MiB + 512),
            Image("vdb", 3 * MiB + 3 * KiB + 512, "raw", mode="scan"),
        ),
        sample=True,
    ),
    Row("tiny", "a disk of one block, and one of 64 KiB", (Image(size_bytes=512), Image("vdb", 64 * KiB))),
    Row(
        "empty",
        "images in which nothing was ever written",
        (
            Image(filled=False, written=False),
            Image("vdb", format="raw", filled=False, written=False, mode="scan"),
        ),
    ),
    Row("luks-qcow2", "LUKS in qcow2", (Image(encrypted=True),), promise=_LUKS_SNAPSHOT),
    Row(
        "luks-raw",
        "LUKS, raw",
        (Image(format="raw", encrypted=True, mode="scan"),),
        promise=_LUKS_SNAPSHOT,
        remark=_SCAN,
    ),
    Row("vmdk", "vmdk", (Image(format="vmdk", mode="scan"),), remark=_SCAN),
    Row("vdi", "vdi", (Image(format="vdi", mode="scan"),), remark=_SCAN),
    Row("qed", "qed", (Image(format="qed", mode="scan"),), remark=_SCAN),
    Row(
        "vpc",
        "vpc (VHD), fixed to its own sizes",
        (Image(format="vpc", options=("force_size=on",), mode="scan"),),
        remark=_SCAN,
    ),
    Row(
        "raw-like-qcow2",
        "raw, and the guest has written the header of a qcow2 image on it, with a file of the host",
        (Image(format="raw", looks_like_qcow2=True, mode="scan"),),
        remark=_SCAN,
    ),
    Row(
        "backing-in-definition",
        "a backing file that the definition names (`<backingStore>`)",
        (Image(layers=("raw",)),),
        edits=(
            Edit(
                "devices/disk",
                children=(
                    (
                        "<backingStore type='file'><format type='raw'/>"
                        "<source file='{place}/below0-backing-in-definition-vda.qcow2'/><backingStore/></backingStore>"
                    ),
                ),
            ),
        ),
    ),
    Row(
        "metadata-cache",
        "a size of the metadata cache (`<metadata_cache>`)",
        edits=(
            Edit(
                "devices/disk/driver",
                children=("<metadata_cache><max_size unit='bytes'>1048576</max_size></metadata_cache>",),
            ),
        ),
    ),
)
