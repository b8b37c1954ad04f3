"""A definition says where a TPM's state lies (libvirt 10.10 and later): what else lies there is not vmkeep's to delete.

libvirt itself is made up, because 9.0 drops the element; what is deleted is on a real disk, with a real repository.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.integration.repository.samples import opener, sample_key
from vmkeep.config import load_settings
from vmkeep.custody.states import ChosenVersion
from vmkeep.errors import InvalidRequest, StateUnsupported
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.tpms import DeleteTpmState, HoldForTpm, LookAtTpm, TpmRemains
from vmkeep.host.tpms.device import hold_for_tpm, look_at_tpm
from vmkeep.host.tpms.state import delete_tpm_state, tpm_remains
from vmkeep.host.vm import claims, held
from vmkeep.repository import Repository
from vmkeep.statefiles.location import StateRoots

_MINE = "16b6c512-678b-44b6-a438-527ecc51f748"
_OTHER = "6f8f5c9c-55f5-4a8e-9a37-0d5f5c6a1f10"
_CONTENT = b"\x02" * 600


@dataclass
class _Vm:
    """A VM that is off, as libvirt tells of it."""

    uuid: str
    name: str
    devices: str = ""

    def definition_xml(self, *, inactive: bool = False, secure: bool = False) -> str:  # noqa: ARG002
        about = f"<name>{self.name}</name><uuid>{self.uuid}</uuid><os><type machine='q35'>hvm</type></os>"
        return f"<domain type='qemu'>{about}<devices>{self.devices}</devices></domain>"

    def is_persistent(self) -> bool:
        return True


class _Libvirt:
    uri = "qemu:///system"
    secrets = SimpleNamespace(usage=lambda _uuid: None)

    def __init__(self, *vms: _Vm) -> None:
        self.vms = vms

    def find_uuid(self, uuid: str) -> _Vm | None:
        return next((vm for vm in self.vms if vm.uuid == uuid), None)

    def domains(self) -> tuple[_Vm, ...]:
        return self.vms


@dataclass
class Bed:
    dir: Path
    roots: StateRoots
    repository: Repository
    mine: _Vm
    operation: Operation

    def version(self) -> ChosenVersion:
        stored = self.repository.put_state(
            _CONTENT, vm_uuid=_MINE, kind="tpm", generation=1, file="tpm2/tpm2-00.permall", owner="root", group="root",
            mode=0o600,
        )  # fmt: skip
        return ChosenVersion("tpm", stored.id, hashlib.sha256(_CONTENT).hexdigest())

    def delete(self, directory: Path) -> Any:
        """Delete as a removal does: what lies there was seen, and its device is out."""
        seen = tpm_remains(TpmRemains("op", _MINE, str(directory))).found
        assert seen is not None
        return delete_tpm_state(self.operation, DeleteTpmState("op", _MINE, seen, (self.version(),)))


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    roots = StateRoots(swtpm=tmp_path / "swtpm", nvram=tmp_path / "nvram")
    monkeypatch.setattr(StateRoots, "of", classmethod(lambda _cls, _uri: roots))
    monkeypatch.setattr(held, "require_off", lambda _domain: None)
    monkeypatch.setattr(claims, "_definitions", lambda domain, _kinds: iter([domain.definition_xml()]))
    Repository.create(str(tmp_path / "repository"), sample_key())
    repository = Repository.open(str(tmp_path / "repository"), opener(sample_key()))
    mine, other = _Vm(_MINE, "mine"), _Vm(_OTHER, "other", "<tpm model='tpm-crb'><backend type='emulator'/></tpm>")
    libvirt = cast("Any", _Libvirt(mine, other))
    settings = load_settings(home=str(tmp_path / "home"), environ={})
    operation = Operation("op", settings, lambda: libvirt, lambda: repository)
    (roots.swtpm / _OTHER / "tpm2").mkdir(parents=True)
    (roots.swtpm / _OTHER / "tpm2" / "tpm2-00.permall").write_bytes(_CONTENT)
    yield Bed(tmp_path, roots, repository, mine, operation)
    if operation.holder is not None:
        operation.holder.release()


def _at(place: Path, kind: str = "dir") -> str:
    source = f"<source type='{kind}' path='{place}'/>"
    return f"<tpm model='tpm-crb'><backend type='emulator' version='2.0'>{source}</backend></tpm>"


@pytest.mark.parametrize("way", ["named", "through a link", "the folder above"])
def test_place_of_another_vms_tpm_is_not_deleted(bed: Bed, way: str) -> None:
    place = bed.roots.swtpm / _OTHER / "tpm2"
    if way == "through a link":
        (bed.dir / "link").symlink_to(place.parent)
        place = bed.dir / "link" / "tpm2"
    elif way == "the folder above":
        (place.parent / "tpm2-00.permall").write_bytes(_CONTENT)
        place = place.parent
    with pytest.raises(InvalidRequest, match="stays"):
        bed.delete(place)
    assert (bed.roots.swtpm / _OTHER / "tpm2" / "tpm2-00.permall").read_bytes() == _CONTENT


def test_of_a_place_that_the_definition_names_only_what_swtpm_makes_goes(bed: Bed) -> None:
    place = bed.dir / "srv"
    (place / "folder").mkdir(parents=True)
    (place / "tpm2-00.permall").write_bytes(_CONTENT)
    for name in (".lock", "empty", "folder/empty", "tpm2-00.permall.orig"):
        (place / name).touch()
    (place / "copy").write_bytes(_CONTENT)
    bed.mine.devices = _at(place)
    found = look_at_tpm(bed.operation, LookAtTpm(_MINE))
    assert (found.directory, found.file, found.state) == (str(place), "tpm2-00.permall", True)
    bed.mine.devices = ""
    deleted = bed.delete(place)
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*")) == [
        "copy",
        "empty",
        "folder",
        "folder/empty",
        "tpm2-00.permall.orig",
    ]
    assert set(deleted.removed) == {str(place / "tpm2-00.permall"), str(place / ".lock")}
    assert deleted.left == ()


def test_place_of_libvirts_own_goes_whole(bed: Bed) -> None:
    place = bed.roots.tpm_directory(_MINE)
    (place / "tpm2").mkdir(parents=True)
    (place / "tpm2" / "tpm2-00.permall").write_bytes(_CONTENT)
    (place / "tpm2" / ".lock").touch()
    assert str(place) in bed.delete(place).removed
    assert not place.exists()


def test_state_in_one_file_is_refused_by_name_and_the_vm_is_let_go(bed: Bed) -> None:
    bed.mine.devices = _at(bed.dir / "state", "file")
    with pytest.raises(StateUnsupported, match="kept in one file"):
        hold_for_tpm(bed.operation, HoldForTpm("op", _MINE))
    assert bed.operation.holder is None
