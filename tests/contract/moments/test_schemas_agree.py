"""Our rules for the documents of moments and libvirt's installed schemas, asked the same.

The documents are those of the golden files, damaged in a few places: an attribute, an element or a text is left
out, doubled, moved or changed. Definitions of domains are left alone: they are libvirt's to judge.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from tests.examples import examples
from vmkeep.moments import MomentError, parse_backup, parse_checkpoint, parse_snapshot

SCHEMAS = Path("/usr/share/libvirt/schemas")
GOLDEN = Path(__file__).parents[2] / "unit" / "moments" / "golden"
SCHEMA_ERROR = 92
PARSERS: dict[str, Callable[[str], object]] = {
    "domaincheckpoint": parse_checkpoint,
    "domainsnapshot": partial(parse_snapshot, validate=True),
    "domainbackup": parse_backup,
}
pytestmark = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="libvirt's schemas are not installed")

OPAQUE = ("domain", "inactiveDomain", "cookie")
WHOLE = ("seclabel", "encryption", "slices", "host", "snapshot", "config", "auth", "ssl", "readahead", "timeout")
# Not among the attributes below: state, index and id of a running backup, which libvirt writes and its schema does
# not know; they are read here, so that its own output can be.

NEWER = ("snapshotDeleteInProgress", "revertDisks")
# Since libvirt 11.3 at the latest a push backup may choose a disk and say nothing more of it.
CHOOSES_PLAINLY = "plainly select a disk" in (SCHEMAS / "domainbackup.rng").read_text() if SCHEMAS.is_dir() else False

ATTRIBUTES = {
    "name": ["vda", "sdb1", "/x", "x", "", "C:\\x", "a b", "c/d", "::1"],
    "snapshot": ["no", "internal", "external", "manual", "default", "", " no\t"],
    "checkpoint": ["no", "bitmap", "default"],
    "bitmap": ["b", ""],
    "size": ["1", "x", "18446744073709551616"],
    "type": ["file", "block", "network", "dir", "qcow2", "raw", "vmdk", "bad", "kvm"],
    "mode": ["push", "pull", "x"],
    "backup": ["yes", "no", "maybe"],
    "backupmode": ["full", "incremental", "x"],
    "incremental": ["c", ""],
    "exportname": ["e"],
    "exportbitmap": ["e"],
    "transport": ["tcp", "unix", "rdma"],
    "tls": ["yes", "no", "x"],
    "port": ["1", "x", "4294967296"],
    "socket": ["/s", "s"],
    "file": ["/f", "f", ""],
    "dev": ["/d", "d"],
    "protocol": ["nbd", "rbd", "iscsi", "gluster", "nfs", "vxhs", "ssh", "x"],
    "query": ["q"],
    "unit": ["KiB", "bytes", "b", "GB", "x", ""],
    "startupPolicy": ["optional"],
    "unknown": ["1"],
}
ELEMENTS = (
    *("name", "description", "state", "creationTime", "memory", "disks", "disk", "parent", "active", "cookie"),
    *("incremental", "server", "driver", "source", "target", "scratch", "metadata_cache", "max_size", "unknown"),
)
TEXTS = ["", "x", "a.b", ".a", "a b", "0", "1", "-1", "running", "pmsuspended", "nostate", " shutoff ", "99999999999"]

schemas = {
    kind: etree.RelaxNG(etree.parse(SCHEMAS / f"{kind}.rng")) for kind in PARSERS if (SCHEMAS / f"{kind}.rng").exists()
}
originals = [
    root
    for root in (etree.parse(path).getroot() for path in sorted(GOLDEN.glob("*.xml")))
    if not any(element.tag in NEWER or "fdgroup" in element.attrib for element in root.iter())
]


def reachable(root: etree._Element) -> list[etree._Element]:
    """Return the elements that may be damaged inside."""
    found = [root]
    for child in root:
        if child.tag not in OPAQUE and not (root.tag in ("source", "target", "scratch") and child.tag in WHOLE):
            found += reachable(child)
    return found


def damage(root: etree._Element, draw: Callable[[st.SearchStrategy[object]], object]) -> None:
    element = draw(st.sampled_from(reachable(root)))
    assert isinstance(element, etree._Element)
    what = draw(st.sampled_from(["attribute", "no attribute", "element", "no element", "twice", "text", "swap"]))
    if what == "attribute":
        key = str(draw(st.sampled_from(sorted({*element.attrib, "type", "unknown"}) + list(ATTRIBUTES))))
        element.set(key, str(draw(st.sampled_from(ATTRIBUTES.get(key, ["1"])))))
    elif what == "no attribute" and element.attrib:
        del element.attrib[str(draw(st.sampled_from(sorted(map(str, element.attrib)))))]
    elif what == "element":
        etree.SubElement(element, str(draw(st.sampled_from(ELEMENTS))))
    elif what == "no element" and len(element):
        element.remove(element[int(str(draw(st.integers(0, len(element) - 1))))])
    elif what == "twice" and len(element):
        element.append(deepcopy(element[int(str(draw(st.integers(0, len(element) - 1))))]))
    elif what == "text":
        element.text = str(draw(st.sampled_from(TEXTS)))
    elif what == "swap" and len(element) > 1:
        element.append(element[0])


def is_newer(root: etree._Element) -> bool:
    """Return whether a document is right by the schemas of a later libvirt only, which we follow."""
    disks = root.iterfind("disks/disk") if root.tag == "domainbackup" and root.get("mode") != "pull" else iter(())
    return not CHOOSES_PLAINLY and any(disk.get("backup") != "no" and disk.get("type") is None for disk in disks)


def agree(root: etree._Element) -> None:
    text = etree.tostring(root, encoding="unicode")
    theirs = schemas[str(root.tag)].validate(etree.fromstring(text))
    try:
        PARSERS[str(root.tag)](text)
    except MomentError as error:
        ours = error.code != SCHEMA_ERROR
        reason = str(error)
    else:
        ours, reason = True, ""
    agreed = ours == theirs or (ours and is_newer(root))
    assert agreed, f"{text}\nours: {reason}\ntheirs: {schemas[str(root.tag)].error_log}"


@pytest.mark.parametrize("root", originals, ids=lambda root: str(root.tag))
def test_golden_document_is_valid_for_both(root: etree._Element) -> None:
    assert schemas[str(root.tag)].validate(root)
    agree(root)


@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(st.data())
def test_damaged_document_is_valid_for_both_or_for_neither(data: st.DataObject) -> None:
    root = deepcopy(data.draw(st.sampled_from(originals)))
    for _ in range(data.draw(st.integers(1, 3))):
        damage(root, data.draw)
    agree(root)
