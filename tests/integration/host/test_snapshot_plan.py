"""What a snapshot will be, and what refuses it: with real files, and no libvirt."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from vmkeep.definition import parse_definition
from vmkeep.errors import VmkeepError
from vmkeep.host.snapshots.plan import PlannedSnapshot, plan_snapshot
from vmkeep.host.snapshots.surroundings import Surroundings
from vmkeep.host.tasks.snapshots import MakeSnapshot
from vmkeep.host.vm.images import image_chains
from vmkeep.hypervisor import DomainState, RunState

_RUNNING = DomainState(RunState.RUNNING, io_error=False)
_OFF = DomainState(RunState.OFF, io_error=False)
_LEFT_OUT = "<disk name='{}' snapshot='no'/>"
_OVERLAY = "<disk name='{}' snapshot='external'><source file='IMAGES/{}'/></disk>"
_UEFI = "<os firmware='efi'><type arch='x86_64'>hvm</type><nvram>/nvram.fd</nvram></os>"
_BIOS = "<os><type arch='x86_64'>hvm</type></os>"


def _qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *words], check=True, capture_output=True)


def _disk(target: str, path: Path, *more: str, image_format: str = "qcow2", device: str = "disk") -> str:
    source = f"<source file='{path}'/>"
    driver = f"<driver name='qemu' type='{image_format}'/>"
    words = "".join(more)
    return f"<disk type='file' device='{device}'>{driver}{source}<target dev='{target}'/>{words}</disk>"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("vda.qcow2", "vdb.qcow2"):
        _qemu_img("create", "-q", "-f", "qcow2", tmp_path / name, "1M")
    return tmp_path


def _around(images: Path, *extra: str, system: str = _UEFI, state: DomainState = _RUNNING) -> Surroundings:
    disks = _disk("vda", images / "vda.qcow2") + (_disk("vdb", images / "vdb.qcow2") if not extra else "".join(extra))
    xml = f"<domain type='qemu'><name>guest</name>{system}<devices>{disks}</devices></domain>"
    definition = parse_definition(xml)
    return Surroundings(
        vm="guest",
        state=state,
        persistent=True,
        domain_xml=xml,
        definition=definition,
        chains=image_chains(definition),
        snapshots=frozenset({"there"}),
        checkpoints=frozenset(),
        saved=False,
        libvirt=9_000_000,
    )


def _plan(around: Surroundings, body: str = "", name: str = "new", **options: bool) -> PlannedSnapshot:
    xml = f"<domainsnapshot><name>{name}</name>{body}</domainsnapshot>"
    return plan_snapshot(MakeSnapshot("op", "uuid", xml, **options), around, 1_700_000_000)


def _refused(around: Surroundings, body: str = "", name: str = "new", **options: bool) -> VmkeepError:
    with pytest.raises(VmkeepError) as caught:
        _plan(around, body, name, **options)
    assert caught.value.hint
    return caught.value


def _disks(*disks: str) -> str:
    return f"<disks>{''.join(disks)}</disks>"


def test_snapshot_that_says_nothing_has_an_overlay_beside_every_image(images: Path) -> None:
    planned = _plan(_around(images))
    assert (planned.kind, planned.disk_only, planned.left_out, planned.warnings) == ("disks", True, (), ())
    assert [(each.target, each.image, each.overlay) for each in planned.overlays] == [
        ("vda", f"{images}/vda.qcow2", f"{images}/vda.new"),
        ("vdb", f"{images}/vdb.qcow2", f"{images}/vdb.new"),
    ]
    unnamed = plan_snapshot(MakeSnapshot("op", "uuid", "<domainsnapshot/>"), _around(images), 1_700_000_000)
    assert unnamed.overlays[0].overlay == f"{images}/vda.1700000000"


def test_media_and_disks_that_are_named_take_no_part_and_only_those_that_matter_are_told(images: Path) -> None:
    floppy, cdrom = images / "floppy.img", images / "disc.iso"
    for medium in (floppy, cdrom):
        medium.write_bytes(bytes(4096))
    around = _around(
        images,
        _disk("vdb", images / "vdb.qcow2"),
        _disk("fda", floppy, image_format="raw", device="floppy"),
        _disk("sda", cdrom, "<readonly/>", image_format="raw", device="cdrom"),
    )
    assert [each.target for each in _plan(around).overlays] == ["vda", "vdb"]
    planned = _plan(around, _disks("<disk name='vdb' snapshot='no'/>"))
    assert ([each.target for each in planned.overlays], planned.left_out) == (["vda"], ("vdb",))
    assert "without disk vdb" in planned.warnings[0]


def test_memory_goes_to_a_new_file_and_makes_the_disks_external(images: Path) -> None:
    memory = images / "memory"
    body = f"<memory file='{memory}'/>"
    planned = _plan(_around(images), body)
    assert (planned.kind, planned.disk_only) == ("memory", False)
    assert f"<memory snapshot='external' file='{memory}'/>" in planned.xml
    assert _refused(_around(images, state=_OFF), body).code == "invalid-request"
    assert _refused(_around(images), body, quiesce=True).code == "invalid-request"
    assert _refused(_around(images), body, disk_only=True).code == "invalid-request"
    assert _refused(_around(images), body, internal=True).code == "invalid-request"
    memory.touch()
    assert _refused(_around(images), body).code == "target-exists"
    assert _refused(_around(images), f"<memory file='{images}/none/m'/>").code == "host-file-missing"


@pytest.mark.parametrize(
    ("body", "name", "code"),
    [
        ("", "there", "target-exists"),
        ("", "a/b", "invalid-request"),
        ("", ".hidden", "invalid-request"),
        ("", "a\tb", "invalid-request"),
        (_disks("<disk name='vdz'/>"), "new", "invalid-request"),
        (_disks("<disk name='vda'/>", "<disk name='vda'/>"), "new", "invalid-request"),
        (_disks("<disk name='vda' snapshot='manual'/>"), "new", "invalid-request"),
        (_disks(_LEFT_OUT.format("vda"), _LEFT_OUT.format("vdb")), "new", "invalid-request"),
        (_disks("<disk name='vda' snapshot='internal'/>", _OVERLAY.format("vdb", "x")), "new", "invalid-request"),
        (_disks(_OVERLAY.format("vda", "one"), _OVERLAY.format("vdb", "one")), "new", "invalid-request"),
        (_disks(_OVERLAY.format("vda", "vdb.qcow2")), "new", "invalid-request"),
        (_disks(_OVERLAY.format("vda", "taken")), "new", "target-exists"),
        (_disks(_OVERLAY.format("vda", "none/x")), "new", "host-file-missing"),
        (_disks("<disk name='vda'><driver type='qed'/></disk>"), "new", "invalid-request"),
        (_disks("<disk name='vda' type='block'><source dev='IMAGES/taken'/></disk>"), "new", "host-file-missing"),
    ],
)
def test_what_cannot_be_is_refused_with_what_is_wrong(images: Path, body: str, name: str, code: str) -> None:
    (images / "taken").touch()
    assert _refused(_around(images), body.replace("IMAGES", str(images)), name).code == code


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (f"<encryption format='luks'><secret type='passphrase' uuid='{UUID(int=1)}'/></encryption>", "encrypted"),
        ("<transient/>", "transient"),
        ("<shareable/>", "shared"),
    ],
)
def test_disk_that_an_overlay_would_harm_is_refused_by_name(images: Path, more: str, word: str) -> None:
    around = _around(images, _disk("vdb", images / "vdb.qcow2", more))
    refused = _refused(around)
    assert (refused.code, refused.disk) == ("disk-unsupported", "vdb")
    assert word in refused.message
    assert _plan(around, _disks("<disk name='vdb' snapshot='no'/>")).left_out == ("vdb",)


def test_disk_on_a_device_needs_a_file_that_is_named(images: Path) -> None:
    device = "<disk type='block' device='disk'><driver type='raw'/><source dev='/dev/zero'/><target dev='vdb'/></disk>"
    refused = _refused(_around(images, device))
    assert (refused.code, "--diskspec vdb,file=PATH" in (refused.hint or "")) == ("invalid-request", True)
    body = _disks(f"<disk name='vdb'><source file='{images}/overlay'/></disk>")
    assert _plan(_around(images, device), body).overlays[1].overlay == f"{images}/overlay"


def test_internal_snapshot_needs_qcow2_firmware_that_allows_it_and_images_without_bitmaps(images: Path) -> None:
    assert _refused(_around(images), internal=True).code == "state-unsupported"
    newer = replace(_around(images), libvirt=11_003_000)
    assert _refused(newer, internal=True).code == "state-unsupported"
    bios = _around(images, system=_BIOS)
    planned = _plan(bios, internal=True)
    assert (planned.kind, planned.overlays, planned.disk_only) == ("internal", (), False)
    assert "<memory snapshot='internal'/>" in planned.xml
    assert _plan(bios, _disks("<disk name='vda' snapshot='internal'/>")).kind == "internal"
    raw = _disk("vdb", images / "raw.img", image_format="raw")
    (images / "raw.img").write_bytes(bytes(4096))
    assert _refused(_around(images, raw, system=_BIOS), internal=True).code == "disk-unsupported"
    listed = replace(bios, checkpoints=frozenset({"theirs"}))
    assert _refused(listed, internal=True).code == "choice-required"
    assert "snapshot revert" in _plan(listed, internal=True, with_bitmaps=True).warnings[0]
    _qemu_img("bitmap", "--add", images / "vdb.qcow2", "left")
    assert _refused(_around(images, system=_BIOS), internal=True).code == "choice-required"


def test_overlay_that_is_there_is_taken_only_when_it_is_an_empty_one_of_the_image(images: Path) -> None:
    overlay = images / "mine"
    body = _disks(f"<disk name='vda'><source file='{overlay}'/></disk>", "<disk name='vdb' snapshot='no'/>")
    around = _around(images)
    assert _refused(around, body, reuse_external=True).code == "host-file-missing"
    make = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]
    _qemu_img(*make, images / "vdb.qcow2", overlay)
    assert _refused(around, body, reuse_external=True).code == "invalid-request"
    _qemu_img(*make, images / "vda.qcow2", overlay)
    assert _plan(around, body, reuse_external=True).overlays[0].overlay == str(overlay)
    assert _refused(around, body).code == "target-exists"
    subprocess.run(["qemu-io", "-c", "write -z 0 64k", overlay], check=True, capture_output=True)
    assert _refused(around, body, reuse_external=True).code == "invalid-request"


def test_vm_that_stands_in_between_is_refused(images: Path) -> None:
    around = _around(images)
    for state, code in (
        (DomainState(RunState.OTHER, io_error=False), "vm-busy"),
        (DomainState(RunState.PAUSED, io_error=False, asleep=True), "state-unsupported"),
    ):
        assert _refused(replace(around, state=state)).code == code
    assert _refused(replace(around, state=_OFF, saved=True)).code == "vm-running"
    assert _refused(replace(around, state=_OFF), halt=True).code == "invalid-request"
    assert _refused(replace(around, persistent=False), halt=True).code == "invalid-request"
    assert _refused(replace(around, state=_OFF), quiesce=True).code == "invalid-request"
    assert "transient" in _plan(replace(around, persistent=False)).warnings[0]
