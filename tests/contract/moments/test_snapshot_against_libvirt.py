"""libvirt's own test driver, asked the same about snapshots as vmkeep.moments: same text, same errors.

It lives in this process and needs no daemon.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.examples import examples
from vmkeep.moments import (
    MomentError,
    Snapshot,
    SnapshotLocation,
    SnapshotMemory,
    SnapshotState,
    align_snapshot,
    domain_disks,
    format_snapshot,
    parse_snapshot,
)

REDEFINE = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
VALIDATE = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_VALIDATE
# It takes no manual disks in a new snapshot; other drivers do.
ONLY_OF_THE_TEST_DRIVER = 84
SECURE = libvirt.VIR_DOMAIN_XML_SECURE


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("it's.images")
    for name in ("a.img", "b.qcow2", "c", "d.x.y"):
        (directory / name).touch()
    return directory


@pytest.fixture(scope="module")
def domain(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[libvirt.virDomain]:
    libvirt.registerErrorHandler(lambda *_: None, None)
    # Of a file, unlike the default one, each connection has a state of its own.
    node = tmp_path_factory.mktemp("node") / "node.xml"
    node.write_text("<node/>")
    connection = libvirt.open(f"test://{node}")
    domain = connection.defineXML(f"""<domain type='test'><name>it's "q"</name>
<metadata><a:x xmlns:a="u" k="1'2"><a:y>
t</a:y> <a:z/></a:x></metadata>
<memory>1024</memory><vcpu>1</vcpu><os><type>hvm</type></os><devices>
<disk type='file'><driver name='qemu' type='qcow2'/><source file="{images}/a.img"/><target dev='vda'/></disk>
<disk type='file' snapshot='no'><source file="{images}/b.qcow2"/><target dev='vdb'/></disk>
<disk type='file'><source file="{images}/c"/><target dev='vdc'/><readonly/></disk>
<disk type='file' device='cdrom'><target dev='hda' bus='ide'/></disk>
<disk type='block' snapshot='internal'><source dev='/dev/zero'/><target dev='vdd'/></disk>
<disk type='file' snapshot='external'><source file="{images}/d.x.y"/><target dev='vde'/></disk>
<graphics type='vnc' port='-1' autoport='yes' passwd='sec&apos;ret'/>
</devices></domain>""")
    domain.create()
    yield domain
    connection.close()


def ours(domain: libvirt.virDomain, xml: str, flags: int) -> Snapshot:
    """Do what the test driver does with the text."""
    redefine = bool(flags & REDEFINE)
    read = parse_snapshot(xml, redefine=redefine, now=1, validate=bool(flags & VALIDATE))
    external = SnapshotLocation.EXTERNAL
    if redefine:
        # The test driver has no saved state of its own, and so no cookies.
        read = replace(read, cookie=None)
        locations = {read.memory.location, *(disk.location for disk in read.disks)}
        outside = read.state == "disk-snapshot" or external in locations
        default = external if outside else SnapshotLocation.INTERNAL
        return align_snapshot(read, domain_disks(read.domain or ""), default=default, uniform=True)
    definition = domain.XMLDesc(SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
    kept_outside = read.memory.location is external
    memory = read.memory if kept_outside else SnapshotMemory(SnapshotLocation.INTERNAL)
    read = replace(read, cookie=None, state=SnapshotState.RUNNING, domain=definition, memory=memory)
    default = external if kept_outside else SnapshotLocation.INTERNAL
    return align_snapshot(read, domain_disks(definition), default=default, uniform=True)


NEW = [
    "",
    "<name></name>",
    "<name>a/b</name>",
    "<name>.x y</name><description>&amp; &lt;'\"\ty\n z é ]]&gt; \U0001f600</description>",
    "<name>a<!-- c -->b<i>c</i></name><name>second</name><unknown/>text",
    "<name>a</name><description></description><disks/>",
    "<name>a</name><creationTime>x</creationTime><state>bad</state><parent><name>p</name></parent><domain/>",
    "<disks><disk name='vdb'/><disk name='vde'/></disks>",
    "<disks><disk name='vdb' snapshot='internal'/></disks>",
    "<disks><disk name='vdb' snapshot='no'/></disks>",
    "<disks><disk name='hda'/><disk name='vdc'/></disks>",
    "<memory snapshot='internal'/>",
    "<memory file='/m&apos;'/>",
    "<memory snapshot='external' file='/m'/><disks><disk name='vda' snapshot='internal'/></disks>",
    "<memory file='/m'/><disks><disk name='vda'><driver type='qcow2'/></disk><disk name='vdc'/></disks>",
]

REFUSED = [
    "<memory snapshot='manual'/>",
    "<memory snapshot='default'/>",
    "<memory snapshot=''/>",
    "<memory snapshot='no' file='/x'/>",
    "<memory snapshot='external'/>",
    "<memory file='x'/>",
    "<memory file=''/>",
    "<disks><disk/></disks>",
    "<disks><disk name='vda' snapshot='default'/></disks>",
    "<disks><disk name='vda' type='dir'/></disks>",
    "<disks><disk name='vda' type='volume'/></disks>",
    "<disks><disk name='vda' type='none'/></disks>",
    "<disks><disk name='vda'><driver type='bad'/></disk></disks>",
    "<disks><disk name='vda'><driver type='luks'/></disk></disks>",
    "<disks><disk name='vda'><source file='relative'/></disk></disks>",
    "<disks><disk name='vda' type='network'><source/></disk></disks>",
    "<disks><disk name='vda' type='network'><source protocol='none' name='x'/></disk></disks>",
    "<disks><disk name='vda' type='network'><source protocol='sheepdog'/></disk></disks>",
    "<disks><disk name='vda' type='network'><source protocol='rbd'/></disk></disks>",
    "<disks><disk name='vda' type='network'><source protocol='gluster' name='v'/></disk></disks>",
    "<disks><disk name='vda'><driver><metadata_cache><max_size>-1</max_size></metadata_cache></driver></disk></disks>",
    "<disks><disk name='vda'><driver><metadata_cache><max_size>5 </max_size></metadata_cache></driver></disk></disks>",
    (
        "<disks><disk name='vda'><driver><metadata_cache>"
        "<max_size unit='z'>5</max_size></metadata_cache></driver></disk>"
        "</disks>"
    ),
    (
        "<disks><disk name='vda'><driver><metadata_cache>"
        "<max_size unit='E'>99</max_size></metadata_cache></driver></disk>"
        "</disks>"
    ),
    "<disks><disk name='vda'/><disk name='vda'/></disks>",
    "<disks><disk name='vdz'/></disks>",
    "<disks><disk name='/nope'/></disks>",
    "<disks><disk name=''/></disks>",
    "<disks>" + "<disk name='vdz'/>" * 7 + "</disks>",
    "<disks><disk name='vda' snapshot='no'/></disks>",
    "<disks><disk name='vda' snapshot='external'/></disks>",
    "<disks><disk name='vda' snapshot='internal'><source file='/x'/></disk></disks>",
    "<memory file='/m'/><disks><disk name='vdd' snapshot='external'/></disks>",
    "<memory file='/m'/><disks><disk name='hda' snapshot='external'/></disks>",
    "<memory file='/m'/><disks><disk name='vda' type='block'><driver type='qcow2'/></disk></disks>",
    # Which of several faults is told.
    "<memory file='x' snapshot='bad'/><disks><disk/></disks>",
    "<memory file='x'/><disks><disk/></disks>",
    "<disks><disk snapshot='bad' type='bad'/></disks>",
    "<disks><disk name='vda' type='dir'><driver type='bad'/><source file='x'/></disk></disks>",
    "<disks><disk name='vda'><driver type='bad'/><source file='x'/></disk></disks>",
]

EXISTING = "<name>a</name><creationTime>5</creationTime>"
LIVE = EXISTING + "<state>running</state>DOMAIN"
DISK_ONLY = EXISTING + "<state>disk-snapshot</state>DOMAIN"
LUKS = "<encryption format='luks'><secret type='passphrase' uuid='f52a81b2-424e-490c-823d-6bd4235bc572'/></encryption>"

REDEFINED = [
    LIVE,
    EXISTING + "<state>pmsuspended</state>DOMAIN",
    EXISTING + "<state>shutoff</state>DOMAIN<memory snapshot='no'/><cookie><x/></cookie>",
    EXISTING + "<state>paused</state>DOMAIN<memory snapshot='no'/><disks/>",
    LIVE + "<memory file='/m'/>",
    LIVE + "<memory>text</memory><active>x</active>",
    LIVE + "INACTIVE<cookie><a b='1'/></cookie>",
    "<name>a</name><creationTime>\n+005</creationTime><state>running</state>DOMAIN",
    "<name>a</name><creationTime> -5</creationTime><state>running</state>DOMAIN",
    "<name>a</name><creationTime>9223372036854775807</creationTime><state>running</state>DOMAIN",
    "<state>running</state>DOMAIN<creationTime>0</creationTime><description>d</description><name>b</name>",
    DISK_ONLY,
    *(
        DISK_ONLY + f"<disks>{disk}</disks>"
        for disk in (
            "<disk name='vda' snapshot='no'><driver type='qcow2'/></disk>",
            "<disk name='vda' snapshot='manual'/>",
            "<disk name='vda'><driver type='raw' name='qemu' cache='none'/></disk>",
            "<disk name='vda'><driver/><source file=''/></disk>",
            "<disk name='vda'><source dev='/x'/></disk>",
            "<disk name='vda' type='block'><source dev='/x&apos;&lt;'/></disk>",
            "<anything name='vda' snapshot='no'/>",
            "<disk name='vda'><source file='/x'/><source file='/y'/><driver type='qcow2'/><driver type='raw'/></disk>",
            (
                "<disk name='vda'><source file='/x' index='5' startupPolicy='optional'><reservations managed='yes'/>"
                f"{LUKS}<seclabel model='dac' relabel='no'/><seclabel model='selinux' relabel='yes'><label>x y</label>"
                "</seclabel>"
                "<slices><slice type='storage' offset='1' size='5'/></slices></source></disk>"
            ),
            (
                "<disk name='vda'><source file='/x'/><driver type='qcow2'><metadata_cache><max_size unit='KiB'>1234"
                "</max_size></metadata_cache></driver></disk>"
            ),
            (
                "<disk name='vda'><source file='/x'/><driver><metadata_cache><max_size unit='Gb'> 2</max_size>"
                "</metadata_cache></driver></disk>"
            ),
            (
                "<disk name='vda'><source file='/x'/><driver><metadata_cache><max_size unit='bytes'>+7</max_size>"
                "</metadata_cache></driver></disk>"
            ),
            (
                "<disk name='vda'><source file='/x'/><driver><metadata_cache><max_size>0</max_size></metadata_cache>"
                "</driver></disk>"
            ),
            "<disk name='vda'><driver><metadata_cache><max_size/></metadata_cache></driver></disk>",
            (
                "<disk name='vda' snapshot='no'><driver type='raw'/>"
                "<source><seclabel model='dac' relabel='no'/></source>"
                "</disk>"
            ),
            (
                f"<disk name='vda' type='network'><source tls='yes' name='e' protocol='nbd'>{LUKS}<slices>"
                "<slice type='storage' offset='1' size='5'/></slices><host name='h' port='10'/></source></disk>"
            ),
            (
                "<disk name='vda' type='network'><source name='e' query='q=1' protocol='https'><timeout seconds='5'/>"
                "<readahead size='5'/><ssl verify='no'/><host name='h' port='10'/></source></disk>"
            ),
            (
                "<disk name='vda' type='network'><source name='p/i' protocol='rbd'>"
                "<auth username='u'>"
                "<secret type='ceph' uuid='f52a81b2-424e-490c-823d-6bd4235bc572'/></auth><config file='/c'/>"
                "<snapshot name='s'/>"
                "<host name='h'/></source></disk>"
            ),
            (
                "<disk name='vda' type='network'><source name='iqn/1' protocol='iscsi'><auth username='u'>"
                "<secret type='iscsi' uuid='f52a81b2-424e-490c-823d-6bd4235bc572'/></auth><initiator><iqn name='z'/>"
                "</initiator><host name='h' port='3260'/></source></disk>"
            ),
            (
                "<disk name='vda' snapshot='no' type='nvme'><driver type='raw'/><source type='pci' managed='yes' "
                "namespace='1'><address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source></disk>"
            ),
            "<disk name='vda' type='vhostuser' snapshot='no'><driver type='raw'/><source type='unix' path='/'/></disk>",
            "<disk name='vda'><source file='/x'/><snapshotDeleteInProgress/></disk>",
            "<disk name='vda' snapshot='external'><snapshotDeleteInProgress/></disk>",
            "<disk name='hda'/><disk name='IMAGES/c' snapshot='external'/>",
        )
    ),
]

REFUSED_WHEN_REDEFINED = [
    "",
    "<name></name>",
    "<name>a</name>",
    "<name>a</name><state>bad</state>",
    "<name>a</name><creationTime/>",
    "<name>a</name><creationTime>5 </creationTime>",
    "<name>a</name><creationTime>0x5</creationTime>",
    "<name>a</name><creationTime>9223372036854775808</creationTime>",
    EXISTING,
    EXISTING + "<state/>",
    EXISTING + "<state>nostate</state>",
    EXISTING + "<state>bad</state>",
    EXISTING + "<state> running</state>DOMAIN",
    LIVE + "<inactiveDomain/>",
    LIVE + "<inactiveDomain><name>a</name></inactiveDomain>",
    EXISTING + "<state>running</state><domain type='test'/>",
    EXISTING + "<state>running</state><domain/>DOMAIN",
    LIVE + "<memory snapshot='external'/>",
    EXISTING + "<state>shutoff</state>DOMAIN<memory snapshot='internal'/>",
    DISK_ONLY + "<memory file='/m'/>",
    DISK_ONLY + "<memory file='m'/>",
    DISK_ONLY + "<disks><disk name='vda'/><disk name='IMAGES/a.img'/></disks>",
    DISK_ONLY + "<disks><disk name='vda' snapshot='no'><source file='/x'/></disk></disks>",
    DISK_ONLY + "<disks><disk name='vda' type='network'><source protocol='nbd'/></disk></disks>",
    DISK_ONLY + "<disks><disk name='vda' type='nvme'/></disks>",
    DISK_ONLY + "<disks><disk name='vdc' snapshot='external'><source file='x'/></disk></disks>",
]


def document(domain: libvirt.virDomain, images: Path, inner: str) -> str:
    definition = domain.XMLDesc(SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
    inactive = definition.replace("<domain ", "<inactiveDomain ").replace("</domain>", "</inactiveDomain>")
    quoted = str(images).replace("'", "&apos;")
    filled = inner.replace("INACTIVE", inactive).replace("DOMAIN", definition).replace("IMAGES", quoted)
    return f"<domainsnapshot>{filled}</domainsnapshot>"


@pytest.mark.parametrize(("inner", "flags"), [(x, 0) for x in NEW] + [(x, REDEFINE) for x in REDEFINED])
def test_what_libvirt_takes_is_written_as_libvirt_writes_it(
    domain: libvirt.virDomain, images: Path, inner: str, flags: int
) -> None:
    xml = document(domain, images, inner)
    snapshot = domain.snapshotCreateXML(xml, flags)
    try:
        plain, secure = snapshot.getXMLDesc(0), snapshot.getXMLDesc(SECURE)
    finally:
        snapshot.delete(0)
    mine = ours(domain, xml, flags)
    if not flags:
        time = parse_snapshot(plain, redefine=True).creation_time
        named = mine.name == "1"
        mine = ours_at(domain, xml, time) if named else replace(mine, creation_time=time)
    if "<unknown" in inner or "<anything" in inner:
        mine = replace(mine, other_elements=())
    assert format_snapshot(mine) == plain
    assert format_snapshot(mine, secure=True) == secure
    if "creationTime>" in plain:
        assert format_snapshot(parse_snapshot(secure, redefine=True), secure=True) == secure


def ours_at(domain: libvirt.virDomain, xml: str, time: int) -> Snapshot:
    mine = ours(domain, xml.replace("<domainsnapshot>", f"<domainsnapshot><name>{time}</name>", 1), 0)
    return replace(mine, creation_time=time)


@pytest.mark.parametrize(
    ("inner", "flags"), [(x, 0) for x in REFUSED] + [(x, REDEFINE) for x in REFUSED_WHEN_REDEFINED]
)
def test_what_libvirt_refuses_is_refused_with_its_number(
    domain: libvirt.virDomain, images: Path, inner: str, flags: int
) -> None:
    same_refusal(domain, document(domain, images, inner), flags)


@pytest.mark.parametrize("xml", ["", "<domainsnapshot", "<foo/>", "<domainsnapshot/><x/>"])
def test_what_is_no_snapshot_is_refused_with_libvirts_number(domain: libvirt.virDomain, xml: str) -> None:
    same_refusal(domain, xml, 0)


@pytest.mark.parametrize("inner", ["<unknown/>", "text", "<name/><name/>", "<memory/>", "<disks><x/></disks>"])
def test_what_libvirt_refuses_only_when_it_validates_is_refused_only_then(
    domain: libvirt.virDomain, inner: str
) -> None:
    xml = f"<domainsnapshot>{inner}</domainsnapshot>"
    same_refusal(domain, xml, VALIDATE)
    if "<x/>" not in inner:
        parse_snapshot(xml)


def same_refusal(domain: libvirt.virDomain, xml: str, flags: int) -> None:
    with pytest.raises(libvirt.libvirtError) as theirs:
        domain.snapshotCreateXML(xml, flags).delete(0)
    with pytest.raises(MomentError) as mine:
        ours(domain, xml, flags)
    assert (mine.value.code, mine.value.message != "") == (theirs.value.get_error_code(), True), str(theirs.value)


def attribute(name: str, *values: str) -> st.SearchStrategy[str]:
    """Return an attribute with one of the values, or none."""
    return st.sampled_from(["", *(f" {name}='{value}'" for value in values)])


def generated(*, faulty: bool) -> st.SearchStrategy[str]:
    """Return the inner of snapshots, with faults in most of them or with as few as listed disks allow."""

    def bad(*values: str) -> tuple[str, ...]:
        return values if faulty else ()

    disk = st.builds(
        "<disk name='{}'{}{}>{}{}</disk>".format,
        st.sampled_from(
            ["vda", "vdb", "vde", "IMAGES/c", "hda", *bad("vda", "vdd", "vdz", "IMAGES/a.img", "/dev/zero")]
        ),
        attribute("snapshot", "external", *bad("no", "internal", "manual", "bad")),
        attribute("type", "file", *bad("block", "volume")),
        st.sampled_from(["", "<driver type='qcow2'/>", *bad("<driver type='bad'/>")]),
        st.sampled_from(
            ["<source file='/x'/>", *bad("", "<source dev='/y'/>", "<source file='z'/>", "<source file=''/>")]
        ),
    )
    no_vdd = "<disk name='vdd' snapshot='no'/>"
    memory = st.builds(
        "<memory{}{}/>".format,
        attribute("snapshot", "no", "internal", "external", "manual"),
        attribute("file", "/m", "m"),
    )
    return st.builds(
        "<name>g</name><creationTime>{}</creationTime><state>{}</state>DOMAIN{}<disks>{}{}</disks>".format,
        st.sampled_from(["5", *bad("x")]),
        st.sampled_from(["disk-snapshot", "running", "paused", "shutoff", *bad("bad")]),
        st.just("") if not faulty else st.just("") | memory,
        st.lists(disk, max_size=3, unique_by=None if faulty else lambda text: text[:16]).map("".join),
        st.sampled_from([no_vdd, *bad("")]),
    )


@settings(max_examples=examples(75))
@given(generated(faulty=True) | generated(faulty=False), st.sampled_from([0, REDEFINE]))
def test_any_snapshot_is_taken_or_refused_as_libvirt_does(
    domain: libvirt.virDomain, images: Path, inner: str, flags: int
) -> None:
    xml = document(domain, images, inner)
    snapshot = refusal = None
    try:
        snapshot = domain.snapshotCreateXML(xml, flags)
    except libvirt.libvirtError as error:
        refusal = error
    if snapshot is None:
        assert refusal is not None
        assume(refusal.get_error_code() != ONLY_OF_THE_TEST_DRIVER)
        with pytest.raises(MomentError) as mine:
            ours(domain, xml, flags)
        assert mine.value.code == refusal.get_error_code(), str(refusal)
        return
    try:
        text = snapshot.getXMLDesc(SECURE)
    finally:
        snapshot.delete(0)
    time = parse_snapshot(text, redefine=True).creation_time
    assert format_snapshot(replace(ours(domain, xml, flags), creation_time=time), secure=True) == text
