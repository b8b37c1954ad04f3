"""What of a point goes back over its VM, what is refused, and what is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vmkeep.definition import (
    DefinedDisk,
    Definition,
    DiskEncryption,
    Firmware,
    FirmwareKind,
    SourceKind,
    TpmBackend,
    TpmDevice,
)
from vmkeep.errors import DiskUnsupported, HostFileMissing, InvalidRequest, StateUnsupported
from vmkeep.host.restores.selection import ImageOnHost, Selection, select
from vmkeep.host.vm.states import ChosenState, StateSource
from vmkeep.repository import ExcludedDisk, PointDisk, PointRecord, StateRef, StoredDisk

_SIZE = 1 << 20
_NVRAM = StateSource("nvram", Path("/nvram/vm_VARS.fd"), "nvram.fd")
_TPM = StateSource("tpm", Path("/swtpm/uuid/tpm2/tpm2-00.permall"), "tpm2/tpm2-00.permall")
_XML = "<domain type='kvm'><name>vm</name>{}</domain>"


def _record(*targets: str, definition: str = _XML.format("")) -> PointRecord:
    stored = StoredDisk(_SIZE, 65536, 32, "ab" * 16, None)
    return PointRecord(
        id="01" * 16,
        vm_uuid="4dea22b3-1d52-d8f3-2516-782e98ab3fa0",
        vm_name="vm",
        kind="full",
        parent=None,
        created="2030-01-01T00:00:00.000000Z",
        host="h",
        checkpoint=None,
        pause_ms=0.0,
        labels={},
        disks=tuple(PointDisk(target, "full", "no-base", f"/{target}", "qcow2", 0, 0, stored) for target in targets),
        excluded=(ExcludedDisk("vdx", "requested"),),
        states=(
            StateRef("nvram", "0a" * 16, 1, "", 1, "nvram.fd"),
            StateRef("tpm", "0b" * 16, 1, "", 1, "tpm2/tpm2-00.permall"),
        ),
        definition=definition,
    )


def _disk(target: str) -> DefinedDisk:
    return DefinedDisk(target=target, bus="virtio", source_kind=SourceKind.FILE, source=f"/{target}", format="qcow2")


def _vm(*disks: DefinedDisk) -> Definition:
    return Definition(
        name="vm",
        uuid="4dea22b3-1d52-d8f3-2516-782e98ab3fa0",
        domain_type="kvm",
        arch=None,
        machine=None,
        live=False,
        disks=disks,
        firmware=Firmware(kind=FirmwareKind.UEFI),
        tpm=TpmDevice(model="tpm-crb", backend=TpmBackend.EMULATOR),
        interfaces=(),
        security_labels=(),
    )


def _image(target: str = "vda", size_bytes: int | None = _SIZE, **more: object) -> ImageOnHost:
    return replace(ImageOnHost(f"/{target}", "qcow2", size_bytes, block=False), **more)  # type: ignore[arg-type] # of tests


def _select(
    record: PointRecord,
    vm: Definition,
    images: dict[str, ImageOnHost] | None = None,
    sources: tuple[StateSource, ...] = (_NVRAM, _TPM),
    only: tuple[str, ...] = (),
    tpm: str = "same",
) -> Selection:
    found = images if images is not None else {disk.target: _image(disk.target) for disk in vm.disks}
    return select(record, vm, found, sources, only, tpm)


def test_all_goes_back_by_default_without_a_warning() -> None:
    selection = _select(_record("vda", "vdb"), _vm(_disk("vda"), _disk("vdb")))
    assert [(disk.target, disk.made) for disk in selection.disks] == [("vda", False), ("vdb", False)]
    assert selection.states == (
        ChosenState("nvram", Path("/nvram/vm_VARS.fd")),
        ChosenState("tpm", Path("/swtpm/uuid"), "tpm2/tpm2-00.permall"),
    )
    assert (selection.whole, selection.missing, selection.warnings) == (True, (), ())


def test_tpm_in_a_directory_of_its_own_is_replaced_there() -> None:
    own = StateSource("tpm", Path("/srv/tpm of vm/tpm2-00.permall"), "tpm2/tpm2-00.permall")
    selection = _select(_record("vda"), _vm(_disk("vda")), sources=(_NVRAM, own))
    assert selection.states[1] == ChosenState("tpm", Path("/srv/tpm of vm"), "tpm2-00.permall")


def test_read_only_disk_is_left_unless_it_is_named() -> None:
    vm = _vm(_disk("vda"), replace(_disk("vdb"), readonly=True))
    selection = _select(_record("vda", "vdb"), vm)
    assert [disk.target for disk in selection.disks] == ["vda"]
    assert any("vdb is read-only" in warning for warning in selection.warnings)
    assert [disk.target for disk in _select(_record("vda", "vdb"), vm, only=("vdb",)).disks] == ["vdb"]


def test_shareable_disk_goes_back_and_is_told() -> None:
    selection = _select(_record("vda"), _vm(replace(_disk("vda"), shareable=True)))
    assert any("shareable" in warning for warning in selection.warnings)


def test_missing_image_is_made_anew_also_where_another_disk_was_asked_for() -> None:
    vm = _vm(_disk("vda"), _disk("vdb"))
    images = {"vda": _image(path="/tmp/vda", size_bytes=None), "vdb": _image("vdb")}  # noqa: S108
    assert [disk.made for disk in _select(_record("vda", "vdb"), vm, images).disks] == [True, False]
    assert _select(_record("vda", "vdb"), vm, images, only=("vdb",)).missing == ("vda",)
    images["vda"] = _image(path="/nowhere/vda", size_bytes=None)
    with pytest.raises(HostFileMissing):
        _select(_record("vda", "vdb"), vm, images)


@pytest.mark.parametrize(
    ("disk", "image"),
    [
        (
            replace(
                _disk("vda"),
                encryption=DiskEncryption(format="qcow", secrets=("5d6f1a8e-0d0a-4c8b-9b46-0a7b1d2c3e4f",)),
            ),
            _image(),
        ),
        (replace(_disk("vda"), source_kind=SourceKind.NETWORK, source_type="network", source="rbd:p/i"), None),
        (_disk("vda"), _image(block=True, size_bytes=2 * _SIZE)),
        (_disk("vda"), _image(format="vmdk", size_bytes=2 * _SIZE)),
        (_disk("vda"), _image(data_file=True, size_bytes=2 * _SIZE)),
    ],
    ids=["encrypted", "network", "device of another size", "format that is not made", "data file"],
)
def test_disk_that_cannot_go_back_is_refused_by_name(disk: DefinedDisk, image: ImageOnHost | None) -> None:
    images = {} if image is None else {"vda": image}
    with pytest.raises(DiskUnsupported) as raised:
        _select(_record("vda"), _vm(disk), images)
    assert raised.value.disk == "vda"
    # It is no hindrance for what does not touch it.
    assert _select(_record("vda"), _vm(disk), images, only=("state",)).disks == ()


_ENCRYPTED = DiskEncryption(format="luks", secrets=("5d6f1a8e-0d0a-4c8b-9b46-0a7b1d2c3e4f",))
_ENCRYPTED_XML = _XML.format(
    "<devices><disk type='file'><source file='/vda'><encryption format='luks'>"
    "<secret type='passphrase' uuid='5d6f1a8e-0d0a-4c8b-9b46-0a7b1d2c3e4f'/></encryption></source>"
    "<target dev='vda'/></disk></devices>"
)


def test_encrypted_disk_goes_back_with_the_name_of_its_secret() -> None:
    vm = _vm(replace(_disk("vda"), encryption=_ENCRYPTED))
    for record in (_record("vda"), _record("vda", definition=_ENCRYPTED_XML)):
        assert [disk.secret for disk in _select(record, vm).disks] == [_ENCRYPTED.secret]


def test_what_was_encrypted_is_not_written_to_an_image_that_is_plain_now() -> None:
    record = _record("vda", definition=_ENCRYPTED_XML)
    with pytest.raises(DiskUnsupported, match="would become plain") as raised:
        _select(record, _vm(_disk("vda")))
    assert raised.value.disk == "vda"


def test_image_on_an_encrypted_one_is_not_written() -> None:
    with pytest.raises(DiskUnsupported, match="encrypted image"):
        _select(_record("vda"), _vm(_disk("vda")), {"vda": _image(encrypted_below=True)})


def test_disk_that_the_vm_has_not_is_refused_unless_others_are_named() -> None:
    record, vm = _record("vda", "vdb"), _vm(_disk("vda"))
    with pytest.raises(InvalidRequest) as raised:
        _select(record, vm)
    assert raised.value.disk == "vdb"
    selection = _select(record, vm, only=("vda", "state"))
    assert ([disk.target for disk in selection.disks], selection.whole) == (["vda"], False)


def test_disk_that_the_point_has_not_is_told_with_the_reason() -> None:
    selection = _select(_record("vda"), _vm(_disk("vda"), _disk("vdx"), _disk("vdy")))
    told = "\n".join(selection.warnings)
    assert "vdx is not in the point (requested)" in told
    assert "vdy is not in the point, so" in told
    assert selection.whole


def test_state_of_another_kind_than_the_vm_has_is_refused_or_left() -> None:
    record, vm = _record("vda"), _vm(_disk("vda"))
    older = StateSource("tpm", Path("/swtpm/uuid/tpm1.2/tpm-00.permall"), "tpm1.2/tpm-00.permall")
    with pytest.raises(StateUnsupported, match="another version"):
        _select(record, vm, sources=(_NVRAM, older))
    assert [state.kind for state in _select(record, vm, sources=(_NVRAM, older), tpm="keep").states] == ["nvram"]
    without = _select(record, vm, sources=(_NVRAM,))
    assert any("does not have any more" in warning for warning in without.warnings)
    with pytest.raises(InvalidRequest, match="has no TPM") as refused:
        _select(record, replace(vm, tpm=None), sources=(_NVRAM,), only=("tpm",))
    assert "`vmkeep tpm add vm --from VERSION`" in refused.value.hint
    bare = replace(record, states=record.states[:1])
    assert any("holds no TPM" in warning for warning in _select(bare, vm).warnings)
    with pytest.raises(InvalidRequest, match="nothing of what"):
        _select(replace(record, states=()), vm, only=("state",))


def test_uefi_variables_of_another_format_are_refused() -> None:
    record = _record("vda", definition=_XML.format("<os firmware='efi'><nvram format='qcow2'>/n</nvram></os>"))
    with pytest.raises(StateUnsupported, match="qcow2"):
        _select(record, _vm(_disk("vda")))
    assert _select(record, _vm(_disk("vda")), only=("disks",)).states == ()
