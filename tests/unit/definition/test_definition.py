"""A domain's XML, read and made fit for another place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from lxml import etree

from tests.unit.definition.cases import GOLDEN, changes_of
from vmkeep.definition import (
    DefinitionError,
    DiskPlacement,
    FirmwareKind,
    Remap,
    SourceKind,
    TpmBackend,
    parse_definition,
    remap,
)

TPM_KEY: Final = "11111111-2222-3333-4444-555555555555"
CASES: Final = ("windows", "live", "bios")


def source(case: str) -> str:
    return (GOLDEN / f"{case}.in.xml").read_text(encoding="utf-8")


UUID: Final = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"


def test_cases_are_all_golden_files() -> None:
    assert {path.name for path in Path(GOLDEN).iterdir()} == {f"{c}.{w}.xml" for c in CASES for w in ("in", "out")}


@pytest.mark.parametrize("case", CASES)
def test_remapped_definition_is_the_golden_one(case: str) -> None:
    expected = (GOLDEN / f"{case}.out.xml").read_text(encoding="utf-8")
    assert remap(source(case), changes_of(case)) == expected


def test_windows_vm_is_read() -> None:
    vm = parse_definition(source("windows"))
    assert vm.name == 'Büro & "win" 11\'s'
    assert (vm.uuid, vm.genid) == ("4dea22b3-1d52-d8f3-2516-782e98ab3fa0", "43dc0cf8-809b-4adb-9bea-a9abb5f3d90e")
    assert (vm.domain_type, vm.arch, vm.machine, vm.live) == ("kvm", "x86_64", "pc-q35-7.2", False)
    assert [(d.target, d.device, d.source_kind, d.source, d.format) for d in vm.disks] == [
        ("vda", "disk", SourceKind.FILE, "/var/lib/libvirt/images/win'11.qcow2", "qcow2"),
        ("vdb", "disk", SourceKind.BLOCK, "/dev/vg0/data", "raw"),
        ("vdc", "disk", SourceKind.NETWORK, "rbd:pool/image", "raw"),
        ("vdd", "disk", SourceKind.VOLUME, "default/scratch.qcow2", "qcow2"),
        ("sda", "cdrom", SourceKind.FILE, "/isos/virtio-win.iso", "raw"),
        ("sdb", "cdrom", SourceKind.NONE, None, None),
    ]
    flags = [(d.target, d.readonly, d.shareable, d.transient, d.encryption is not None, d.removable) for d in vm.disks]
    assert flags == [
        ("vda", False, False, False, False, False),
        ("vdb", False, True, False, False, False),
        ("vdc", False, False, True, False, False),
        ("vdd", True, False, False, True, False),
        ("sda", True, False, False, False, True),
        ("sdb", True, False, False, False, True),
    ]
    system = vm.disk("vda")
    assert system is not None
    assert (system.bus, system.error_policy, system.rerror_policy) == ("virtio", "enospace", "report")
    assert (system.serial, system.boot_order) == ("disk-0001", 1)
    assert vm.disk("vdz") is None


_UUID = "5D6F1A8E-0D0A-4C8B-9B46-0A7B1D2C3E4F"


@pytest.mark.parametrize(
    ("encryption", "secret"),
    [
        (f"<encryption format='luks'><secret type='passphrase' uuid='{_UUID}'/></encryption>", _UUID.lower()),
        (
            f"<encryption format='luks' engine='qemu'><secret type='passphrase' uuid='{_UUID}'/></encryption>",
            _UUID.lower(),
        ),
        ("<encryption format='luks'><secret type='passphrase' usage='of vda'/></encryption>", "usage:of vda"),
        (f"<encryption format='luks' engine='librbd'><secret type='passphrase' uuid='{_UUID}'/></encryption>", None),
        (f"<encryption format='luks2'><secret type='passphrase' uuid='{_UUID}'/></encryption>", None),
        (f"<encryption format='qcow'><secret type='passphrase' uuid='{_UUID}'/></encryption>", None),
        ("<encryption format='luks'/>", None),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_secret_of_an_encrypted_disk_is_read_where_qemu_alone_opens_it(
    encryption: str, secret: str | None, inside: bool
) -> None:
    source = f"<source file='/a'>{encryption}</source>" if inside else f"{encryption}<source file='/a'/>"
    xml = "<domain type='kvm'><name>vm</name><devices><disk type='file'><driver name='qemu' type='{}'/>{}{}</disk>"
    for image_format, tool_format in (("raw", "luks"), ("qcow2", "qcow2")):
        text = xml.format(image_format, source, "<target dev='vda'/>") + "</devices></domain>"
        disk = parse_definition(text).disk("vda")
        assert disk is not None
        assert disk.encryption is not None
        assert (disk.encryption.secret, disk.image_format) == (secret, tool_format)


def test_firmware_tpm_and_interfaces_are_read() -> None:
    vm = parse_definition(source("windows"))
    assert (vm.firmware.kind, vm.firmware.nvram_format, vm.firmware.secure_boot) == (FirmwareKind.UEFI, "raw", True)
    assert vm.firmware.nvram == '/var/lib/libvirt/qemu/nvram/Büro & "win" 11\'s_VARS.fd'
    assert vm.firmware.template == "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"
    assert vm.firmware.loader == "/usr/share/OVMF/OVMF_CODE_4M.ms.fd"
    assert vm.tpm is not None
    assert (vm.tpm.model, vm.tpm.backend, vm.tpm.version) == ("tpm-crb", TpmBackend.EMULATOR, "2.0")
    assert vm.tpm.secret_uuid == TPM_KEY
    assert vm.tpm.persistent_state
    assert [(i.mac, i.type, i.source) for i in vm.interfaces] == [
        ("52:54:00:aa:bb:01", "network", "default"),
        ("52:54:00:aa:bb:02", "bridge", "br0"),
    ]


def test_live_vm_tells_its_owner_and_nodes() -> None:
    vm = parse_definition(source("live"))
    assert vm.live
    assert vm.dac_owner == (64055, 106)
    assert [(d.alias, d.source_index) for d in vm.disks] == [("virtio-disk0", 1), ("ua-second", 4)]
    assert parse_definition(source("windows")).dac_owner is None


def test_other_tpm_backends_are_read() -> None:
    tpm = parse_definition(source("bios")).tpm
    assert tpm is not None
    assert (tpm.backend, tpm.source) == (TpmBackend.PASSTHROUGH, "/dev/tpm0")
    external = (
        "<tpm model='tpm-crb'><backend type='external'><source type='unix' mode='connect' path='/s'/></backend></tpm>"
    )
    tpm = parse_definition(f"<domain><name>a</name><devices>{external}</devices></domain>").tpm
    assert tpm is not None
    assert (tpm.backend, tpm.source_type, tpm.source) == (TpmBackend.EXTERNAL, "unix", "/s")


@pytest.mark.parametrize(
    ("os", "kind", "nvram", "image_format"),
    [
        ("<os/>", FirmwareKind.BIOS, None, "raw"),
        ("<os firmware='efi'/>", FirmwareKind.UEFI, None, "raw"),
        ("<os><loader type='rom'>/seabios</loader></os>", FirmwareKind.BIOS, None, "raw"),
        ("<os><loader type='pflash'>/OVMF</loader><nvram>/n</nvram></os>", FirmwareKind.UEFI, "/n", "raw"),
        ("<os firmware='efi'><nvram format='qcow2'>/n</nvram></os>", FirmwareKind.UEFI, "/n", "qcow2"),
        ("<os firmware='efi'><nvram type='file'><source file='/n'/></nvram></os>", FirmwareKind.UEFI, "/n", "raw"),
        (
            "<os firmware='efi'><nvram type='block'><source dev='/dev/n'/></nvram></os>",
            FirmwareKind.UEFI,
            "/dev/n",
            "raw",
        ),
    ],
)
def test_firmware_is_told_from_each_form(os: str, kind: FirmwareKind, nvram: str | None, image_format: str) -> None:
    xml = f"<domain><name>a</name>{os}</domain>"
    firmware = parse_definition(xml).firmware
    assert (firmware.kind, firmware.nvram, firmware.nvram_format) == (kind, nvram, image_format)
    moved = parse_definition(remap(xml, Remap(nvram="/new", nvram_format="qcow2"))).firmware
    assert (moved.nvram, moved.nvram_type, moved.nvram_format) == ("/new", "file", "qcow2")


def test_stateless_firmware_has_no_variables() -> None:
    loader = "<loader readonly='yes' type='pflash' stateless='{}'>/OVMF</loader>"
    for stateless in ("yes", "no"):
        xml = f"<domain><name>a</name><os>{loader.format(stateless)}</os></domain>"
        firmware = parse_definition(xml).firmware
        assert (firmware.kind, firmware.has_variables) == (FirmwareKind.UEFI, stateless == "no")
    assert not parse_definition("<domain><name>a</name><os/></domain>").firmware.has_variables


def test_disk_of_a_type_not_known_is_never_taken_for_a_file() -> None:
    disk_xml = "<disk type='vhostuser'><source file='/x'/><target dev='vda'/></disk>"
    (disk,) = parse_definition(f"<domain><name>a</name><devices>{disk_xml}</devices></domain>").disks
    assert (disk.source_kind, disk.source_type, disk.source) == (SourceKind.OTHER, "vhostuser", None)


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<domain",
        "<network/>",
        "<domain/>",
        "<domain><name/></domain>",
        "<domain><name>a</name><uuid>xyz</uuid></domain>",
        "<domain><name>a</name><devices><disk/></devices></domain>",
        "<domain><name>a</name><devices><disk><target/></disk></devices></domain>",
        "<domain><name>a</name><devices>" + "<disk><target dev='a'/></disk>" * 2 + "</devices></domain>",
        "<domain><name>a</name><devices><disk><target dev='a'/><boot order='x'/></disk></devices></domain>",
        "<domain><name>a</name><devices><tpm><backend type='quantum'/></tpm></devices></domain>",
        "<domain><name>a</name><devices><interface><mac address='x'/></interface></devices></domain>",
        "<!DOCTYPE domain [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><domain><name>&x;</name></domain>",
        "<domain><name>a</name><devices>" + "<disk><target dev='a'/></disk>" * 1025 + "</devices></domain>",
    ],
)
def test_what_is_no_domain_is_refused(xml: str) -> None:
    with pytest.raises(DefinitionError):
        parse_definition(xml)
    with pytest.raises(DefinitionError):
        remap(xml, Remap())


@pytest.mark.parametrize(
    "changes",
    [
        Remap(disks={"vdz": DiskPlacement("/x")}),
        Remap(removed=frozenset({"vdz"})),
        Remap(removed=frozenset({"vda"}), disks={"vda": DiskPlacement("/x")}),
        Remap(disks={"vda": DiskPlacement("x.qcow2")}),
        Remap(disks={"vda": DiskPlacement("/x", "\x00")}),
        Remap(name=""),
        Remap(name=" "),
        Remap(name="a/b"),
        Remap(name="a\nb"),
        Remap(name="a\x01"),
        Remap(name="\ud800"),
        Remap(uuid="x"),
        Remap(nvram="relative"),
        Remap(new_mac=lambda: "x"),
    ],
)
def test_change_that_cannot_be_made_is_refused(changes: Remap) -> None:
    with pytest.raises(DefinitionError):
        remap(source("windows"), changes)


def test_generation_id_is_renewed_with_the_uuid_or_when_asked() -> None:
    old = parse_definition(source("windows"))
    assert old.uuid is not None
    for changes, renewed in (
        (Remap(), False),
        (Remap(uuid=old.uuid.upper()), False),
        (Remap(uuid=old.uuid, new_genid=True), True),
        (Remap(uuid="99999999-8888-4777-8666-555555555555"), True),
        (Remap(uuid="99999999-8888-4777-8666-555555555555", new_genid=False), False),
    ):
        new = parse_definition(remap(source("windows"), changes))
        assert new.genid == (None if renewed else old.genid)


def test_tpm_is_kept_whatever_changes() -> None:
    assert (
        parse_definition(remap(source("windows"), changes_of("windows"))).tpm == parse_definition(source("windows")).tpm
    )


def test_emulated_tpm_leaves_a_place_of_its_own_that_may_be_another_vms() -> None:
    def tpm(backend: str) -> str:
        return f"<domain><name>a</name><devices><tpm model='tpm-crb'>{backend}</tpm></devices></domain>"

    own = (
        "<backend type='emulator' version='2.0'><source type='dir' path='/srv/tpm'/><encryption secret='s'/></backend>"
    )
    external = "<backend type='external'><source type='unix' mode='connect' path='/s'/></backend>"
    changes = Remap(default_tpm_place=True)
    assert "<source" not in remap(tpm(own), changes)
    assert "<encryption secret='s'/>" in remap(tpm(own), changes).replace('"', "'")
    assert 'path="/s"' in remap(tpm(external), changes).replace("'", '"')
    assert "/srv/tpm" in remap(tpm(own), Remap(name="b"))


def test_value_can_be_replaced() -> None:
    assert replace(parse_definition(source("bios")), name="x").name == "x"


_THREADED = """<domain type='kvm'><name>vm</name><devices>
<controller type='scsi' index='0' model='virtio-scsi'><driver iothread='2'/></controller>
<controller type='scsi' index='1' model='virtio-scsi'/>
<controller type='sata' index='1'><driver iothread='1'/></controller>
<disk type='file'><driver type='qcow2' iothread='1'/><source file='/a'/><target dev='vda' bus='virtio'/>
  <iotune><total_bytes_sec>0</total_bytes_sec><group_name>both</group_name></iotune></disk>
<disk type='file'><driver type='qcow2'><iothreads><iothread id='1'/></iothreads></driver>
  <source file='/b'/><target dev='vdb' bus='virtio'/><iotune><read_iops_sec>7</read_iops_sec></iotune></disk>
<disk type='file'><source file='/c'/><target dev='vdc' bus='virtio'/></disk>
<disk type='file'><source file='/d'/><target dev='sda' bus='scsi'/></disk>
<disk type='file'><source file='/e'/><target dev='sdb' bus='scsi'/><address type='drive' controller='1'/></disk>
<disk type='file'><source file='/f'/><target dev='sdc' bus='sata'/><address type='drive' controller='0'/></disk>
</devices></domain>"""


def test_disks_in_io_threads_and_with_limits_are_known() -> None:
    disks = parse_definition(_THREADED).disks
    assert [disk.target for disk in disks if disk.in_io_thread] == ["vda", "vdb", "sda"]
    assert [disk.target for disk in disks if disk.throttled] == ["vdb"]


@pytest.mark.parametrize("hidden", ["<!-- c -->", "<acme/>", "<?p q?>"])
def test_what_stands_behind_a_comment_in_a_name_or_path_goes_with_it(hidden: str) -> None:
    """libvirt takes all the text in an element: a VM was defined as "newevil" for ``--as new``, its NVRAM likewise."""
    xml = (
        f"<domain type='kvm'><name>old{hidden}evil</name><uuid>{UUID}{hidden}</uuid>"
        f"<os><nvram>/nvram/old{hidden}/../../etc/evil</nvram></os>"
        f"<sysinfo><system><entry name='uuid'>{UUID}{hidden}</entry></system></sysinfo></domain>"
    )
    new = "0a2f2f0e-7f60-4f8a-9d0e-2f6b6a3a1f01"
    root = etree.fromstring(remap(xml, Remap(name="new", uuid=new, nvram="/nvram/new")))
    said = [root.xpath(f"string({path})") for path in ("name", "uuid", "os/nvram", "sysinfo/system/entry")]
    assert said == ["new", new, "/nvram/new", new]
