"""What is given to `checkpoint create FILE`, `snapshot create FILE`, `redefine` and `import`, changed part by part."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.property.foreign import damaged, forged, forged_xml
from vmkeep.moments import (
    BundleError,
    DomainDisk,
    LibvirtError,
    MomentError,
    MomentKind,
    MomentTree,
    align_snapshot,
    draw_tree,
    format_moment,
    parse_bundle,
    parse_moment,
    parse_snapshot,
)
from vmkeep.moments.documents import redefinable, with_domain_kept

T = TypeVar("T")
_DOMAIN = """<domain type='kvm'><name>linux</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/images/vda'/>
<target dev='vda' bus='virtio'/></disk><graphics type='vnc' passwd='secret'/></devices></domain>"""
_INSIDE = _DOMAIN.removeprefix("<domain type='kvm'>").removesuffix("</domain>")
CHECKPOINT = f"""<domaincheckpoint><name>c1</name><description>d</description><parent><name>c0</name></parent>
<creationTime>1700000000</creationTime><disks><disk name='vda' checkpoint='bitmap' bitmap='c1'/>
<disk name='vdb' checkpoint='no'/></disks>{_DOMAIN}</domaincheckpoint>"""
SNAPSHOT = f"""<domainsnapshot><name>s1</name><description>d</description><state>running</state>
<parent><name>s0</name></parent><creationTime>1700000000</creationTime>
<memory snapshot='external' file='/images/memory'/><disks><disk name='vda' snapshot='external' type='file'>
<driver type='qcow2'><metadata_cache><max_size unit='bytes'>1048576</max_size></metadata_cache></driver>
<source file='/images/s1.vda'><seclabel model='dac' relabel='no'/></source></disk>
<disk name='vdb' snapshot='no'/></disks>{_DOMAIN}<inactiveDomain type='kvm'>{_INSIDE}</inactiveDomain>
<cookie><slirpHelper/></cookie></domainsnapshot>"""
DOCUMENTS = {MomentKind.CHECKPOINT: CHECKPOINT, MomentKind.SNAPSHOT: SNAPSHOT}
_MOST_WORDS = 4000


def bundle(kind: MomentKind) -> dict[str, Any]:
    tag = f"domain{kind.value}"
    moments = [
        {"name": name, "xml": DOCUMENTS[kind].replace(f"<{tag}><name>{kind.value[0]}1", f"<{tag}><name>{name}", 1)}
        for name in ("c0", "c1", "c2")
    ]
    vm = {"name": "linux", "uuid": "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"}
    head = {"format": "vmkeep-moments", "version": 1, "kind": kind.value, "vm": vm, "security_info": True}
    return {**head, "current": None, "moments": moments}


def outcome(call: Callable[[], T]) -> T | None:
    """Return the data; None for what its callers translate into an error of the request."""
    try:
        return call()
    except (MomentError, BundleError) as error:
        told = str(error)
    assert told
    assert len(told) < _MOST_WORDS
    return None


def use(kind: MomentKind, xml: str) -> None:
    moment = outcome(lambda: parse_moment(kind, xml))
    outcome(lambda: parse_moment(kind, xml, validate=True))
    outcome(lambda: parse_moment(kind, redefinable(xml)))
    if kind is MomentKind.SNAPSHOT:
        new = outcome(lambda: parse_snapshot(xml, now=1_700_000_000))
        if new is not None:
            outcome(lambda: align_snapshot(new, (DomainDisk("vda", "/images/vda"),), default="external"))
    if moment is None:
        return
    again = parse_moment(kind, redefinable(format_moment(moment, secure=True)))
    assert again.name == moment.name
    existing = parse_moment(kind, DOCUMENTS[kind])
    outcome(lambda: with_domain_kept(moment, existing))
    outcome(lambda: MomentTree.build(kind, [moment, existing]))


@given(st.data(), st.sampled_from(MomentKind))
def test_moment_with_other_parts(data: st.DataObject, kind: MomentKind) -> None:
    use(kind, data.draw(forged_xml(DOCUMENTS[kind])))


@given(st.data(), st.sampled_from(MomentKind))
def test_moment_that_is_damaged(data: st.DataObject, kind: MomentKind) -> None:
    use(kind, data.draw(damaged(DOCUMENTS[kind].encode())).decode(errors="surrogateescape"))


@given(st.sampled_from(MomentKind).map(bundle).flatmap(forged))
def test_file_of_moments_with_other_fields(value: Any) -> None:
    read = outcome(lambda: parse_bundle(json.dumps(value)))
    if read is None:
        return
    tree = outcome(lambda: MomentTree.build(read.kind, [each.moment for each in read.moments], current=None))
    if tree is not None:
        assert len(list(draw_tree(tree))) >= 0
        assert len(list(tree.descendants())) == len(read.moments)


@given(st.sampled_from(MomentKind).map(bundle).map(json.dumps).map(str.encode).flatmap(damaged))
def test_file_of_moments_that_is_damaged(content: bytes) -> None:
    outcome(lambda: parse_bundle(content.decode(errors="surrogateescape")))


@pytest.mark.parametrize("kind", list(MomentKind))
def test_what_is_changed_is_good_before(kind: MomentKind) -> None:
    assert parse_moment(kind, DOCUMENTS[kind], validate=True).name
    assert len(parse_bundle(json.dumps(bundle(kind))).moments) == 3


@dataclass(frozen=True, slots=True)
class Named:
    name: str
    parent_name: str | None


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("abcdefghx") | st.none(), min_size=1), st.data())
def test_moments_whose_parents_are_anything(parents: dict[str, str | None], data: st.DataObject) -> None:
    tree: MomentTree[Any] = MomentTree.build(
        MomentKind.SNAPSHOT, [Named(name, parent) for name, parent in parents.items()]
    )
    assert sorted(each.name for each in tree.descendants()) == sorted(parents)
    assert len(list(draw_tree(tree))) >= len(parents)
    moved = Named(data.draw(st.sampled_from(sorted(parents))), data.draw(st.sampled_from([*parents, None])))
    with suppress(MomentError):
        tree.redefine(moved)
    assert sorted(each.name for each in tree.descendants()) == sorted(parents)


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, "1e999999", '{"moments": ' + "9" * 5000 + "}"])
def test_number_or_depth_that_python_refuses_is_an_error_of_the_file(text: str) -> None:
    with pytest.raises(BundleError):
        parse_bundle(text)


def test_error_has_libvirts_number() -> None:
    with pytest.raises(MomentError) as told:
        parse_moment(MomentKind.SNAPSHOT, "<domain/>")
    assert told.value.code == LibvirtError.VIR_ERR_XML_ERROR
