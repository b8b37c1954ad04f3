"""The template of a VM's UEFI variables is the one that libvirt would take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmkeep.fitting.model import FirmwareBuild, MachineType
from vmkeep.fitting.templates import template_in
from vmkeep.xmltext import parse_xml

ENROLLED = FirmwareBuild(
    code="/f/CODE.ms.fd",
    template="/f/VARS.ms.fd",
    variables_bytes=None,
    secure_boot=True,
    enrolled_keys=True,
    needs_smm=True,
    arch="x86_64",
    machines=("pc-q35-*",),
)
SECURE = replace(ENROLLED, code="/f/CODE.secboot.fd", template="/f/VARS.fd", enrolled_keys=False)
PLAIN = replace(
    SECURE, code="/f/CODE.fd", secure_boot=False, needs_smm=False, template="/f/VARS.plain.fd", machines=("pc-*",)
)
MADE_UP = replace(PLAIN, code="/o/CODE.fd", template="/o/VARS.fd", arch=None, machines=(), described=False)
MACHINES = {("kvm", "x86_64"): (MachineType(name="q35", canonical="pc-q35-7.2"), MachineType(name="pc-i440fx-7.2"))}


def template(
    system: str, *, attributes: str = "firmware='efi'", machine: str = "q35", features: str = ""
) -> str | None:
    xml = (
        f"<domain type='kvm'><name>vm</name><os {attributes}><type arch='x86_64' machine='{machine}'>hvm</type>{system}"
        f"</os><features>{features}</features></domain>"
    )
    configured = {"/c/CODE.fd": "/c/VARS.fd", "/f/CODE.fd": "/c/OTHER.fd"}
    return template_in(parse_xml(xml), (ENROLLED, SECURE, PLAIN, MADE_UP), configured, MACHINES)


@pytest.mark.parametrize(
    ("system", "wanted"),
    [
        ("", "/f/VARS.ms.fd"),
        ("<firmware><feature enabled='no' name='enrolled-keys'/></firmware>", "/f/VARS.fd"),
        ("<firmware><feature enabled='no' name='secure-boot'/></firmware>", "/f/VARS.plain.fd"),
        ("<firmware><feature enabled='yes' name='enrolled-keys'/></firmware>", "/f/VARS.ms.fd"),
        ("<loader secure='no'/>", "/f/VARS.plain.fd"),
        ("<loader secure='yes'/>", "/f/VARS.ms.fd"),
        ("<nvram template='/mine.fd'/>", "/mine.fd"),
    ],
)
def test_choice_that_is_left_to_libvirt_is_the_first_description_that_has_what_is_asked_for(
    system: str, wanted: str
) -> None:
    assert template(system) == wanted


def test_machine_and_smm_are_part_of_what_is_asked_for() -> None:
    assert template("", machine="pc-i440fx-7.2") == "/f/VARS.plain.fd"
    assert template("", features="<smm state='off'/>") == "/f/VARS.plain.fd"
    assert template("", machine="virt") is None


@pytest.mark.parametrize(
    ("loader", "wanted"),
    [
        ("/f/CODE.ms.fd", "/f/VARS.ms.fd"),
        ("/f/CODE.fd", "/f/VARS.plain.fd"),  # a description comes before the settings
        ("/c/CODE.fd", "/c/VARS.fd"),
        ("/o/CODE.fd", "/o/VARS.fd"),
        ("/nobody/knows.fd", None),
    ],
)
def test_firmware_that_is_named_has_the_template_that_goes_with_it(loader: str, wanted: str | None) -> None:
    assert template(f"<loader type='pflash'>{loader}</loader>", attributes="") == wanted
