"""What a VM really is at a moment, taken without vmkeep, and the comparisons that everything is judged by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import libvirt

from tests.rig import Vm, VmState, assert_images_equal, read_offline_image

PERMALL = Path("tpm/tpm2/tpm2-00.permall")


@dataclass(frozen=True, slots=True)
class Truth:
    """Whole images by target, and the bytes of the state files; None where the VM has none."""

    images: dict[str, bytes]
    tpm: bytes | None
    nvram: bytes | None

    @classmethod
    def of(cls, vm: Vm, targets: Sequence[str] | None = None, *, uefi: bool = True, tpm: bool = True) -> Truth:
        """Read a VM that keeps still: paused, off, or settled."""
        chosen = targets if targets is not None else [disk.target for disk in vm.disks()]
        return cls(
            images={target: vm.read_image(target) for target in chosen},
            tpm=vm.tpm_state() if tpm else None,
            nvram=vm.nvram() if uefi else None,
        )

    def assert_files(self, directory: Path, image_format: str = "qcow2") -> None:
        """Fail unless a restore to files holds exactly this: every byte, and no other file."""
        for target, image in self.images.items():
            restored = read_offline_image(directory / f"{target}.{image_format}", image_format)
            assert_images_equal(restored, image, target)
        assert _content(directory / "nvram.fd") == self.nvram
        assert _content(directory / PERMALL) == self.tpm
        expected = {f"{target}.{image_format}" for target in self.images} | {"domain.xml"}
        expected |= {"nvram.fd"} if self.nvram is not None else set()
        expected |= {"tpm"} if self.tpm is not None else set()
        assert {entry.name for entry in directory.iterdir()} == expected

    def assert_vm(self, vm: Vm) -> None:
        """Fail unless a VM, which must be off or paused, holds exactly this."""
        for target, image in self.images.items():
            assert_images_equal(vm.read_image(target), image, target)
        if self.nvram is not None:
            assert vm.nvram() == self.nvram
        if self.tpm is not None:
            assert vm.tpm_state() == self.tpm


def checkpoints(vm: Vm) -> list[str]:
    return sorted(checkpoint.getName() for checkpoint in vm.domain.listAllCheckpoints())


def has_backup_job(vm: Vm) -> bool:
    try:
        vm.domain.backupGetXMLDesc()
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID):
            return False
        raise
    return True


def assert_left_alone(vm: Vm, *, state: VmState = VmState.RUNNING, checkpoints_before: Sequence[str] = ()) -> None:
    """Fail unless a point that was refused or failed has left nothing: state, job, checkpoints, files."""
    assert vm.state() is state
    assert not has_backup_job(vm)
    assert checkpoints(vm) == sorted(checkpoints_before)
    left = [path for path in (vm.host.dir / "disks").rglob("*") if "scratch" in path.name]
    assert left == []
    assert list(vm.host.path("/var/lib/libvirt/qemu").glob("domain-*/vmkeep-*")) == []
    run = vm.host.path("/run/vmkeep")
    assert not run.exists() or list(run.iterdir()) == []


def guardians(home: Path) -> list[int]:
    """Return the guardians of an installation, as seen from outside of the host."""
    living = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdecimal() else []
        except OSError:
            continue
        if b"vmkeep.host.guard.guardian" in words and any(os.fsencode(home) in word for word in words):
            living.append(int(entry.name))
    return living


def files_below(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory with its content, directories with none, to see that nothing changed.

    Without SQLite's shared memory: an index of the log, in which each reader marks where it reads.
    """
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b""
        for path in sorted(directory.rglob("*"))
        if not path.name.endswith(".sqlite-shm")
    }


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
