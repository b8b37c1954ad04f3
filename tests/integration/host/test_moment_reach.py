"""Checkpoints and snapshots of a file: what reaches further into the host than their VM does is told, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest

from tests.integration.host.test_reach import Told
from tests.unit.fitting.test_hostparts import DISK, HOSTILE_DEVICES, IMAGE, NVRAM, ORDINARY_DEVICES, domain
from vmkeep.errors import DefinitionReaches, VmkeepError
from vmkeep.host.moments.reach import refuse_reaching_moments
from vmkeep.host.tasks.moments import VmMoments
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.moments import MomentKind, parse_moment

UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
OVERLAY = "/images/guest-vda.monday"
VARIABLES = f"<nvram>{NVRAM}</nvram>"
OWN_AFFAIRS = {"an image of another disk"}  # of the same VM, so the guest has it anyway
FOLDER = "<filesystem type='mount'><source dir='/srv/x'/><target dir='share'/></filesystem>"


@dataclass(frozen=True)
class OwnDomain:
    """The VM as libvirt has it on this host."""

    xml: str

    name = "guest"
    uuid = UUID

    def is_persistent(self) -> bool:
        return True

    def definition_xml(self, *, inactive: bool = False, secure: bool = False) -> str:
        del inactive, secure
        return self.xml


def snapshot(definition: str, *, more: str = "", name: str = "monday", inactive: str | None = None) -> str:
    second = inactive or ""
    second = second.replace("<domain", "<inactiveDomain").replace("/domain>", "/inactiveDomain>")
    return (
        f"<domainsnapshot><name>{name}</name><state>shutoff</state><creationTime>1</creationTime>{more}"
        f"{definition}{second}</domainsnapshot>"
    )


def checkpoint(definition: str) -> str:
    return (
        "<domaincheckpoint><name>monday</name><creationTime>1</creationTime>"
        f"<disks><disk name='vda' checkpoint='bitmap' bitmap='monday'/></disks>{definition}</domaincheckpoint>"
    )


def reached(given: str, *, present: str, listed: tuple[str, ...] = ()) -> list[object]:
    """Return the parts that are told of a document of a file."""
    kind = MomentKind.CHECKPOINT if given.startswith("<domaincheckpoint") else MomentKind.SNAPSHOT
    moments = tuple(parse_moment(kind, text) for text in listed)
    found = VmMoments(vm="guest", uuid=UUID, kind=kind, running=False, moments=moments, current=None)
    own = cast("Domain", OwnDomain(present))
    caught: DefinitionReaches | None = None
    try:
        refuse_reaching_moments(cast("Hypervisor", Told()), own, found, [("monday", given)])
    except DefinitionReaches as error:
        caught = error
    if caught is None:
        return []
    told = VmkeepError.from_dict(caught.as_dict())
    assert isinstance(told, DefinitionReaches)
    assert (told.parts, told.__notes__) == (caught.parts, caught.__notes__)
    assert all(part["moment"] == "monday" for part in told.parts)
    return [part["part"] for part in told.parts]


@pytest.mark.parametrize("name", sorted(HOSTILE_DEVICES.keys() - OWN_AFFAIRS))
def test_what_reaches_into_the_host_is_told_in_any_place_of_a_definition(name: str) -> None:
    devices, *_ = HOSTILE_DEVICES[name]
    plain, hostile = domain(), domain(devices)
    assert reached(snapshot(hostile), present=plain)
    assert reached(snapshot(plain, inactive=hostile), present=plain)
    assert reached(checkpoint(hostile), present=plain)


def test_the_emulator_is_told_before_libvirt_could_run_it() -> None:
    hostile = domain().replace("/usr/bin/qemu-system-x86_64", "/images/program")
    assert reached(checkpoint(hostile), present=domain()) == ["domain/devices/emulator"]


def test_arguments_are_told_whatever_the_namespace_is_called() -> None:
    hostile = domain(attributes="type='kvm' xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'").replace(
        "</domain>", "<q:commandline><q:arg value='-foo'/></q:commandline></domain>"
    )
    assert reached(snapshot(hostile), present=domain()) == ["domain/qemu:commandline"]


@pytest.mark.parametrize("name", sorted(ORDINARY_DEVICES))
def test_ordinary_devices_are_not_asked_about(name: str) -> None:
    assert reached(snapshot(domain(ORDINARY_DEVICES[name])), present=domain()) == []


def test_what_the_vm_or_its_listed_snapshots_have_is_not_asked_about() -> None:
    given = snapshot(domain(FOLDER, system=VARIABLES), inactive=domain(FOLDER, system=VARIABLES))
    assert reached(given, present=domain(FOLDER, system=VARIABLES)) == []
    assert reached(given, present=domain(system=VARIABLES)) == ["domain/devices/filesystem"]
    assert reached(given, present=domain(system=VARIABLES), listed=(snapshot(domain(FOLDER), name="sunday"),)) == []


def test_images_of_another_file_are_told_and_those_of_the_vm_are_not() -> None:
    on_overlay = domain().replace(IMAGE, OVERLAY)
    below = on_overlay.replace(
        "<target dev='vda'",
        f"<backingStore type='file'><format type='qcow2'/><source file='{IMAGE}'/><backingStore/></backingStore>"
        "<target dev='vda'",
    )
    external = f"<disks><disk name='vda' snapshot='external'><source file='{OVERLAY}'/></disk></disks>"
    assert reached(snapshot(domain(), more=external), present=below) == []
    assert reached(snapshot(below, more=external), present=below) == []
    assert reached(snapshot(domain(), more=external), present=domain()) == ["disks/disk[vda]/source"]
    assert reached(snapshot(on_overlay), present=domain()) == ["domain/devices/disk[vda]"]
    recorded = (snapshot(domain(), more=external, name="sunday"),)
    assert reached(snapshot(on_overlay), present=domain(), listed=recorded) == []
    foreign = below.replace(f"<source file='{IMAGE}'/>", "<source file='/etc/shadow'/>")
    assert all(str(part).startswith("domain/devices/disk[vda]") for part in reached(snapshot(foreign), present=below))
    assert reached(snapshot(foreign), present=below)


def test_a_file_with_memory_is_told_unless_libvirt_has_it_already() -> None:
    memory = "<memory snapshot='external' file='/images/guest.memory'/>"
    given = snapshot(domain(), more=memory).replace("shutoff", "running")
    assert reached(given, present=domain()) == ["memory"]
    assert reached(given, present=domain(), listed=(given.replace("monday", "sunday"),)) == []


def test_an_element_that_nobody_knows_is_told() -> None:
    assert reached(snapshot(domain(), more="<hook run='/x'/>"), present=domain()) == ["hook"]


def test_a_second_definition_is_looked_at_too() -> None:
    assert reached(snapshot(domain(), more=domain(FOLDER)), present=domain()) == ["domain/devices/filesystem"]


def test_a_disk_of_the_vm_is_no_disk_of_another_target() -> None:
    two = domain(DISK.replace("vda", "vdb").replace(IMAGE, "/etc/shadow"))
    assert reached(snapshot(two), present=domain()) == ["domain/devices/disk[vdb]"]
