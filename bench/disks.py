"""What lies on the disks that are measured, and what changes on them.

A disk has 2 GiB, 60 % of it data in pieces of 1 MiB, half of that incompressible and half text-like. A change is 1 %
of the disk in random pieces of 64 KiB, incompressible.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.rig import Disk, GiB, Host, KiB, MiB, Vm, random_bytes

SIZE_BYTES = 2 * GiB
DIRTY_PIECE_BYTES = 64 * KiB
DIRTY_BYTES = SIZE_BYTES // 100 // DIRTY_PIECE_BYTES * DIRTY_PIECE_BYTES
_DATA_SHARE = 0.6


def define_filled(host: Host, name: str, *, image_format: str = "qcow2") -> Vm:
    """Define a VM with UEFI firmware and a vTPM that is off. Its disk has the content of every other one made here."""
    vm = host.define(name, disks=(Disk("vda", size_bytes=SIZE_BYTES, format=image_format),), firmware="uefi", tpm=True)
    convert = ["qemu-img", "convert", "-O", image_format, str(_content(host)), str(vm.disk_path("vda"))]
    subprocess.run(convert, check=True)
    return vm


def start_quiet(vm: Vm) -> None:
    """Start a VM and suspend it once its firmware is at rest, so that emulation takes no processor time."""
    vm.start()
    vm.settle()
    vm.suspend()


def dirty(vms: Sequence[Vm], generator: random.Random) -> None:
    """Make the same change on the disk of each VM, running or off."""
    rewrite(vms, piece_starts(generator), generator)


def piece_starts(generator: random.Random) -> list[int]:
    """Return where the pieces of one change lie."""
    count = DIRTY_BYTES // DIRTY_PIECE_BYTES
    return [piece * DIRTY_PIECE_BYTES for piece in generator.sample(range(SIZE_BYTES // DIRTY_PIECE_BYTES), count)]


def rewrite(vms: Sequence[Vm], starts: Sequence[int], generator: random.Random) -> None:
    """Write new random content of one piece at each start on the disk of each VM."""
    seeds = [generator.getrandbits(32) for _ in starts]
    for vm in vms:
        if vm.domain.isActive():
            for start, seed in zip(starts, seeds, strict=True):
                vm.write_random("vda", start=start, length=DIRTY_PIECE_BYTES, seed=seed)
        else:
            _write_offline(vm, starts, seeds)


def _write_offline(vm: Vm, starts: Sequence[int], seeds: Sequence[int]) -> None:
    """Write as a guest would, bitmaps included: QEMU's block layer records in those that the image holds."""
    disk = vm.disk("vda")
    commands: list[str] = []
    with tempfile.TemporaryDirectory(dir=vm.host.dir / "work") as directory:
        for start, seed in zip(starts, seeds, strict=True):
            pattern = Path(directory) / str(start)
            pattern.write_bytes(random_bytes(seed, DIRTY_PIECE_BYTES))
            commands += ["-c", f"write -q -s {pattern} {start} {DIRTY_PIECE_BYTES}"]
        subprocess.run(["qemu-io", "-f", disk.format, *commands, str(disk.path)], check=True)


def _content(host: Host) -> Path:
    """Return the raw file with the content, made once for each host."""
    path = host.dir / "content.raw"
    if path.exists():
        return path
    generator = random.Random(42)
    words = [generator.randbytes(6).hex() for _ in range(4096)]
    with path.open("wb") as raw:
        raw.truncate(SIZE_BYTES)
        for piece in range(SIZE_BYTES // MiB):
            if generator.random() >= _DATA_SHARE:
                continue
            raw.seek(piece * MiB)
            if generator.random() < 0.5:
                raw.write(generator.randbytes(MiB))
            else:
                raw.write(" ".join(generator.choices(words, k=MiB // 13 + 1)).encode()[:MiB])
    return path
