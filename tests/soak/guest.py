"""A VM of a life: the real one and its model, and what its guest and its owner do to it without vmkeep."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import libvirt
from lxml import etree

from tests.rig import Host, MiB, Vm, VmState
from tests.rig.images import luks_object, luks_options, random_bytes
from tests.soak.model import DiskModel, Moment, SnapshotModel, States, Violation
from tests.system.offline import write_offline, zero_offline

_SETTLE_SECONDS = 120.0
_HALTED_SAMPLES = 20
_LIBVIRT_INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE


@dataclass(slots=True)
class Guest:
    """``state`` is what the VM must do now, ``pid`` the process of its QEMU, which must stay until a step ends it."""

    host: Host
    vm: Vm
    disks: dict[str, DiskModel]
    state: VmState = VmState.OFF
    pid: str = ""
    settled: bool = False
    saved: bool = False  # its memory is in a file of libvirt's, and it goes on from there when it is started
    snapshots: dict[str, SnapshotModel] = field(default_factory=dict)
    checkpoints: set[str] = field(default_factory=set)  # those of others

    @property
    def name(self) -> str:
        return self.vm.name

    @property
    def off(self) -> bool:
        return self.state is VmState.OFF

    @property
    def encrypted(self) -> frozenset[str]:
        return frozenset(target for target, disk in self.disks.items() if disk.kind.luks)

    @property
    def in_io_threads(self) -> bool:
        return any(disk.kind.iothread for disk in self.disks.values())

    # -- power -------------------------------------------------------------------------------------------------

    def start(self, *, run: bool) -> None:
        """Start it paused; with ``run`` let its firmware come to rest, after which no state file changes."""
        if self.saved:
            self.vm.start()
            self.state, self.settled, self.saved = VmState.RUNNING, True, False
            self.pid = self.qemu_pid()
            return
        deadline = time.monotonic() + 30
        while True:
            try:
                self.vm.start(paused=True)
                break
            except libvirt.libvirtError as error:  # an image that a killed command's qemu-nbd is just closing
                if '"write" lock' not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        self.state, self.settled = VmState.PAUSED, False
        self.pid = self.qemu_pid()
        if run:
            self.resume()

    def resume(self) -> None:
        self.vm.resume()
        self.state = VmState.RUNNING
        self.settle()

    def suspend(self) -> None:
        self.vm.suspend()
        self.state = VmState.PAUSED

    def reset(self) -> None:
        self.vm.reset()
        self.settled = False
        self.settle()

    def settle(self) -> None:
        """Wait until the firmware waits for a key; see ``Vm.settle``, which a busy machine is too slow for."""
        halted = 0
        deadline = time.monotonic() + _SETTLE_SECONDS
        while halted < _HALTED_SAMPLES and not self.settled:
            if time.monotonic() > deadline:
                raise Violation(f"the firmware of {self.name} does not come to rest")
            halted = halted + 1 if "HLT=1" in self.vm.monitor("info registers") else 0
            time.sleep(0.02)
        self.settled = True

    def stop(self) -> None:
        """Let QEMU end in order."""
        self.vm.domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
        self.ended()

    def activate_disks(self) -> None:
        """Let a paused guest run for a moment, so that QEMU may write to its images.

        Until it runs QEMU has given them up, since it saved its memory or was started from one: a write from the
        monitor, which no guest can do then, ends it (`child->perm & BLK_PERM_WRITE`, 7.2).
        """
        if self.state is VmState.PAUSED:
            self.vm.resume()
            self.vm.suspend()

    def save_memory(self) -> None:
        """virsh managedsave."""
        self.vm.domain.managedSave()
        self.ended()
        self.saved = True

    def kill_qemu(self, *, flush: bool = True) -> None:
        """kill -9 of QEMU, after the guest has flushed its disks: what it wrote must be there afterwards."""
        if flush:
            self.flush_all()
        self.host.run(["kill", "-KILL", self.pid], check=True)
        deadline = time.monotonic() + 20
        while self.vm.state() is not VmState.OFF:
            if time.monotonic() > deadline:
                raise Violation(f"libvirt does not see that QEMU of {self.name} was killed")
            time.sleep(0.02)
        self.ended()

    def ended(self) -> None:
        self.state, self.pid, self.settled = VmState.OFF, "", False

    def qemu_pid(self) -> str:
        """Return the process of its QEMU as the host counts, "" when there is none."""
        path = self.host.path(f"/run/libvirt/qemu/{self.name}.pid")
        return path.read_text().strip() if path.exists() else ""

    # -- writes ------------------------------------------------------------------------------------------------

    def write(self, target: str, start: int, content: bytes) -> None:
        if self.off:
            write_offline(self.vm, target, content, start=start)
        else:
            self.vm.write_bytes(target, start=start, content=content)
        self.disks[target].image.write(start, content)

    def fill(self, target: str, start: int, length: int, byte: int) -> None:
        if self.off:
            write_offline(self.vm, target, bytes([byte]) * length, start=start)
        else:
            self.vm.write(target, start=start, length=length, pattern=byte)
        self.disks[target].image.fill(start, length, byte)

    def zero(self, target: str, start: int, length: int, *, unmap: bool) -> None:
        if self.off:
            zero_offline(self.vm, target, start=start, length=length)
        else:
            self.vm.write_zeroes(target, start=start, length=length, unmap=unmap)
        self.disks[target].image.fill(start, length, 0)

    def discard(self, target: str, start: int, length: int) -> None:
        """Discard a range. What it reads afterwards is the disk's choice, so it is read back, block by block."""
        self.vm.discard(target, start=start, length=length)
        image = self.disks[target].image
        old, new = image.read(start, length), self.read(target)[start : start + length]
        for place in range(0, length, 512):
            piece = new[place : place + 512]
            if piece not in (old[place : place + 512], bytes(512)):
                raise Violation(f"{target} of {self.name} reads neither old data nor zeros at {start + place}")
        image.write(start, new)

    def write_random(self, target: str, start: int, length: int, seed: int) -> None:
        self.write(target, start, random_bytes(seed, length))

    def flush(self, target: str) -> None:
        """Let QEMU write to the image what it holds of it in memory."""
        if self.off:
            return
        disk = self.vm.disk(target)
        behind = "/virtio-backend" if disk.bus == "virtio" else ""
        said = self.vm.monitor(f'qemu-io -d /machine/peripheral/{disk.alias}{behind} "flush"')
        if said:
            raise Violation(f"flush of {target} of {self.name}: {said}")

    # -- what it holds -----------------------------------------------------------------------------------------

    def read_to(self, target: str, raw: Path) -> None:
        """Write what a guest reads from a disk to a raw file, without vmkeep and without a job."""
        self.flush(target)
        disk = self.vm.disk(target)
        assert disk.path is not None
        read_image(disk.path, disk.format, raw, self.vm.passphrase(target))

    def read(self, target: str) -> bytes:
        raw = self.host.dir / "jobs" / f"read-{self.name}-{target}.raw"
        try:
            self.read_to(target, raw)
            return raw.read_bytes()
        finally:
            raw.unlink(missing_ok=True)

    def states(self) -> States:
        """Return the state files; those of a firmware that is at work are nobody's to know."""
        if self.state is VmState.RUNNING and not self.settled:
            return States(None, None)
        return States(self.vm.nvram(), self.vm.tpm_state())

    def now(self) -> Moment:
        """Return all of the VM as it is at this moment, from the model of its disks and the files of its state."""
        images = {target: disk.image.copy() for target, disk in self.disks.items()}
        return Moment(self.vm.uuid, images, self.states(), self.encrypted)

    def flush_all(self) -> None:
        for target in self.disks:
            self.flush(target)

    def change_states(self, *, tpm: bool) -> None:
        self.vm.change_nvram(unseen=True)
        if tpm and self.off:
            self.vm.change_tpm()

    # -- definition --------------------------------------------------------------------------------------------

    def definition(self, *, inactive: bool) -> etree._Element:
        return etree.fromstring(self.vm.domain.XMLDesc(_LIBVIRT_INACTIVE if inactive else 0))

    def paths(self) -> dict[str, Path]:
        return {disk.target: disk.path for disk in self.vm.disks() if disk.path is not None}

    def hold_bitmaps(self) -> set[str]:
        """Return the disks whose images can hold bitmaps: qcow2 of version 3, by their own headers."""
        return {target for target, path in self.paths().items() if _is_qcow2_version_3(path)}


def snapshot_sources(guest: Guest, name: str) -> dict[str, Path]:
    """Return the images with the state of a snapshot, by target, as libvirt's record names them."""
    record = etree.fromstring(guest.vm.domain.snapshotLookupByName(name).getXMLDesc())
    taken = {str(disk.get("name")) for disk in record.iterfind("disks/disk") if disk.get("snapshot") == "external"}
    found = {}
    for disk in record.iterfind("domain/devices/disk"):
        target, path = str(disk.xpath("string(target/@dev)")), str(disk.xpath("string(source/@file)"))
        if target in taken and path:
            found[target] = Path(path)
    return found


def _is_qcow2_version_3(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8) == b"QFI\xfb\0\0\0\3"


def read_image(path: Path, image_format: str, raw: Path, passphrase: str | None = None) -> None:
    """Convert an image that may be in use to a raw file."""
    opened = ["-f", image_format, str(path)]
    if passphrase is not None:
        opened = ["--object", luks_object(passphrase), "--image-opts", luks_options(path, image_format)]
    command = ["qemu-img", "convert", "-U", "-O", "raw", *opened, str(raw)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Violation(f"{path} cannot be read: {done.stderr.strip()}")


def grown(size_bytes: int, more_bytes: int) -> int:
    """Return a larger size that every format can have."""
    return min(-(-(size_bytes + more_bytes) // 512) * 512, 96 * MiB)
