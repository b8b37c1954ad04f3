"""The hook that libvirt calls finds the state files that vmkeep finds, although it has a reader of its own."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from tests.unit.definition.cases import GOLDEN
from vmkeep.definition import parse_definition
from vmkeep.errors import StateUnsupported
from vmkeep.host.gate.hook import BACKUP_SUFFIX, LIMIT_BYTES, Asked, Unsure
from vmkeep.host.vm import found_states
from vmkeep.host.vm.states import state_sources
from vmkeep.statefiles import capture
from vmkeep.statefiles.location import StateRoots

UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
ROOTS = StateRoots(swtpm=Path("/swtpm"), nvram=Path("/nvram"))
SYSTEMS = (
    "",
    "<os><type>hvm</type></os>",
    "<os firmware='efi'/>",
    "<os firmware='bios'/>",
    "<os firmware='efi'><loader stateless='yes'/></os>",
    "<os><loader type='pflash'>/code</loader></os>",
    "<os><nvram>/own/v.fd</nvram></os>",
    "<os><nvram>\n  /own/a &amp; b.fd\n</nvram></os>",
    "<os firmware='efi'><nvram template='/t'/></os>",
    "<os><nvram type='file' format='qcow2'><source file='/own/v'/></nvram></os>",
    "<os><nvram type='network'><source protocol='nbd' name='v'/></nvram></os>",
)
BACKENDS = (
    "",
    "<backend type='emulator'/>",
    "<backend type='emulator' version='2.0'/>",
    "<backend type='emulator' version='1.2'/>",
    "<backend type='emulator' version='2.0'><source type='dir' path='/srv/ü'/></backend>",
    "<backend type='emulator' version='1.2'><source type='dir' path='/srv/t'/></backend>",
    "<backend type='emulator' version='2.0'><encryption secret='6dd3e4a5-1d76-44ce-961f-f119f5aad935'/></backend>",
    "<backend type='emulator'><source type='file' path='/srv/t'/></backend>",
    "<backend type='passthrough'><device path='/dev/tpm0'/></backend>",
)


def _files_of_vmkeep(xml: str) -> dict[str, str]:
    try:
        return {source.kind: str(source.path) for source in state_sources(parse_definition(xml), ROOTS)}
    except StateUnsupported:
        return {}  # of such a VM no state is ever kept


def _asked(xml: str) -> Asked:
    return Asked(xml.encode(), {"swtpm": str(ROOTS.swtpm), "nvram": str(ROOTS.nvram)})


@pytest.mark.parametrize("name", ["vm", "a &lt;ü&gt; &amp; b"])
@pytest.mark.parametrize(("system", "backend"), list(product(SYSTEMS, BACKENDS)))
def test_state_files_are_those_that_vmkeep_finds(name: str, system: str, backend: str) -> None:
    tpm = f"<devices><tpm model='tpm-crb'>{backend}</tpm></devices>" if backend else ""
    xml = f"<domain type='kvm' id='1'><name>{name}</name><uuid>{UUID}</uuid>{system}{tpm}</domain>"
    asked, expected = _asked(xml), _files_of_vmkeep(xml)
    assert (asked.name, asked.uuid) == (parse_definition(xml).name, UUID)
    if expected or not ("type='network'" in system or "type='file' path" in backend):
        assert asked.files == expected


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.xml")), ids=lambda path: path.name)
def test_state_files_of_whole_definitions_are_those_that_vmkeep_finds(path: Path) -> None:
    xml = path.read_text("utf-8")
    assert _asked(xml).files == _files_of_vmkeep(xml)


@pytest.mark.parametrize(
    "xml", ["", "<domain", "<domain><name>vm</name></domain>", "<domain><uuid>../../etc/passwd</uuid></domain>"]
)
def test_definition_without_a_uuid_is_no_ground_to_decide_on(xml: str) -> None:
    with pytest.raises(Unsure):
        _asked(xml)


def test_limits_and_names_are_those_of_vmkeep() -> None:
    assert LIMIT_BYTES == capture.LIMIT_BYTES
    assert found_states.BACKUP_SUFFIX == BACKUP_SUFFIX
