"""A TPM that is taken out of a definition comes back byte for byte, and nothing else changes."""

from __future__ import annotations

import pytest
from lxml import etree

from tests.unit.definition.cases import GOLDEN
from vmkeep.definition import DefinitionError, parse_definition
from vmkeep.definition.tpmdevice import put_tpm_in, take_tpm_out, tpm_element, with_secret

_TPM = (
    '<tpm model="tpm-crb">\n      <backend type="emulator" version="2.0">\n'
    '        <encryption secret="11111111-2222-3333-4444-555555555555"/>\n      </backend>\n    </tpm>'
)
_DISK = '<disk type="file" device="disk">\n      <target dev="vda"/>\n    </disk>'
_PROXY = '<tpm model="spapr-tpm-proxy">\n      <backend type="passthrough"/>\n    </tpm>'
_QEMU = (
    '  <qemu:commandline xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">\n'
    '    <qemu:arg value="-S"/>\n  </qemu:commandline>\n'
)


def _domain(*devices: str, more: str = "", namespace: str = "") -> str:
    inner = "".join(f"    {each}\n" for each in devices)
    return f'<domain{namespace} type="kvm">\n  <name>vm</name>\n  <devices>\n{inner}  </devices>\n{more}</domain>\n'


@pytest.mark.parametrize(
    "devices", [(_TPM, _DISK), (_DISK, _TPM), (_DISK, _TPM, _DISK.replace("vda", "vdb")), (_PROXY, _TPM)]
)
def test_tpm_comes_back_byte_for_byte_wherever_it_stood(devices: tuple[str, ...]) -> None:
    xml = _domain(*devices, more=_QEMU)
    taken = take_tpm_out(xml)
    assert taken is not None
    assert taken.element == _TPM
    assert parse_definition(taken.definition).tpm is None
    assert put_tpm_in(taken.definition, taken.element, taken.place) == xml
    left = [each for each in devices if each is not _TPM]
    if left:
        assert taken.definition == _domain(*left, more=_QEMU)


def test_namespaces_of_the_domain_stay_there_and_do_not_come_along() -> None:
    xml = _domain(_DISK, _TPM, more=_QEMU.replace(' xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0"', ""))
    xml = xml.replace("<domain ", '<domain xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0" ')
    taken = take_tpm_out(xml)
    assert taken is not None
    assert taken.element == _TPM
    assert "<qemu:arg" in taken.definition
    assert put_tpm_in(taken.definition, taken.element, taken.place) == xml


def test_definition_of_windows_loses_its_tpm_and_nothing_else() -> None:
    xml = (GOLDEN / "windows.in.xml").read_text(encoding="utf-8")
    taken = take_tpm_out(xml)
    assert taken is not None
    back = put_tpm_in(taken.definition, taken.element, taken.place)
    one, other = (etree.tostring(etree.fromstring(text.encode()), method="c14n2") for text in (xml, back))
    assert one == other
    assert take_tpm_out(taken.definition) is None


def test_tpm_that_is_made_is_what_was_asked_for() -> None:
    tpm = parse_definition(put_tpm_in(_domain(_DISK), tpm_element("tpm-tis", "1.2"))).tpm
    assert tpm is not None
    assert (tpm.model, tpm.version, tpm.secret_uuid) == ("tpm-tis", "1.2", None)
    uuid = "11111111-2222-3333-4444-555555555555"
    tpm = parse_definition(put_tpm_in(_domain(), tpm_element("tpm-crb", "2.0", uuid))).tpm
    assert tpm is not None
    assert tpm.secret_uuid == uuid


def test_tpm_that_is_made_like_another_has_its_settings_and_nothing_else_of_it() -> None:
    one, other = "11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"
    banks = "<active_pcr_banks><sha256/><sha384/><evil/></active_pcr_banks>"
    inner = f"<encryption secret='{one}'/><source type='dir' path='/elsewhere'/>{banks}"
    backend = "backend type='emulator' version='2.0' persistent_state='yes'"
    element = f"<tpm model='tpm-tis'><{backend}>{inner}</backend></tpm>"
    made = tpm_element("tpm-crb", "2.0", other, like=element)
    assert made.replace('"', "'") == (
        f"<tpm model='tpm-crb'><{backend}><encryption secret='{other}'/>"
        "<active_pcr_banks><sha256/><sha384/></active_pcr_banks></backend></tpm>"
    )
    assert "sha256" not in tpm_element("tpm-tis", "1.2", like=element)  # libvirt takes banks for a TPM 2.0 only
    plain = tpm_element("tpm-crb", "2.0")
    for nothing in (
        "",
        "<tpm><backend type='passthrough'/></tpm>",
        element.replace("='yes'", "='odd'").replace(banks, ""),
    ):
        assert tpm_element("tpm-crb", "2.0", like=nothing) == plain
    with pytest.raises(DefinitionError):
        tpm_element("tpm-crb", "2.0", like="no XML")


def test_another_secret_changes_nothing_else_of_a_tpm() -> None:
    one, other = "11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"
    banks = "<active_pcr_banks><sha256/></active_pcr_banks>"
    backend = f"<backend type='emulator' version='2.0'><encryption secret='{one}'/>{banks}</backend>"
    element = f"<tpm model='tpm-crb'>{backend}</tpm>"
    changed = with_secret(element, other)
    assert with_secret(changed, one).count(one) == 1
    assert other not in with_secret(changed, one)
    assert banks in changed
    plain = with_secret(element, "")
    assert "encryption" not in plain
    tpm = parse_definition(put_tpm_in(_domain(), with_secret(plain, other))).tpm
    assert tpm is not None
    assert (tpm.model, tpm.version, tpm.secret_uuid) == ("tpm-crb", "2.0", other)
    for wrong in ("<tpm><backend type='passthrough'/></tpm>", "<tpm/>", "no XML"):
        with pytest.raises(DefinitionError):
            with_secret(wrong, other)


@pytest.mark.parametrize(
    ("xml", "element", "told"),
    [
        (_domain(_TPM), _TPM, "has a TPM already"),
        (_domain(), _DISK, "no TPM"),
        (_domain(), _PROXY, "no TPM"),
        (_domain(), "<tpm", "cannot be read"),
        ("<domain type='kvm'><name>vm</name></domain>", _TPM, "no devices"),
    ],
)
def test_what_cannot_be_put_in_is_refused(xml: str, element: str, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        put_tpm_in(xml, element)
