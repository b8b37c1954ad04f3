"""Where a VM's state files are, and which cannot be read as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmkeep.definition import Definition, parse_definition
from vmkeep.errors import StateUnsupported
from vmkeep.host.vm.secrets import NeededSecret, needed_secrets
from vmkeep.host.vm.states import StateSource, refuse_unwritten_variables, state_sources, state_warnings
from vmkeep.statefiles.location import StateRoots

_UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
_ROOTS = StateRoots(swtpm=Path("/swtpm"), nvram=Path("/nvram"))


def _vm(*, system: str = "", tpm: str = "") -> Definition:
    device = f"<devices><tpm model='tpm-crb'>{tpm}</tpm></devices>" if tpm else ""
    return parse_definition(f"<domain type='kvm'><name>vm</name><uuid>{_UUID}</uuid>{system}{device}</domain>")


def _emulator(inside: str = "", version: str = "2.0") -> str:
    return f"<backend type='emulator' version='{version}'>{inside}</backend>"


@pytest.mark.parametrize(
    ("tpm", "path", "name"),
    [
        (_emulator(), f"/swtpm/{_UUID}/tpm2/tpm2-00.permall", "tpm2/tpm2-00.permall"),
        (_emulator(version="1.2"), f"/swtpm/{_UUID}/tpm1.2/tpm-00.permall", "tpm1.2/tpm-00.permall"),
        (_emulator("<source type='dir' path='/srv/t'/>"), "/srv/t/tpm2-00.permall", "tpm2/tpm2-00.permall"),
        (_emulator("<source type='dir' path='/srv/t'/>", "1.2"), "/srv/t/tpm-00.permall", "tpm1.2/tpm-00.permall"),
    ],
)
def test_tpm_state_is_found_by_version_and_place(tpm: str, path: str, name: str) -> None:
    assert state_sources(_vm(tpm=tpm), _ROOTS) == (StateSource("tpm", Path(path), name),)


def test_tpm_state_in_one_file_is_refused_with_what_to_do() -> None:
    with pytest.raises(StateUnsupported) as raised:
        state_sources(_vm(tpm=_emulator("<source type='file' path='/srv/tpm state'/>")), _ROOTS)
    assert "is kept in a file of its own (/srv/tpm state)" in raised.value.message
    assert "<source type='dir'>" in raised.value.hint
    assert raised.value.vm == "vm"


@pytest.mark.parametrize(
    ("system", "path", "image_format"),
    [
        ("<os firmware='efi'/>", "/nvram/vm_VARS.fd", "raw"),
        ("<os><nvram>/own/v.fd</nvram></os>", "/own/v.fd", "raw"),
        ("<os><nvram format='qcow2'>/own/v.qcow2</nvram></os>", "/own/v.qcow2", "qcow2"),
        ("<os><nvram type='file' format='qcow2'><source file='/own/v'/></nvram></os>", "/own/v", "qcow2"),
    ],
)
def test_uefi_variables_are_found_with_their_format(system: str, path: str, image_format: str) -> None:
    assert state_sources(_vm(system=system), _ROOTS) == (StateSource("nvram", Path(path), "nvram.fd", image_format),)


def test_uefi_variables_that_qemu_may_hold_in_memory_are_refused() -> None:
    refuse_unwritten_variables([StateSource("nvram", Path("/v"), "nvram.fd")], "vm")
    with pytest.raises(StateUnsupported, match="suspended by its guest") as raised:
        refuse_unwritten_variables([StateSource("nvram", Path("/v"), "nvram.fd", "qcow2")], "vm")
    assert "virsh dompmwakeup vm" in raised.value.hint


def test_uefi_variables_that_are_no_file_are_refused() -> None:
    system = "<os><nvram type='network'><source protocol='iscsi' name='iqn.x'/></nvram></os>"
    with pytest.raises(StateUnsupported, match="not in a file"):
        state_sources(_vm(system=system), _ROOTS)


@pytest.mark.parametrize(
    ("tpm", "words"),
    [
        ("<backend type='passthrough'><device path='/dev/tpm0'/></backend>", "a real one of the host (passthrough)"),
        ("<backend type='external'><source type='unix' path='/s'/></backend>", "does not start (external)"),
    ],
)
def test_tpm_without_a_state_of_its_own_is_told(tpm: str, words: str) -> None:
    vm = _vm(tpm=tpm)
    assert state_sources(vm, _ROOTS) == ()
    assert needed_secrets(vm) == ()
    (told,) = state_warnings(vm)
    assert words in told


def test_secret_of_the_tpm_is_needed_once_whatever_names_it() -> None:
    one, two = (_vm(tpm=_emulator(f"<encryption secret='{secret}'/>")) for secret in ("s-1", "s-2"))
    assert needed_secrets(one, one, two) == (NeededSecret("s-1", "TPM state"), NeededSecret("s-2", "TPM state"))
    assert needed_secrets(_vm(), _vm(tpm=_emulator())) == ()
