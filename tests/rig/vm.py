"""A guest of the rig, and the truth about it.

No operating system runs in it. Writes come from QEMU's monitor (``qemu-io`` on the disk's device, which takes the same
way through the block layer as a guest's write and so marks the dirty bitmaps), state changes from the firmware, and
what the disks really hold is read through a backup job of the rig's own.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import re
import secrets
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt
import nbd
from lxml import etree
from lxml.builder import E

from tests.rig import images, monitor
from tests.rig.domain_xml import TPM_BACKEND, DirectBoot, Disk, DiskInUse, disks_of, domain_xml
from tests.rig.errors import RigError
from tests.rig.tpm import SoftwareTpm

if TYPE_CHECKING:
    from tests.rig.host import Host

__all__ = ["Disk", "DiskInUse", "Vm", "VmState"]

_UNDEFINE_ALL = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    | libvirt.VIR_DOMAIN_UNDEFINE_TPM
)
# The variables file ends with the spare area of the firmware's fault tolerant write, which it only looks at after an
# interrupted update (EDK II, FaultTolerantWriteDxe). So the firmware never minds what is there.
_NVRAM_SPARE_BYTES = 512
_TIMEOUT_SECONDS = 20.0
_REST_SECONDS = 90.0  # four of a processor's own; on a busy machine it takes far longer
_HALTED_SAMPLES = 20
_READ_BYTES = 4 << 20
# QEMU 10 opens no disk of a VM that is paused since its memory was saved or loaded, until it runs.
_INACTIVE = re.compile(r"Inactive '[^']*' can't be a backing child of active '")


class VmState(enum.Enum):
    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"
    OTHER = "other"


_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: VmState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: VmState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: VmState.OFF,
}


class Vm:
    """A VM on a rig's host, known by its UUID, so that it may be renamed, undefined and defined again."""

    def __init__(self, host: Host, vm_uuid: str, name: str) -> None:
        self.host = host
        self.uuid = vm_uuid
        self.name = name

    @classmethod
    def define(
        cls,
        host: Host,
        name: str,
        *,
        disks: Sequence[Disk],
        firmware: str,
        tpm: bool,
        memory_mib: int,
        device_xml: Sequence[str],
        boot: DirectBoot | None = None,
        tpm_backend: str | None = None,
        edit: Callable[[etree._Element], None] | None = None,
    ) -> Vm:
        """Make the disks and define the VM; ``Host.define`` is the way to call it."""
        if firmware not in ("uefi", "bios"):
            raise RigError(f"firmware is uefi or bios, not {firmware}")
        placed: list[tuple[Disk, Path | None]] = []
        for disk in disks:
            path = disk.path or host.dir / "disks" / f"{name}-{disk.target}.{disk.format}"
            if disk.media and disk.secret is not None and not path.exists():
                images.make_luks(path, disk.format, disk.size_bytes, disk.secret.value, disk.create_options)
            elif disk.media and not path.exists():
                images.make_empty(path, disk.format, disk.size_bytes, disk.create_options)
            placed.append((disk, path if disk.media else None))
        uefi = firmware == "uefi"
        xml = domain_xml(
            name,
            placed,
            uefi=uefi,
            tpm=(tpm_backend or TPM_BACKEND) if tpm else None,
            memory_mib=memory_mib,
            device_xml=device_xml,
            boot=boot,
        )
        if edit is not None:
            root = etree.fromstring(xml)
            edit(root)
            xml = _xml(root)
        return cls(host, host.connection.defineXML(xml).UUIDString(), name)

    # -- life ------------------------------------------------------------------------------------------------

    @property
    def domain(self) -> libvirt.virDomain:
        """The libvirt domain, looked up anew, because libvirtd may have been restarted."""
        return self.host.connection.lookupByUUIDString(self.uuid)

    def start(self, *, paused: bool = False) -> None:
        """Start it, about 1 s. ``paused``: the firmware does not run, so NVRAM and TPM keep still."""
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        for last in (False, False, True):
            try:
                self.domain.createWithFlags(flags)
                return
            except libvirt.libvirtError as error:
                # libvirt connects to swtpm before that listens, when the machine is busy (seen once on 9.0).
                said = str(error)
                if last or "swtpm.sock" not in said or "Connection refused" not in said:
                    raise

    def destroy(self) -> None:
        """Pull the plug; nothing happens when it is off."""
        with contextlib.suppress(libvirt.libvirtError):
            self.domain.destroy()

    def suspend(self) -> None:
        self.domain.suspend()

    def resume(self) -> None:
        self.domain.resume()

    def reset(self) -> None:
        """Press the reset button: the firmware boots again, and changes TPM state (0.4 s) and NVRAM (some s)."""
        self.domain.reset()

    def state(self) -> VmState:
        return _STATES.get(self.domain.state()[0], VmState.OTHER)

    def settle(self) -> None:
        """Wait until the firmware has found nothing to boot and waits for a key: it changes no state from then on.

        It then executes HLT between timer ticks; while it works it does not.
        """
        halted = 0
        deadline = time.monotonic() + _REST_SECONDS
        while halted < _HALTED_SAMPLES:
            if time.monotonic() > deadline:
                raise RigError(f"the firmware of {self.name} does not come to rest")
            halted = halted + 1 if "HLT=1" in self.monitor("info registers") else 0
            time.sleep(0.02)

    def undefine(self) -> None:
        """Remove the definition with NVRAM, TPM state and all metadata. The disks stay."""
        self.domain.undefineFlags(_UNDEFINE_ALL)

    def delete(self) -> None:
        """Remove it and every disk that lies in the host's directory, whatever state it is in."""
        paths = [disk.path for disk in self.disks() if disk.path is not None]
        if self.domain.isActive():
            self.host.kill_vm(self.name)  # libvirt sleeps 0.2 s after a signal, unless there is nobody
            self.destroy()
        self.undefine()
        for path in paths:
            if path.is_relative_to(self.host.dir):
                path.unlink(missing_ok=True)

    # -- what it is made of ----------------------------------------------------------------------------------

    def xml(self) -> str:
        return self.domain.XMLDesc()

    def disks(self) -> list[DiskInUse]:
        return disks_of(self.xml())

    def disk(self, target: str) -> DiskInUse:
        for disk in self.disks():
            if disk.target == target:
                return disk
        raise RigError(f"{self.name} has no disk {target}")

    def disk_path(self, target: str) -> Path:
        path = self.disk(target).path
        if path is None:
            raise RigError(f"disk {target} of {self.name} has no file")
        return path

    @property
    def tpm_directory(self) -> Path:
        """The directory that holds ``tpm2/tpm2-00.permall``, as seen from outside."""
        return self.host.path(f"/var/lib/libvirt/swtpm/{self.uuid}")

    @property
    def nvram_path(self) -> Path:
        """The UEFI variables file as seen from outside; it exists from the first start on.

        While the VM is off, libvirt 9.0 does not know the path that it chose itself, only while it runs: the definition
        then says firmware='efi' and nothing more. The next start takes the file of the VM's name again. 11.3 keeps
        loader and path in the definition.
        """
        root = etree.fromstring(self.xml())
        inner = root.findtext("os/nvram")
        if not inner and root.xpath("os/@firmware") != ["efi"]:
            raise RigError(f"{self.name} has no NVRAM: it has no UEFI firmware")
        return self.host.path(inner or f"/var/lib/libvirt/qemu/nvram/{self.name}_VARS.fd")

    def passphrase(self, target: str) -> str | None:
        """Return what opens an encrypted disk, whoever made its secret; None for a plain one."""
        secret = self.disk(target).secret
        return None if secret is None else self.host.passphrase(secret)

    # -- writes ----------------------------------------------------------------------------------------------

    def monitor(self, command: str) -> str:
        """Send a command to QEMU's human monitor and return its answer."""
        return monitor.human(self.domain, command)

    def write(self, target: str, *, start: int, length: int, pattern: int = 0xAA) -> None:
        """Fill a range with one byte."""
        self.qemu_io(target, [f"write -P {pattern:#04x} {start} {length}"])

    def write_random(self, target: str, *, start: int, length: int, seed: int) -> None:
        """Fill a range with ``images.random_bytes(seed, length)``."""
        self.write_bytes(target, start=start, content=images.random_bytes(seed, length))

    def write_bytes(self, target: str, *, start: int, content: bytes) -> None:
        path = self.host.dir / "jobs" / f"{uuid.uuid4()}.pattern"
        path.write_bytes(content)
        path.chmod(0o644)
        try:
            self.qemu_io(target, [f"write -s {path} {start} {len(content)}"])
        finally:
            path.unlink()

    def write_many(self, target: str, ranges: Sequence[tuple[int, int]], *, pattern: int = 0xAA) -> None:
        """Fill many ranges (start, length); about 1 ms each."""
        self.qemu_io(target, [f"write -P {pattern:#04x} {start} {length}" for start, length in ranges])

    def write_zeroes(self, target: str, *, start: int, length: int, unmap: bool = False) -> None:
        """Make a range zero as a guest's WRITE ZEROES does, with leave to drop the storage when ``unmap``.

        Of a disk in an I/O thread it is written as zeros: the monitor's ``write -z`` on such a disk kills QEMU 7.2.
        """
        if self.disk(target).iothread:
            self.write(target, start=start, length=length, pattern=0)
            return
        self.qemu_io(target, [f"write {'-zu' if unmap else '-z'} {start} {length}"])

    def discard(self, target: str, *, start: int, length: int) -> None:
        self.qemu_io(target, [f"discard {start} {length}"])

    def qemu_io(self, target: str, commands: Sequence[str]) -> None:
        """Carry out qemu-io commands on the disk's device; RigError with QEMU's words when one fails."""
        disk = self.disk(target)
        if disk.alias is None:
            raise RigError(f"{self.name} is off: nothing can write to {target}")
        # virtio-blk hides its back end behind the transport, USB storage behind a SCSI disk; other devices own theirs.
        behind = {"virtio": "/virtio-backend", "usb": f"/{disk.alias}.0/legacy[0]"}
        self._qemu_io_on(f"/machine/peripheral/{disk.alias}{behind.get(disk.bus, '')}", commands)

    def _qemu_io_on(self, device: str, commands: Sequence[str]) -> None:
        log = self.host.path(f"/var/log/libvirt/qemu/{self.name}.log")
        monitor.qemu_io(self.domain, log, device, commands)

    # -- truth about disks -----------------------------------------------------------------------------------

    def read_image(self, target: str) -> bytes:
        """Return all a guest would read from the disk at this moment, running, paused or off."""
        with self._scratch_file("raw") as raw:
            self.read_image_to(target, raw)
            return raw.read_bytes()

    def read_image_to(self, target: str, raw: Path) -> None:
        """Write what ``read_image`` returns to a raw file, sparse where the disk is."""
        if self.state() is VmState.OFF:
            images.convert_to_raw(self.disk_path(target), raw, self.disk(target).format, self.passphrase(target))
            return
        raw.unlink(missing_ok=True)
        if self.disk(target).iothread:
            self._read_and_stay(target, raw)
            return
        try:
            with self.own_backup_job([target]) as socket:
                command = ["nbdcopy", f"nbd+unix:///{target}?socket={socket}", str(raw)]
                result = subprocess.run(command, capture_output=True, text=True, check=False)
        except libvirt.libvirtError as error:
            if not _INACTIVE.search(str(error)):
                raise
            # QEMU has written all that it had and let go of the images: what they hold is what the guest would read.
            images.convert_to_raw(self.disk_path(target), raw, self.disk(target).format, self.passphrase(target))
            return
        if result.returncode != 0:
            raise RigError(f"{self.name}: reading {target} failed: {result.stderr.strip()}")

    def _read_and_stay(self, target: str, raw: Path) -> None:
        """Read a disk and leave its export only when the job is gone: QEMU 7.2 would die (see ``Disk.iothread``)."""
        client = nbd.NBD()
        client.set_export_name(target)
        with raw.open("wb") as file, self.own_backup_job([target]) as socket:
            client.connect_unix(str(socket))
            size = client.get_size()
            for start in range(0, size, _READ_BYTES):
                file.write(client.pread(min(_READ_BYTES, size - start), start))

    def dirty_ranges(self, target: str, since: str) -> list[tuple[int, int]]:
        """Return the ranges (start, length) that QEMU calls dirty since a checkpoint of the running VM."""
        with self.own_backup_job([target], since=since) as socket:
            context = f"--map=qemu:dirty-bitmap:backup-{target}"
            command = ["nbdinfo", "--json", context, f"nbd+unix:///{target}?socket={socket}"]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RigError(f"{self.name}: the dirty bitmap of {target} cannot be read: {result.stderr.strip()}")
        return [(extent["offset"], extent["length"]) for extent in json.loads(result.stdout) if extent["type"] == 1]

    @contextmanager
    def own_backup_job(
        self, targets: Sequence[str], *, checkpoint: str | None = None, since: str | None = None
    ) -> Iterator[Path]:
        """Run a pull backup job for the block and yield its NBD socket; exports are named like the targets.

        ``checkpoint`` is made with it; ``since`` is the checkpoint whose dirty bitmap is exported.
        """
        with self._scratch_file("sock") as socket:
            disks = E.disks()
            for disk in self.disks():
                if disk.target not in targets:
                    disks.append(E.disk(name=disk.target, backup="no"))
                    continue
                scratch = E.scratch(file=f"{socket}.{disk.target}")
                disks.append(E.disk(scratch, name=disk.target, backup="yes", type="file"))
            job = E.domainbackup(E.server(transport="unix", socket=str(socket)), disks, mode="pull")
            if since is not None:
                job.insert(0, E.incremental(since))
            wanted = None if checkpoint is None else _xml(E.domaincheckpoint(E.name(checkpoint)))
            domain = self.domain
            domain.backupBegin(_xml(job), wanted)
            try:
                yield socket
            finally:
                with contextlib.suppress(libvirt.libvirtError):  # the VM may be gone
                    domain.abortJob()
                    _wait_until(lambda: not _has_backup_job(domain), f"the backup job of {self.name} does not end")

    @contextmanager
    def _scratch_file(self, suffix: str) -> Iterator[Path]:
        path = self.host.dir / "jobs" / f"{uuid.uuid4().hex[:12]}.{suffix}"
        try:
            yield path
        finally:
            for left in path.parent.glob(f"{path.name}*"):
                left.unlink()

    # -- truth about state -----------------------------------------------------------------------------------

    def tpm_state(self) -> bytes:
        """Return the vTPM's permanent state file as it is now."""
        return (self.tpm_directory / "tpm2" / "tpm2-00.permall").read_bytes()

    def nvram(self) -> bytes:
        """Return the UEFI variables file as it is now."""
        return self.nvram_path.read_bytes()

    def change_nvram(self, *, unseen: bool = False) -> None:
        """Change the UEFI variables file, at once and only there; the guest may run, be paused or be off.

        While it runs the write goes through QEMU's block layer, as the firmware's do. The spare area counts one up;
        with ``unseen`` it becomes what was never there before: content that returns is what somebody put back.
        """
        path = self.nvram_path
        before = path.read_bytes()
        start = len(before) - _NVRAM_SPARE_BYTES
        fills = secrets.token_bytes(8) if unseen else bytes([(before[start] + 1) % 256])
        part = _NVRAM_SPARE_BYTES // len(fills)
        if self.state() is VmState.OFF:
            with path.open("r+b") as file:
                file.seek(start)
                file.write(b"".join(bytes([fill]) * part for fill in fills))
        else:
            writes = [f"write -P {fill:#04x} {start + number * part} {part}" for number, fill in enumerate(fills)]
            self._qemu_io_on("/machine/system.flash1", writes)
        _wait_until(lambda: path.read_bytes() != before, f"the NVRAM of {self.name} does not change")

    def change_tpm(self) -> None:
        """Change the vTPM's permanent state.

        Running: by a reset, at which the firmware starts the TPM anew (0.4 s; NVRAM changes as well when the boot
        goes on, see ``settle``). Off: by storing a random secret in a new NV index. Paused is refused, because only
        the guest can talk to a TPM.
        """
        before = self.tpm_state()
        state = self.state()
        if state is VmState.OFF:
            self.store_in_tpm(os.urandom(32), index=int.from_bytes(os.urandom(2), "big"))
        elif state is VmState.RUNNING:
            self.reset()
        else:
            raise RigError(f"{self.name} is {state.value}: its TPM can be changed only while it is running or off")
        _wait_until(lambda: self.tpm_state() != before, f"the TPM state of {self.name} does not change")

    def store_in_tpm(self, secret: bytes, *, index: int = 0, key: bytes | None = None) -> None:
        """Store a secret in the TPM of a VM that is off. ``key`` is the value that its state is encrypted with."""
        with self.software_tpm(key) as tpm:
            tpm.store(secret, index)

    def load_from_tpm(self, length: int, *, index: int = 0, key: bytes | None = None) -> bytes:
        """Return the stored secret from the TPM of a VM that is off. Raises NvIndexMissingError in another TPM."""
        with self.software_tpm(key) as tpm:
            return tpm.load(length, index)

    def software_tpm(self, key: bytes | None = None) -> SoftwareTpm:
        """Return the vTPM as a context manager that swtpm runs without the VM, which must be off."""
        if self.state() is not VmState.OFF:
            raise RigError(f"{self.name} is on: its TPM belongs to QEMU")
        return SoftwareTpm(self.tpm_directory / "tpm2", secret=key)


def _xml(element: etree._Element) -> str:
    return etree.tostring(element, encoding="unicode")


def _has_backup_job(domain: libvirt.virDomain) -> bool:
    try:
        domain.backupGetXMLDesc()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_BACKUP:
            return False
        raise
    return True


def _wait_until(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RigError(complaint)
        time.sleep(0.005)
