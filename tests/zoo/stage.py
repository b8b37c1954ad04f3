"""A row's VM on a host, with what each of its disks must hold, kept beside it from what was written."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import libvirt
from lxml import etree

from tests.rig import Disk, Host, KiB, Vm, VmState, assert_images_equal, random_bytes
from tests.rig.external_tpm import external_tpm
from tests.system.offline import loop_device
from tests.system.truth import has_backup_job
from tests.zoo.images import PASSPHRASE, Laid, lay
from tests.zoo.row import Image, Row

EXTERNAL_TPM = "external"


@dataclass(frozen=True, slots=True)
class Held:
    """What a VM held at an instant: disks by target, state files by their path below its directory."""

    disks: dict[str, bytes]
    nvram: bytes | None
    tpm: dict[str, bytes]


@dataclass(slots=True)
class Stage:
    """The VM of a row."""

    row: Row
    host: Host
    vm: Vm
    laid: dict[str, Laid]
    _seed: int = 0

    @property
    def directory(self) -> Path:
        return self.host.dir / "disks" / self.row.directory

    def start(self) -> None:
        """Start it. With UEFI or a TPM it stays paused, so that its state files keep still."""
        self.vm.start(paused=self.row.paused or self.row.uefi or self.row.tpm is not None)

    # -- what is written ---------------------------------------------------------------------------------------

    def change(self) -> None:
        """Write something new to every disk, to the UEFI variables and to the TPM, whatever state the VM is in."""
        self._seed += 1
        off = self.vm.state() is VmState.OFF
        for number, laid in enumerate(self.laid.values()):
            if laid.image.written:
                self.follow(laid)
                self._write(laid, self._seed * 100 + number, off=off)
        if self.row.uefi and self._nvram() is not None:
            self.vm.change_nvram()
        if off and self.row.tpm is not None and "version='2.0'" in self.row.tpm and not self.row.tpm_encrypted:
            self.vm.change_tpm()

    def _write(self, laid: Laid, seed: int, *, off: bool) -> None:
        size, block = len(laid.content), laid.image.block_bytes
        last = size // block * block
        if last < 256 * KiB:
            pieces = [(0, random_bytes(seed, min(last, block * (seed % 5 + 1))))] if last else []
        else:
            where = (seed * 7 * 64 * KiB + 4 * KiB) % (last - 256 * KiB) // (4 * KiB) * (4 * KiB)
            pieces = [
                (where, random_bytes(seed, 130 * KiB // block * block)),
                (last - block, bytes([seed % 251]) * block),
            ]
        for start, data in pieces:
            if off:
                laid.write_off(start, data, self.host.dir / "work" / "piece")
            else:
                self.vm.write_bytes(laid.image.target, start=start, content=data)
                laid.content[start : start + len(data)] = data
        if not off and last >= 256 * KiB and not laid.image.fragile:
            # Zero first, then given back: a discard alone may do nothing (QEMU rounds it, drivers ignore it).
            zero = seed * 5 * 64 * KiB % (last - 128 * KiB) // (64 * KiB) * (64 * KiB)
            self.vm.write_zeroes(laid.image.target, start=zero, length=64 * KiB)
            self.vm.discard(laid.image.target, start=zero, length=64 * KiB)
            laid.content[zero : zero + 64 * KiB] = bytes(64 * KiB)

    def follow(self, laid: Laid) -> None:
        """Look where the disk's top image is now."""
        if laid.image.place in ("file", "link"):
            disk = self.vm.disk(laid.image.target)
            assert disk.path is not None
            laid.overlaid |= disk.path != laid.path and laid.image.in_snapshot
            laid.path, laid.top = disk.path, disk.format

    # -- what is held ------------------------------------------------------------------------------------------

    def held(self) -> Held:
        """Return what it must hold now, of disks by what was written, of state files by what lies there."""
        return Held({target: bytes(laid.content) for target, laid in self.laid.items()}, self._nvram(), self._tpm())

    def went_back(self, held: Held, *, by_snapshot: bool = False) -> Held:
        """Note that its disks hold again what they held then; return what it must hold now."""
        for target, content in held.disks.items():
            image = self.laid[target].image
            if image.in_snapshot if by_snapshot else image.in_place:
                self.laid[target].content[:] = content
        return replace(held, disks={target: bytes(laid.content) for target, laid in self.laid.items()})

    def _nvram(self) -> bytes | None:
        if not self.row.uefi:
            return None
        path = self.vm.nvram_path
        return path.read_bytes() if path.exists() else None

    def _tpm(self) -> dict[str, bytes]:
        return tpm_files(self.vm) if self.row.tpm not in (None, EXTERNAL_TPM) else {}

    def assert_holds(self, held: Held, *, state: bool = True) -> None:
        """Fail unless the VM holds this: its images as QEMU's tools read them, or the guest's sight while it is on."""
        off = self.vm.state() is VmState.OFF
        for target, content in held.disks.items():
            laid = self.laid[target]
            self.follow(laid)
            if off:
                if laid.image.place != "nbd":
                    assert_images_equal(laid.read_off(), content, target)
            elif laid.image.written and not laid.image.encrypted and not laid.image.fragile:
                assert_images_equal(self.vm.read_image(target), content, f"{target} of the running VM")
        if state:
            assert self._nvram() == held.nvram, "the UEFI variables are not those"
            assert self._tpm() == held.tpm, "the TPM state is not that"

    def assert_left_alone(self, state: VmState, *, job: bool = False) -> None:
        """Fail when the VM is in another state, a backup job is left, or another's is gone."""
        assert self.vm.state() is state, f"the VM is {self.vm.state().value}, it was {state.value}"
        assert has_backup_job(self.vm) is job, "another's backup job is gone" if job else "a backup job is left"

    def close(self) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            self.vm.destroy()


def tpm_files(vm: Vm) -> dict[str, bytes]:
    """Return the TPM state of a VM by the path of each file; locks and logs are none."""
    found = {}
    for path in sorted(vm.tpm_directory.rglob("*permall")):
        found[str(path.relative_to(vm.tpm_directory))] = path.read_bytes()
    return found


@contextlib.contextmanager
def staged(row: Row, host: Host) -> Iterator[Stage]:
    """Make the VM of a row; everything of it ends with the block, and the host's ``clear`` removes it."""
    with contextlib.ExitStack() as resources:
        directory = host.dir / "disks" / row.directory
        directory.mkdir(parents=True, exist_ok=True)
        if row.directory:
            directory.chmod(0o755)
        name = row.vm_name or row.name
        laid: dict[str, Laid] = {}
        disks: list[Disk] = []
        elements: list[str] = []
        for number, image in enumerate(row.images):
            disk, element, content = _disk(image, host, directory, row.name, number, resources)
            if content is not None and image.device == "disk":  # a medium in a drive is no part of a point
                laid[image.target] = content
            if disk is not None:
                disks.append(disk)
            else:
                elements.append(element)
        backend = _backend(row, host, resources)

        def edit(root: etree._Element) -> None:
            for image in row.images:
                _edit_driver(root, image)
            for change in row.edits:
                change(root, directory)

        vm = host.define(
            name,
            disks=disks,
            firmware="uefi" if row.firmware == "uefi" else "bios",
            tpm=row.tpm is not None,
            tpm_backend=backend,
            device_xml=[*elements, *(each.replace("{place}", str(directory)) for each in row.devices)],
            edit=edit,
        )
        stage = Stage(row, host, vm, laid)
        try:
            yield stage
        finally:
            stage.close()


def _disk(
    image: Image, host: Host, directory: Path, name: str, number: int, resources: contextlib.ExitStack
) -> tuple[Disk | None, str, Laid | None]:
    """Return the rig's disk, or the XML of one that it does not know, and what it holds."""
    file = image.file or f"{name}-{image.target}.{image.format}"
    path = directory / file
    rig = {
        "target": image.target,
        "size_bytes": image.size_bytes,
        "format": image.format,
        "bus": image.bus,
        "device": image.device,
        "extra_xml": image.elements,
    }
    if not image.medium:
        return Disk(**rig, media=False), "", None  # type: ignore[arg-type] # values of the names above
    if image.place == "block":
        first = lay(image, directory / file, number + 1)
        device = resources.enter_context(loop_device(path, bytes(first.content), *_sectors(image)))
        return None, _element(image, "block", f"dev='{device}'"), Laid(image, device, first.content, image.format)
    laid = lay(image, path, number + 1)
    if image.place == "volume":
        host.run(["virsh", "pool-create-as", f"zoo{number}", "dir", "--target", str(directory)], check=True)
        resources.callback(host.run, ["virsh", "pool-destroy", f"zoo{number}"])
        return None, _element(image, "volume", f"pool='zoo{number}' volume='{file}'"), laid
    if image.place == "nbd":
        socket = resources.enter_context(_served(path, image.format, host.dir / "jobs" / f"nbd{number}"))
        source = f"<source protocol='nbd'><host transport='unix' socket='{socket}'/></source>"
        return None, _element(image, "network", "", source), laid
    if image.place == "link":
        real = path.with_name(f"real-{path.name}")
        path.rename(real)
        path.symlink_to(real.name)
    secret = host.secret(PASSPHRASE) if image.encrypted else None
    return Disk(**rig, path=path, secret=secret), "", laid  # type: ignore[arg-type] # values of the names above


def _sectors(image: Image) -> list[str]:
    return [f"--sector-size={image.block_bytes}"] if image.block_bytes != 512 else []


def _element(image: Image, kind: str, source: str, whole: str = "") -> str:
    inner = whole or f"<source {source}/>"
    image_format = "raw" if kind == "network" else image.format
    return (
        f"<disk type='{kind}' device='disk'><driver name='qemu' type='{image_format}' discard='unmap'/>{inner}"
        f"<target dev='{image.target}' bus='{image.bus}'/>{''.join(image.elements)}</disk>"
    )


def _edit_driver(root: etree._Element, image: Image) -> None:
    (disk,) = root.xpath(f"devices/disk[target/@dev='{image.target}']")
    assert isinstance(disk, etree._Element)
    driver = disk.find("driver")
    assert driver is not None
    for name, value in image.driver:
        driver.set(name, value)


@contextlib.contextmanager
def _served(path: Path, image_format: str, socket: Path) -> Iterator[Path]:
    command = ["qemu-nbd", "-f", image_format, "--persistent", "--shared=8", "-k", str(socket), str(path)]
    with subprocess.Popen(command) as server:
        try:
            while not socket.exists():
                assert server.poll() is None
                time.sleep(0.02)
            socket.chmod(0o777)
            yield socket
        finally:
            server.terminate()
    socket.unlink(missing_ok=True)


def _backend(row: Row, host: Host, resources: contextlib.ExitStack) -> str | None:
    if row.tpm == EXTERNAL_TPM:
        return resources.enter_context(external_tpm(host))
    if row.tpm is None or not row.tpm_encrypted:
        return row.tpm
    return row.tpm.replace("{secret}", host.define_secret(b"a value of some length"))
