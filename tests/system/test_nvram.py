"""`vmkeep nvram`: variables told, made anew, changed and put in place, with the firmware's own word about them."""

from __future__ import annotations

import hashlib
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from tests.crash.bed import Trap, Zygote
from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep
from tests.turns import sampled
from vmkeep.custody.variables import VariableStore, read_variables

pytestmark = pytest.mark.system

_TEMPLATE = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
_ADDED = {
    "KEK: Microsoft Corporation KEK 2K CA 2023",
    "db: Windows UEFI CA 2023",
    "db: Microsoft UEFI CA 2023",
    "db: Microsoft Option ROM UEFI CA 2023",
}
_STEPS = ("make_content", "install", "note_placed", "let_count")


@pytest.fixture(scope="module")
def session_host(booting_session_host: Host) -> Host:
    """What is written into the variables is proved by a firmware that works with them."""
    return booting_session_host


@pytest.fixture
def vm(host: Host) -> Iterator[Vm]:
    """A VM that is off, with the variables that libvirt made for it and that no firmware has seen yet."""
    made = host.define("guest", disks=[Disk("vda", MiB)])
    made.start(paused=True)
    made.destroy()
    yield made
    host.clear()


def shown(vmkeep: Vmkeep, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = vmkeep.json("nvram", "show", "guest", *words)["nvram"]
    return found


def kept_in(store: VariableStore) -> dict[tuple[str, str], bytes]:
    return {(each.vendor, each.name): each.content for each in store.variables}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def beside(vm: Vm) -> list[str]:
    return sorted(path.name for path in vm.nvram_path.parent.iterdir())


def test_firmware_keeps_certificates_that_were_added_and_one_command_goes_back(vm: Vm, vmkeep: Vmkeep) -> None:
    before = vm.nvram()
    content = shown(vmkeep)["content"]
    assert (content["secure_boot"], content["microsoft"]["generation"]) == ("on", "2011")
    assert {f"KEK: {each}" for each in content["microsoft"]["lacking"]} & _ADDED
    assert content["first_expiry"]["expired"]
    assert vmkeep.fails("nvram", "enroll", "guest").code == "invalid-request"  # nobody was asked

    enrolled = vmkeep.json("nvram", "enroll", "guest", "--certificates", "2023", "--yes")["replaced"]
    assert (set(enrolled["added"]), enrolled["present"], enrolled["left"]) == (_ADDED, [], [])
    assert enrolled["kept"] == {"version": 1, "sha256": digest(before)}
    assert (enrolled["tpm_kept"], enrolled["now"]["version"]) == (1, 2)
    made = vm.nvram()
    assert enrolled["now"]["sha256"] == digest(made)
    (row,) = vmkeep.json("nvram", "list")["vms"]
    assert (row["vm"], row["secure_boot"]) == ("guest", "on")
    assert row["microsoft"] == {"generation": "both", "lacking": []}
    assert {each["standing"] for each in vmkeep.json("state", "list", "guest")["states"]} == {"current"}
    again = vmkeep.json("nvram", "enroll", "guest", "--yes")["replaced"]
    assert (again["changed"], again["added"], set(again["present"])) == (False, [], _ADDED)
    assert (vm.nvram(), len(beside(vm))) == (made, 1)

    # The firmware starts with them, and what it writes leaves them as they are.
    vm.start()
    vm.settle()
    assert vmkeep.fails("nvram", "reset", "guest", "--yes").code == "vm-running"
    vm.destroy()
    started = read_variables(vm.nvram())
    wanted, found = kept_in(read_variables(made)), kept_in(started)
    assert len(found) > len(wanted)
    for vendor, name in wanted:
        if name in ("PK", "KEK", "db", "dbx", "SecureBootEnable", "CustomMode", "certdb"):
            assert found[vendor, name] == wanted[vendor, name], name
    told = shown(vmkeep)
    assert (told["problem"], told["content"]["secure_boot"]) == (None, "on")
    assert told["content"]["boot"]["order"]

    vmkeep.json(*shlex.split(enrolled["way_back"])[1:], "--yes")
    assert vm.nvram() == before
    standings = {each["kind"]: each["standing"] for each in vmkeep.json("state", "list", "guest")["states"]}
    assert standings["nvram"] == "current"
    text = vmkeep.run("nvram", "show", "guest", "--version", "2").stdout
    assert "Windows UEFI CA 2023, until 2035-06-13" in text


def test_vm_whose_tpm_is_to_be_blank_takes_certificates_and_one_whose_tpm_is_lost_does_not(
    vm: Vm, vmkeep: Vmkeep
) -> None:
    vmkeep.json("tpm", "reset", "guest", "--yes")
    enrolled = vmkeep.json("nvram", "enroll", "guest", "--yes")["replaced"]
    assert (set(enrolled["added"]), enrolled["tpm_kept"]) == (_ADDED, None)
    vmkeep.json(*shlex.split(enrolled["way_back"])[1:], "--yes")

    vmkeep.json("tpm", "restore", "guest", "--version", "1", "--yes")
    lost = vm.tpm_directory / "tpm2" / "tpm2-00.permall"
    lost.unlink()
    before = vm.nvram()
    assert vmkeep.fails("nvram", "enroll", "guest", "--yes").code == "host-file-missing"
    assert vm.nvram() == before


def test_variables_made_anew_are_those_that_libvirt_makes(vm: Vm, vmkeep: Vmkeep) -> None:
    first = vm.nvram()
    vm.start(paused=True)
    (template,) = etree.fromstring(vm.domain.XMLDesc(0)).xpath("os/nvram/@template")
    vm.destroy()
    vm.change_nvram()
    changed = vm.nvram()
    reset = vmkeep.json("nvram", "reset", "guest", "--yes")["replaced"]
    assert vm.nvram() == first
    assert reset["template"] == template
    assert reset["kept"]["sha256"] == digest(changed)
    vm.start(paused=True)
    vm.destroy()

    # A store that is no good is a version that never counts, and what is cut off stays beside: where is said.
    broken = bytearray(first)
    broken[50] ^= 1  # its checksum
    vm.nvram_path.write_bytes(broken)
    whole = vmkeep.json("nvram", "reset", "guest", "--yes")["replaced"]
    assert (whole["kept"]["sha256"], vm.nvram()) == (digest(bytes(broken)), first)
    assert whole["way_back"] == f"vmkeep nvram restore guest --version {digest(bytes(broken))[:16]}"
    vm.nvram_path.write_bytes(b"torn" * 100)
    torn = vmkeep.json("nvram", "reset", "guest", "--yes")["replaced"]
    assert (torn["kept"], torn["way_back"], vm.nvram()) == (None, None, first)
    assert vm.host.path(torn["aside"]).read_bytes() == b"torn" * 100
    vm.host.path(torn["aside"]).unlink()

    # Nothing lay there: it is made as at a first start, and the gate has nothing against that.
    vm.nvram_path.unlink()
    gone = vmkeep.json("nvram", "reset", "guest", "--yes")["replaced"]
    assert (gone["changed"], gone["kept"], vm.nvram()) == (True, None, first)
    assert {each["standing"] for each in vmkeep.json("state", "list", "guest")["states"]} == {"current", "not-kept"}


def test_variables_come_out_of_a_file_as_they_went_in(vm: Vm, vmkeep: Vmkeep, host: Host) -> None:
    content = vm.nvram()
    file = host.dir / "of-guest.fd"
    exported = vmkeep.json("nvram", "export", "guest", str(file))["exported"]
    assert (file.read_bytes(), exported["version"]) == (content, 1)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert vmkeep.fails("nvram", "export", "guest", str(file)).code == "invalid-request"  # it is there
    vmkeep.json("nvram", "enroll", "guest", "--yes")
    made = vm.nvram()
    imported = vmkeep.json("nvram", "import", "guest", str(file), "--yes")["replaced"]
    assert (vm.nvram(), imported["kept"]["sha256"]) == (content, digest(made))
    vmkeep.json("nvram", "export", "guest", str(file), "--yes", "--version", "2")
    assert file.read_bytes() == made

    for wrong in (b"nothing", Path("/usr/share/OVMF/OVMF_CODE_4M.fd").read_bytes(), b"QFI\xfb" + content):
        file.write_bytes(wrong)
        refused = vmkeep.fails("nvram", "import", "guest", str(file), "--yes")
        assert refused.code in ("state-unsupported", "invalid-request"), wrong[:8]
        assert vm.nvram() == content
    smaller = bytearray(content[: len(content) // 2])
    file.write_bytes(smaller)
    assert vmkeep.fails("nvram", "import", "guest", str(file), "--yes").code == "state-unsupported"
    other = Path("/usr/share/OVMF/OVMF_VARS.ms.fd")
    if other.exists():  # Debian 12: made for builds of 2 MiB
        refused = vmkeep.fails("nvram", "import", "guest", str(other), "--yes")
        assert (refused.code, "another firmware" in refused.error["message"]) == ("state-unsupported", True)
    host.define("old", disks=[Disk("vda", MiB)], firmware="bios", tpm=False)
    assert vmkeep.fails("nvram", "reset", "old", "--yes").code == "state-unsupported"
    assert vmkeep.json("nvram", "show", "old")["nvram"]["content"] is None
    assert beside(vm) == [vm.nvram_path.name]


def test_failure_of_any_later_step_leaves_variables_and_what_counts_as_they_were(vm: Vm, zygote: Zygote) -> None:
    vmkeep = Vmkeep(vm.host)
    vmkeep.json("state", "capture", "guest")
    before = vm.nvram()
    for step, when in sampled([(step, when) for step in _STEPS for when in ("before", "after")], 3):
        trap = Trap(when, f"vmkeep.flows.replace_nvram:{step}", "fail")
        outcome = zygote.run(["nvram_enroll", "guest"], traps=[trap])
        assert outcome.error["code"] == "no-space", (step, when)
        assert (vm.nvram(), beside(vm)) == (before, [vm.nvram_path.name]), (step, when)
        standings = {each["standing"] for each in vmkeep.json("state", "list", "guest")["states"]}
        assert standings == {"current"}, (step, when)
    zygote.run(["nvram_enroll", "guest"]).acts  # noqa: B018  raises when it failed
    assert vm.nvram() != before


def test_vm_that_somebody_starts_meanwhile_keeps_its_variables(vm: Vm, zygote: Zygote) -> None:
    before = vm.nvram()
    inode = vm.nvram_path.stat().st_ino
    place = "vmkeep.host.nvram.place:make_folder"
    zygote.start(["nvram_enroll", "guest"], traps=[Trap("before", place, "hold")])
    zygote.wait_reached()
    vm.start(paused=True)
    zygote.go.touch()
    outcome = zygote.finish()
    assert outcome.error["code"] == "vm-running"
    assert (vm.nvram(), vm.nvram_path.stat().st_ino) == (before, inode)
