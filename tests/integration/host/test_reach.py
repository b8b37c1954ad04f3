"""What becomes of a definition that reaches into the host, by what was decided about it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from tests.unit.fitting.test_hostparts import HOSTILE_DEVICES, IMAGE, NVRAM, domain
from vmkeep.definition import parse_definition
from vmkeep.definition.reading import read_domain
from vmkeep.errors import DefinitionReaches, VmkeepError
from vmkeep.fitting import Wish
from vmkeep.host.restores.reach import Judged, OwnVm, judge_definition, stays_in_drive
from vmkeep.host.tasks.restores import HostParts
from vmkeep.hypervisor import Hypervisor

_GOLDEN = Path(__file__).parents[2] / "unit" / "fitting" / "golden" / "bookworm"
WISH = Wish()
_FOLDER = "<filesystem type='mount'><source dir='/srv/{}'/><target dir='share'/></filesystem>"


class Told:
    """What libvirt 9.0 of a Debian 12 says of itself."""

    uri = "qemu:///system"

    def capabilities(self) -> str:
        return (_GOLDEN / "capabilities.xml").read_text(encoding="utf-8")

    def domain_capabilities(self, _kind: str, _arch: str, _machine: str | None) -> str:
        return (_GOLDEN / "domcapabilities-q35.xml").read_text(encoding="utf-8")


def judged(
    xml: str, allowed: HostParts, own_vm: OwnVm | None = None, wish: Wish = WISH, *, fitted: bool = False
) -> Judged:
    return judge_definition(
        cast("Hypervisor", Told()),
        xml,
        allowed,
        images={"vda": IMAGE},
        media=(),
        variables=NVRAM,
        own_vm=own_vm,
        wish=wish,
        fitted=fitted,
        vm="guest",
        source="point 1",
    )


def refused(xml: str, own_vm: OwnVm | None = None, allowed: HostParts = HostParts.REFUSED) -> list[object]:
    with pytest.raises(DefinitionReaches) as caught:
        judged(xml, allowed, own_vm)
    told = VmkeepError.from_dict(caught.value.as_dict())
    assert isinstance(told, DefinitionReaches)
    assert (told.parts, told.__notes__) == (caught.value.parts, caught.value.__notes__)
    return [part["part"] for part in told.parts]


def own(devices: str) -> OwnVm:
    xml = domain(devices)
    return OwnVm(read_domain(xml), parse_definition(xml))


def test_ordinary_definition_stays_as_it_is_to_the_byte() -> None:
    assert judged(domain(), HostParts.REFUSED) == Judged(domain())


def test_decision_makes_what_is_defined() -> None:
    xml = domain(_FOLDER.format("x") + HOSTILE_DEVICES["log of a console"][0])
    assert refused(xml) == ["devices/filesystem", "devices/serial/log"]
    assert judged(xml, HostParts.TRUSTED) == Judged(xml)
    defined = judged(xml, HostParts.DEFINED)
    assert (defined.definition, len(defined.told)) == (xml, 1)
    assert "/srv/x" in defined.told[0]
    stripped = judged(xml, HostParts.STRIPPED)
    assert len(stripped.told) == 2
    assert judged(stripped.definition, HostParts.REFUSED).definition == stripped.definition
    assert read_domain(stripped.definition).find("devices/serial") is not None


def test_what_cannot_be_taken_out_is_refused_alone() -> None:
    xml = domain(_FOLDER.format("x"), system="<loader type='rom'>/etc/shadow</loader>")
    assert refused(xml, allowed=HostParts.STRIPPED) == ["os/loader"]


def test_part_of_the_own_vm_passes_and_its_disks_do_not() -> None:
    disk = "<disk type='file'><source file='/images/vdb'/><target dev='vdb'/></disk>"
    here = own(_FOLDER.format("x") + disk)
    assert judged(domain(_FOLDER.format("x")), HostParts.REFUSED, here).told == ()
    assert refused(domain(_FOLDER.format("y")), here) == ["devices/filesystem"]
    assert refused(domain(disk), here) == ["devices/disk[vdb]"]


def test_what_does_not_count_hides_nothing() -> None:
    """More of what libvirt does not know, and of what the own VM has, than is told of any definition."""
    unheard, same, other = "<oracle/>" * 600, _FOLDER.format("x") * 600, _FOLDER.format("y")
    assert refused(domain(unheard + other)) == ["devices/filesystem"]
    assert refused(domain(same + other), own(_FOLDER.format("x"))) == ["devices/filesystem[601]"]


def test_absent_emulator_is_left_to_what_makes_it_fit() -> None:
    elsewhere = domain().replace("/usr/bin/qemu-system-x86_64", "/nowhere/qemu")
    assert judged(elsewhere, HostParts.REFUSED).told == ()
    with pytest.raises(DefinitionReaches):  # it is not gone from the definition then, and somebody could put it there
        judged(elsewhere, HostParts.REFUSED, fitted=True)
    assert refused(domain().replace("/usr/bin/qemu-system-x86_64", "/bin/sh")) == ["devices/emulator"]


def test_firmware_that_gives_way_is_not_asked_about_and_nothing_else_passes_for_it() -> None:
    chosen = Wish(firmware="/srv/chosen.fd")
    xml = domain(system="<loader type='pflash'>/bin/sh</loader>")
    assert refused(xml) == ["os/loader"]
    assert judged(xml, HostParts.REFUSED, wish=chosen).told == ()
    assert judged(xml.replace("/bin/sh", "/srv/chosen.fd"), HostParts.REFUSED, wish=chosen, fitted=True).told == ()
    with pytest.raises(DefinitionReaches):
        judged(xml, HostParts.REFUSED, wish=chosen, fitted=True)
    with pytest.raises(DefinitionReaches) as caught:
        judged(xml.replace("/usr/bin/qemu-system-x86_64", "/bin/sh"), HostParts.REFUSED, wish=chosen)
    assert [part["part"] for part in caught.value.parts] == ["devices/emulator"]


def test_medium_stays_where_the_own_vm_has_it(tmp_path: Path) -> None:
    medium = tmp_path / "here.iso"
    drive = f"<disk device='cdrom'><source file='{medium}'/><target dev='sda'/></disk>"
    assert not stays_in_drive(str(medium), HostParts.TRUSTED, None)
    medium.touch()
    assert stays_in_drive(str(medium), HostParts.TRUSTED, None)
    assert not stays_in_drive(str(medium), HostParts.REFUSED, None)
    assert not stays_in_drive(str(medium), HostParts.DEFINED, None)
    assert not stays_in_drive(str(medium), HostParts.STRIPPED, own(""))
    assert stays_in_drive(str(medium), HostParts.REFUSED, own(drive))
