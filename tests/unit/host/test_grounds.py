"""What the definitions of a host's VMs say of files, in the words of the decision whether a header is believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest

from vmkeep.errors import VmNotFound
from vmkeep.host.vm import grounds
from vmkeep.host.vm.grounds import LibvirtGrounds, forget_parked, remember_parked
from vmkeep.hypervisor import Hypervisor

_CHAIN = (
    "<backingStore type='file'><format type='qcow2'/><source file='/t/base'/>"
    "<backingStore type='block'><format type='raw'/><source dev='/dev/vg/low'/><backingStore/></backingStore>"
    "</backingStore>"
)


class _Domain:
    def __init__(self, name: str, *disks: str, label: str = "", snapshots: Mapping[str, str] | None = None) -> None:
        self.name = self.uuid = name
        self.snapshots = snapshots or {}
        self._xml = f"<domain><devices>{''.join(disks)}</devices>{label}</domain>"

    def definition_xml(self, *, inactive: bool = False) -> str:
        if not inactive:
            raise VmNotFound("gone", vm=self.name)
        return self._xml


class _Hypervisor:
    def __init__(self, *domains: _Domain) -> None:
        self._domains = domains
        self.looks = 0

    def domains(self) -> tuple[_Domain, ...]:
        self.looks += 1
        return self._domains

    def pool_folders(self) -> tuple[str, ...]:
        return ("/pool",)

    def qemu_label(self) -> str | None:
        return "+4321:+1234"

    def volume_path(self, pool: str, volume: str) -> tuple[str, bool] | None:
        return (f"/{pool}/{volume}", False) if pool == "p" else None


class _Snapshots:
    def __init__(self, domain: _Domain) -> None:
        self._domain = domain

    def definitions(self, *, secure: bool) -> Mapping[str, str]:
        assert secure
        return self._domain.snapshots


def _disk(source: str, below: str = "", kind: str = "file") -> str:
    return f"<disk type='{kind}'>{source}{below}<target dev='vda'/></disk>"


@pytest.fixture(autouse=True)
def _snapshots_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grounds, "snapshots_of", _Snapshots)


def _grounds(*domains: _Domain) -> LibvirtGrounds:
    return LibvirtGrounds(cast("Hypervisor", _Hypervisor(*domains)))


def test_what_a_definition_puts_below_a_disk_is_listed_for_that_vm_alone() -> None:
    one = _Domain("one", _disk("<source file='/i/one'/>", _CHAIN))
    two = _Domain("two", _disk("<source file='/i/two'/>"))
    told = _grounds(one, two)
    assert told.listed("/i/one", "/t/base")
    assert told.listed("/i/one", "/dev/vg/low")
    assert told.listed_format("/i/one", "/dev/vg/low") == "raw"
    assert not told.listed("/i/two", "/t/base")
    assert told.listed_format("/i/two", "/t/base") is None
    assert not told.listed("/i/nobody", "/t/base")


def test_disk_of_another_vm_is_told_and_ones_own_is_not() -> None:
    one = _Domain("one", _disk("<source file='/i/one'/>"), _disk("<source file='/i/shared'/>"))
    two = _Domain("two", _disk("<source dev='/i/two'/>", _CHAIN, "block"), _disk("<source file='/i/shared'/>"))
    told = _grounds(one, two)
    assert told.used_by("/i/one", "/i/two", chains=False) == "two"
    assert told.used_by("/i/two", "/i/one", chains=False) == "one"
    assert told.used_by("/i/two", "/i/two", chains=True) is None
    # Both have it, so neither is another.
    assert told.used_by("/i/shared", "/i/one", chains=True) is None
    assert told.used_by("/i/one", "/t/base", chains=False) is None
    assert told.used_by("/i/one", "/t/base", chains=True) == "two"


def test_snapshots_and_data_files_and_volumes_count_as_well() -> None:
    snapshot = (
        "<domainsnapshot><disks><disk name='vda'><source file='/i/overlay'/></disk></disks><domain><devices>"
        + _disk("<source file='/i/then'><dataStore type='file'><source file='/i/data'/></dataStore></source>")
        + "</devices></domain></domainsnapshot>"
    )
    volume = _disk("<source pool='p' volume='v'/>", kind="volume")
    told = _grounds(_Domain("one", volume, snapshots={"s": snapshot}))
    for path in ("/i/overlay", "/i/then", "/i/data"):
        assert told.listed("/p/v", path), path


def test_image_below_a_snapshot_has_the_format_of_its_time() -> None:
    then = "<disk type='file'><driver name='qemu' type='vmdk'/><source file='/i/then'/><target dev='vda'/></disk>"
    snapshot = f"<domainsnapshot><domain><devices>{then}</devices></domain></domainsnapshot>"
    told = _grounds(_Domain("one", _disk("<source file='/i/overlay'/>"), snapshots={"s": snapshot}))
    assert told.listed_format("/i/overlay", "/i/then") == "vmdk"


def test_disk_of_a_vm_that_is_kept_from_starting_is_its_own_still() -> None:
    parked = _Domain("one", _disk("<source file='/home/restore-of-one'/>"))
    told = _grounds(parked, _Domain("two", _disk("<source file='/i/two'/>")))
    remember_parked("one", _disk("<source file='/i/one'/>", _CHAIN))
    try:
        assert told.listed("/i/one", "/t/base")
        assert told.used_by("/i/two", "/i/one", chains=False) == "one"
    finally:
        forget_parked("one")
    assert not _grounds(parked).listed("/i/one", "/t/base")


def test_user_is_that_of_the_vms_label_else_of_libvirt() -> None:
    label = "<seclabel type='static' model='dac' relabel='yes'><label>+0:+0</label></seclabel>"
    told = _grounds(
        _Domain("one", _disk("<source file='/i/one'/>"), label=label), _Domain("two", _disk("<source file='/i/two'/>"))
    )
    own, other = told.user("/i/one"), told.user("/i/two")
    assert own is not None
    assert other is not None
    assert (own.uid, other.uid, other.gid) == (0, 4321, 1234)


def test_pool_is_told_by_the_folder_of_the_file() -> None:
    told = _grounds()
    assert told.in_pool("/pool/a")
    assert not told.in_pool("/pool/below/a")
    assert not told.in_pool("/pool")


def test_one_look_serves_many_questions() -> None:
    hypervisor = _Hypervisor(_Domain("one", _disk("<source file='/i/one'/>")))
    told = LibvirtGrounds(cast("Hypervisor", hypervisor))
    for _ in range(5):
        told.listed("/i/one", "/x")
    assert hypervisor.looks == 1
