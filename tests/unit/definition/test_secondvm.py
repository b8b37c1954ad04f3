"""What only one of two VMs can have is another in the second one, and everything else is as it was."""

from __future__ import annotations

import pytest
from lxml import etree

from tests.unit.definition.cases import GOLDEN
from vmkeep.definition import DefinitionError
from vmkeep.definition.origin import Origin, origin_of, with_origin
from vmkeep.definition.secondvm import encrypt_tpm_with, second_vm

_ORIGINAL = Origin("11111111-2222-3333-4444-555555555555", "win11")


def _domain(devices: str, more: str = "") -> str:
    return f"<domain type='kvm'><name>other</name><devices>{devices}</devices>{more}</domain>"


def _second(devices: str) -> tuple[etree._Element, tuple[str, ...]]:
    made = second_vm(_domain(devices), "win11", "other")
    return etree.fromstring(made.definition), made.told


def test_sockets_and_files_of_consoles_carry_the_second_name() -> None:
    root, told = _second(
        "<serial type='file'><source path='/log/win11-serial.log'/><log file='/log/win11.txt'/></serial>"
        "<console type='file'><source path='/log/win11-serial.log'/></console>"
        "<channel type='unix'><source mode='bind' path='/sock/agent'/></channel>"
        "<channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/7-win11/a'/></channel>"
        "<channel type='unix'><source mode='connect' path='/sock/server'/></channel>"
        "<serial type='pty'/><serial type='dev'><source path='/dev/ttyS0'/></serial>"
        "<serial type='tcp'><source mode='bind' host='0.0.0.0' service='4555'/></serial>"
    )
    places = [each.get("path") for each in root.findall("devices/*/source") if each.get("path")]
    assert places == [
        "/log/other-serial.log",
        "/log/other-serial.log",
        "/sock/other-agent",
        "/sock/server",
        "/dev/ttyS0",
    ]
    assert [each.get("file") for each in root.findall("devices/serial/log")] == ["/log/other.txt"]
    assert sum("other-serial.log" in each for each in told) == 1
    assert any("/dev/ttyS0" in each for each in told)
    assert any("4555" in each for each in told)


def test_displays_get_ports_of_libvirts_choice_and_sockets_of_their_own() -> None:
    root, told = _second(
        "<graphics type='vnc' port='5901' autoport='no' websocket='5700'><listen type='address'/></graphics>"
        "<graphics type='spice' port='-1' autoport='yes'/>"
        "<graphics type='vnc' socket='/run/win11.vnc'><listen type='socket' socket='/run/win11.vnc'/></graphics>"
    )
    vnc, spice, by_socket = root.findall("devices/graphics")
    assert (vnc.get("port"), vnc.get("autoport"), vnc.get("websocket")) == ("-1", "yes", "-1")
    assert dict(spice.attrib) == {"type": "spice", "port": "-1", "autoport": "yes"}
    listen = by_socket.find("listen")
    assert listen is not None
    assert by_socket.get("socket") == listen.get("socket") == "/run/other.vnc"
    assert len(told) == 2


def test_numbers_and_names_of_devices_are_libvirts_choice() -> None:
    root, told = _second(
        "<vsock><cid auto='no' address='7'/></vsock>"
        "<interface type='bridge'><target dev='tap-win11'/><virtualport><parameters interfaceid='x' profileid='p'/>"
        "</virtualport></interface><pstore backend='acpi-erst'><path>/nvram/win11_PSTORE.raw</path></pstore>"
    )
    cid, parameters = root.find("devices/vsock/cid"), root.find("devices/interface/virtualport/parameters")
    assert cid is not None
    assert parameters is not None
    assert dict(cid.attrib) == {"auto": "yes"}
    assert dict(parameters.attrib) == {"profileid": "p"}
    assert root.find("devices/interface/target") is None
    assert root.findtext("devices/pstore/path") == "/nvram/other_PSTORE.raw"
    assert len(told) == 3


def test_what_both_have_is_told() -> None:
    more = "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg value='-S'/></q:commandline>"
    devices = "<hostdev mode='subsystem' type='pci'/><filesystem type='mount'/><shmem name='x'/>"
    told = second_vm(_domain(devices, more), "win11", "other").told
    assert len(told) == 4
    assert all("other" in each for each in told)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.xml")), ids=lambda path: path.stem)
def test_second_vm_of_the_second_is_the_same_again(path: object) -> None:
    text = path.read_text()  # type: ignore[attr-defined]  # pytest gives parameters no type
    try:
        once = second_vm(text, "no-such-name", "no-such-name")
    except DefinitionError:
        return
    assert second_vm(text, "no-such-name", "no-such-name") == once


def test_secret_of_a_tpm_is_another_one_where_there_is_one() -> None:
    tpm = "<tpm model='tpm-crb'><backend type='emulator'><encryption secret='a'/></backend></tpm>"
    changed = etree.fromstring(encrypt_tpm_with(_domain(tpm), "b"))
    assert changed.xpath("string(devices/tpm/backend/encryption/@secret)") == "b"
    plain = _domain("<tpm model='tpm-crb'><backend type='emulator'/></tpm>")
    assert "encryption" not in encrypt_tpm_with(plain, "b")


def test_origin_is_told_once_and_other_metadata_stays() -> None:
    more = "<metadata><a:of xmlns:a='urn:acme'>theirs</a:of></metadata>"
    first = with_origin(_domain("", more), _ORIGINAL)
    second = with_origin(first, Origin("22222222-2222-3333-4444-555555555555", "other"))
    assert origin_of(first) == _ORIGINAL
    assert origin_of(second) == Origin("22222222-2222-3333-4444-555555555555", "other")
    assert second.count("vmkeep:clone") == 1
    assert "theirs" in second
    assert origin_of(_domain("")) is None
