"""libvirt's own test driver, asked the same as vmkeep.moments: same text, same errors.

It lives in this process and needs no daemon.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import libvirt
import pytest

from vmkeep.moments import Checkpoint, MomentError, align_checkpoint, domain_disks, format_checkpoint, parse_checkpoint

DOMAIN = """<domain type='test'><name>it's "q"</name>
<description>first &gt;
  second 'q' "z" é</description>
<metadata><a:x xmlns:a="u" k="1'2"><a:y>
t</a:y> <a:z/></a:x></metadata>
<memory>1024</memory><vcpu>1</vcpu><os><type>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
<source file="/a/b'c&quot;.img"/><target dev='vda'/></disk>
<disk type='file' device='disk'><source file="/a/second"/><target dev='vdb'/></disk>
<disk type='file' device='disk'><source file="/a/ro"/><target dev='vdc'/><readonly/></disk>
<disk type='file' device='cdrom'><target dev='hda' bus='ide'/></disk>
<graphics type='vnc' port='-1' autoport='yes' passwd='sec&apos;ret'/>
</devices></domain>"""


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[libvirt.virDomain]:
    libvirt.registerErrorHandler(lambda *_: None, None)
    # Of a file, unlike the default one, each connection has a state of its own.
    node = tmp_path_factory.mktemp("node") / "node.xml"
    node.write_text("<node/>")
    connection = libvirt.open(f"test://{node}")
    domain = connection.defineXML(DOMAIN)
    domain.create()
    yield domain
    connection.close()


def ours(domain: libvirt.virDomain, xml: str, *, redefine: bool, now: int) -> Checkpoint:
    read = parse_checkpoint(xml, redefine=redefine, now=now)
    if redefine and read.domain is None:
        return replace(read, disks=tuple(replace(d, bitmap=d.bitmap or read.name) for d in read.disks))
    embedded = read.domain or domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
    return align_checkpoint(replace(read, domain=embedded), domain_disks(embedded))


ACCEPTED = [
    "<domaincheckpoint/>",
    "<domaincheckpoint><description>&amp; &lt;'\"\ty\n z é ]]&gt; \U0001f600</description></domaincheckpoint>",
    "<domaincheckpoint><name>a</name><description></description></domaincheckpoint>",
    "<domaincheckpoint><name>a</name><description>  </description></domaincheckpoint>",
    "<domaincheckpoint><description>a<!-- c -->b<![CDATA[<c>]]></description><name>a</name></domaincheckpoint>",
    "<domaincheckpoint><name>-b_.9</name><disks><disk name='vda' bitmap='&amp;\"&apos;'/></disks></domaincheckpoint>",
    "<domaincheckpoint><name>a</name><disks><disk name='vda' checkpoint='bitmap' size='5'/></disks></domaincheckpoint>",
    "<domaincheckpoint><name>a</name><disks><disk name='vda' checkpoint='no'/></disks></domaincheckpoint>",
    "<domaincheckpoint><name>a</name><disks><disk name='vdb' bitmap=''/><disk name='vda'/></disks></domaincheckpoint>",
    "<domaincheckpoint><name>a</name><disks><disk name='/a/second'/></disks></domaincheckpoint>",
    "<domaincheckpoint><name>a</name><disks><disk name='vdc' checkpoint='no'/></disks></domaincheckpoint>",
    "<domaincheckpoint><name>a</name><creationTime>5</creationTime><parent><name>zz</name></parent></domaincheckpoint>",
    "<?xml version='1.0' encoding='utf-8'?><!-- c --><domaincheckpoint>\n <!-- d --><name>a</name> </domaincheckpoint>",
]

REDEFINED = [
    "<domaincheckpoint><name>a</name><creationTime>0</creationTime></domaincheckpoint>",
    "<domaincheckpoint><name>a</name><creationTime>0012</creationTime></domaincheckpoint>",
    # Children in another order.
    "<domaincheckpoint><creationTime>1</creationTime><description>d</description><name>b</name></domaincheckpoint>",
    "<domaincheckpoint><name>a</name><creationTime>9223372036854775807</creationTime></domaincheckpoint>",
]

REFUSED = [
    "",
    "<domaincheckpoint",
    "<foo/>",
    "<domaincheckpoint foo='1'/>",
    "<domaincheckpoint><bogus/></domaincheckpoint>",
    "<domaincheckpoint>text</domaincheckpoint>",
    "<domaincheckpoint><name>a</name><name>b</name></domaincheckpoint>",
    "<domaincheckpoint><name></name></domaincheckpoint>",
    "<domaincheckpoint><name> a </name></domaincheckpoint>",
    "<domaincheckpoint><name>a/b</name></domaincheckpoint>",
    "<domaincheckpoint><name>.a</name></domaincheckpoint>",
    "<domaincheckpoint><name>é</name></domaincheckpoint>",
    "<domaincheckpoint><name>a<b/></name></domaincheckpoint>",
    "<domaincheckpoint><description>a<b/></description></domaincheckpoint>",
    "<domaincheckpoint><parent/></domaincheckpoint>",
    "<domaincheckpoint><parent><name>a b</name></parent></domaincheckpoint>",
    "<domaincheckpoint><creationTime>-1</creationTime></domaincheckpoint>",
    "<domaincheckpoint><creationTime> 1</creationTime></domaincheckpoint>",
    "<domaincheckpoint><creationTime>99999999999999999999</creationTime></domaincheckpoint>",
    "<domaincheckpoint><domain/></domaincheckpoint>",
    "<domaincheckpoint><disks/></domaincheckpoint>",
    "<domaincheckpoint><disks><disk/></disks></domaincheckpoint>",
    "<domaincheckpoint><disks><disk name='no space'/></disks></domaincheckpoint>",
    "<domaincheckpoint><disks><disk name='vda' checkpoint='default'/></disks></domaincheckpoint>",
    "<domaincheckpoint><disks><disk name='vda' checkpoint='no' bitmap='x'/></disks></domaincheckpoint>",
    "<domaincheckpoint><disks><disk name='vda' checkpoint='no' size='1'/></disks></domaincheckpoint>",
    "<domaincheckpoint><disks><disk name='vda' size='x'/></disks></domaincheckpoint>",
    "<domaincheckpoint><disks><disk name='vda'><x/></disk></disks></domaincheckpoint>",
    "<domaincheckpoint><disks><disk name='/nope'/></disks></domaincheckpoint>",
    "<domaincheckpoint><disks><disk name='vdz'/></disks></domaincheckpoint>",
    "<domaincheckpoint><disks><disk name='vdb'/><disk name='/a/second'/></disks></domaincheckpoint>",
    "<domaincheckpoint><disks><disk name='vdb' checkpoint='no'/><disk name='vdb'/></disks></domaincheckpoint>",
    "<domaincheckpoint><disks><disk name='vdc'/></disks></domaincheckpoint>",
    "<domaincheckpoint><disks><disk name='hda'/></disks></domaincheckpoint>",
    "<domaincheckpoint><disks>" + "<disk name='vdz'/>" * 5 + "</disks></domaincheckpoint>",
]

REFUSED_WHEN_REDEFINED = [
    "<domaincheckpoint><creationTime>1</creationTime></domaincheckpoint>",
    "<domaincheckpoint><name>a</name></domaincheckpoint>",
    "<domaincheckpoint><name>a</name><creationTime>9223372036854775808</creationTime></domaincheckpoint>",
]


@pytest.mark.parametrize(("xml", "flags"), [(x, 0) for x in ACCEPTED] + [(x, 1) for x in REDEFINED])
def test_what_libvirt_takes_is_written_as_libvirt_writes_it(domain: libvirt.virDomain, xml: str, flags: int) -> None:
    checkpoint = domain.checkpointCreateXML(xml, flags)
    try:
        plain, without_domain, secure = (checkpoint.getXMLDesc(f) for f in (0, 2, 1))
    finally:
        checkpoint.delete(0)
    now = parse_checkpoint(plain, redefine=True).creation_time if flags == 0 else 0
    mine = ours(domain, xml, redefine=bool(flags), now=now)
    assert format_checkpoint(mine, domain=False) == without_domain
    assert format_checkpoint(mine) == plain
    assert format_checkpoint(mine, secure=True) == secure
    if "creationTime>" in plain:
        assert format_checkpoint(parse_checkpoint(secure, redefine=True), secure=True) == secure


@pytest.mark.parametrize(("xml", "flags"), [(x, 0) for x in REFUSED] + [(x, 1) for x in REFUSED_WHEN_REDEFINED])
def test_what_libvirt_refuses_is_refused_with_its_number(domain: libvirt.virDomain, xml: str, flags: int) -> None:
    with pytest.raises(libvirt.libvirtError) as theirs:
        domain.checkpointCreateXML(xml, flags)
    with pytest.raises(MomentError) as mine:
        ours(domain, xml, redefine=bool(flags), now=1)
    assert mine.value.code == theirs.value.get_error_code()
    assert mine.value.libvirt_name == next(
        name for name in dir(libvirt) if name.startswith("VIR_ERR_") and getattr(libvirt, name) == mine.value.code
    )
    assert mine.value.message
