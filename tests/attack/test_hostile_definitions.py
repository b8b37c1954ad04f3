"""Definitions and places in points of another home that has the repository's key, restored by this host's root.

One VM is kept once by that home. Its point is put into the repository again with whatever a definition can reach for,
all adopted at once by the home of this host, which never took a point of it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import libvirt
import pytest
from lxml import etree

from tests.crash.bed import EMPTY, Zygote
from tests.rig import Disk, Host, KiB, MiB, VmState, random_bytes, read_offline_image
from tests.rig.cli import COMMAND, Failure, Vmkeep
from tests.system.history import Forking
from tests.system.offline import write_offline
from tests.system.test_job_control import Terminal
from tests.system.truth import files_below
from vmkeep.keys import KeyFile
from vmkeep.repository import PointRecord, Repository

pytestmark = pytest.mark.system

_SECRET = b"root:x:0:0:" * 1000
# A qcow2 image of version 3 whose content is in another file.
_VARIABLES_THAT_NAME_A_FILE = b"QFI\xfb" + struct.pack(">I64xQ", 3, 4).ljust(528 * KiB - 4, b"\0")
Change = Callable[[PointRecord], PointRecord]


@dataclass(slots=True)
class Shared:
    """The points of the other home by what was forged in them; ``vmkeep`` is this host's own. ``ran`` must not be."""

    host: Host
    vmkeep: Forking
    truth: bytes
    ran: Path
    secret: Path
    forged: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> Path:
        return self.host.dir / "disks"

    def refused(self, name: str, *options: str | Path) -> Failure:
        """Restore what was forged, which must fail and leave nothing."""
        before = self.written()
        failure = self.vmkeep.fails("restore", self.forged[name], "--as", "guest", *options)
        assert self.written() == before
        self.assert_untouched()
        return failure

    def restored(self, name: str, *options: str | Path) -> dict[str, Any]:
        restored = self.vmkeep.json("restore", self.forged[name], "--as", "guest", *options)["restored"]
        assert isinstance(restored, dict)
        self.assert_untouched()
        return restored

    def root(self) -> etree._Element:
        xml = self.host.vm("guest").domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        return etree.fromstring(xml)

    def assert_untouched(self) -> None:
        assert not self.ran.exists(), "libvirt ran a program that only the point names"
        assert files_below(self.secret.parent) == {"secret": _SECRET}

    def written(self) -> dict[str, bytes]:
        """Return everything on the host that a restore could write, and the names of all VMs."""
        found = {f"disks/{name}": content for name, content in files_below(self.images).items()}
        for place in ("/var/lib/libvirt/qemu/nvram", "/var/lib/libvirt/swtpm", "/etc/libvirt/qemu"):
            found |= {f"{place}/{name}": content for name, content in files_below(self.host.path(place)).items()}
        return found | {f"vm {each.name()}": b"" for each in self.host.connection.listAllDomains()}


def _edited(edits: Mapping[str, str] = EMPTY, *, system: tuple[str, str] | None = None) -> Change:
    """Return the change of a point that puts elements into its definition, each at the end of what a path finds."""

    def change(record: PointRecord) -> PointRecord:
        definition = record.definition
        if system is not None:
            assert system[0] in definition
            definition = definition.replace(*system)
        root = etree.fromstring(definition)
        for loader in root.findall("os/loader")[1:]:  # libvirt 11.3 writes down which one it chose
            loader.getparent().remove(loader)  # type: ignore[union-attr]  # <os>
        for path, xml in edits.items():
            parent = root.find(path)
            assert parent is not None
            for element in etree.fromstring(f"<many>{xml}</many>"):
                present = parent.find("emulator") if element.tag == "emulator" else None
                if present is None:
                    parent.append(element)
                else:
                    parent.replace(present, element)
        return replace(record, definition=etree.tostring(root, encoding="unicode"))

    return change


def _disk_at(source: str) -> Change:
    def change(record: PointRecord) -> PointRecord:
        (disk,) = record.disks
        return replace(record, disks=(replace(disk, source=source),))

    return change


_ORDINARY = {
    "devices": """
    <interface type='bridge'><mac address='52:54:00:12:34:56'/><source bridge='br0'/><model type='virtio'/>
      <filterref filter='clean-traffic'><parameter name='IP' value='10.0.0.9'/></filterref></interface>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/isos/gone.iso'/>
      <target dev='sda' bus='sata'/><readonly/></disk>
    <serial type='pty'><target type='isa-serial' port='0'/></serial>
    <graphics type='spice' autoport='yes'><listen type='address' address='127.0.0.1'/><image compression='off'/>
    </graphics>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <watchdog model='i6300esb' action='reset'/>
    <sound model='ich9'/>
    <video><model type='virtio' heads='1' primary='yes'/></video>
    <input type='tablet' bus='virtio'/>
    """,
    ".": "<cputune><shares>512</shares></cputune><metadata><a:b xmlns:a='urn:a'>/etc/shadow</a:b></metadata>",
}
_EVERYTHING = {
    "devices": """
    <emulator>{evil}</emulator>
    <filesystem type='mount'><source dir='{folder}'/><target dir='share'/></filesystem>
    <interface type='ethernet'><script path='{evil}'/></interface>
    <serial type='file'><source path='{folder}/log'/></serial>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{folder}/secret'/>
      <target dev='vdz' bus='virtio'/></disk>
    """,
    ".": """
    <qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
      <qemu:arg value='-drive'/><qemu:arg value='file={folder}/secret,if=none'/></qemu:commandline>
    <seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>
    """,
    "os": "<kernel>{folder}/secret</kernel>",
}
_PARTS_OF_EVERYTHING = {
    "devices/emulator",
    "devices/filesystem",
    "devices/interface",
    "devices/serial",
    "devices/disk[vdz]",
    "qemu:commandline",
    "seclabel",
    "os/kernel",
}


@pytest.fixture(scope="module")
def shared(session_host: Host) -> Iterator[Shared]:
    host = session_host
    host.clear()
    work = host.dir / "work"
    secret, ran, evil = work / "root-only" / "secret", work / "marks" / "ran", work / "evil"
    secret.parent.mkdir(mode=0o700)
    secret.write_bytes(_SECRET)
    secret.chmod(0o600)
    evil.write_text(f'#!/bin/sh\ntouch {ran}\nexec /usr/bin/qemu-system-x86_64 "$@"\n')
    evil.chmod(0o755)
    ran.parent.mkdir()
    ran.parent.chmod(0o777)  # QEMU's user leaves the mark
    (host.dir / "disks" / "link").symlink_to(secret.parent)

    vm = host.define("guest", disks=[Disk("vda", 4 * MiB)])
    vm.start(paused=True)
    vm.destroy()
    vm.change_nvram()
    write_offline(vm, "vda", random_bytes(1, 256 * KiB), start=64 * KiB)
    truth = read_offline_image(vm.disk_path("vda"))
    other = Vmkeep(host, home=work / "other-home")
    location = work / "repository"
    other.json("init", "--repository", location)
    point = other.backup("guest")
    vm.delete()

    home = host.dir / "home"
    shutil.copytree(other.home / "keys", home / "keys")
    (home / "vmkeep.toml").write_text(f'images_dir = "{host.dir}/disks"\n')
    zygote = Zygote(host, home)
    repository = Repository.open(str(location), lambda recipients: KeyFile.find(home / "keys", recipients[0]))
    record = repository.point(str(point["id"]))
    bed = Shared(host, Forking(host, zygote), truth, ran, secret)
    for name, change in _changes(bed, evil).items():
        with repository.begin(purpose="point", host="elsewhere", cache=work / "cache") as writer:
            bed.forged[name] = writer.commit(replace(change(record), id="", parent=None, checkpoint=None)).id
    with repository.begin(purpose="point", host="elsewhere", cache=work / "cache") as writer:
        variables = writer.put_state(
            _VARIABLES_THAT_NAME_A_FILE,
            vm_uuid=record.vm_uuid,
            kind="nvram",
            generation=90,
            file="nvram.fd",
            owner="root",
            group="root",
            mode=0o600,
        )
        states = (*(each for each in record.states if each.kind != "nvram"), variables.ref())
        forged = replace(record, id="", parent=None, checkpoint=None, states=states)
        bed.forged["variables that name a file"] = writer.commit(forged).id
    bed.vmkeep.json("init", "--repository", location, "--adopt")
    yield bed
    zygote.close()
    host.clear()


def _changes(bed: Shared, evil: Path) -> dict[str, Change]:
    secret, automatic = bed.secret, "<os firmware='efi'>"
    medium = f"<disk device='cdrom'><source file='{secret}'/><target dev='sda' bus='sata'/><readonly/></disk>"
    share = (
        "<filesystem type='mount' accessmode='passthrough'><source dir='/srv/{}'/><target dir='share'/></filesystem>"
    )
    everything = {path: xml.format(evil=evil, folder=secret.parent) for path, xml in _EVERYTHING.items()}
    return {
        "untouched": _edited(),
        "everything": _edited(everything),
        "ordinary": _edited(_ORDINARY),
        "medium of root's": _edited({"devices": medium}),
        "folder": _edited({"devices": share.format("here")}),
        "other folder": _edited({"devices": share.format("there")}),
        "one among many": _edited({"devices": "<oracle/>" * 600 + share.format("many")}),
        "variables elsewhere": _edited(system=(automatic, f"{automatic}<nvram>{secret.parent}/evil</nvram>")),
        "firmware": _edited(system=(automatic, f"<os><loader readonly='yes' type='pflash'>{secret}</loader>")),
        "disk elsewhere": _disk_at(f"{secret.parent}/evil.qcow2"),
        "disk by a link": _disk_at(f"{bed.images}/link/evil.qcow2"),
        "disk of another VM": _disk_at(f"{bed.images}/other-vda.qcow2"),
        "disk of a pool": _disk_at(f"{bed.host.dir}/jobs/pool/below/guest.qcow2"),
        "disk of a hidden folder": _disk_at(f"{bed.host.dir}/jobs/pool/.ssh/guest.qcow2"),
        "disk by dots": _disk_at(f"{bed.images}/../work/root-only/evil.qcow2"),
        "disk with a name": _disk_at(f"{bed.images}/evil.service"),
        "disk with a hidden name": _disk_at(f"{bed.images}/.evil.qcow2"),
    }


@pytest.fixture(autouse=True)
def without_vms(shared: Shared) -> Iterator[None]:
    yield
    for domain in shared.host.connection.listAllDomains():
        shared.host.vm(domain.name()).delete()
    for place in shared.images.iterdir():
        if not place.is_symlink():
            place.unlink()


# -- definitions ---------------------------------------------------------------------------------------------------


def test_definition_that_reaches_into_the_host_is_refused_with_all_of_it(shared: Shared) -> None:
    failure = shared.refused("everything")
    assert (failure.code, failure.status, failure.error["vm"]) == ("definition-reaches-host", 13, "guest")
    assert {part["part"] for part in failure.error["parts"]} == _PARTS_OF_EVERYTHING
    assert all(part["what"] and isinstance(part["strippable"], bool) for part in failure.error["parts"])
    assert "--trust-definition" in failure.error["hint"]
    words = shared.vmkeep.run("restore", shared.forged["everything"], "--as", "guest").stderr
    assert all(part in words for part in _PARTS_OF_EVERYTHING)
    assert str(shared.secret) in words
    both = ("--trust-definition", "--strip-host-parts")
    assert shared.refused("untouched", *both).code == "invalid-request"


def test_what_reaches_into_the_host_is_left_out_when_asked_for(shared: Shared) -> None:
    restored = shared.restored("everything", "--strip-host-parts")
    told = " ".join(restored["warnings"])
    assert all(part in told for part in _PARTS_OF_EVERYTHING)
    root = shared.root()
    xml = etree.tostring(root, encoding="unicode")
    assert str(shared.host.dir / "work") not in xml
    assert root.findall("devices/filesystem") == []
    assert root.findall("seclabel") == []
    assert [disk.find("target").get("dev") for disk in root.iterfind("devices/disk")] == ["vda"]  # type: ignore[union-attr]
    back = shared.host.vm("guest")
    assert read_offline_image(back.disk_path("vda")) == shared.truth
    back.start(paused=True)
    assert back.state() is VmState.PAUSED
    back.destroy()
    shared.assert_untouched()


def test_firmware_of_no_package_is_asked_for_and_cannot_be_left_out(shared: Shared) -> None:
    assert [part["part"] for part in shared.refused("firmware").error["parts"]] == ["os/loader"]
    failure = shared.refused("firmware", "--strip-host-parts")
    assert (failure.code, failure.error["parts"][0]["strippable"]) == ("definition-reaches-host", False)


def test_part_is_found_among_more_than_are_told(shared: Shared) -> None:
    """What libvirt does not know it never hears of, so that is not asked about; it hides nothing either."""
    assert [part["value"] for part in shared.refused("one among many").error["parts"]] == ["/srv/many"]


def test_definition_is_defined_as_it_is_when_a_person_says_so(shared: Shared) -> None:
    assert [part["part"] for part in shared.refused("folder").error["parts"]] == ["devices/filesystem"]
    restored = shared.restored("folder", "--trust-definition")
    assert any("devices/filesystem" in each and "/srv/here" in each for each in restored["warnings"])
    assert shared.root().find("devices/filesystem/source").get("dir") == "/srv/here"  # type: ignore[union-attr]


def test_person_at_a_terminal_is_shown_the_list_and_asked(shared: Shared) -> None:
    terminal = Terminal(shared.vmkeep)
    before = shared.written()
    try:
        terminal.type(f"{COMMAND} restore {shared.forged['folder']} --as guest; echo status $?\n")
        terminal.wait_shown("devices/filesystem: a folder of the host")
        terminal.wait_shown(r"\[y/N\] ")
        terminal.type("n\n")
        terminal.wait_shown("status 2")
        assert shared.written() == before
        terminal.type(f"{COMMAND} restore {shared.forged['folder']} --as guest; echo status $?\n")
        terminal.wait_shown(r"\[y/N\] ")
        terminal.type("y\n")
        terminal.wait_shown("status 0")
    finally:
        terminal.close()
    assert shared.root().find("devices/filesystem") is not None


def test_part_that_this_hosts_own_vm_has_is_let_through_and_no_other(shared: Shared) -> None:
    own = shared.restored("folder", "--trust-definition")
    assert own["identity"] == "same"
    copy = shared.vmkeep.json("restore", shared.forged["folder"], "--as", "copy", "--tpm", "new")["restored"]
    assert copy["identity"] == "new"
    failure = shared.vmkeep.fails("restore", shared.forged["other folder"], "--as", "second", "--tpm", "new")
    assert [part["value"] for part in failure.error["parts"]] == ["/srv/there"]


def test_medium_that_root_alone_may_read_is_left_out_and_told(shared: Shared) -> None:
    restored = shared.restored("medium of root's", "--trust-definition")  # a medium is in no list that was agreed to
    assert any(str(shared.secret) in each for each in restored["warnings"])
    assert {disk.target: disk.path for disk in shared.host.vm("guest").disks()}["sda"] is None


def test_ordinary_vm_of_another_host_is_restored_with_one_command(shared: Shared) -> None:
    restored = shared.restored("ordinary")
    assert (restored["identity"], restored["tpm"]) == ("same", "same")
    assert not any("allowed" in each or "Taken out" in each for each in restored["warnings"])
    root = shared.root()
    for device in ("serial", "graphics", "rng", "watchdog", "sound", "video", "interface/filterref", "tpm"):
        assert root.find(f"devices/{device}") is not None, device
    assert len(root.findall("devices/channel")) == 2
    assert root.findtext("cputune/shares") == "512"
    assert root.find("devices/disk[@device='cdrom']/source") is None
    back = shared.host.vm("guest")
    assert read_offline_image(back.disk_path("vda")) == shared.truth
    # Its own home took this point: whatever it has comes back without a question.
    xml = etree.fromstring(back.xml())
    devices = xml.find("devices")
    assert devices is not None
    devices.append(
        etree.fromstring("<filesystem type='mount'><source dir='/srv/x'/><target dir='share'/></filesystem>")
    )
    shared.host.connection.defineXML(etree.tostring(xml, encoding="unicode"))
    point = shared.vmkeep.backup("guest")
    back.delete()
    shared.vmkeep.json("restore", str(point["id"]), "--as", "guest")
    assert shared.root().find("devices/filesystem") is not None


# -- places --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["disk elsewhere", "disk by a link", "disk by dots"])
def test_disk_lands_in_no_folder_that_only_the_point_names(shared: Shared, name: str) -> None:
    failure = shared.refused(name)
    assert (failure.code, failure.status, failure.error["disk"]) == ("choice-required", 2, "vda")
    assert "--disks-dir" in failure.error["hint"]
    if name == "disk elsewhere":
        assert f"{shared.images}/evil.qcow2" in shared.restored(name, "--disks-dir", shared.images)["files"]


def test_disk_lands_where_this_host_keeps_images(shared: Shared) -> None:
    """In an active pool and below it; beside a disk of a VM; and nowhere when these are gone."""
    pool = shared.host.dir / "jobs" / "pool"
    for folder in (pool / "below", pool / ".ssh"):
        folder.mkdir(parents=True)
    assert shared.refused("disk of a pool").code == "choice-required"
    shared.host.run(["virsh", "pool-create-as", "images", "dir", "--target", pool], check=True)
    assert shared.refused("disk of a hidden folder").code == "choice-required"
    assert f"{pool}/below/guest.qcow2" in shared.restored("disk of a pool")["files"]
    shared.host.run(["virsh", "pool-destroy", "images"], check=True)
    beside = shared.vmkeep.json("restore", shared.forged["disk of a pool"], "--as", "second", "--tpm", "new")[
        "restored"
    ]
    assert f"{pool}/below/second-vda.qcow2" in beside["files"]
    for name in ("guest", "second"):
        shared.host.vm(name).delete()
    assert shared.refused("disk of a pool").code == "choice-required"
    shutil.rmtree(pool)


def test_disk_of_another_vm_is_not_overwritten_by_force_either(shared: Shared) -> None:
    other = shared.host.define("other", disks=[Disk("vda", 4 * MiB)], tpm=False, firmware="bios")
    content = other.disk_path("vda").read_bytes()
    failure = shared.refused("disk of another VM", "--force")
    assert (failure.code, "VM 'other'" in failure.error["message"]) == ("target-exists", True)
    assert other.disk_path("vda").read_bytes() == content


@pytest.mark.parametrize("name", ["disk with a name", "disk with a hidden name"])
def test_disk_gets_no_name_that_something_else_goes_by(shared: Shared, name: str) -> None:
    assert f"{shared.images}/guest-vda.qcow2" in shared.restored(name)["files"]


def test_link_of_another_user_on_the_way_is_not_followed(shared: Shared) -> None:
    theirs = shared.host.dir / "work" / "theirs"
    theirs.symlink_to(shared.secret.parent)
    os.lchown(theirs, pwd.getpwnam("nobody").pw_uid, -1)
    failure = shared.refused("untouched", "--disks-dir", theirs)
    assert failure.code == "permission-denied"
    theirs.unlink()


def test_uefi_variables_land_in_libvirts_folder(shared: Shared) -> None:
    restored = shared.restored("variables elsewhere")
    assert "/var/lib/libvirt/qemu/nvram/guest_VARS.fd" in restored["files"]


def test_uefi_variables_that_name_a_file_are_given_to_no_qemu(shared: Shared) -> None:
    assert shared.refused("variables that name a file").code == "state-unsupported"
