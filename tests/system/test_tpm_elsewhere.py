"""A TPM whose definition names the directory of its state (`<source type='dir'>`), with a libvirt that has that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep
from tests.system.test_tpm_device import inactive

pytestmark = pytest.mark.system

_PLACE = "/var/lib/libvirt/elsewhere"
_SINCE = 10_010_000
"""libvirt's version; before, it drops the element."""


@pytest.fixture
def placed(host: Host) -> Iterator[tuple[Vm, Path]]:
    """A VM that was started once, and the directory of its TPM's state as seen from outside."""
    version = host.connection.getLibVersion()
    if version < _SINCE:
        pytest.skip(f"libvirt {version // 1_000_000}.{version // 1000 % 1000} drops <source type='dir'> of a TPM")
    backend = f"<backend type='emulator' version='2.0'><source type='dir' path='{_PLACE}'/></backend>"
    vm = host.define("guest", disks=[Disk("vda", MiB)], firmware="bios", tpm_backend=backend)
    start_once(vm)
    yield vm, host.path(_PLACE)
    host.clear()


def start_once(vm: Vm) -> None:
    vm.start(paused=True)
    vm.destroy()


def test_tpm_in_a_directory_that_is_named_is_reset_rekeyed_and_removed_there_and_nothing_else_of_it_goes(
    host: Host, vmkeep: Vmkeep, placed: tuple[Vm, Path]
) -> None:
    vm, directory = placed
    state, notes = directory / "tpm2-00.permall", directory / "notes"
    content, before = state.read_bytes(), inactive(vm)
    notes.write_text("a person's")
    assert vmkeep.json("tpm", "show", "guest")["tpm"]["device"]["directory"] == _PLACE

    reset = vmkeep.json("tpm", "reset", "guest", "--yes")["reset"]
    assert f"{_PLACE}/{state.name}" in reset["deleted"]
    assert (inactive(vm), state.exists(), notes.exists()) == (before, False, True)
    start_once(vm)
    assert state.read_bytes() != content

    vmkeep.json("tpm", "rekey", "guest", "--yes")
    assert vmkeep.json("state", "list", "guest")["states"][0]["standing"] == "current"
    start_once(vm)

    vmkeep.json("tpm", "remove", "guest", "--yes")
    assert (state.exists(), notes.read_text(), host.secrets()) == (False, "a person's", {})
    proofs = vmkeep.json("tpm", "removal", "list")["removals"]
    assert [(each["renewal"], each["outcome"]) for each in proofs] == [
        ("reset", "deleted"),
        ("rekey", "deleted"),
        (None, "deleted"),
    ]
    # Where it comes back is libvirt's own place: what the definition named may hold anything by then.
    vmkeep.json("tpm", "add", "guest", "--from", "1")
    assert (vm.tpm_state(), state.exists(), notes.exists()) == (content, False, True)
    start_once(vm)
