"""Files of checkpoints and snapshots that somebody else wrote, imported by this host's root for a VM that is here.

The VM runs on the overlays of two snapshots. What it exports is changed to name what a definition, an image and a file
with memory can reach for. libvirt runs an emulator already when it is given a snapshot whose definition names it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.crash.bed import Zygote
from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import COMMAND
from tests.system.history import Forking
from tests.system.kept_snapshots import names, take
from tests.system.momentbed import virsh
from tests.system.test_job_control import Terminal

pytestmark = pytest.mark.system
_QEMU = "/usr/bin/qemu-system-x86_64"
_TARGET = "<target dev='vda'"
Change = Callable[[str], str]


@dataclass(slots=True)
class Bed:
    """A VM with the snapshots S1 and S2 (with memory) and the checkpoint c, and their files. ``ran`` must not be."""

    vm: Vm
    vmkeep: Forking
    ran: Path
    evil: Path
    secret: Path
    snapshots: Path
    checkpoints: Path

    def forget(self) -> None:
        """Let libvirt list no snapshot, and not the checkpoint c."""
        for name in names(self.vm):
            virsh(self.vm.host, "snapshot-delete", "guest", name, "--metadata")
        for name in self.listed() & {"c"}:
            virsh(self.vm.host, "checkpoint-delete", "guest", name, "--metadata")

    def listed(self) -> set[str]:
        return {checkpoint.getName() for checkpoint in self.vm.domain.listAllCheckpoints()}

    def changed(self, file: Path, name: str, change: Change) -> Path:
        """Return a file in which one document was changed by somebody who has no key of this host."""
        value = json.loads(file.read_text())
        for moment in value["moments"]:
            if moment["name"] == name:
                before = moment["xml"]
                moment["xml"] = change(before)
                assert moment["xml"] != before
        made = file.with_name(f"forged-{file.name}")
        made.write_text(json.dumps(value))
        return made

    def document(self, name: str, change: Change) -> Path:
        value = json.loads(self.snapshots.read_text())
        made = self.snapshots.with_name("forged.xml")
        made.write_text(change(next(moment["xml"] for moment in value["moments"] if moment["name"] == name)))
        return made

    def parts(self, *words: str | Path) -> list[str]:
        """Run a command that must be refused, with nothing done, and return the parts that it tells."""
        failure = self.vmkeep.fails(*words)
        assert failure.code == "definition-reaches-host"
        assert names(self.vm) == []
        assert "c" not in self.listed()
        assert not self.ran.exists(), "libvirt ran a program that only the file names"
        return [str(part["part"]) for part in failure.error["parts"]]


@pytest.fixture(scope="module")
def bed(session_host: Host) -> Iterator[Bed]:
    host = session_host
    host.clear()
    work = host.dir / "work"
    ran, evil, secret = work / "marks" / "ran", work / "evil", work / "root-only" / "secret"
    secret.parent.mkdir(mode=0o700)
    secret.write_bytes(b"secret")
    evil.write_text(f'#!/bin/sh\ntouch {ran}\nexec {_QEMU} "$@"\n')
    evil.chmod(0o755)
    ran.parent.mkdir()
    ran.parent.chmod(0o777)  # QEMU's user leaves the mark
    vm = host.define("guest", disks=[Disk("vda", 2 * MiB)])
    vm.start(paused=True)
    zygote = Zygote(host, host.dir / "home")
    vmkeep = Forking(host, zygote)
    point = vmkeep.backup("guest")  # the first one makes the key of this host
    virsh(host, "checkpoint-delete", "guest", point["checkpoint"])  # beside checkpoints libvirt makes no snapshots
    take(vm, None, "S1")
    take(vm, None, "S2", memory=True)
    virsh(host, "checkpoint-create-as", "guest", "c")
    files = work / "snapshots.json", work / "checkpoints.json"
    vmkeep.run("snapshot", "export", "guest", files[0])
    vmkeep.run("checkpoint", "export", "guest", files[1])
    yield Bed(vm, vmkeep, ran, evil, secret, *files)
    zygote.close()
    host.clear()


@pytest.fixture(autouse=True)
def nothing_listed(bed: Bed) -> None:
    bed.forget()
    bed.ran.unlink(missing_ok=True)


def reaching(bed: Bed) -> dict[str, tuple[Change, set[str]]]:
    """Return what is done to the document of S1, and a part that must be told."""
    serial = f"<serial type='file'><source path='{bed.secret.parent}/log'/></serial>"
    argument = (
        "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-S'/>"
        "</qemu:commandline>"
    )
    overlay = f"<source file='{bed.secret}'/>"

    def disk(xml: str) -> str:
        first = xml.index("<source file=", xml.index("<domain "))
        return xml[:first] + overlay + xml[xml.index("/>", first) + 2 :]

    def memory(xml: str) -> str:
        return xml.replace("<memory snapshot='no'/>", f"<memory snapshot='external' file='{bed.secret}'/>").replace(
            "<state>disk-snapshot</state>", "<state>running</state>"
        )

    return {
        "emulator": (lambda xml: xml.replace(_QEMU, str(bed.evil)), {"domain/devices/emulator"}),
        "console": (lambda xml: xml.replace("</devices>", f"{serial}</devices>"), {"domain/devices/serial"}),
        "arguments": (lambda xml: xml.replace("</domain>", f"{argument}</domain>"), {"domain/qemu:commandline"}),
        "image": (disk, {"domain/devices/disk[vda]"}),
        "overlay": (
            lambda xml: xml.replace("<source file=", f"{overlay}<source file=", 1),
            {"disks/disk[vda]/source"},
        ),
        "memory": (memory, {"memory"}),
    }


@pytest.mark.parametrize("name", ["emulator", "console", "arguments", "image", "overlay", "memory"])
def test_snapshot_of_a_file_that_reaches_into_the_host_is_refused_with_all_of_it(bed: Bed, name: str) -> None:
    change, told = reaching(bed)[name]
    forged = bed.changed(bed.snapshots, "S1", change)
    assert told <= set(bed.parts("snapshot", "import", "guest", forged))
    assert told <= set(bed.parts("snapshot", "redefine", "guest", bed.document("S1", change)))


def test_checkpoint_of_a_file_that_names_a_program_is_refused(bed: Bed) -> None:
    forged = bed.changed(bed.checkpoints, "c", lambda xml: xml.replace(_QEMU, str(bed.evil)))
    assert bed.parts("checkpoint", "import", "guest", forged) == ["domain/devices/emulator"]
    bed.vmkeep.json("checkpoint", "import", "guest", forged, "--trust-definition")
    assert "c" in bed.listed()


def test_file_that_this_installation_wrote_is_taken_without_a_question(bed: Bed) -> None:
    done = bed.vmkeep.json("snapshot", "import", "guest", bed.snapshots)["imported"]
    assert done["redefined"] == names(bed.vm) == ["S1", "S2"]
    done = bed.vmkeep.json("checkpoint", "import", "guest", bed.checkpoints)["imported"]
    assert "c" in done["redefined"]
    again = bed.vmkeep.json("snapshot", "import", "guest", bed.snapshots)["imported"]
    assert again["equal"] == ["S1", "S2"]


def test_file_of_the_vm_without_a_signature_is_asked_for_its_memory_only(bed: Bed) -> None:
    def unsigned(file: Path) -> Path:
        value: dict[str, Any] = json.loads(file.read_text())
        del value["signature"]
        made = file.with_name(f"unsigned-{file.name}")
        made.write_text(json.dumps(value))
        return made

    assert bed.parts("snapshot", "import", "guest", unsigned(bed.snapshots)) == ["memory"]
    bed.vmkeep.json("checkpoint", "import", "guest", unsigned(bed.checkpoints))
    bed.vmkeep.json("snapshot", "import", "guest", unsigned(bed.snapshots), "--trust-definition")
    assert names(bed.vm) == ["S1", "S2"]
    bed.vmkeep.json("snapshot", "redefine", "guest", bed.document("S1", lambda xml: xml))


def test_person_at_a_terminal_is_shown_the_list_and_asked(bed: Bed) -> None:
    forged = bed.changed(bed.snapshots, "S1", lambda xml: xml.replace(_QEMU, str(bed.evil)))
    terminal = Terminal(bed.vmkeep)
    try:
        terminal.type(f"{COMMAND} snapshot import guest {forged}; echo status $?\n")
        terminal.wait_shown("domain/devices/emulator: the program")
        terminal.wait_shown(r"Take all of it\? \[y/N\] ")
        terminal.type("n\n")
        terminal.wait_shown("status 2")
        assert (names(bed.vm), bed.ran.exists()) == ([], False)
        terminal.type(f"{COMMAND} snapshot import guest {forged}; echo status $?\n")
        terminal.wait_shown(r"\[y/N\] ")
        terminal.type("y\n")
        terminal.wait_shown("status 0")
    finally:
        terminal.close()
    assert (names(bed.vm), bed.ran.exists()) == (["S1", "S2"], True)  # libvirt runs it when it is given the snapshot
